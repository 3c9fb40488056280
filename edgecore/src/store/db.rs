//! The synchronous core: open, migrate, commit a batch of jobs.

use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior};

use super::schema::MIGRATIONS;

/// Bound of the write-ahead log file kept after a checkpoint: an SD card has little room.
const JOURNAL_BYTES_MAX: u64 = 4 << 20;
/// Size of a page, for a database made now. A commit writes every page it touched whole, and a
/// reading touches five: small pages halve what goes to flash.
const PAGE_BYTES: u32 = 1024;
/// Pages between automatic checkpoints: fewer, larger writes to flash.
const CHECKPOINT_PAGES: u32 = 4000;
/// SQLite's page cache. 1 MiB holds the working set of a node; memory is the budget here.
const CACHE_KIB: i32 = 1024;

/// Statements kept compiled. One reading needs about a dozen, a plain hub and the broker's queues
/// others; with the library's 16 they push each other out.
const STATEMENTS_MAX: usize = 48;

/// Why the store refused. Everything but `Busy` and `Full` needs an operator or a newer binary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("cannot open database `{path}`")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("`{path}` is not a usable database ({reason}); it was set aside as `{set_aside}`")]
    Corrupt {
        path: PathBuf,
        reason: String,
        set_aside: PathBuf,
    },
    #[error(
        "database has schema version {found}, this program knows up to {known}; install the newer edgecore"
    )]
    TooNew { found: usize, known: usize },
    #[error("database statement failed")]
    Sql(#[from] rusqlite::Error),
    #[error("the disk is full; free space or raise the quota")]
    Full,
    #[error("the store's queue is full")]
    Busy,
    #[error("stream `{stream}` has reached its quota and refuses more")]
    Quota { stream: String },
    #[error("the store has stopped")]
    Stopped,
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// Whether trying again, unchanged, can succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Full | Self::Busy | Self::Quota { .. } => true,
            Self::Open { .. }
            | Self::Corrupt { .. }
            | Self::TooNew { .. }
            | Self::Sql(_)
            | Self::Stopped
            | Self::Refused(_) => false,
        }
    }

    fn of_job(self) -> Self {
        if let Self::Sql(source) = self {
            return Self::of_commit(source);
        }
        self
    }

    fn of_commit(source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Sql(source),
        }
    }
}

/// A job and how it ended.
type Ran = (Box<dyn Job>, Result<(), StoreError>);

/// One change: runs inside a savepoint; an `Err` undoes this job alone.
pub trait Job: Send {
    /// Does the work on the open transaction.
    fn run(&mut self, tx: &Connection) -> Result<(), StoreError>;
    /// Told once the batch is durable (`Ok`) or undone (`Err`). Must not block.
    fn done(self: Box<Self>, outcome: Result<(), StoreError>);
}

/// An open database with its schema in place. One of these writes a file; there is no second.
#[derive(Debug)]
pub struct Db {
    conn: Connection,
}

impl Db {
    /// Opens or creates `path`. A file that is no database is set aside (renamed) and replaced by
    /// an empty one; the second value then says so, for the log.
    pub fn open(path: &Path) -> Result<(Self, Option<StoreError>), StoreError> {
        match Self::open_checked(path) {
            Ok(db) => Ok((db, None)),
            Err(StoreError::Open { source, .. }) if is_corruption(&source) => {
                let set_aside = set_aside(path)?;
                let told = StoreError::Corrupt {
                    path: path.to_owned(),
                    reason: source.to_string(),
                    set_aside,
                };
                Ok((Self::open_checked(path)?, Some(told)))
            }
            Err(other) => Err(other),
        }
    }

    /// An empty database in memory, for tests and the simulator.
    pub fn open_in_memory() -> Result<Self, StoreError> {
        let mut db = Self {
            conn: Connection::open_in_memory()?,
        };
        db.migrate()?;
        Ok(db)
    }

    fn open_checked(path: &Path) -> Result<Self, StoreError> {
        let at = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let conn = Connection::open(path).map_err(at)?;
        // Closing a file that turns out to be no database would remove the log beside it.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(at)?;
        let pragmas = format!(
            "PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=5000;
             PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0;
             PRAGMA journal_size_limit={JOURNAL_BYTES_MAX}; PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES};
             PRAGMA cache_size=-{CACHE_KIB};"
        );
        conn.execute_batch(&pragmas).map_err(at)?;
        let health: String = conn
            .query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
            .map_err(at)?;
        if health != "ok" {
            return Err(at(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
                Some(health),
            )));
        }
        let mut db = Self { conn };
        db.migrate()?;
        db.conn
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
            .map_err(at)?;
        Ok(db)
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        self.conn
            .set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        let found: usize = self
            .conn
            .query_row("PRAGMA user_version", [], |r| r.get(0))?;
        if found > MIGRATIONS.len() {
            return Err(StoreError::TooNew {
                found,
                known: MIGRATIONS.len(),
            });
        }
        for (index, sql) in MIGRATIONS.iter().enumerate().skip(found) {
            let tx = self
                .conn
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.execute_batch(sql)?;
            tx.pragma_update(None, "user_version", index + 1)?;
            tx.commit()?;
        }
        crate::outbox::open(&self.conn)?;
        crate::twin::open_history_totals(&self.conn)
    }

    /// Runs every job in one transaction and reports to each after the commit. A job that fails
    /// is undone alone; if the commit fails, all are undone and all are told.
    pub fn commit(&mut self, jobs: Vec<Box<dyn Job>>) {
        let mut outcomes = Vec::with_capacity(jobs.len());
        match self.run_all(jobs, &mut outcomes) {
            Ok(()) => {
                for (job, outcome) in outcomes {
                    job.done(outcome);
                }
            }
            Err(error) => {
                let text = error.to_string();
                let full = matches!(error, StoreError::Full);
                for (job, _) in outcomes {
                    job.done(Err(if full {
                        StoreError::Full
                    } else {
                        StoreError::Refused(text.clone())
                    }));
                }
            }
        }
    }

    fn run_all(
        &mut self,
        jobs: Vec<Box<dyn Job>>,
        outcomes: &mut Vec<Ran>,
    ) -> Result<(), StoreError> {
        let begun = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate);
        let mut tx = match begun {
            Ok(tx) => tx,
            Err(source) => {
                outcomes.extend(jobs.into_iter().map(|job| (job, Ok(()))));
                return Err(StoreError::of_commit(source));
            }
        };
        let mut jobs = jobs.into_iter();
        while let Some(mut job) = jobs.next() {
            let outcome = (|| {
                let savepoint = tx.savepoint()?;
                job.run(&savepoint)?;
                savepoint.commit()?;
                Ok(())
            })()
            .map_err(StoreError::of_job);
            let Err(error) = &outcome else {
                outcomes.push((job, outcome));
                continue;
            };
            // Some errors (a full disk above all) end the whole transaction; what ran after that
            // would be a transaction of its own and nobody's promise.
            let is_over = tx.is_autocommit();
            let cause = if matches!(error, StoreError::Full) {
                StoreError::Full
            } else {
                StoreError::Refused(error.to_string())
            };
            outcomes.push((job, outcome));
            if is_over {
                outcomes.extend(jobs.map(|job| (job, Ok(()))));
                return Err(cause);
            }
        }
        tx.commit().map_err(StoreError::of_commit)
    }

    /// A connection for reads inside this thread; the writer thread's own view.
    pub fn reader(&self) -> &Connection {
        &self.conn
    }

    /// Folds the write-ahead log into the file; called on shutdown.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}

fn is_corruption(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
    )
}

/// Renames the database and its side files out of the way; returns the new name.
fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let stamp = crate::clock::unix_millis();
    let aside = path.with_extension(format!("corrupt-{stamp}"));
    std::fs::rename(path, &aside)
        .map_err(|e| StoreError::Refused(format!("cannot set `{}` aside: {e}", path.display())))?;
    // The log may hold what the file does not: it goes along, for whoever repairs the two.
    for suffix in ["-wal", "-shm"] {
        let beside = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let side = beside(path);
        match std::fs::rename(&side, beside(&aside)) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                return Err(StoreError::Refused(format!(
                    "cannot set `{}` aside: {e}",
                    side.display()
                )));
            }
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Told = Arc<Mutex<Vec<(usize, Result<(), String>)>>>;

    /// Writes a row of so many bytes and tells what became of it.
    struct Row {
        n: usize,
        bytes: usize,
        told: Told,
    }

    impl Job for Row {
        fn run(&mut self, tx: &Connection) -> Result<(), StoreError> {
            tx.execute(
                "INSERT INTO facts (name, value) VALUES (?1, zeroblob(?2))",
                (self.n.to_string(), self.bytes),
            )?;
            Ok(())
        }

        fn done(self: Box<Self>, outcome: Result<(), StoreError>) {
            let outcome = outcome.map_err(|e| e.to_string());
            self.told.lock().unwrap().push((self.n, outcome));
        }
    }

    #[test]
    fn fault_27_many_reports_are_one_synced_write_to_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge.db");
        let (mut db, _) = Db::open(&path).unwrap();
        let mode: String = db
            .conn
            .query_row("PRAGMA journal_mode", [], |r| r.get(0))
            .unwrap();
        assert_eq!(
            mode, "wal",
            "readers and the writer do not wait for each other"
        );
        let journal = || {
            std::fs::metadata(format!("{}-wal", path.display()))
                .unwrap()
                .len()
        };
        let told = Told::default();
        let job = |n: usize| -> Box<dyn Job> {
            Box::new(Row {
                n,
                bytes: 1,
                told: Arc::clone(&told),
            })
        };
        let before = journal();
        db.commit((0..200).map(job).collect());
        assert_eq!(told.lock().unwrap().len(), 200);
        // A transaction each would write 200 pages at least.
        let written = journal().saturating_sub(before);
        assert!(written < 60 * u64::from(PAGE_BYTES), "{written} bytes");
    }

    #[test]
    fn a_disk_that_fills_in_the_middle_of_a_batch_keeps_only_what_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (mut db, _) = Db::open(&dir.path().join("edge.db")).unwrap();
        let pages: u32 = db
            .conn
            .query_row("PRAGMA page_count", [], |r| r.get(0))
            .unwrap();
        let limit = |db: &Db, pages: u32| {
            let sql = format!("PRAGMA max_page_count={pages}");
            db.conn.query_row(&sql, [], |_| Ok(())).unwrap();
        };
        limit(&db, pages + 20);
        let told = Told::default();
        let job = |n: usize, bytes: usize| -> Box<dyn Job> {
            Box::new(Row {
                n,
                bytes,
                told: Arc::clone(&told),
            })
        };
        db.commit(vec![job(1, 100), job(2, 100_000), job(3, 100)]);
        db.commit(vec![job(4, 100)]);
        limit(&db, 1_000_000);
        db.commit(vec![job(5, 100_000)]);
        let told = told.lock().unwrap().clone();
        assert_eq!(told.len(), 5, "{told:?}");
        for (n, outcome) in &told {
            let kept: bool = db
                .conn
                .query_row(
                    "SELECT count(*) FROM facts WHERE name = ?1",
                    [n.to_string()],
                    |r| r.get(0),
                )
                .unwrap();
            assert_eq!(kept, outcome.is_ok(), "row {n}: {outcome:?}");
        }
        let full = StoreError::Full.to_string();
        assert_eq!(told.iter().find(|(n, _)| *n == 2).unwrap().1, Err(full));
        assert_eq!(told[4], (5, Ok(())));
    }
}
