//! Readings kept at the hub: what devices reported and what was uploaded, with retention, in a
//! SQLite file of its own beside the hub's store.
//!
//! ```text
//! session ── append ──→ writer thread: positions, readings, retention, in one commit ──→ ack
//!                              │ newest id (watch)
//!  GET …/readings ←─ query ────┴──→ forward: MQTT broker, HTTP endpoint ── advance ──→ writer
//! ```
//!
//! A batch is kept here before it is committed to the ledger, so before it is acknowledged; the
//! sequence number that a node has reached is kept with it, so a batch that comes again adds
//! nothing. Ids of readings rise without gaps, and the oldest go first: what a forwarder has been
//! handed, what waits and what went before it could be handed on are differences of ids.

mod api;
mod db;
mod forward;
mod intake;
mod parse;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot, watch};

pub use api::{GROUP_PREFIX, handle};
pub use db::{Kept, Progress, Range, Series, Settled};
pub use forward::{Forwarder, Health, Target, run as forward};
pub use intake::Intake;
use parse::Row;
use writer::Job;

/// Jobs that may wait for the writer; more wait in their callers.
const QUEUE_JOBS_MAX: usize = 256;
/// Read connections kept between reads.
const READERS_KEPT: usize = 2;

/// Why readings could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ReadingsError {
    /// SQLite failed.
    #[error("the readings' database failed: {0}")]
    Database(String),
    /// The writer is gone: the hub is stopping.
    #[error("the readings' database is closed")]
    Closed,
}

impl From<rusqlite::Error> for ReadingsError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.to_string())
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Older readings go.
    pub age_secs: u64,
    /// Beyond so many bytes the oldest go.
    pub bytes: u64,
}

/// The readings of all nodes. Clones are the same.
#[derive(Debug, Clone)]
pub struct Readings {
    jobs: mpsc::Sender<Job>,
    newest: watch::Receiver<i64>,
    path: Arc<PathBuf>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Readings {
    /// Opens the file, or makes it, and starts the writer thread, which ends when the last handle
    /// is gone.
    pub fn open(path: &Path, bounds: Bounds) -> Result<Self, ReadingsError> {
        let db = db::Db::open(path, bounds)?;
        let (jobs, waiting) = mpsc::channel(QUEUE_JOBS_MAX);
        let (tell, newest) = watch::channel(db.newest());
        std::thread::Builder::new()
            .name("readings-writer".into())
            .stack_size(512 << 10)
            .spawn(move || writer::run(db, waiting, &tell))
            .map_err(|error| ReadingsError::Database(error.to_string()))?;
        Ok(Self {
            jobs,
            newest,
            path: Arc::new(path.to_owned()),
            idle: Arc::default(),
        })
    }

    /// Keeps the readings of the entries above the node's position in the epoch.
    async fn append(
        &self,
        node: &str,
        epoch: &str,
        entries: Vec<(u64, Vec<Row>)>,
    ) -> Result<(), ReadingsError> {
        let (node, epoch) = (node.to_owned(), epoch.to_owned());
        self.ask(|reply| Job::Append {
            node,
            epoch,
            entries,
            reply,
        })
        .await
    }

    /// Lets go of what is too old.
    pub async fn prune(&self) -> Result<(), ReadingsError> {
        self.ask(Job::Prune).await
    }

    /// Makes a forwarder known, which begins with what comes from now on; its progress.
    pub async fn register(&self, name: &str) -> Result<Progress, ReadingsError> {
        let name = name.to_owned();
        self.ask(|reply| Job::Register(name, reply)).await
    }

    /// Notes how all up to an id are settled for a forwarder.
    pub async fn advance(
        &self,
        name: &str,
        up_to: i64,
        how: Settled,
    ) -> Result<Progress, ReadingsError> {
        let name = name.to_owned();
        self.ask(|reply| Job::Advance {
            name,
            up_to,
            how,
            reply,
        })
        .await
    }

    /// The readings after an id, oldest first.
    pub async fn after(&self, id: i64, limit: usize) -> Result<Vec<Kept>, ReadingsError> {
        self.read(move |conn| db::after(conn, id, limit)).await
    }

    /// Rises with every reading.
    pub fn newest(&self) -> watch::Receiver<i64> {
        self.newest.clone()
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, ReadingsError>>) -> Job,
    ) -> Result<T, ReadingsError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.jobs.send(job(reply)).await;
        sent.map_err(|_| ReadingsError::Closed)?;
        answer.await.map_err(|_| ReadingsError::Closed)?
    }

    /// Runs a query on a connection of its own, away from the async threads.
    pub async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadingsError> {
        let (path, idle) = (Arc::clone(&self.path), Arc::clone(&self.idle));
        let done = tokio::task::spawn_blocking(move || {
            let kept = lock(&idle).pop();
            let conn = if let Some(conn) = kept {
                conn
            } else {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                Connection::open_with_flags(&*path, flags)?
            };
            let answer = query(&conn)?;
            let mut idle = lock(&idle);
            if idle.len() < READERS_KEPT {
                idle.push(conn);
            }
            Ok(answer)
        });
        done.await
            .map_err(|error| ReadingsError::Database(error.to_string()))?
    }
}

fn lock(idle: &Mutex<Vec<Connection>>) -> std::sync::MutexGuard<'_, Vec<Connection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of what is too old, once a minute, until `stop`.
pub async fn housekeep(
    readings: Readings,
    stop: tokio_util::sync::CancellationToken,
) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(60));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if let Err(error) = readings.prune().await {
            tracing::warn!(%error, "old readings could not be removed");
        }
    }
}
