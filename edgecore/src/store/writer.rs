//! The writer thread and the handle that other modules hold.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use super::{Db, Job, StoreError};

/// Jobs waiting for the writer. Full means the disk is behind; askers get [`StoreError::Busy`]
/// (`submit`) or wait (`write`), and the pressure reaches the socket that feeds them.
const QUEUE_JOBS_MAX: usize = 1024;
/// Jobs in one commit. Bounds the latency of the first asker in a batch.
const BATCH_JOBS_MAX: usize = 512;

/// What the writer thread is handed.
enum Order {
    Run(Box<dyn Job>),
    /// Finish what is queued before this, fold the log, end.
    Close,
}

/// Handle to the writer thread. Clones share one thread; it ends at [`Store::close`], or when the
/// last clone is gone.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: SyncSender<Order>,
    path: Arc<PathBuf>,
    /// One read connection kept between reads: opening one parses the schema again.
    idle: Arc<Mutex<Option<Connection>>>,
}

impl Store {
    /// Opens the database and starts its writer thread. The join handle ends after the last
    /// [`Store`] is dropped and the log is checkpointed. The third value tells of a database that
    /// was set aside as corrupt.
    pub fn open(path: &Path) -> Result<(Self, JoinHandle<()>, Option<StoreError>), StoreError> {
        let (db, told) = Db::open(path)?;
        let (jobs, inbox) = sync_channel(QUEUE_JOBS_MAX);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .stack_size(512 << 10)
            .spawn(move || run(db, &inbox))
            .map_err(|e| StoreError::Refused(format!("cannot start the writer thread: {e}")))?;
        Ok((
            Self {
                jobs,
                path: Arc::new(path.to_owned()),
                idle: Arc::default(),
            },
            thread,
            told,
        ))
    }

    /// Hands a job to the writer without waiting. `Busy` gives the job back to nobody: its
    /// `done` is not called, the caller still holds whatever it must answer for.
    pub fn submit(&self, job: Box<dyn Job>) -> Result<(), StoreError> {
        self.jobs
            .try_send(Order::Run(job))
            .map_err(|error| match error {
                TrySendError::Full(_) => StoreError::Busy,
                TrySendError::Disconnected(_) => StoreError::Stopped,
            })
    }

    /// Ends the writer thread after everything queued so far; later jobs get
    /// [`StoreError::Stopped`]. Waits only while the queue is full.
    pub fn close(&self) {
        // An error says that the thread has ended already.
        drop(self.jobs.send(Order::Close));
    }

    /// Submits `work` and calls `then` on the writer thread after the commit, in submission order.
    /// `then` must not block.
    pub fn submit_fn<R, F, T>(&self, work: F, then: T) -> Result<(), StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, StoreError> + Send + 'static,
        T: FnOnce(Result<R, StoreError>) + Send + 'static,
    {
        self.submit(Box::new(Closure {
            work: Some(work),
            result: None,
            then,
        }))
    }

    /// Runs `work` in a durable transaction and returns its result after the commit.
    /// Not cancel-safe in effect: a dropped future may still commit.
    pub async fn write<R, F>(&self, work: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let mut job: Box<dyn Job> = Box::new(Closure {
            work: Some(work),
            result: None,
            then: move |outcome| drop(reply.send(outcome)),
        });
        loop {
            match self.jobs.try_send(Order::Run(job)) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_) | TrySendError::Full(Order::Close)) => {
                    return Err(StoreError::Stopped);
                }
                Err(TrySendError::Full(Order::Run(back))) => {
                    job = back;
                    // The queue drains at the disk's pace; a few milliseconds is one commit.
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            }
        }
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// Reads on a connection of its own, off the runtime's workers. Sees every commit that was
    /// reported before the call.
    pub async fn read<R, F>(&self, query: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, StoreError> + Send + 'static,
    {
        let path = Arc::clone(&self.path);
        let idle = Arc::clone(&self.idle);
        tokio::task::spawn_blocking(move || {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).take();
            let conn = match kept {
                Some(conn) => conn,
                None => open_reader(path.as_ref())?,
            };
            let found = query(&conn)?;
            *idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(conn);
            Ok(found)
        })
        .await
        .map_err(|_| StoreError::Stopped)?
    }
}

fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let at = |source| StoreError::Open {
        path: path.to_owned(),
        source,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(at)?;
    conn.execute_batch("PRAGMA busy_timeout=5000; PRAGMA cache_size=-256; PRAGMA mmap_size=0;")
        .map_err(at)?;
    Ok(conn)
}

struct Closure<R, F, T> {
    work: Option<F>,
    result: Option<R>,
    then: T,
}

impl<R, F, T> Job for Closure<R, F, T>
where
    R: Send,
    F: FnOnce(&Connection) -> Result<R, StoreError> + Send,
    T: FnOnce(Result<R, StoreError>) + Send,
{
    fn run(&mut self, tx: &Connection) -> Result<(), StoreError> {
        if let Some(work) = self.work.take() {
            self.result = Some(work(tx)?);
        }
        Ok(())
    }

    fn done(self: Box<Self>, outcome: Result<(), StoreError>) {
        let result = self.result;
        (self.then)(outcome.and_then(|()| result.ok_or(StoreError::Stopped)));
    }
}

fn run(mut db: Db, inbox: &Receiver<Order>) {
    let mut is_open = true;
    while is_open && let Ok(Order::Run(first)) = inbox.recv() {
        let mut batch = vec![first];
        while is_open
            && batch.len() < BATCH_JOBS_MAX
            && let Ok(next) = inbox.try_recv()
        {
            match next {
                Order::Run(job) => batch.push(job),
                Order::Close => is_open = false,
            }
        }
        db.commit(batch);
    }
    if let Err(error) = db.checkpoint() {
        tracing::warn!(%error, "checkpoint on shutdown failed; the log is replayed at next start");
    }
}
