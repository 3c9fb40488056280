//! The bound of the outbox, and who gives way when it is reached.
//!
//! The total is kept in a temporary table of the writer's connection: it lives in memory, costs
//! the disk nothing, and a transaction that is undone undoes it too. At start it is summed up from
//! `streams.bytes`.
//!
//! Who gives way (design D12), a share of the quota at a time so that appending stays cheap:
//! 1. an upload's own stream, if that holds at least an eighth of everything;
//! 2. else the largest stream, if that does;
//! 3. else the oldest rows, whoever's they are: with many like streams no one is to blame.
//!
//! Where streams have priorities, all this is among those of the lowest one that has rows; a stream
//! never makes a higher one give way, and one that refuses gives way to nobody.
//!
//! A row that gives way may be on its way to the hub already; it is still sent. It then counts as
//! evicted here and as received there: at most one window of the session.

use rusqlite::{Connection, OptionalExtension, params};

use super::gaps::Lost;
use super::policy::{self, Policy, WhenFull};
use super::{Fate, Seq, leave};
use crate::clock::UnixMillis;
use crate::store::StoreError;

/// Default bound: half a million readings; an SD card of 8 GB spares it.
pub const BYTES_MAX: u64 = 256 << 20;
/// Devices choose the topics of uploads; so many get a stream of their own.
pub const UPLOAD_STREAMS_MAX: u64 = 1_000;
/// Stream of the uploads on any further topic.
pub const UPLOADS_OTHER: &str = "upload/*other*";
/// What a row costs beside its message: with it, bytes bound rows too.
const ROW_BYTES: u64 = 64;
/// Share of the quota freed at once.
const CHUNK: u64 = 32;
/// A stream with this share of everything is one that fills the disk.
const HEAVY: u64 = 8;
/// Between two warnings.
const WARN_EVERY_MS: i64 = 60_000;
const UPLOAD: &str = "upload/";

/// What a row of this message costs.
pub(super) fn cost(message: &[u8]) -> u64 {
    u64::try_from(message.len()).unwrap_or(u64::MAX >> 1) + ROW_BYTES
}

/// What so many rows with so many bytes of messages cost.
pub(super) fn freed(rows: u64, bytes: u64) -> u64 {
    rows * ROW_BYTES + bytes
}

/// Makes the writer's running total. Called once for a connection.
pub(super) fn open_totals(conn: &Connection) -> Result<(), StoreError> {
    conn.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS outbox_total (
             bytes INTEGER NOT NULL, bytes_max INTEGER NOT NULL, uploads INTEGER NOT NULL,
             warned_ms INTEGER, unreported INTEGER NOT NULL, ruled INTEGER NOT NULL
         );",
    )?;
    conn.execute(
        "INSERT INTO temp.outbox_total
         SELECT coalesce(sum(bytes), 0), ?1,
                count(CASE WHEN stream LIKE 'upload/%' THEN 1 END), NULL, 0, 0
         FROM streams",
        [BYTES_MAX],
    )?;
    Ok(())
}

/// Sets the bound, for this connection. A smaller one takes effect with the next append.
pub fn set_bytes_max(tx: &Connection, bytes_max: u64) -> Result<(), StoreError> {
    tx.execute("UPDATE temp.outbox_total SET bytes_max = ?1", [bytes_max])?;
    Ok(())
}

/// What the rows that wait take of the quota. Works on any connection.
pub fn bytes(conn: &Connection) -> Result<u64, StoreError> {
    let sum = conn.query_row("SELECT coalesce(sum(bytes), 0) FROM streams", [], |row| {
        row.get(0)
    })?;
    Ok(sum)
}

/// Rows that left cost nothing any more.
pub(super) fn give_back(tx: &Connection, freed: u64) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE temp.outbox_total SET bytes = bytes - ?1")?
        .execute([freed])?;
    Ok(())
}

/// The stream that a first row is counted on: bounds how many there are.
pub(super) fn new_stream<'a>(tx: &Connection, stream: &'a str) -> Result<&'a str, StoreError> {
    if !stream.starts_with(UPLOAD) {
        return Ok(stream);
    }
    let counted = tx
        .prepare_cached("UPDATE temp.outbox_total SET uploads = uploads + 1 WHERE uploads < ?1")?
        .execute([UPLOAD_STREAMS_MAX])?;
    Ok(if counted > 0 { stream } else { UPLOADS_OTHER })
}

/// The running total, with the row to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Total {
    bytes: u64,
    max: u64,
    /// Some stream has a policy of its own.
    pub ruled: bool,
}

/// Charges `cost` to the quota.
pub(super) fn charge(tx: &Connection, cost: u64) -> Result<Total, StoreError> {
    let total = tx
        .prepare_cached(
            "UPDATE temp.outbox_total SET bytes = bytes + ?1 RETURNING bytes, bytes_max, ruled > 0",
        )?
        .query_row([cost], |row| {
            Ok(Total {
                bytes: row.get(0)?,
                max: row.get(1)?,
                ruled: row.get(2)?,
            })
        })?;
    Ok(total)
}

/// Makes room within the stream's own bound; whether there is some.
pub(super) fn make_room_in(
    tx: &Connection,
    stream: &str,
    cost: u64,
    policy: &Policy,
    now: UnixMillis,
) -> Result<bool, StoreError> {
    let Some(max) = policy.bytes_max else {
        return Ok(true);
    };
    let held = bytes_of(tx, stream)?;
    if held + cost <= max {
        return Ok(true);
    }
    if policy.when_full == WhenFull::Refuse {
        return Ok(false);
    }
    let goal = max - max / CHUNK;
    let (rows, _) = evict_from(tx, stream, (held + cost).saturating_sub(goal))?;
    report(tx, rows, now)?;
    // A message larger than the bound is taken alone.
    Ok(true)
}

fn bytes_of(tx: &Connection, stream: &str) -> Result<u64, StoreError> {
    let bytes = tx
        .prepare_cached("SELECT bytes FROM streams WHERE stream = ?1")?
        .query_row([stream], |row| row.get(0))
        .optional()?;
    Ok(bytes.unwrap_or(0))
}

/// Evicts while the whole quota is exceeded; whether there is room.
pub(super) fn make_room(
    tx: &Connection,
    stream: &str,
    (cost, total): (u64, &Total),
    policy: Option<&Policy>,
    now: UnixMillis,
) -> Result<bool, StoreError> {
    let max = total.max;
    if total.bytes <= max {
        return Ok(true);
    }
    // The stream itself may have given way since.
    let bytes: u64 = tx
        .prepare_cached("SELECT bytes FROM temp.outbox_total")?
        .query_row([], |row| row.get(0))?;
    if bytes <= max {
        return Ok(true);
    }
    let goal = max - max / CHUNK;
    // What is there without the row to come.
    let mut held = bytes - cost;
    let (mut rows, mut first) = (0, None);
    while held > 0 && held + cost > goal {
        let class = match policy {
            Some(policy) => match lowest(tx)? {
                Some(class) if class <= policy.priority => Some(class),
                Some(_) | None => break,
            },
            None => None,
        };
        // A higher class gives what is needed, not a share of the whole.
        if *first.get_or_insert(class) != class && held + cost <= max {
            break;
        }
        let (gone, freed) = evict(tx, stream, held, held + cost - goal, class)?;
        if gone == 0 {
            break;
        }
        rows += gone;
        held -= freed;
    }
    report(tx, rows, now)?;
    Ok(held == 0 || held + cost <= max)
}

/// The lowest priority that has rows which may give way.
fn lowest(tx: &Connection) -> Result<Option<u8>, StoreError> {
    let lowest = tx
        .prepare_cached(
            "SELECT min(coalesce(p.priority, ?1)) FROM streams s
             LEFT JOIN temp.outbox_policies p ON p.stream = s.stream
             WHERE s.bytes > 0 AND coalesce(p.when_full, '') <> 'refuse'",
        )?
        .query_row([policy::PRIORITY], |row| row.get(0))?;
    Ok(lowest)
}

/// Evicts from one victim; at most a row more than `wanted`. Returns rows and what they cost.
fn evict(
    tx: &Connection,
    stream: &str,
    held: u64,
    wanted: u64,
    class: Option<u8>,
) -> Result<(u64, u64), StoreError> {
    match heavy(tx, stream, held, class)? {
        Some(victim) => evict_from(tx, &victim, wanted),
        None => evict_oldest(tx, wanted, class),
    }
}

fn evict_from(tx: &Connection, victim: &str, wanted: u64) -> Result<(u64, u64), StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT seq, length(message), created_ms FROM outbox WHERE stream = ?1 ORDER BY seq",
    )?;
    let mut found = query.query([victim])?;
    let mut lost: Option<Lost> = None;
    while lost.is_none_or(|lost| lost.freed < wanted)
        && let Some(row) = found.next()?
    {
        let (seq, cost, created) = (row.get(0)?, ROW_BYTES + row.get::<_, u64>(1)?, row.get(2)?);
        match &mut lost {
            Some(lost) => lost.add(seq, cost, created),
            None => lost = Some(Lost::one(seq, cost, created)),
        }
    }
    drop(found);
    let Some(lost) = lost else { return Ok((0, 0)) };
    tx.prepare_cached("DELETE FROM outbox WHERE stream = ?1 AND seq <= ?2")?
        .execute(params![victim, lost.last_seq])?;
    leave(tx, victim, Fate::Evicted, &lost)?;
    Ok((lost.rows, lost.freed))
}

/// The stream to blame, if there is one.
fn heavy(
    tx: &Connection,
    stream: &str,
    held: u64,
    class: Option<u8>,
) -> Result<Option<String>, StoreError> {
    let largest = |only: Option<&str>| {
        tx.prepare_cached(
            "SELECT s.stream FROM streams s
             LEFT JOIN temp.outbox_policies p ON p.stream = s.stream
             WHERE s.bytes >= ?1 AND (?2 IS NULL OR s.stream = ?2) AND (?3 IS NULL OR (
                 coalesce(p.priority, ?4) = ?3 AND coalesce(p.when_full, '') <> 'refuse'))
             ORDER BY s.bytes DESC, s.stream LIMIT 1",
        )?
        .query_row(
            params![held / HEAVY, only, class, policy::PRIORITY],
            |row| row.get(0),
        )
        .optional()
    };
    if stream.starts_with(UPLOAD)
        && let Some(own) = largest(Some(stream))?
    {
        return Ok(Some(own));
    }
    Ok(largest(None)?)
}

fn evict_oldest(tx: &Connection, wanted: u64, class: Option<u8>) -> Result<(u64, u64), StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT o.seq, o.stream, length(o.message), o.created_ms FROM outbox o
         LEFT JOIN temp.outbox_policies p ON p.stream = o.stream
         WHERE ?1 IS NULL OR (
             coalesce(p.priority, ?2) = ?1 AND coalesce(p.when_full, '') <> 'refuse')
         ORDER BY o.seq",
    )?;
    let mut found = query.query(params![class, policy::PRIORITY])?;
    let mut sums = std::collections::BTreeMap::<String, Lost>::new();
    let mut seqs: Vec<Seq> = Vec::new();
    let mut freed: u64 = 0;
    while freed < wanted
        && let Some(row) = found.next()?
    {
        let (seq, cost, created) = (row.get(0)?, ROW_BYTES + row.get::<_, u64>(2)?, row.get(3)?);
        sums.entry(row.get(1)?)
            .and_modify(|lost| lost.add(seq, cost, created))
            .or_insert_with(|| Lost::one(seq, cost, created));
        seqs.push(seq);
        freed += cost;
    }
    drop(found);
    let mut delete = tx.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?;
    for seq in &seqs {
        delete.execute([seq])?;
    }
    for (stream, lost) in sums {
        leave(tx, &stream, Fate::Evicted, &lost)?;
    }
    Ok((u64::try_from(seqs.len()).unwrap_or(u64::MAX), freed))
}

/// Says it, once a minute at most: a full outbox evicts for hours.
fn report(tx: &Connection, rows: u64, now: UnixMillis) -> Result<(), StoreError> {
    if rows == 0 {
        return Ok(());
    }
    let (warned, unreported): (Option<i64>, u64) = tx
        .prepare_cached(
            "UPDATE temp.outbox_total SET unreported = unreported + ?1
             RETURNING warned_ms, unreported",
        )?
        .query_row([rows], |row| Ok((row.get(0)?, row.get(1)?)))?;
    // A clock that was set back does not silence it.
    if warned.is_some_and(|at| (0..WARN_EVERY_MS).contains(&(now - at))) {
        return Ok(());
    }
    tracing::warn!(
        rows = unreported,
        "the outbox is full; the oldest rows were evicted and never reach the hub"
    );
    tx.prepare_cached("UPDATE temp.outbox_total SET warned_ms = ?1, unreported = 0")?
        .execute([now])?;
    Ok(())
}
