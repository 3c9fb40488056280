//! The writer thread: many transactions in one commit, each with its own revision and outcome.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::{BATCH_TXNS_MAX, History, id_of, last_id_of, revision_of};
use crate::store::feed::Feed;
use crate::store::{Entry, Event, Op, Require, Revision, StoreError, Txn};

/// Where the outcome of a transaction goes.
pub(super) type Reply = oneshot::Sender<Result<Revision, StoreError>>;

/// What one commit did.
struct Committed {
    /// One for each transaction of the batch.
    outcomes: Vec<Result<Revision, StoreError>>,
    events: Vec<Arc<Event>>,
}

/// What the writer thread owns.
pub(super) struct Writer {
    conn: Connection,
    history: History,
    pub(super) revision: Revision,
    floor: Revision,
    /// Rows and bytes newer than the floor.
    rows: u64,
    bytes: u64,
}

impl Writer {
    pub(super) fn new(conn: Connection, history: History) -> Result<Self, StoreError> {
        let (revision, floor): (u64, u64) =
            conn.query_row("SELECT revision, floor FROM state", [], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })?;
        let (rows, bytes): (u64, u64) = conn.query_row(
            "SELECT count(*), coalesce(sum(length(value)), 0) FROM log WHERE id > ?",
            [last_id_of(floor)],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )?;
        Ok(Self {
            conn,
            history,
            revision,
            floor,
            rows,
            bytes,
        })
    }

    /// Runs every transaction in one commit; `Err` means that none happened.
    fn commit(&mut self, batch: &[(Txn, Reply)]) -> Result<Committed, StoreError> {
        let tx = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut events = Vec::new();
        let mut revision = self.revision;
        let mut bytes = 0;
        for (txn, _) in batch {
            let outcome = match check(&tx, txn)? {
                Some(refusal) => Err(refusal),
                None if txn.ops.is_empty() => Ok(revision),
                None => {
                    revision += 1;
                    apply(&tx, txn, revision, &mut events, &mut bytes)?;
                    Ok(revision)
                }
            };
            outcomes.push(outcome);
        }
        let mut rows = self.rows + events.len() as u64;
        let mut total = self.bytes + bytes;
        let mut floor = self.floor;
        if revision != self.revision {
            if rows > self.history.rows_max || total > self.history.bytes_max {
                (floor, rows, total) = compact(&tx, self.floor, revision, self.history)?;
            }
            tx.prepare_cached("UPDATE state SET revision = ?, floor = ?")?
                .execute([revision, floor])?;
            tx.commit()?;
        }
        self.revision = revision;
        self.floor = floor;
        self.rows = rows;
        self.bytes = total;
        Ok(Committed { outcomes, events })
    }
}

fn current(tx: &Connection, key: &str) -> rusqlite::Result<Option<u64>> {
    tx.prepare_cached("SELECT id FROM current WHERE key = ?")?
        .query_row([key], |r| r.get(0))
        .optional()
}

/// `Some` says which requirement does not hold.
fn check(tx: &Connection, txn: &Txn) -> Result<Option<StoreError>, StoreError> {
    if let Err(refusal) = txn.check() {
        return Ok(Some(refusal));
    }
    for require in &txn.require {
        let (Require::Absent(key) | Require::At(key, _) | Require::Exists(key)) = require;
        let found = current(tx, key)?.map(revision_of);
        let holds = match require {
            Require::Absent(_) => found.is_none(),
            Require::At(_, revision) => found == Some(*revision),
            Require::Exists(_) => found.is_some(),
        };
        if !holds {
            return Ok(Some(StoreError::Conflict {
                key: key.clone(),
                found,
            }));
        }
    }
    Ok(None)
}

fn row(tx: &Connection, id: u64, key: &Arc<str>) -> rusqlite::Result<Option<Entry>> {
    tx.prepare_cached("SELECT create_id, value FROM log WHERE id = ?")?
        .query_row([id], |r| {
            let value: Option<Vec<u8>> = r.get(1)?;
            Ok(value.map(|value| Entry {
                key: Arc::clone(key),
                value: Bytes::from(value),
                revision: revision_of(id),
                create_revision: r.get(0).map_or(0, revision_of),
            }))
        })
        .optional()
        .map(Option::flatten)
}

fn apply(
    tx: &Connection,
    txn: &Txn,
    revision: Revision,
    events: &mut Vec<Arc<Event>>,
    bytes: &mut u64,
) -> rusqlite::Result<()> {
    for (index, op) in txn.ops.iter().enumerate() {
        let id = id_of(revision, index as u64);
        let key: Arc<str> = op.key().into();
        let prev_id = current(tx, &key)?;
        let prev = match prev_id {
            Some(prev_id) => row(tx, prev_id, &key)?,
            None => None,
        };
        let mut insert = tx.prepare_cached(
            "INSERT INTO log (id, key, create_id, prev_id, value) VALUES (?, ?, ?, ?, ?)",
        )?;
        let create_revision = prev.as_ref().map_or(revision, |p| p.create_revision);
        let value = match op {
            Op::Put(_, value) => {
                *bytes += value.len() as u64;
                insert.execute(params![
                    id,
                    &*key,
                    id_of(create_revision, 0),
                    prev_id,
                    &value[..]
                ])?;
                tx.prepare_cached(
                    "INSERT INTO current (key, id) VALUES (?1, ?2)
                     ON CONFLICT (key) DO UPDATE SET id = ?2",
                )?
                .execute(params![&*key, id])?;
                Some(Entry {
                    key: Arc::clone(&key),
                    value: value.clone(),
                    revision,
                    create_revision,
                })
            }
            Op::Delete(_) => {
                if prev_id.is_none() {
                    continue;
                }
                insert.execute(params![
                    id,
                    &*key,
                    id_of(create_revision, 0),
                    prev_id,
                    None::<&[u8]>
                ])?;
                tx.prepare_cached("DELETE FROM current WHERE key = ?")?
                    .execute([&*key])?;
                None
            }
        };
        events.push(Arc::new(Event::new(revision, key, value, prev)));
    }
    Ok(())
}

/// Moves the floor up to leave the newest rows; returns the new floor and what is above it.
fn compact(
    tx: &Connection,
    floor: Revision,
    latest: Revision,
    history: History,
) -> rusqlite::Result<(Revision, u64, u64)> {
    let target: Option<u64> = tx
        .query_row(
            "SELECT id FROM log ORDER BY id DESC LIMIT 1 OFFSET ?",
            [history.rows_kept],
            |r| r.get(0),
        )
        .optional()?;
    let mut target = target.map_or(floor, revision_of).max(floor);
    // Few large rows: keep at most half of the bytes.
    let bytes_over: u64 = tx.query_row(
        "SELECT coalesce(sum(length(value)), 0) FROM log WHERE id > ?",
        [last_id_of(target)],
        |r| r.get(0),
    )?;
    if bytes_over > history.bytes_max / 2 {
        target = latest.saturating_sub(1).max(target);
    }
    let range = [last_id_of(floor), last_id_of(target)];
    tx.execute(
        "DELETE FROM log WHERE id IN
           (SELECT prev_id FROM log WHERE id > ? AND id <= ? AND prev_id IS NOT NULL)",
        range,
    )?;
    tx.execute(
        "DELETE FROM log WHERE id > ? AND id <= ? AND value IS NULL",
        range,
    )?;
    let (rows, bytes) = tx.query_row(
        "SELECT count(*), coalesce(sum(length(value)), 0) FROM log WHERE id > ?",
        [last_id_of(target)],
        |r| Ok((r.get(0)?, r.get(1)?)),
    )?;
    Ok((target, rows, bytes))
}

/// Until every clone of the store is gone; then the log is folded into the file.
pub(super) fn run(mut writer: Writer, mut inbox: mpsc::Receiver<(Txn, Reply)>, feed: &Feed) {
    while let Some(first) = inbox.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_TXNS_MAX
            && let Ok(next) = inbox.try_recv()
        {
            batch.push(next);
        }
        match writer.commit(&batch) {
            Ok(Committed { outcomes, events }) => {
                if !events.is_empty() {
                    feed.publish(events, writer.revision);
                }
                for ((_, reply), outcome) in batch.into_iter().zip(outcomes) {
                    // The asker may have gone; the change stands.
                    drop(reply.send(outcome));
                }
            }
            Err(error) => {
                for (_, reply) in batch {
                    drop(reply.send(Err(error.clone())));
                }
            }
        }
    }
    feed.close();
    if let Err(error) = writer
        .conn
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    {
        tracing::warn!(%error, "checkpoint on shutdown failed; the log is replayed at next start");
    }
}
