//! The durable upstream queue and its ledger (design D3).
//!
//! A row is written in the transaction of the event that caused it and leaves when the hub has
//! acknowledged its sequence number. Per stream `accepted = delivered + pending + expired +
//! evicted` holds at every commit.
//!
//! The whole is bounded ([`quota`]): when it is full the oldest rows of somebody give way, counted
//! as evicted. Nothing is refused and nothing stops (design D12).

mod quota;
#[cfg(test)]
mod tests;

pub(crate) use quota::open_totals;
pub use quota::{BYTES_MAX, UPLOAD_STREAMS_MAX, UPLOADS_OTHER, bytes, set_bytes_max};

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::UnixMillis;
use crate::store::StoreError;

/// Position in the outbox; rises by at least one, never reused within an epoch.
pub type Seq = u64;

/// A row waiting for the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub seq: Seq,
    pub stream: String,
    /// An encoded [`wire`] message (JSON text).
    pub message: Vec<u8>,
}

/// One stream's balance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    pub stream: String,
    pub accepted: u64,
    pub delivered: u64,
    pub pending: u64,
    pub expired: u64,
    pub evicted: u64,
}

impl Balance {
    /// Whether the ledger equation holds.
    pub fn is_balanced(&self) -> bool {
        self.accepted == self.delivered + self.pending + self.expired + self.evicted
    }
}

/// Appends a message inside the caller's transaction and counts it as accepted. A full outbox
/// makes room first; an upload on a topic too many goes to [`UPLOADS_OTHER`].
pub fn append(
    tx: &Connection,
    stream: &str,
    message: &[u8],
    now: UnixMillis,
) -> Result<Seq, StoreError> {
    let cost = quota::cost(message);
    quota::make_room(tx, stream, cost, now)?;
    let stream = if accept(tx, stream, cost)? {
        stream
    } else {
        let stream = quota::new_stream(tx, stream)?;
        tx.prepare_cached(
            "INSERT INTO streams (stream, accepted, bytes) VALUES (?1, 1, ?2)
             ON CONFLICT (stream) DO UPDATE SET accepted = accepted + 1, bytes = bytes + ?2",
        )?
        .execute(params![stream, cost])?;
        stream
    };
    tx.prepare_cached("INSERT INTO outbox (stream, created_ms, message) VALUES (?1, ?2, ?3)")?
        .execute(params![stream, now, message])?;
    Ok(u64::try_from(tx.last_insert_rowid()).unwrap_or(0))
}

/// Counts a row of a stream that exists already.
fn accept(tx: &Connection, stream: &str, cost: u64) -> Result<bool, StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE streams SET accepted = accepted + 1, bytes = bytes + ?2 WHERE stream = ?1",
        )?
        .execute(params![stream, cost])?;
    Ok(changed > 0)
}

/// The oldest rows after `after`, at most `limit`.
pub fn pending(tx: &Connection, after: Seq, limit: usize) -> Result<Vec<Pending>, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT seq, stream, message FROM outbox WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let rows = query.query_map(params![after, limit], |row| {
        Ok(Pending {
            seq: row.get(0)?,
            stream: row.get(1)?,
            message: row.get(2)?,
        })
    })?;
    rows.collect::<Result<_, _>>().map_err(StoreError::from)
}

/// Removes every row up to and including `seq` and counts them as delivered. Returns how many.
pub fn delivered_up_to(tx: &Connection, seq: Seq) -> Result<u64, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT stream, count(*), sum(length(message)) FROM outbox WHERE seq <= ?1 GROUP BY stream",
    )?;
    let sums = query
        .query_map([seq], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<Vec<(String, u64, u64)>, _>>()?;
    let mut removed = 0;
    for (stream, rows, bytes) in &sums {
        let freed = quota::freed(*rows, *bytes);
        settle(tx, stream, Fate::Delivered, *rows, freed)?;
        removed += rows;
    }
    tx.prepare_cached("DELETE FROM outbox WHERE seq <= ?1")?
        .execute([seq])?;
    Ok(removed)
}

/// Removes one row out of order: what a peer without the batch extension acknowledges.
pub fn delivered_one(tx: &Connection, seq: Seq) -> Result<bool, StoreError> {
    remove_one(tx, seq, Fate::Delivered)
}

/// Removes one row that the hub will never take (a plain KubeEdge hub is silent about reports it
/// cannot apply) and counts it as expired.
pub fn expired_one(tx: &Connection, seq: Seq) -> Result<bool, StoreError> {
    remove_one(tx, seq, Fate::Expired)
}

fn remove_one(tx: &Connection, seq: Seq, fate: Fate) -> Result<bool, StoreError> {
    let gone: Option<(String, u64)> = tx
        .prepare_cached("DELETE FROM outbox WHERE seq = ?1 RETURNING stream, length(message)")?
        .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((stream, bytes)) = &gone {
        settle(tx, stream, fate, 1, quota::freed(1, *bytes))?;
    }
    Ok(gone.is_some())
}

/// How a row leaves.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Delivered,
    Expired,
    Evicted,
}

/// Moves rows that leave from pending to their fate, and gives their bytes back.
fn settle(
    tx: &Connection,
    stream: &str,
    fate: Fate,
    rows: u64,
    freed: u64,
) -> Result<(), StoreError> {
    let update = match fate {
        Fate::Delivered => {
            "UPDATE streams SET delivered = delivered + ?2, bytes = bytes - ?3 WHERE stream = ?1"
        }
        Fate::Expired => {
            "UPDATE streams SET expired = expired + ?2, bytes = bytes - ?3 WHERE stream = ?1"
        }
        Fate::Evicted => {
            "UPDATE streams SET evicted = evicted + ?2, bytes = bytes - ?3 WHERE stream = ?1"
        }
    };
    tx.prepare_cached(update)?
        .execute(params![stream, rows, freed])?;
    quota::give_back(tx, freed)
}

/// Every stream's balance, by name.
pub fn ledger(tx: &Connection) -> Result<Vec<Balance>, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT s.stream, accepted, delivered, expired, evicted,
                coalesce(pending.rows, 0)
         FROM streams s
         LEFT JOIN (SELECT stream, count(*) AS rows FROM outbox GROUP BY stream) pending
           ON pending.stream = s.stream
         ORDER BY s.stream",
    )?;
    let rows = query.query_map([], |row| {
        Ok(Balance {
            stream: row.get(0)?,
            accepted: row.get(1)?,
            delivered: row.get(2)?,
            expired: row.get(3)?,
            evicted: row.get(4)?,
            pending: row.get(5)?,
        })
    })?;
    rows.collect::<Result<_, _>>().map_err(StoreError::from)
}

/// The outbox's epoch: made once per database. With it the hub tells a node that lost its
/// database (sequence numbers start again) from one that resends.
pub fn epoch(tx: &Connection) -> Result<String, StoreError> {
    let fresh = uuid::Uuid::new_v4().to_string();
    tx.execute(
        "INSERT INTO facts (name, value) VALUES ('outbox_epoch', ?1) ON CONFLICT DO NOTHING",
        [&fresh],
    )?;
    Ok(tx.query_row(
        "SELECT value FROM facts WHERE name = 'outbox_epoch'",
        [],
        |r| r.get(0),
    )?)
}
