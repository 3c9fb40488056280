//! Where commands keep their fifos, so that a crash leaves nothing for ever.
//!
//! `<state>/exec/<run>/<exec id>/` with a file `container` that names the container;
//! `<state>/exec/<run>.lock` is locked as long as the program that made it lives. Another run finds
//! the lock free, and removes what it guarded.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::{Daemon, reap};

const LOCK_SUFFIX: &str = "lock";
const CONTAINER_FILE: &str = "container";

/// The directory of this run, made when the first command needs it.
pub(super) struct Homes {
    root: PathBuf,
    own: Mutex<Option<Home>>,
}

struct Home {
    path: PathBuf,
    lock: File,
}

impl Home {
    /// Makes the lock, then the directory it guards.
    fn make(root: &Path) -> io::Result<Self> {
        crate::files::make_dir(root, 0o700)?;
        loop {
            let path = root.join(Uuid::new_v4().simple().to_string());
            let lock = open_lock(&path.with_extension(LOCK_SUFFIX))?;
            // A sweep of another run may have taken the file before it was locked.
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && lock.metadata()?.nlink() > 0
            {
                crate::files::make_dir(&path, 0o700)?;
                return Ok(Self { path, lock });
            }
        }
    }

    /// Whether it is still where it was made (the state directory is on a tmpfs).
    fn stands(&self) -> bool {
        self.path.is_dir() && self.lock.metadata().is_ok_and(|lock| lock.nlink() > 0)
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

/// One command's directory.
pub(super) struct Place {
    path: PathBuf,
    exec_id: String,
}

impl Place {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn exec_id(&self) -> &str {
        &self.exec_id
    }

    pub(super) fn remove(self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, path = %path.display(), "command's directory left behind");
        }
        Ok(()) | Err(_) => {}
    }
}

impl Homes {
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            root,
            own: Mutex::new(None),
        }
    }

    /// A fresh directory for one command in `container`.
    pub(super) fn place(&self, container: &str) -> io::Result<Place> {
        let exec_id = format!("e{}", Uuid::new_v4().simple());
        let path = {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            let home = match own.take().filter(Home::stands) {
                Some(home) => home,
                None => Home::make(&self.root)?,
            };
            own.insert(home).path.join(&exec_id)
        };
        crate::files::make_dir(&path, 0o700)?;
        std::fs::write(path.join(CONTAINER_FILE), container)?;
        Ok(Place { path, exec_id })
    }
}

impl Drop for Homes {
    /// An orderly end takes its own directory along if nothing is in it.
    fn drop(&mut self) {
        let own = self.own.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(home) = own.take()
            && std::fs::remove_dir(&home.path).is_ok()
        {
            drop(std::fs::remove_file(home.path.with_extension(LOCK_SUFFIX)));
        }
    }
}

/// Ends and removes the commands of runs that are no more.
pub(super) async fn sweep(daemon: Daemon, homes: Arc<Homes>) {
    let Ok(entries) = std::fs::read_dir(&homes.root) else {
        return;
    };
    for lock_path in entries.flatten().map(|entry| entry.path()) {
        if lock_path.extension().is_none_or(|e| e != LOCK_SUFFIX) {
            continue;
        }
        let Ok(lock) = open_lock(&lock_path) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if sweep_home(&daemon, &lock_path.with_extension("")).await {
            drop(std::fs::remove_file(&lock_path));
        }
    }
}

/// True when nothing is left of it.
async fn sweep_home(daemon: &Daemon, home: &Path) -> bool {
    let mut is_clean = true;
    for path in std::fs::read_dir(home)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
    {
        let exec_id = path.file_name().and_then(|name| name.to_str());
        let container = std::fs::read_to_string(path.join(CONTAINER_FILE));
        if let (Some(exec_id), Ok(container)) = (exec_id, container)
            && !reap(daemon, &container, exec_id, true).await
        {
            is_clean = false;
            continue;
        }
        remove(&path);
    }
    let gone = match std::fs::remove_dir(home) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(()) => true,
    };
    is_clean && gone
}
