//! What each property reported lately, kept on the node: answers without a hub. KubeEdge keeps
//! only the newest value.
//!
//! A reading is written in the transaction of the report that brought it. Bounded three ways: rows
//! and age of each property, looked at with every 64th report of it, and bytes of all together;
//! when those are reached, each property gives up the oldest eighth of its readings. The bounds
//! and the running total are in a temporary table of the writer's connection, like the outbox's.

use std::collections::BTreeMap;

use device_twin::{DeviceId, Property};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::store::StoreError;

/// Most readings one question is answered with.
pub const READINGS_MAX: u32 = 10_000;
/// What a row costs beside its value.
const ROW_BYTES: i64 = 32;
/// Reports of a property between two looks at its rows and their age.
const TRIM_EVERY: i64 = 64;
/// Share of every property's readings that leaves when the bytes are used up.
const SHARE: i64 = 8;

/// How much is kept. No rows: nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryBounds {
    /// Readings of one property.
    pub rows_max: u32,
    /// How old they may get.
    pub age_max_ms: i64,
    /// Of all properties together.
    pub bytes_max: u64,
}

impl Default for HistoryBounds {
    fn default() -> Self {
        Self {
            rows_max: 1_000,
            age_max_ms: 7 * 86_400_000,
            bytes_max: 64 << 20,
        }
    }
}

/// One reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The node's clock, Unix milliseconds.
    pub at_ms: UnixMillis,
    pub value: String,
}

/// Which readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryQuery {
    /// At most so many, the newest.
    pub last: u32,
    /// Not older than this.
    pub since_ms: Option<UnixMillis>,
    /// Older than this.
    pub until_ms: Option<UnixMillis>,
}

/// Makes the writer's running total. Called once for a connection, after the migrations.
pub(crate) fn open_totals(conn: &Connection) -> Result<(), StoreError> {
    conn.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS history_total (
             bytes INTEGER NOT NULL, bytes_max INTEGER NOT NULL,
             rows_max INTEGER NOT NULL, age_max_ms INTEGER NOT NULL
         );",
    )?;
    let bounds = HistoryBounds::default();
    conn.execute(
        "INSERT INTO temp.history_total
         SELECT coalesce(sum(length(CAST(value AS BLOB)) + ?1), 0), ?2, ?3, ?4 FROM history",
        params![
            ROW_BYTES,
            bounds.bytes_max,
            bounds.rows_max,
            bounds.age_max_ms
        ],
    )?;
    Ok(())
}

/// Sets the bounds, for this connection. Smaller ones take effect with the reports to come.
pub fn set_history_bounds(tx: &Connection, bounds: HistoryBounds) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE temp.history_total SET bytes_max = ?1, rows_max = ?2, age_max_ms = ?3",
        params![bounds.bytes_max, bounds.rows_max, bounds.age_max_ms],
    )?;
    Ok(())
}

/// Keeps what a report wrote.
pub(super) fn record(
    tx: &Connection,
    device: &DeviceId,
    written: &BTreeMap<String, Property>,
) -> Result<(), StoreError> {
    for (name, property) in written {
        if let Some(reported) = &property.reported {
            let version = property.reported_version.unwrap_or_default().edge;
            record_one(tx, device, name, version, reported.at_ms, &reported.value)?;
        }
    }
    Ok(())
}

fn record_one(
    tx: &Connection,
    device: &DeviceId,
    property: &str,
    version: i64,
    at_ms: UnixMillis,
    value: &str,
) -> Result<(), StoreError> {
    let cost = i64::try_from(value.len()).unwrap_or(i64::MAX >> 1) + ROW_BYTES;
    let (bytes, bytes_max, rows_max, age_max_ms): (i64, i64, i64, i64) = tx
        .prepare_cached(
            "UPDATE temp.history_total SET bytes = bytes + CASE WHEN rows_max > 0 THEN ?1 ELSE 0 END
             RETURNING bytes, bytes_max, rows_max, age_max_ms",
        )?
        .query_row([cost], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
    if rows_max == 0 {
        return Ok(());
    }
    let series = match series(tx, device, property)? {
        Some(series) => series,
        None => tx
            .prepare_cached(
                "INSERT INTO history_series (namespace, device, property) VALUES (?1, ?2, ?3)
                 RETURNING id",
            )?
            .query_row(params![device.namespace, device.name, property], |row| {
                row.get(0)
            })?,
    };
    tx.prepare_cached(
        "INSERT INTO history (series, at_ms, version, value) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO NOTHING",
    )?
    .execute(params![series, at_ms, version, value])?;
    if version % TRIM_EVERY == 0 {
        let by_age = at_ms.saturating_sub(age_max_ms);
        remove(tx, series, "at_ms < ?2", by_age)?;
        remove(tx, series, NEWEST_STAY, rows_max)?;
    }
    if bytes > bytes_max {
        shed(tx)?;
    }
    Ok(())
}

/// Rows before the newest `?2` of a property.
const NEWEST_STAY: &str = "(at_ms, version) <= (SELECT at_ms, version FROM history
    WHERE series = ?1 ORDER BY at_ms DESC, version DESC LIMIT 1 OFFSET ?2)";
/// The oldest rows of a property, one more than `?2`.
const OLDEST_GO: &str = "(at_ms, version) <= (SELECT at_ms, version FROM history
    WHERE series = ?1 ORDER BY at_ms, version LIMIT 1 OFFSET ?2)";

/// Removes rows of one property and gives their bytes back.
fn remove(tx: &Connection, series: i64, which: &str, bound: i64) -> Result<(), StoreError> {
    let freed: i64 = tx
        .prepare_cached(&format!(
            "SELECT coalesce(sum(length(CAST(value AS BLOB)) + {ROW_BYTES}), 0) FROM history
             WHERE series = ?1 AND {which}"
        ))?
        .query_row([series, bound], |row| row.get(0))?;
    if freed > 0 {
        tx.prepare_cached(&format!(
            "DELETE FROM history WHERE series = ?1 AND {which}"
        ))?
        .execute([series, bound])?;
        tx.prepare_cached("UPDATE temp.history_total SET bytes = bytes - ?1")?
            .execute([freed])?;
    }
    Ok(())
}

/// Every property gives up its oldest readings.
fn shed(tx: &Connection) -> Result<(), StoreError> {
    let mut query = tx.prepare_cached("SELECT series, count(*) FROM history GROUP BY series")?;
    let counts = query
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(i64, i64)>, _>>()?;
    for (series, rows) in counts {
        remove(tx, series, OLDEST_GO, rows / SHARE)?;
    }
    Ok(())
}

/// Forgets the readings of a device that left.
pub(super) fn forget(tx: &Connection, device: &DeviceId) -> Result<(), StoreError> {
    let mut query =
        tx.prepare_cached("SELECT id FROM history_series WHERE namespace = ?1 AND device = ?2")?;
    let all = query
        .query_map([&device.namespace, &device.name], |row| row.get(0))?
        .collect::<Result<Vec<i64>, _>>()?;
    for series in all {
        remove(tx, series, "at_ms <= ?2", i64::MAX)?;
        tx.prepare_cached("DELETE FROM history_series WHERE id = ?1")?
            .execute([series])?;
    }
    Ok(())
}

fn series(tx: &Connection, device: &DeviceId, property: &str) -> Result<Option<i64>, StoreError> {
    let found = tx
        .prepare_cached(
            "SELECT id FROM history_series WHERE namespace = ?1 AND device = ?2 AND property = ?3",
        )?
        .query_row(params![device.namespace, device.name, property], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(found)
}

/// The readings of a property, oldest first; none if it has never reported.
///
/// # Errors
/// Of the store.
pub fn history(
    tx: &Connection,
    device: &DeviceId,
    property: &str,
    query: HistoryQuery,
) -> Result<Vec<Reading>, StoreError> {
    let Some(series) = series(tx, device, property)? else {
        return Ok(Vec::new());
    };
    let mut rows = tx.prepare_cached(
        "SELECT at_ms, value FROM history WHERE series = ?1 AND at_ms >= ?2 AND at_ms < ?3
         ORDER BY at_ms DESC, version DESC LIMIT ?4",
    )?;
    let since = query.since_ms.unwrap_or(i64::MIN);
    let until = query.until_ms.unwrap_or(i64::MAX);
    let last = query.last.min(READINGS_MAX);
    let mut readings = rows
        .query_map(params![series, since, until, last], |row| {
            Ok(Reading {
                at_ms: row.get(0)?,
                value: row.get(1)?,
            })
        })?
        .collect::<Result<Vec<_>, _>>()?;
    readings.reverse();
    Ok(readings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Db;

    const ALL: HistoryQuery = HistoryQuery {
        last: READINGS_MAX,
        since_ms: None,
        until_ms: None,
    };

    fn values(tx: &Connection, id: &DeviceId, property: &str, query: HistoryQuery) -> Vec<String> {
        let readings = history(tx, id, property, query).unwrap();
        readings.into_iter().map(|r| r.value).collect()
    }

    fn bytes(tx: &Connection) -> (i64, i64) {
        let total = |sql: &str| tx.query_row(sql, [], |row| row.get(0)).unwrap();
        (
            total("SELECT bytes FROM temp.history_total"),
            total("SELECT coalesce(sum(length(value) + 32), 0) FROM history"),
        )
    }

    #[test]
    fn fault_30_the_node_answers_what_was_reported_lately() {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let id = DeviceId::parse("dev/t").unwrap();
        let device = serde_json::json!({"metadata": {"namespace": "dev", "name": "t"}});
        crate::twin::device_upserted(tx, &device, 1).unwrap();
        let topic = wire::topic::parse("$hw/events/device/dev/t/twin/update").unwrap();
        for n in 1..=5 {
            let body = format!(r#"{{"twin":{{"x":{{"actual":{{"value":"{n}"}}}}}}}}"#);
            crate::twin::handle_publish(tx, &topic, body.as_bytes(), n * 10).unwrap();
        }
        let ask = |last, since_ms, until_ms| {
            let query = HistoryQuery {
                last,
                since_ms,
                until_ms,
            };
            values(tx, &id, "x", query)
        };
        assert_eq!(ask(2, None, None), ["4", "5"]);
        assert_eq!(ask(100, Some(20), Some(40)), ["2", "3"]);
        assert_eq!(ask(1, None, Some(30)), ["2"]);
        assert!(values(tx, &id, "y", ALL).is_empty());
        crate::twin::device_removed(tx, "dev", "t", 99).unwrap();
        assert!(ask(100, None, None).is_empty());
        assert_eq!(bytes(tx), (0, 0));
    }

    #[test]
    fn rows_age_and_bytes_are_bounded() {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let id = DeviceId::parse("dev/t").unwrap();
        let bounds = |rows_max, age_max_ms, bytes_max| HistoryBounds {
            rows_max,
            age_max_ms,
            bytes_max,
        };
        set_history_bounds(tx, bounds(10, 1_000_000, 1 << 20)).unwrap();
        for n in 1..=128 {
            record_one(tx, &id, "rows", n, n, "v").unwrap();
        }
        assert_eq!(values(tx, &id, "rows", ALL).len(), 10);
        set_history_bounds(tx, bounds(1000, 20, 1 << 20)).unwrap();
        for n in 1..=64 {
            record_one(tx, &id, "age", n, n, "v").unwrap();
        }
        assert_eq!(values(tx, &id, "age", ALL).len(), 21);
        let (total, summed) = bytes(tx);
        assert_eq!(total, summed);
        set_history_bounds(tx, bounds(100_000, 1_000_000, 10_000)).unwrap();
        for n in 1..=5_000 {
            record_one(tx, &id, "bytes", n, n, "value").unwrap();
            assert!(bytes(tx).0 <= 10_000);
        }
        let (total, summed) = bytes(tx);
        assert_eq!(total, summed);
        assert_eq!(
            values(tx, &id, "bytes", HistoryQuery { last: 1, ..ALL }),
            ["value"]
        );
        set_history_bounds(tx, bounds(0, 1, 1)).unwrap();
        record_one(tx, &id, "off", 1, 1, "v").unwrap();
        assert!(values(tx, &id, "off", ALL).is_empty());
    }
}
