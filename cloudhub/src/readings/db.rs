//! The rows, and all that is done with them. One connection writes, inside one transaction a
//! commit; queries run on connections of their own.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::{
    Bounds, ReadingsError,
    parse::{Row, VALUE_BYTES_MAX},
};

/// What a reading costs beside its value: ids, times and the index.
const ROW_BYTES: i64 = 64;
/// Readings looked at together when the oldest have to go.
const PRUNE_ROWS: i64 = 1000;
/// Such steps in one commit: bounds the time that others wait.
const PRUNE_STEPS_MAX: usize = 16;
/// Most series: nodes choose their names.
const SERIES_MAX: i64 = 200_000;
/// Series whose ids are remembered.
const SERIES_CACHED: usize = 20_000;
/// Epochs remembered for each node: an older session may still be ending.
const EPOCHS_MAX: i64 = 4;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS state (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        newest INTEGER NOT NULL, -- id of the newest reading
        gone   INTEGER NOT NULL, -- all up to this id are gone
        bytes  INTEGER NOT NULL,
        series INTEGER NOT NULL,
        refused INTEGER NOT NULL
    );
    INSERT OR IGNORE INTO state VALUES (1, 0, 0, 0, 0, 0);
    CREATE TABLE IF NOT EXISTS series (
        id INTEGER PRIMARY KEY,
        node TEXT NOT NULL, source TEXT NOT NULL, property TEXT NOT NULL,
        UNIQUE (source, property, node)
    );
    CREATE TABLE IF NOT EXISTS reading (
        id INTEGER PRIMARY KEY,
        series INTEGER NOT NULL, at INTEGER NOT NULL, received INTEGER NOT NULL,
        value TEXT NOT NULL,
        history INTEGER NOT NULL DEFAULT 0 -- part of a node's backlog
    );
    CREATE INDEX IF NOT EXISTS reading_by_time ON reading (series, at);
    CREATE TABLE IF NOT EXISTS position (
        node TEXT NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL, used INTEGER NOT NULL,
        PRIMARY KEY (node, epoch)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS forward (
        name TEXT PRIMARY KEY,
        base INTEGER NOT NULL, cursor INTEGER NOT NULL,
        delivered INTEGER NOT NULL, expired INTEGER NOT NULL, evicted INTEGER NOT NULL
    ) WITHOUT ROWID;
    PRAGMA user_version = 2;
";

/// How far a forwarder is: `accepted = delivered + pending + expired + evicted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// Readings that came since the forwarder was made.
    pub accepted: u64,
    /// Handed on, and taken.
    pub delivered: u64,
    /// Waiting.
    pub pending: u64,
    /// Too old before they could be handed on.
    pub expired: u64,
    /// Gone for want of room before they could be handed on.
    pub evicted: u64,
    /// The id of the last reading that is settled.
    #[serde(skip)]
    pub cursor: i64,
}

/// How a reading is settled for a forwarder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Handed on, and taken.
    Delivered,
    /// Too old.
    Expired,
}

/// One kept reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Rises with every reading at this hub.
    pub id: i64,
    /// Who sent it.
    pub node: String,
    /// `namespace/name` of a device, or the topic of an upload.
    pub source: String,
    /// The property; empty for an upload.
    pub property: String,
    /// The device's time, Unix milliseconds.
    pub at: i64,
    /// When the hub got it, Unix milliseconds.
    pub received: i64,
    /// The value.
    pub value: String,
    /// It waited at the node while newer ones were told before it.
    pub history: bool,
}

/// Which series a query is about.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Device or topic.
    pub source: String,
    /// One property; `None`: all.
    pub property: Option<String>,
    /// One node; `None`: all.
    pub node: Option<String>,
}

/// Which readings of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Range {
    /// From this time on, Unix milliseconds.
    pub since: Option<i64>,
    /// Before this time.
    pub until: Option<i64>,
    /// After this time and id, where the page before ended.
    pub after: Option<(i64, i64)>,
    /// The newest so many, instead of the oldest.
    pub last: bool,
    /// At most so many.
    pub limit: usize,
}

/// What the writer thread owns.
pub(super) struct Db {
    conn: Connection,
    bounds: Bounds,
    state: State,
    /// As of the last commit.
    committed: State,
    series: HashMap<(String, String, String), i64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    newest: i64,
    gone: i64,
    bytes: i64,
    series: i64,
    refused: i64,
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Db {
    pub(super) fn open(path: &Path, bounds: Bounds) -> Result<Self, ReadingsError> {
        let conn = Connection::open(path)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "journal_size_limit", 16 << 20)?;
        migrate(&conn)?;
        conn.execute_batch(SCHEMA)?;
        let state = conn.query_row(
            "SELECT newest, gone, bytes, series, refused FROM state",
            [],
            |r| {
                Ok(State {
                    newest: r.get(0)?,
                    gone: r.get(1)?,
                    bytes: r.get(2)?,
                    series: r.get(3)?,
                    refused: r.get(4)?,
                })
            },
        )?;
        Ok(Self {
            conn,
            bounds,
            state,
            committed: state,
            series: HashMap::new(),
        })
    }

    /// Id of the newest committed reading.
    pub(super) fn newest(&self) -> i64 {
        self.committed.newest
    }

    pub(super) fn begin(&mut self) -> rusqlite::Result<()> {
        self.conn.execute_batch("BEGIN IMMEDIATE")
    }

    /// Lets go of the oldest and commits.
    pub(super) fn finish(&mut self, now: i64) -> rusqlite::Result<()> {
        self.prune(now)?;
        let s = self.state;
        self.conn
            .prepare_cached(
                "UPDATE state SET newest = ?, gone = ?, bytes = ?, series = ?, refused = ?",
            )?
            .execute([s.newest, s.gone, s.bytes, s.series, s.refused])?;
        self.conn.execute_batch("COMMIT")?;
        self.committed = self.state;
        Ok(())
    }

    pub(super) fn roll_back(&mut self) {
        // Fails when there was no transaction, which is as good.
        let _ = self.conn.execute_batch("ROLLBACK");
        self.state = self.committed;
        self.series.clear();
    }

    pub(super) fn close(self) {
        // What stays in the log is folded in at the next start.
        let _ = self.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
    }

    /// Keeps the entries above the position of the epoch, and moves it.
    pub(super) fn append(
        &mut self,
        node: &str,
        epoch: &str,
        entries: Vec<(u64, Vec<Row>)>,
        now: i64,
    ) -> rusqlite::Result<()> {
        let stored: Option<i64> = self
            .conn
            .prepare_cached("SELECT seq FROM position WHERE node = ? AND epoch = ?")?
            .query_row([node, epoch], |r| r.get(0))
            .optional()?;
        let mut reached = stored.unwrap_or(0);
        for (seq, rows) in entries {
            let seq = signed(seq);
            if seq <= reached {
                continue;
            }
            reached = seq;
            for row in rows {
                self.insert(node, &row, now)?;
            }
        }
        if stored == Some(reached) {
            return Ok(());
        }
        self.conn
            .prepare_cached(
                "INSERT INTO position VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET seq = ?3, used = ?4",
            )?
            .execute(params![node, epoch, reached, now])?;
        if stored.is_none() {
            self.conn.execute(
                "DELETE FROM position WHERE node = ?1 AND epoch NOT IN (
                     SELECT epoch FROM position WHERE node = ?1 ORDER BY used DESC LIMIT ?2)",
                params![node, EPOCHS_MAX],
            )?;
        }
        Ok(())
    }

    fn insert(&mut self, node: &str, row: &Row, now: i64) -> rusqlite::Result<()> {
        let series = match self.series(node, row)? {
            Some(series) if row.value.len() <= VALUE_BYTES_MAX => series,
            _ => {
                self.state.refused += 1;
                return Ok(());
            }
        };
        self.state.newest += 1;
        self.state.bytes += cost(row.value.len());
        self.conn
            .prepare_cached("INSERT INTO reading VALUES (?, ?, ?, ?, ?, ?)")?
            .execute(params![
                self.state.newest,
                series,
                row.at,
                now,
                row.value,
                row.history
            ])?;
        Ok(())
    }

    fn series(&mut self, node: &str, row: &Row) -> rusqlite::Result<Option<i64>> {
        let key = (node.to_owned(), row.source.clone(), row.property.clone());
        if let Some(id) = self.series.get(&key) {
            return Ok(Some(*id));
        }
        let names = [&row.source, &row.property, node];
        let known = self
            .conn
            .prepare_cached("SELECT id FROM series WHERE source = ? AND property = ? AND node = ?")?
            .query_row(names, |r| r.get(0))
            .optional()?;
        let id = match known {
            Some(id) => id,
            None if self.state.series >= SERIES_MAX => return Ok(None),
            None => {
                self.conn
                    .prepare_cached("INSERT INTO series (source, property, node) VALUES (?, ?, ?)")?
                    .execute(names)?;
                self.state.series += 1;
                self.conn.last_insert_rowid()
            }
        };
        if self.series.len() >= SERIES_CACHED {
            self.series.clear();
        }
        self.series.insert(key, id);
        Ok(Some(id))
    }

    /// Lets the oldest go: what is too old, and what is too much.
    fn prune(&mut self, now: i64) -> rusqlite::Result<()> {
        let age_ms = signed(self.bounds.age_secs).saturating_mul(1000);
        let oldest_kept = now.saturating_sub(age_ms);
        for _ in 0..PRUNE_STEPS_MAX {
            let (up_to, bytes): (Option<i64>, i64) = self
                .conn
                .prepare_cached(
                    "SELECT max(id), coalesce(sum(length(CAST(value AS BLOB)) + ?2), 0) FROM (
                         SELECT id, value FROM (
                             SELECT id, value, received FROM reading WHERE id > ?4
                             ORDER BY id LIMIT ?3)
                         WHERE received < ?1)",
                )?
                .query_row(
                    params![oldest_kept, ROW_BYTES, PRUNE_ROWS, self.state.gone],
                    |r| Ok((r.get(0)?, r.get(1)?)),
                )?;
            match up_to {
                Some(up_to) => self.remove(up_to, bytes, "expired")?,
                None => break,
            }
        }
        for _ in 0..PRUNE_STEPS_MAX {
            let excess = self.state.bytes - signed(self.bounds.bytes);
            if excess <= 0 {
                break;
            }
            let Some((up_to, bytes)) = self.oldest(excess)? else {
                break;
            };
            self.remove(up_to, bytes, "evicted")?;
        }
        Ok(())
    }

    /// The oldest readings that together hold so many bytes, within one step.
    fn oldest(&self, excess: i64) -> rusqlite::Result<Option<(i64, i64)>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT id, length(CAST(value AS BLOB)) FROM reading WHERE id > ? ORDER BY id LIMIT ?",
        )?;
        let mut rows = statement.query([self.state.gone, PRUNE_ROWS])?;
        let (mut up_to, mut bytes) = (None, 0);
        while bytes < excess {
            let Some(row) = rows.next()? else { break };
            up_to = Some(row.get(0)?);
            bytes += row.get::<_, i64>(1)? + ROW_BYTES;
        }
        Ok(up_to.map(|up_to| (up_to, bytes)))
    }

    /// Removes all up to an id; what forwarders still waited for is counted for them.
    fn remove(&mut self, up_to: i64, bytes: i64, what: &str) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("DELETE FROM reading WHERE id > ? AND id <= ?")?
            .execute([self.state.gone, up_to])?;
        self.conn
            .prepare_cached(&format!(
                "UPDATE forward SET {what} = {what} + (?1 - cursor), cursor = ?1 WHERE cursor < ?1"
            ))?
            .execute([up_to])?;
        self.state.gone = up_to;
        self.state.bytes -= bytes;
        Ok(())
    }

    pub(super) fn register(&mut self, name: &str) -> rusqlite::Result<Progress> {
        self.conn.execute(
            "INSERT OR IGNORE INTO forward VALUES (?1, ?2, ?2, 0, 0, 0)",
            params![name, self.state.newest],
        )?;
        progress(&self.conn, name, self.state.newest)
    }

    pub(super) fn advance(
        &mut self,
        name: &str,
        up_to: i64,
        how: Settled,
    ) -> rusqlite::Result<Progress> {
        let what = match how {
            Settled::Delivered => "delivered",
            Settled::Expired => "expired",
        };
        // What went meanwhile for want of room was counted then, and is not counted again.
        self.conn
            .prepare_cached(&format!(
                "UPDATE forward SET {what} = {what} + (?2 - cursor), cursor = ?2
                 WHERE name = ?1 AND cursor < ?2"
            ))?
            .execute(params![name, up_to])?;
        progress(&self.conn, name, self.state.newest)
    }
}

/// From the first version, which did not know what was history.
fn migrate(conn: &Connection) -> rusqlite::Result<()> {
    let version: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if version == 1 {
        conn.execute_batch(
            "BEGIN;
             ALTER TABLE reading ADD COLUMN history INTEGER NOT NULL DEFAULT 0;
             PRAGMA user_version = 2;
             COMMIT;",
        )?;
    }
    Ok(())
}

fn cost(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX / 2) + ROW_BYTES
}

fn progress(conn: &Connection, name: &str, newest: i64) -> rusqlite::Result<Progress> {
    conn.prepare_cached(
        "SELECT base, cursor, delivered, expired, evicted FROM forward WHERE name = ?",
    )?
    .query_row([name], |r| {
        let (base, cursor): (i64, i64) = (r.get(0)?, r.get(1)?);
        Ok(Progress {
            accepted: count(newest - base),
            delivered: count(r.get(2)?),
            pending: count(newest - cursor),
            expired: count(r.get(3)?),
            evicted: count(r.get(4)?),
            cursor,
        })
    })
}

/// All forwarders that there ever were, by name.
pub(super) fn all_progress(conn: &Connection) -> rusqlite::Result<Vec<(String, Progress)>> {
    let newest = conn.query_row("SELECT newest FROM state", [], |r| r.get(0))?;
    let mut names = conn.prepare_cached("SELECT name FROM forward ORDER BY name")?;
    let names: Vec<String> = names
        .query_map([], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let with = |name: String| progress(conn, &name, newest).map(|p| (name, p));
    names.into_iter().map(with).collect()
}

const KEPT: &str = "SELECT r.id, s.node, s.source, s.property, r.at, r.received, r.value, r.history
                    FROM reading r JOIN series s ON s.id = r.series";

fn kept(row: &rusqlite::Row<'_>) -> rusqlite::Result<Kept> {
    Ok(Kept {
        id: row.get(0)?,
        node: row.get(1)?,
        source: row.get(2)?,
        property: row.get(3)?,
        at: row.get(4)?,
        received: row.get(5)?,
        value: row.get(6)?,
        history: row.get(7)?,
    })
}

/// The readings after an id, oldest first.
pub(super) fn after(conn: &Connection, cursor: i64, limit: usize) -> rusqlite::Result<Vec<Kept>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    conn.prepare_cached(&format!("{KEPT} WHERE r.id > ? ORDER BY r.id LIMIT ?"))?
        .query_map([cursor, limit], kept)?
        .collect()
}

/// The readings of some series within a range, oldest first.
pub(super) fn query(conn: &Connection, of: &Series, range: &Range) -> rusqlite::Result<Vec<Kept>> {
    let mut series = conn.prepare_cached(
        "SELECT id FROM series WHERE source = ?1 AND (?2 IS NULL OR property = ?2)
         AND (?3 IS NULL OR node = ?3) AND (?4 OR property != '')",
    )?;
    let uploads = of.property.as_deref() == Some("");
    let series: Vec<i64> = series
        .query_map(params![of.source, of.property, of.node, uploads], |r| {
            r.get(0)
        })?
        .collect::<rusqlite::Result<_>>()?;
    let order = if range.last { "DESC" } else { "ASC" };
    let (after_at, after_id) = range.after.unwrap_or((i64::MIN, i64::MIN));
    let limit = i64::try_from(range.limit).unwrap_or(i64::MAX);
    let mut found = Vec::new();
    for id in series {
        // Each gives at most what is asked for in all; the best of them are taken below.
        let mut statement = conn.prepare_cached(&format!(
            "{KEPT} WHERE r.series = ?1 AND r.at >= ?2 AND r.at < ?3 AND (r.at, r.id) > (?4, ?5)
             ORDER BY r.at {order}, r.id {order} LIMIT ?6"
        ))?;
        let since = range.since.unwrap_or(i64::MIN).max(after_at);
        let until = range.until.unwrap_or(i64::MAX);
        let rows =
            statement.query_map(params![id, since, until, after_at, after_id, limit], kept)?;
        for row in rows {
            found.push(row?);
        }
    }
    found.sort_unstable_by_key(|k| (k.at, k.id));
    if range.last {
        let skip = found.len().saturating_sub(range.limit);
        found.drain(..skip);
    } else {
        found.truncate(range.limit);
    }
    Ok(found)
}
