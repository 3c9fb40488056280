//! What left without reaching the hub, kept until it was told so.
//!
//! One row per stream and fate, widened by each loss, so that a year of losses stays small. When
//! the link is up the rows become one message of stream [`wire::extension::GAPS_STREAM`], in one
//! transaction: the hub hears of each gap exactly once, as of a reading.

use rusqlite::{Connection, params};
use uuid::Uuid;
use wire::extension::{GAPS_STREAM, Gap, Gaps};

use super::{Fate, Seq, append};
use crate::clock::UnixMillis;
use crate::store::StoreError;

/// Gaps in one message.
const GAPS_MAX: usize = 100;

/// Rows of one stream that leave together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub rows: u64,
    /// What they cost.
    pub freed: u64,
    pub first_seq: Seq,
    pub last_seq: Seq,
    pub first_ms: UnixMillis,
    pub last_ms: UnixMillis,
}

impl Lost {
    pub(super) fn one(seq: Seq, freed: u64, created: UnixMillis) -> Self {
        Self {
            rows: 1,
            freed,
            first_seq: seq,
            last_seq: seq,
            first_ms: created,
            last_ms: created,
        }
    }

    /// Adds a later row.
    pub(super) fn add(&mut self, seq: Seq, freed: u64, created: UnixMillis) {
        self.rows += 1;
        self.freed += freed;
        self.last_seq = seq;
        self.first_ms = self.first_ms.min(created);
        self.last_ms = self.last_ms.max(created);
    }
}

/// Remembers a loss.
pub(super) fn note(
    tx: &Connection,
    stream: &str,
    fate: Fate,
    lost: &Lost,
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO gaps (stream, fate, rows, first_seq, last_seq, first_ms, last_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT DO UPDATE SET rows = rows + excluded.rows,
             first_seq = min(first_seq, excluded.first_seq),
             last_seq = max(last_seq, excluded.last_seq),
             first_ms = min(first_ms, excluded.first_ms),
             last_ms = max(last_ms, excluded.last_ms)",
    )?
    .execute(params![
        stream,
        fate.as_str(),
        lost.rows,
        lost.first_seq,
        lost.last_seq,
        lost.first_ms,
        lost.last_ms
    ])?;
    Ok(())
}

/// The gaps that the hub was not told yet.
pub fn gaps(tx: &Connection) -> Result<Vec<Gap>, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT stream, fate, rows, first_seq, last_seq, first_ms, last_ms FROM gaps
         ORDER BY stream, fate LIMIT ?1",
    )?;
    let rows = query.query_map([GAPS_MAX], |row| {
        Ok(Gap {
            stream: row.get(0)?,
            fate: row.get(1)?,
            rows: row.get(2)?,
            first_seq: row.get(3)?,
            last_seq: row.get(4)?,
            first_ms: row.get(5)?,
            last_ms: row.get(6)?,
        })
    })?;
    rows.collect::<Result<_, _>>().map_err(StoreError::from)
}

/// Puts what is not told yet into the outbox; whether there was any.
pub fn queue_gaps(tx: &Connection, now: UnixMillis) -> Result<bool, StoreError> {
    let gaps = gaps(tx)?;
    if gaps.is_empty() {
        return Ok(false);
    }
    for gap in &gaps {
        tx.prepare_cached("DELETE FROM gaps WHERE stream = ?1 AND fate = ?2")?
            .execute([&gap.stream, &gap.fate])?;
    }
    let message = Gaps { gaps }.into_message(Uuid::new_v4().to_string(), now);
    append(tx, GAPS_STREAM, &message.encode(), now)?;
    Ok(true)
}
