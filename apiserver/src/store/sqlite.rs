//! The store on one SQLite file.
//!
//! One writer thread takes whatever transactions wait and commits them together (group commit):
//! each has its own revision and its own outcome, all share one `fsync`. Readers have their own
//! connections. An idle store writes nothing.
//!
//! Every version of a key is one row of `log`, written once; `current` points at the newest.
//! The row id is `revision * 128 + index within the transaction`, so ids are in revision order
//! and need no index of their own. A row remembers the row before it of the same key, which
//! answers "as of an earlier revision" and "what was there before" without an index by key.
//! Compaction removes superseded rows, oldest first, and moves the floor.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::feed::{Backlog, Feed};
use super::{
    Entry, Event, ListQuery, Listing, Op, Require, Revision, Store, StoreError, TXN_OPS_MAX, Txn,
    Watcher, prefix_end,
};

/// Transactions that may wait for the writer; more wait in their callers.
const QUEUE_TXNS_MAX: usize = 1024;
/// Transactions in one commit: bounds the time until the first of them is answered.
const BATCH_TXNS_MAX: usize = 512;
/// Connections for reading. Two cores and short reads need no more.
const READERS_MAX: usize = 4;
/// SQLite's page cache per connection.
const CACHE_KIB: i32 = 2048;
/// Pages (4 KiB) between checkpoints.
const CHECKPOINT_PAGES: u32 = 1000;
/// Bound of the write-ahead file kept after a checkpoint.
const JOURNAL_BYTES_MAX: u64 = 16 << 20;

/// How much history is kept for watchers and for paging through a list.
#[derive(Debug, Clone, Copy)]
pub struct History {
    /// Compaction begins when so many rows are newer than the floor …
    pub rows_max: u64,
    /// … or so many bytes …
    pub bytes_max: u64,
    /// … and leaves so many of the newest rows.
    pub rows_kept: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            rows_max: 20_000,
            bytes_max: 64 << 20,
            rows_kept: 5_000,
        }
    }
}

const MIGRATIONS: &[&str] = &["
    CREATE TABLE log (
        id        INTEGER PRIMARY KEY,
        key       TEXT    NOT NULL,
        create_id INTEGER NOT NULL,
        prev_id   INTEGER,
        value     BLOB
    );
    CREATE TABLE current (
        key TEXT    PRIMARY KEY,
        id  INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE state (
        only     INTEGER PRIMARY KEY CHECK (only = 1),
        revision INTEGER NOT NULL,
        floor    INTEGER NOT NULL
    );
    INSERT INTO state VALUES (1, 1, 1);
"];

const IDS_PER_REVISION: u64 = TXN_OPS_MAX as u64;

const fn id_of(revision: Revision, index: u64) -> u64 {
    revision * IDS_PER_REVISION + index
}

const fn revision_of(id: u64) -> Revision {
    id / IDS_PER_REVISION
}

/// The newest id that a revision may have used.
const fn last_id_of(revision: Revision) -> u64 {
    id_of(revision, IDS_PER_REVISION - 1)
}

fn failed(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full,
        _ => StoreError::Failed(error.to_string()),
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        failed(&error)
    }
}

type Reply = oneshot::Sender<Result<Revision, StoreError>>;

/// See the module's description. Clones share the file, the writer and the watchers.
#[derive(Clone)]
pub struct SqliteStore {
    txns: mpsc::Sender<(Txn, Reply)>,
    readers: Arc<Readers>,
    feed: Arc<Feed>,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.readers.path)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens or creates the database and starts its writer thread, which ends (after folding its
    /// log into the file) when the last clone is dropped.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, History::default())
    }

    /// The same with other bounds on history.
    pub fn open_with(path: &Path, history: History) -> Result<Self, StoreError> {
        let conn = open_connection(path)?;
        let writer = Writer::new(conn, history)?;
        let feed = Feed::new(writer.revision);
        let (txns, inbox) = mpsc::channel(QUEUE_TXNS_MAX);
        let published = Arc::clone(&feed);
        std::thread::Builder::new()
            .name("hub-store".into())
            .stack_size(512 << 10)
            .spawn(move || run(writer, inbox, &published))
            .map_err(|e| StoreError::Failed(format!("cannot start the writer thread: {e}")))?;
        Ok(Self {
            txns,
            readers: Arc::new(Readers {
                path: path.to_owned(),
                idle: Mutex::new(Vec::new()),
                permits: Semaphore::new(READERS_MAX),
                open: AtomicUsize::new(0),
            }),
            feed,
        })
    }
}

fn open_connection(path: &Path) -> Result<Connection, StoreError> {
    let at = |e: rusqlite::Error| {
        StoreError::Failed(format!("cannot open database `{}`: {e}", path.display()))
    };
    keep_private(path)?;
    let mut conn = Connection::open(path).map_err(at)?;
    conn.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=5000;
         PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0; PRAGMA cache_size=-{CACHE_KIB};
         PRAGMA journal_size_limit={JOURNAL_BYTES_MAX};
         PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES};"
    ))
    .map_err(at)?;
    let health: String = conn
        .query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
        .map_err(at)?;
    if health != "ok" {
        return Err(StoreError::Failed(format!(
            "database `{}` is damaged: {health}",
            path.display()
        )));
    }
    let found: usize = conn
        .query_row("PRAGMA user_version", [], |r| r.get(0))
        .map_err(at)?;
    if found > MIGRATIONS.len() {
        return Err(StoreError::Failed(format!(
            "database `{}` has schema version {found}, this program knows up to {}; \
             install the newer program",
            path.display(),
            MIGRATIONS.len()
        )));
    }
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(found) {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", index + 1)?;
        tx.commit()?;
    }
    Ok(conn)
}

/// The database holds Secrets: nobody else may read it. SQLite gives its side files the same mode.
fn keep_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let at = |e: std::io::Error| {
        StoreError::Failed(format!("cannot open database `{}`: {e}", path.display()))
    };
    // Never opened when it exists: closing a database's file behind SQLite's back drops its locks.
    if !path.exists() {
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(at)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(at)
}

/// What one commit did.
struct Committed {
    /// One for each transaction of the batch.
    outcomes: Vec<Result<Revision, StoreError>>,
    events: Vec<Arc<Event>>,
}

/// What the writer thread owns.
struct Writer {
    conn: Connection,
    history: History,
    revision: Revision,
    floor: Revision,
    /// Rows and bytes newer than the floor.
    rows: u64,
    bytes: u64,
}

impl Writer {
    fn new(conn: Connection, history: History) -> Result<Self, StoreError> {
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

fn run(mut writer: Writer, mut inbox: mpsc::Receiver<(Txn, Reply)>, feed: &Feed) {
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

/// A few connections for reading, opened when first needed.
struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
    open: AtomicUsize,
}

impl Readers {
    fn take(&self) -> Result<Connection, StoreError> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(conn) = idle.pop() {
            return Ok(conn);
        }
        drop(idle);
        let conn = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        conn.busy_timeout(std::time::Duration::from_secs(5))?;
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(conn)
    }

    async fn read<R, F>(self: &Arc<Self>, query: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, StoreError> + Send + 'static,
    {
        let _permit = self
            .permits
            .acquire()
            .await
            .map_err(|_| StoreError::Stopped)?;
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let conn = readers.take()?;
            let outcome = query(&conn);
            let mut idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(conn);
            outcome
        })
        .await
        .map_err(|_| StoreError::Stopped)?
    }
}

fn state(conn: &Connection) -> rusqlite::Result<(Revision, Revision)> {
    conn.prepare_cached("SELECT revision, floor FROM state")?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let key: String = row.get(0)?;
    let value: Vec<u8> = row.get(3)?;
    Ok(Entry {
        key: key.into(),
        revision: revision_of(row.get(1)?),
        create_revision: revision_of(row.get(2)?),
        value: value.into(),
    })
}

/// Keys of the range with the row that was theirs at the end of revision `:at`: those whose
/// newest row is old enough, and for the rest the row before their first later one.
const LIST_AT: &str = "
    SELECT h.key AS key, h.id AS id FROM current h
     WHERE h.key > :after AND h.key >= :from AND h.key < :to AND h.id <= :at
    UNION ALL
    SELECT key, prev_id FROM
      (SELECT key, prev_id, min(id) FROM log
        WHERE id > :at AND key > :after AND key >= :from AND key < :to GROUP BY key)
     WHERE prev_id IS NOT NULL";

fn list(conn: &Connection, query: &ListQuery) -> Result<Listing, StoreError> {
    // One transaction: the revision, the page and the count are of one moment.
    let tx = conn.unchecked_transaction()?;
    let (latest, floor) = state(&tx)?;
    let at = query.at.unwrap_or(latest);
    if at > latest {
        return Err(StoreError::Future {
            asked: at,
            current: latest,
        });
    }
    if at < floor {
        return Err(StoreError::Expired {
            asked: at,
            oldest: floor,
        });
    }
    let after = query.after.clone().unwrap_or_default();
    let to = prefix_end(&query.prefix).unwrap_or_else(|| "\u{10FFFF}".repeat(4));
    let limit = match query.limit {
        0 => i64::MAX,
        n => i64::try_from(n).unwrap_or(i64::MAX),
    };
    let source = if at == latest {
        "SELECT key, id FROM current WHERE key > :after AND key >= :from AND key < :to
            AND id <= :at"
    } else {
        LIST_AT
    };
    let params: &[(&str, &dyn rusqlite::ToSql)] = &[
        (":after", &after),
        (":from", &query.prefix),
        (":to", &to),
        (":at", &last_id_of(at)),
        (":limit", &limit),
    ];
    let entries = tx
        .prepare_cached(&format!(
            "SELECT c.key, l.id, l.create_id, l.value FROM ({source}) c
               JOIN log l ON l.id = c.id ORDER BY c.key LIMIT :limit"
        ))?
        .query_map(params, entry)?
        .collect::<Result<Vec<_>, _>>()?;
    let mut remaining = 0;
    if query.limit != 0 && entries.len() == query.limit {
        let total: u64 = tx
            .prepare_cached(&format!("SELECT count(*) FROM ({source})"))?
            .query_row(&params[..4], |r| r.get(0))?;
        remaining = total.saturating_sub(entries.len() as u64);
    }
    Ok(Listing {
        entries,
        revision: at,
        remaining,
    })
}

#[async_trait]
impl Backlog for Readers {
    async fn read(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let conn = {
            let path = self.path.clone();
            let prefix = prefix.to_owned();
            tokio::task::spawn_blocking(move || {
                let conn = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                backlog(&conn, &prefix, after)
            })
        };
        conn.await.map_err(|_| StoreError::Stopped)?
    }
}

/// Rows read from the log at a time. More than a transaction may hold, so a page always has a
/// whole revision in it.
const BACKLOG_ROWS_MAX: usize = 4 * TXN_OPS_MAX;

fn backlog(
    conn: &Connection,
    prefix: &str,
    after: Revision,
) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
    let tx = conn.unchecked_transaction()?;
    let (latest, floor) = state(&tx)?;
    if after < floor {
        return Err(StoreError::Expired {
            asked: after,
            oldest: floor,
        });
    }
    let to = prefix_end(prefix).unwrap_or_else(|| "\u{10FFFF}".repeat(4));
    let mut events = tx
        .prepare_cached(
            "SELECT l.id, l.key, l.create_id, l.value, p.id, p.create_id, p.value
               FROM log l LEFT JOIN log p ON p.id = l.prev_id
              WHERE l.id > ? AND l.key >= ? AND l.key < ? ORDER BY l.id LIMIT ?",
        )?
        .query_map(
            params![last_id_of(after), prefix, to, BACKLOG_ROWS_MAX],
            |r| {
                let id: u64 = r.get(0)?;
                let key: Arc<str> = r.get::<_, String>(1)?.into();
                let version = |id: u64, create: u64, value: Option<Vec<u8>>| {
                    value.map(|value| Entry {
                        key: Arc::clone(&key),
                        value: value.into(),
                        revision: revision_of(id),
                        create_revision: revision_of(create),
                    })
                };
                let value = version(id, r.get(2)?, r.get(3)?);
                let prev = match r.get::<_, Option<u64>>(4)? {
                    Some(prev) => version(prev, r.get(5)?, r.get(6)?),
                    None => None,
                };
                Ok(Arc::new(Event::new(
                    revision_of(id),
                    Arc::clone(&key),
                    value,
                    prev,
                )))
            },
        )?
        .collect::<Result<Vec<_>, _>>()?;
    if events.len() < BACKLOG_ROWS_MAX {
        return Ok((events, latest));
    }
    // The last revision may be cut; leave it for the next page.
    let last = events.last().map_or(after, |e| e.revision);
    events.retain(|e| e.revision < last);
    Ok((events, last - 1))
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.readers
            .read(move |conn| {
                Ok(conn
                    .prepare_cached(
                        "SELECT c.key, l.id, l.create_id, l.value
                           FROM current c JOIN log l ON l.id = c.id WHERE c.key = ?",
                    )?
                    .query_row([key], entry)
                    .optional()?)
            })
            .await
    }

    async fn list(&self, query: ListQuery) -> Result<Listing, StoreError> {
        self.readers.read(move |conn| list(conn, &query)).await
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.txns
            .send((txn, reply))
            .await
            .map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watcher>, StoreError> {
        let floor = self.readers.read(|conn| Ok(state(conn)?.1)).await?;
        if after < floor {
            return Err(StoreError::Expired {
                asked: after,
                oldest: floor,
            });
        }
        let backlog: Arc<dyn Backlog> = Arc::<Readers>::clone(&self.readers);
        Ok(Box::new(self.feed.watch(prefix, after, backlog)))
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.feed.latest())
    }
}
