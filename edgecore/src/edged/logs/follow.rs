//! Sending a log on, and waiting for more of it.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock, inotify};
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Chunk, LogError, LogReader, Query, Step};
use crate::clock;

/// Chunks that wait for a slow reader; the log's reader then waits too.
pub const CHUNKS_MAX: usize = 8;
/// A logger that has not written everything so long after its container's end is not waited for: a
/// process that outlives the container's first one keeps talking.
pub const COMPLETE_WITHIN: Duration = Duration::from_secs(5);
/// Chunks of up to this size are sent on at once.
const BATCH_BYTES: usize = 64 << 10;

/// News of a log's directory: writes, and files that come and go. An inotify descriptor is read
/// like a pipe; what the events say is of no interest.
struct Watch(Receiver);

impl Watch {
    fn new(directory: &Path) -> std::io::Result<Self> {
        use inotify::WatchFlags;
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF;
        inotify::add_watch(&watch, directory, flags)?;
        Ok(Self(Receiver::from_owned_fd_unchecked(watch)?))
    }

    /// Waits for news and takes all there are. Cancel-safe: news not taken stay.
    async fn news(&self) -> std::io::Result<()> {
        self.0.readable().await?;
        let mut events = [0_u8; 4096];
        loop {
            match self.0.try_read(&mut events) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sends the log at `path` to `out` until its end, until nobody listens, or, when following, until
/// `ended` (the container is over) and everything was read. The blocking reads are made outside
/// the async threads, none while it waits.
///
/// # Errors
/// There is no such log, or it cannot be read or watched.
pub async fn pump(
    path: &Path,
    query: &Query,
    ended: impl Future<Output = ()>,
    out: mpsc::Sender<Chunk>,
) -> Result<(), LogError> {
    pump_from(path, query, ended, out, || {}).await
}

/// As [`pump`]; calls `opened` when all that is written from then on will be told.
pub async fn pump_from(
    path: &Path,
    query: &Query,
    ended: impl Future<Output = ()>,
    out: mpsc::Sender<Chunk>,
    opened: impl FnOnce(),
) -> Result<(), LogError> {
    // Watched before it is read: nothing that is written in between is missed.
    let watch = match (query.follow, path.parent()) {
        (true, Some(directory)) if directory.is_dir() => {
            let watch = Watch::new(directory).map_err(|source| LogError::Watch {
                path: directory.to_owned(),
                source,
            })?;
            Some(watch)
        }
        _ => None,
    };
    let (owned, asked) = (path.to_owned(), query.clone());
    let mut reader = blocking(path, move || LogReader::open(&owned, &asked)).await?;
    opened();
    let mut patience: Option<Instant> = None;
    tokio::pin!(ended);
    loop {
        // Asked before it is read: what was written until then is read now.
        let is_over = match patience {
            _ if watch.is_none() => true,
            None => false,
            Some(until) if until <= Instant::now() => true,
            Some(_) => {
                let log = path.to_owned();
                blocking(path, move || Ok(is_complete(&log))).await?
            }
        };
        let (step, chunks);
        (reader, step, chunks) = blocking(path, move || read_batch(reader)).await?;
        for chunk in chunks {
            if out.send(chunk).await.is_err() {
                return Ok(());
            }
        }
        match (step, &watch) {
            (Step::More, _) => {}
            (Step::CaughtUp, Some(watch)) if !is_over => {
                // All cancel-safe: a future by reference, news that stay, a closed channel.
                tokio::select! {
                    // The logger may still be writing what was said last.
                    () = &mut ended, if patience.is_none() => {
                        patience = Some(Instant::now() + COMPLETE_WITHIN);
                    }
                    () = clock::reached(patience) => {}
                    news = watch.news() => news.map_err(|source| LogError::Watch {
                        path: path.to_owned(),
                        source,
                    })?,
                    () = out.closed() => return Ok(()),
                }
            }
            (Step::CaughtUp | Step::Done, _) => break,
        }
    }
    for chunk in reader.finish() {
        if out.send(chunk).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Whether everything has been written to the log at `path`: its logger locks the current file until
/// then, and one that is gone holds no lock.
fn is_complete(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return true;
    };
    if matches!(
        flock(&file, FlockOperation::NonBlockingLockShared),
        Err(Errno::WOULDBLOCK | Errno::INTR)
    ) {
        return false;
    }
    // Rotated meanwhile: the next one is locked.
    let inode = |meta: std::io::Result<std::fs::Metadata>| meta.map(|meta| meta.ino()).ok();
    inode(file.metadata()) == inode(std::fs::metadata(path))
}

/// Steps until there is enough to send, or nothing more now.
fn read_batch(mut reader: LogReader) -> Result<(LogReader, Step, Vec<Chunk>), LogError> {
    let mut chunks = Vec::new();
    loop {
        let step = reader.step(&mut chunks)?;
        let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        if step != Step::More || bytes >= BATCH_BYTES {
            return Ok((reader, step, chunks));
        }
    }
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|error| {
            Err(LogError::Read {
                path: path.to_owned(),
                source: std::io::Error::other(error),
            })
        })
}
