//! The durable upstream queue and its ledger (design D3).
//!
//! A row is written in the transaction of the event that caused it and leaves when the hub has
//! acknowledged its sequence number. Per stream `accepted = delivered + pending + expired +
//! evicted` holds at every commit.
//!
//! The whole is bounded ([`quota`]): when it is full the oldest rows of somebody give way, counted
//! as evicted. A stream may have a bound, a lifetime and a priority of its own ([`policy`]); only
//! one that was configured so refuses anything. What was lost is told to the hub ([`gaps`]).

mod fold;
mod gaps;
mod history;
mod policy;
mod quota;
pub mod report;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

pub use gaps::{gaps, queue_gaps};
pub use history::{Newest, Told, mark, newest, release, resume, resume_plain};
pub use policy::{ANNOTATION, Policy, PolicyError, RULES_MAX, Rule, set_device_policy, set_rules};
pub use quota::{BYTES_MAX, UPLOAD_STREAMS_MAX, UPLOADS_OTHER, bytes, set_bytes_max};

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::UnixMillis;
use crate::store::StoreError;
use gaps::Lost;
use policy::WhenFull;

/// Times before this are of a clock that was not set yet: nothing expires by them.
const CLOCK_SET_MS: i64 = 1_577_836_800_000;
/// Rows that expire in one transaction.
const EXPIRED_MAX: usize = 10_000;

/// Makes what the writer's connection keeps in memory. Called once, after the migrations.
pub(crate) fn open(conn: &Connection) -> Result<(), StoreError> {
    quota::open_totals(conn)?;
    policy::open(conn)
}

/// Position in the outbox; rises by at least one, never reused within an epoch.
pub type Seq = u64;

/// A row waiting for the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub seq: Seq,
    pub stream: String,
    /// An encoded [`wire`] message (JSON text).
    pub message: Vec<u8>,
    /// Part of a backlog; a newer value has been told before it.
    pub is_history: bool,
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
    /// Publishes that were never accepted: the stream refuses when it is full.
    pub refused: u64,
    /// What the pending rows cost.
    pub bytes: u64,
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
    append_about(tx, stream, "", message, now)
}

/// The same for a message that tells about `key`: in a stream that keeps the newest of a key, a
/// row about the same one gives way.
///
/// # Errors
/// [`StoreError::Quota`] when the stream is full and refuses; nothing was changed then.
pub fn append_about(
    tx: &Connection,
    stream: &str,
    key: &str,
    message: &[u8],
    now: UnixMillis,
) -> Result<Seq, StoreError> {
    let message = &fold::fold(message);
    let cost = quota::cost(message);
    let total = quota::charge(tx, cost)?;
    let policy = if total.ruled {
        Some(policy::of(tx, stream)?)
    } else {
        Policy::unruled(stream)
    };
    let newest_only = policy.is_some_and(|p| p.when_full == WhenFull::KeepNewest);
    let mut has_room = true;
    if let Some(policy) = &policy {
        if newest_only {
            supersede(tx, stream, key)?;
        }
        has_room = quota::make_room_in(tx, stream, cost, policy, now)?;
    }
    has_room = has_room && quota::make_room(tx, stream, (cost, &total), policy.as_ref(), now)?;
    if !has_room && policy.is_some_and(|p| p.when_full == WhenFull::Refuse) {
        quota::give_back(tx, cost)?;
        return Err(StoreError::Quota {
            stream: stream.to_owned(),
        });
    }
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
    let seq = insert(tx, stream, newest_only.then_some(key), message, now)?;
    if !has_room {
        // Everything that waits is worth more: this one is lost, and said so.
        remove_one(tx, seq, Fate::Evicted)?;
    }
    Ok(seq)
}

fn insert(
    tx: &Connection,
    stream: &str,
    key: Option<&str>,
    message: &[u8],
    now: UnixMillis,
) -> Result<Seq, StoreError> {
    tx.prepare_cached(
        "INSERT INTO outbox (stream, created_ms, message, same_key) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![stream, now, message, key])?;
    Ok(u64::try_from(tx.last_insert_rowid()).unwrap_or(0))
}

/// A newer value comes: the older one is no gap, but counts.
fn supersede(tx: &Connection, stream: &str, key: &str) -> Result<(), StoreError> {
    let mut query = tx.prepare_cached(
        "DELETE FROM outbox WHERE stream = ?1 AND same_key = ?2 RETURNING length(message)",
    )?;
    let gone = query
        .query_map([stream, key], |row| row.get(0))?
        .collect::<Result<Vec<u64>, _>>()?;
    for bytes in gone {
        settle(tx, stream, Fate::Evicted, 1, quota::freed(1, bytes))?;
    }
    Ok(())
}

/// Counts a publish that was refused.
pub fn count_refused(tx: &Connection, stream: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE streams SET refused = refused + 1 WHERE stream = ?1")?
        .execute([stream])?;
    Ok(())
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

/// The oldest rows after `after`, at most `limit`. Rows of a backlog are among them only once they
/// were [`release`]d: ask from the mark on.
pub fn pending(tx: &Connection, after: Seq, limit: usize) -> Result<Vec<Pending>, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT seq, stream, message, origin IS NOT NULL FROM outbox
         WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let rows = query.query_map(params![after, limit], |row| {
        Ok(Pending {
            seq: row.get(0)?,
            stream: row.get(1)?,
            message: fold::unfold(row.get_ref(2)?.as_bytes()?),
            is_history: row.get(3)?,
        })
    })?;
    rows.collect::<Result<_, _>>().map_err(StoreError::from)
}

/// Removes every row up to and including `seq` and counts them as delivered, except those of a
/// backlog that are still to come. Returns how many.
pub fn delivered_up_to(tx: &Connection, seq: Seq) -> Result<u64, StoreError> {
    let mark = mark(tx)?;
    let mut query = tx.prepare_cached(
        "SELECT stream, count(*), sum(length(message)) FROM outbox
         WHERE seq > ?1 AND seq <= ?2 GROUP BY stream",
    )?;
    let sums = query
        .query_map([mark, seq], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?
        .collect::<Result<Vec<(String, u64, u64)>, _>>()?;
    let mut removed = 0;
    for (stream, rows, bytes) in &sums {
        let freed = quota::freed(*rows, *bytes);
        settle(tx, stream, Fate::Delivered, *rows, freed)?;
        removed += rows;
    }
    tx.prepare_cached("DELETE FROM outbox WHERE seq > ?1 AND seq <= ?2")?
        .execute([mark, seq])?;
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
    let gone: Option<(String, u64, UnixMillis)> = tx
        .prepare_cached(
            "DELETE FROM outbox WHERE seq = ?1 RETURNING stream, length(message), created_ms",
        )?
        .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    if let Some((stream, bytes, created)) = &gone {
        let lost = Lost::one(seq, quota::freed(1, *bytes), *created);
        leave(tx, stream, fate, &lost)?;
    }
    Ok(gone.is_some())
}

/// Rows leave for good; those that the hub does not have are remembered as a gap.
fn leave(tx: &Connection, stream: &str, fate: Fate, lost: &Lost) -> Result<(), StoreError> {
    settle(tx, stream, fate, lost.rows, lost.freed)?;
    match fate {
        Fate::Delivered => Ok(()),
        Fate::Expired | Fate::Evicted => gaps::note(tx, stream, fate, lost),
    }
}

/// Removes what is older than its stream lets it be; how many rows. Times of a clock that was not
/// set, or that was set back, expire nothing.
pub fn expire(tx: &Connection, now: UnixMillis) -> Result<u64, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT o.seq FROM outbox o JOIN temp.outbox_policies p ON p.stream = o.stream
         WHERE p.ttl_ms IS NOT NULL AND o.created_ms >= ?1 AND o.created_ms + p.ttl_ms < ?2
         LIMIT ?3",
    )?;
    let limited: bool = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM temp.outbox_policies WHERE ttl_ms IS NOT NULL)",
        )?
        .query_row([], |row| row.get(0))?;
    if !limited {
        return Ok(0);
    }
    let due = query
        .query_map(params![CLOCK_SET_MS, now, EXPIRED_MAX], |row| row.get(0))?
        .collect::<Result<Vec<Seq>, _>>()?;
    let mut rows = 0;
    for seq in due {
        rows += u64::from(expired_one(tx, seq)?);
    }
    Ok(rows)
}

/// How a row leaves.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Delivered,
    Expired,
    Evicted,
}

impl Fate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Expired => "expired",
            Self::Evicted => "evicted",
        }
    }
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
                coalesce(pending.rows, 0), refused, bytes
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
            refused: row.get(6)?,
            bytes: row.get(7)?,
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
