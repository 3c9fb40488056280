//! What nodes have reported, exactly once.
//!
//! A batch carries the epoch of the node's outbox and rising sequence numbers. What a batch changes
//! (device statuses), the position it reaches and the readings kept for inspection commit in one
//! transaction, so a batch that comes again changes nothing: everything at or below the stored
//! position is a repeat. The acknowledgement follows the commit.
//!
//! A batch may hold history: the backlog of a long outage, sent after the newest values. It counts
//! and is kept, and never touches a device's status.
//!
//! Keys: `/outpost/ledger/<node>` holds position and counts, `/outpost/ledger-log/<node>/<n>` the
//! readings of one commit; the oldest are dropped beyond a bound.

mod fold;
mod record;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use apiserver::store::{ListQuery, Op, Require, Store, StoreError, Txn};
use record::{Kept, log_key};
pub use record::{LogEntry, NodeRecord, log_prefix, record_key};
use wire::{
    extension::{Batch, Entry, GAPS_STREAM, Gaps},
    message::Message,
};

use fold::Fold;
pub use fold::new_status;

/// Most devices whose status one transaction writes; a batch that touches more is committed in
/// parts, each with its own position.
const DEVICES_PER_TXN: usize = 48;
/// Most log segments one transaction drops.
const DROPS_PER_TXN: usize = 16;
/// Attempts when somebody else writes the same objects.
const ATTEMPTS_MAX: usize = 8;
/// Epoch of reports from plain peers, which have no sequence numbers: the hub counts them.
pub const PLAIN_EPOCH: &str = "plain";

/// A connection that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Its number: later ones have higher ones.
    pub connection: u64,
    /// Epoch and highest stored sequence number.
    pub acked: Option<(String, u64)>,
}

/// The ledger of all nodes.
pub struct Ledger {
    store: Arc<dyn Store>,
    readings_max: usize,
    /// Which log segments each node has; read from the store when first needed.
    kept: Mutex<HashMap<String, Kept>>,
}

impl Ledger {
    /// A ledger in `store` that keeps the last `readings_max` readings of each node.
    pub fn new(store: Arc<dyn Store>, readings_max: usize) -> Self {
        Self {
            store,
            readings_max,
            kept: Mutex::default(),
        }
    }

    /// Epoch and highest stored sequence number of a node.
    pub async fn acked(&self, node: &str) -> Result<Option<(String, u64)>, StoreError> {
        let (record, _) = self.load(node).await?;
        let batched = !record.epoch.is_empty();
        Ok(batched.then_some((record.epoch, record.sequence)))
    }

    /// Begins a connection of a node. What an older one still has in hand is refused from now on:
    /// the node gives what is not acknowledged other numbers, and would be counted twice.
    pub async fn begin(&self, node: &str) -> Result<Begun, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (mut record, revision) = self.load(node).await?;
            record.connection += 1;
            let key = record_key(node);
            let mut txn = empty().put(key.clone(), encode(&record)?);
            txn.require.push(match revision {
                0 => Require::Absent(key),
                at => Require::At(key, at),
            });
            match self.store.txn(txn).await {
                Ok(_) => {
                    let batched = !record.epoch.is_empty();
                    return Ok(Begun {
                        connection: record.connection,
                        acked: batched.then_some((record.epoch, record.sequence)),
                    });
                }
                Err(StoreError::Conflict { .. }) if attempt < ATTEMPTS_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Commits a batch; returns the position that may be acknowledged.
    pub async fn commit(&self, node: &str, batch: &Batch) -> Result<u64, StoreError> {
        let acked = self.commit_of(node, None, batch).await?;
        Ok(acked.unwrap_or_default())
    }

    /// The same for one connection of the node; `None`, and nothing taken, when there is a newer
    /// one.
    pub async fn commit_of(
        &self,
        node: &str,
        connection: Option<u64>,
        batch: &Batch,
    ) -> Result<Option<u64>, StoreError> {
        let mut rest = batch.entries.as_slice();
        loop {
            let Some((sequence, taken)) = self
                .commit_some((node, connection), &batch.epoch, rest)
                .await?
            else {
                return Ok(None);
            };
            rest = rest.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(Some(sequence));
            }
        }
    }

    /// Commits one report of a plain peer, which has no sequence number of its own.
    pub async fn commit_plain(
        &self,
        node: &str,
        stream: String,
        message: &Message,
    ) -> Result<(), StoreError> {
        let entry = Entry {
            seq: 0,
            stream,
            message: message.clone(),
            history: false,
        };
        self.commit_some((node, None), PLAIN_EPOCH, std::slice::from_ref(&entry))
            .await?;
        Ok(())
    }

    /// The record and the newest `limit` readings of a node, oldest first.
    pub async fn read(
        &self,
        node: &str,
        limit: usize,
    ) -> Result<Option<(NodeRecord, Vec<LogEntry>)>, StoreError> {
        let (record, revision) = self.load(node).await?;
        if revision == 0 || (record.received == 0 && record.epoch.is_empty()) {
            return Ok(None);
        }
        let query = ListQuery {
            prefix: log_prefix(node),
            ..ListQuery::default()
        };
        let mut entries = Vec::new();
        for segment in self.store.list(query).await?.entries {
            let part: Vec<LogEntry> = serde_json::from_slice(&segment.value).unwrap_or_default();
            entries.extend(part);
        }
        let skip = entries.len().saturating_sub(limit);
        entries.drain(..skip);
        Ok(Some((record, entries)))
    }

    async fn load(&self, node: &str) -> Result<(NodeRecord, u64), StoreError> {
        Ok(match self.store.get(&record_key(node)).await? {
            Some(entry) => (
                serde_json::from_slice(&entry.value).unwrap_or_default(),
                entry.revision,
            ),
            None => (NodeRecord::default(), 0),
        })
    }

    /// Commits a prefix of `entries`; returns the position and how many entries were taken, `None`
    /// for a connection that is not the newest.
    async fn commit_some(
        &self,
        (node, connection): (&str, Option<u64>),
        epoch: &str,
        entries: &[Entry],
    ) -> Result<Option<(u64, usize)>, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (record, revision) = self.load(node).await?;
            if connection.is_some_and(|connection| connection < record.connection) {
                return Ok(None);
            }
            let mut kept = self.kept(node).await?;
            match self
                .attempt(node, epoch, entries, (record, revision), &mut kept)
                .await
            {
                Ok(done) => {
                    self.remember(node, kept);
                    return Ok(Some(done));
                }
                // An older session of the node, or a person editing a device's status.
                Err(StoreError::Conflict { .. }) if attempt < ATTEMPTS_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn attempt(
        &self,
        node: &str,
        epoch: &str,
        entries: &[Entry],
        (mut record, revision): (NodeRecord, u64),
        kept: &mut Kept,
    ) -> Result<(u64, usize), StoreError> {
        let plain = epoch == PLAIN_EPOCH;
        if !plain && record.epoch != epoch {
            // A new outbox (a node set up anew): its numbers start again, the counts go on.
            epoch.clone_into(&mut record.epoch);
            record.sequence = 0;
        }
        let mut fold = Fold::new(node, (!plain).then_some(epoch), &*self.store);
        let mut log = Vec::new();
        let mut taken = 0;
        for entry in entries {
            if fold.devices() >= DEVICES_PER_TXN {
                break;
            }
            taken += 1;
            let seq = if plain {
                // Counted apart: it must not move the position of the node's outbox.
                record.plain_sequence += 1;
                record.plain_sequence
            } else if entry.seq <= record.sequence {
                record.repeated += 1;
                continue;
            } else {
                record.sequence = entry.seq;
                entry.seq
            };
            record.received += 1;
            record.history += u64::from(entry.history);
            if entry.stream == GAPS_STREAM
                && let Ok(gaps) = entry.message.content.decode::<Gaps>()
            {
                record.lose(gaps.gaps);
            }
            let count = record.count(&entry.stream);
            log.push(fold.apply(seq, entry, count).await?);
        }
        let sequence = record.sequence;
        if log.is_empty() {
            return Ok((sequence, taken));
        }
        let mut txn = fold.into_txn();
        txn.require.push(match revision {
            0 => Require::Absent(record_key(node)),
            at => Require::At(record_key(node), at),
        });
        let segment = record.next_segment;
        record.next_segment += 1;
        kept.segments.push_back((segment, log.len()));
        kept.readings += log.len();
        for _ in 0..DROPS_PER_TXN {
            match kept.segments.front().copied() {
                Some((oldest, n)) if kept.readings - n >= self.readings_max => {
                    kept.segments.pop_front();
                    kept.readings -= n;
                    txn.ops.push(Op::Delete(log_key(node, oldest)));
                }
                _ => break,
            }
        }
        let txn = txn
            .put(log_key(node, segment), encode(&log)?)
            .put(record_key(node), encode(&record)?);
        self.store.txn(txn).await?;
        Ok((sequence, taken))
    }

    /// Which segments a node has.
    async fn kept(&self, node: &str) -> Result<Kept, StoreError> {
        let known = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
        if let Some(kept) = known {
            return Ok(kept);
        }
        let query = ListQuery {
            prefix: log_prefix(node),
            ..ListQuery::default()
        };
        let mut kept = Kept::default();
        for segment in self.store.list(query).await?.entries {
            let number = segment
                .key
                .rsplit('/')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
            let part: Vec<serde::de::IgnoredAny> =
                serde_json::from_slice(&segment.value).unwrap_or_default();
            kept.segments.push_back((number, part.len()));
            kept.readings += part.len();
        }
        Ok(kept)
    }

    fn remember(&self, node: &str, kept: Kept) {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node.to_owned(), kept);
    }

    /// Forgets what is only cached about a node that went away.
    pub fn forget(&self, node: &str) {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Refused(error.to_string()))
}

/// A transaction to start from.
fn empty() -> Txn {
    Txn::new()
}

#[cfg(test)]
mod tests;
