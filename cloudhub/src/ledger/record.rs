//! What is stored.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wire::extension::Gap;

/// Position and counts of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeRecord {
    /// Epoch of the node's outbox.
    pub epoch: String,
    /// Highest sequence number stored.
    pub sequence: u64,
    /// Reports that came without a sequence number, from plain peers.
    pub plain_sequence: u64,
    /// Messages stored, over all epochs.
    pub received: u64,
    /// Messages that came again and were skipped.
    pub repeated: u64,
    /// Of them, those of a backlog, which came after newer ones.
    pub history: u64,
    /// Number of the node's newest connection; batches of an older one are refused.
    pub connection: u64,
    /// What the node accepted and will never send, newest last; at most [`GAPS_MAX`].
    pub gaps: VecDeque<Gap>,
    /// Messages stored by stream.
    pub streams: BTreeMap<String, u64>,
    /// Number of the next log segment.
    pub next_segment: u64,
}

/// Most streams counted apart per node: a node chooses their names (an upload's topic), and the
/// record is written with every batch.
pub(super) const STREAMS_MAX: usize = 1024;
/// Where the rest, and streams with longer names than [`STREAM_BYTES_MAX`], are counted.
pub(super) const OTHER_STREAMS: &str = "other";
/// Longest name of a stream that is counted apart.
pub(super) const STREAM_BYTES_MAX: usize = 1024;

/// Gaps kept per node.
pub(super) const GAPS_MAX: usize = 100;

impl NodeRecord {
    /// Adds what a node has lost.
    pub(super) fn lose(&mut self, gaps: Vec<Gap>) {
        self.gaps.extend(gaps);
        let surplus = self.gaps.len().saturating_sub(GAPS_MAX);
        self.gaps.drain(..surplus);
    }

    /// Counts one message of a stream; returns how many there were.
    pub(super) fn count(&mut self, stream: &str) -> u64 {
        let is_known = self.streams.contains_key(stream);
        let fits = self.streams.len() < STREAMS_MAX && stream.len() <= STREAM_BYTES_MAX;
        let name = if is_known || fits {
            stream
        } else {
            OTHER_STREAMS
        };
        let count = self.streams.entry(name.to_owned()).or_default();
        *count += 1;
        *count
    }
}

/// One stored reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Sequence number within the epoch.
    pub seq: u64,
    /// Stream: `twin/<ns>/<device>`, `state/<ns>/<device>`, `upload/<topic>`.
    pub stream: String,
    /// The report's own id.
    pub id: String,
    /// The report's own time, Unix milliseconds.
    pub at: i64,
    /// Reported values by property; the state; or the uploaded text, cut to 1 KiB.
    pub value: Value,
    /// Part of a backlog: newer values were told before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub history: bool,
}

/// Which log segments exist, oldest first, and how many readings they hold.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) segments: VecDeque<(u64, usize)>,
    pub(super) readings: usize,
}

/// Key of a node's record.
pub fn record_key(node: &str) -> String {
    format!("/outpost/ledger/{node}")
}

/// Prefix of a node's log segments.
pub fn log_prefix(node: &str) -> String {
    format!("/outpost/ledger-log/{node}/")
}

pub(super) fn log_key(node: &str, segment: u64) -> String {
    format!("{}{segment:016}", log_prefix(node))
}
