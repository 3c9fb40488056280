//! The durable upstream queue and its ledger (design D3).
//!
//! A row is written in the transaction of the event that caused it and leaves when the hub has
//! acknowledged its sequence number. Per stream `accepted = delivered + pending + expired +
//! evicted` holds at every commit.

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

/// Appends a message inside the caller's transaction and counts it as accepted.
pub fn append(
    tx: &Connection,
    stream: &str,
    message: &[u8],
    now: UnixMillis,
) -> Result<Seq, StoreError> {
    tx.prepare_cached("INSERT INTO outbox (stream, created_ms, message) VALUES (?1, ?2, ?3)")?
        .execute(params![stream, now, message])?;
    let seq = tx.last_insert_rowid();
    tx.prepare_cached(
        "INSERT INTO streams (stream, accepted) VALUES (?1, 1)
         ON CONFLICT (stream) DO UPDATE SET accepted = accepted + 1",
    )?
    .execute([stream])?;
    Ok(u64::try_from(seq).unwrap_or(0))
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
    tx.prepare_cached(
        "INSERT INTO streams (stream, delivered)
         SELECT stream, count(*) FROM outbox WHERE seq <= ?1 GROUP BY stream
         ON CONFLICT (stream) DO UPDATE SET delivered = delivered + excluded.delivered",
    )?
    .execute([seq])?;
    let rows = tx
        .prepare_cached("DELETE FROM outbox WHERE seq <= ?1")?
        .execute([seq])?;
    Ok(u64::try_from(rows).unwrap_or(0))
}

/// Removes one row out of order: what a peer without the batch extension acknowledges.
pub fn delivered_one(tx: &Connection, seq: Seq) -> Result<bool, StoreError> {
    let stream: Option<String> = tx
        .prepare_cached("DELETE FROM outbox WHERE seq = ?1 RETURNING stream")?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    if let Some(stream) = &stream {
        tx.prepare_cached("UPDATE streams SET delivered = delivered + 1 WHERE stream = ?1")?
            .execute([stream])?;
    }
    Ok(stream.is_some())
}

/// Removes one row that the hub will never take (a plain KubeEdge hub is silent about reports it
/// cannot apply) and counts it as expired.
pub fn expired_one(tx: &Connection, seq: Seq) -> Result<bool, StoreError> {
    let stream: Option<String> = tx
        .prepare_cached("DELETE FROM outbox WHERE seq = ?1 RETURNING stream")?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    if let Some(stream) = &stream {
        tx.prepare_cached("UPDATE streams SET expired = expired + 1 WHERE stream = ?1")?
            .execute([stream])?;
    }
    Ok(stream.is_some())
}

/// Every stream's balance, by name.
pub fn ledger(tx: &Connection) -> Result<Vec<Balance>, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT s.stream, accepted, delivered, expired, evicted,
                (SELECT count(*) FROM outbox o WHERE o.stream = s.stream)
         FROM streams s ORDER BY s.stream",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Db;

    #[test]
    fn the_ledger_balances_through_append_and_both_kinds_of_delivery() {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        for n in 0..6_u8 {
            append(tx, if n % 2 == 0 { "a" } else { "b" }, &[n], 1).unwrap();
        }
        assert_eq!(
            pending(tx, 0, 2)
                .unwrap()
                .iter()
                .map(|p| p.seq)
                .collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(delivered_up_to(tx, 3).unwrap(), 3);
        assert!(delivered_one(tx, 5).unwrap());
        assert!(
            !delivered_one(tx, 5).unwrap(),
            "a second acknowledgement changes nothing"
        );
        assert!(expired_one(tx, 6).unwrap() && !expired_one(tx, 6).unwrap());
        let ledger = ledger(tx).unwrap();
        assert!(ledger.iter().all(Balance::is_balanced), "{ledger:?}");
        assert_eq!(ledger[0].delivered, 3);
        assert_eq!((ledger[1].pending, ledger[1].expired), (1, 1));
        assert_eq!(epoch(tx).unwrap(), epoch(tx).unwrap());
    }
}
