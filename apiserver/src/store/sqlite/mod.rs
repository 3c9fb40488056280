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

mod read;
mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use self::read::{Readers, entry, list, state};
use self::writer::{Reply, Writer};
use super::feed::{Backlog, Feed};
use super::{Entry, ListQuery, Listing, Revision, Store, StoreError, TXN_OPS_MAX, Txn, Watcher};

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
            .spawn(move || writer::run(writer, inbox, &published))
            .map_err(|e| StoreError::Failed(format!("cannot start the writer thread: {e}")))?;
        Ok(Self {
            txns,
            readers: Readers::new(path.to_owned()),
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
