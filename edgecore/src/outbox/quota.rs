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
//! A row that gives way may be on its way to the hub already; it is still sent. It then counts as
//! evicted here and as received there: at most one window of the session.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Fate, Seq, settle};
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

/// Makes the writer's running total. Called once for a connection, after the migrations.
pub(crate) fn open_totals(conn: &Connection) -> Result<(), StoreError> {
    conn.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS outbox_total (
             bytes INTEGER NOT NULL, bytes_max INTEGER NOT NULL, uploads INTEGER NOT NULL,
             warned_ms INTEGER, unreported INTEGER NOT NULL
         );",
    )?;
    conn.execute(
        "INSERT INTO temp.outbox_total
         SELECT coalesce(sum(bytes), 0), ?1,
                count(CASE WHEN stream LIKE 'upload/%' THEN 1 END), NULL, 0
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

/// Charges `cost` to the quota and evicts while it is exceeded.
pub(super) fn make_room(
    tx: &Connection,
    stream: &str,
    cost: u64,
    now: UnixMillis,
) -> Result<(), StoreError> {
    let (total, max): (u64, u64) = tx
        .prepare_cached(
            "UPDATE temp.outbox_total SET bytes = bytes + ?1 RETURNING bytes, bytes_max",
        )?
        .query_row([cost], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if total <= max {
        return Ok(());
    }
    let goal = max - max / CHUNK;
    // What is there without the row to come.
    let mut held = total - cost;
    let mut rows = 0;
    while held > 0 && held + cost > goal {
        let (gone, freed) = evict(tx, stream, held, held + cost - goal)?;
        if gone == 0 {
            break;
        }
        rows += gone;
        held -= freed;
    }
    report(tx, rows, now)
}

/// Evicts from one victim; at most a row more than `wanted`. Returns rows and what they cost.
fn evict(tx: &Connection, stream: &str, held: u64, wanted: u64) -> Result<(u64, u64), StoreError> {
    let Some(victim) = heavy(tx, stream, held)? else {
        return evict_oldest(tx, wanted);
    };
    let mut query = tx
        .prepare_cached("SELECT seq, length(message) FROM outbox WHERE stream = ?1 ORDER BY seq")?;
    let mut found = query.query([&victim])?;
    let (mut last, mut rows, mut freed): (Seq, u64, u64) = (0, 0, 0);
    while freed < wanted
        && let Some(row) = found.next()?
    {
        last = row.get(0)?;
        rows += 1;
        freed += ROW_BYTES + row.get::<_, u64>(1)?;
    }
    drop(found);
    tx.prepare_cached("DELETE FROM outbox WHERE stream = ?1 AND seq <= ?2")?
        .execute(params![victim, last])?;
    settle(tx, &victim, Fate::Evicted, rows, freed)?;
    Ok((rows, freed))
}

/// The stream to blame, if there is one.
fn heavy(tx: &Connection, stream: &str, held: u64) -> Result<Option<String>, StoreError> {
    let own: Option<u64> = tx
        .prepare_cached("SELECT bytes FROM streams WHERE stream = ?1")?
        .query_row([stream], |row| row.get(0))
        .optional()?;
    if stream.starts_with(UPLOAD) && own.is_some_and(|bytes| bytes >= held / HEAVY) {
        return Ok(Some(stream.to_owned()));
    }
    let largest: Option<(String, u64)> = tx
        .prepare_cached("SELECT stream, bytes FROM streams ORDER BY bytes DESC, stream LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(largest
        .filter(|(_, bytes)| *bytes >= held / HEAVY)
        .map(|(stream, _)| stream))
}

fn evict_oldest(tx: &Connection, wanted: u64) -> Result<(u64, u64), StoreError> {
    let mut query =
        tx.prepare_cached("SELECT seq, stream, length(message) FROM outbox ORDER BY seq")?;
    let mut found = query.query([])?;
    let mut sums = std::collections::BTreeMap::<String, (u64, u64)>::new();
    let (mut last, mut rows, mut freed): (Seq, u64, u64) = (0, 0, 0);
    while freed < wanted
        && let Some(row) = found.next()?
    {
        last = row.get(0)?;
        let cost = ROW_BYTES + row.get::<_, u64>(2)?;
        let sum = sums.entry(row.get(1)?).or_default();
        *sum = (sum.0 + 1, sum.1 + cost);
        rows += 1;
        freed += cost;
    }
    drop(found);
    tx.prepare_cached("DELETE FROM outbox WHERE seq <= ?1")?
        .execute([last])?;
    for (stream, (rows, freed)) in sums {
        settle(tx, &stream, Fate::Evicted, rows, freed)?;
    }
    Ok((rows, freed))
}

/// Says it, once a minute at most: a full outbox evicts for hours.
fn report(tx: &Connection, rows: u64, now: UnixMillis) -> Result<(), StoreError> {
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
