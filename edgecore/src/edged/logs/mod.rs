//! Reading containers' logs: files in the CRI format, written by `edged-logger`, rotated under the
//! reader's hands. Nothing here needs a daemon: the files say everything but whether the container
//! still runs, which a follower is told by its caller.
//!
//! `entry` is the format, `lines` puts long lines together again and selects (both pure); `files` is what
//! lies where, `read` goes through it step by step, `follow` waits for more with inotify.

mod entry;
mod files;
mod follow;
mod lines;
mod read;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use entry::{Entry, Stream, parse};
pub use files::{ContainerLogs, PodLogs, pods};
pub use follow::{CHUNKS_MAX, COMPLETE_WITHIN, pump, pump_from};
pub use read::{LogReader, Step};

/// What of a log is wanted, as `kubectl logs` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Wait for more until the container ends.
    pub follow: bool,
    /// Only so many lines at the end, over rotated files too.
    pub tail: Option<u64>,
    /// Only lines written at this time or later.
    pub since: Option<jiff::Timestamp>,
    /// The time before each line.
    pub timestamps: bool,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// A piece of a log, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub stream: Stream,
    pub bytes: Vec<u8>,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    #[error("there is no log at `{path}`")]
    Absent { path: PathBuf },
    #[error("cannot read the log `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot wait for news in `{path}`")]
    Watch {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}
