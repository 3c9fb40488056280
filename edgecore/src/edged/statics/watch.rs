//! Follows a directory by inotify. Nothing is looked at while nothing changes.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// What to look at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::edged) enum Change {
    /// These names.
    Files(BTreeSet<String>),
    /// All of the directory: it came, went, or more happened than the kernel could keep.
    Everything,
}

/// A directory that need not exist yet: until then its nearest parent is followed.
#[derive(Debug)]
pub(in crate::edged) struct Watch {
    directory: PathBuf,
    /// Whether the directory itself is followed.
    is_there: bool,
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Must be called in a runtime. Look at everything after this: what happens from here on is told.
    pub(in crate::edged) fn new(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let gone = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        // A file that is being written is told when it is closed, not when it is made.
        let files = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE;
        let is_there = inotify::add_watch(&fd, directory, files | gone).is_ok();
        if !is_there {
            let parents = directory.ancestors().skip(1);
            let made = WatchFlags::CREATE | WatchFlags::MOVED_TO;
            let followed = parents
                .into_iter()
                .any(|parent| inotify::add_watch(&fd, parent, made | gone).is_ok());
            if !followed {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "no parent to follow",
                ));
            }
        }
        #[expect(
            deprecated,
            reason = "its successor is unsafe for descriptors that others may close; this one is owned"
        )]
        let fd = AsyncFd::new(fd)?;
        Ok(Self {
            directory: directory.to_owned(),
            is_there,
            fd,
        })
    }

    /// Waits for a change. Cancel-safe. After [`Change::Everything`] the watch is to be made anew.
    pub(in crate::edged) async fn next(&mut self) -> io::Result<Change> {
        loop {
            let mut ready = self.fd.readable_mut().await?;
            let is_there = self.is_there;
            let directory = self.directory.clone();
            match ready.try_io(|fd| read(fd.get_ref(), is_there, &directory)) {
                Ok(Ok(Some(change))) => return Ok(change),
                Ok(Ok(None)) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

/// Everything that waits; `None` if none of it matters, `WouldBlock` if nothing waits.
fn read(fd: &OwnedFd, is_there: bool, directory: &Path) -> io::Result<Option<Change>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    let mut files = BTreeSet::new();
    let mut everything = false;
    let mut got = false;
    loop {
        match reader.next() {
            Ok(event) => {
                got = true;
                everything |= !is_there;
                let flags = event.events();
                let whole = ReadFlags::QUEUE_OVERFLOW
                    | ReadFlags::IGNORED
                    | ReadFlags::DELETE_SELF
                    | ReadFlags::MOVE_SELF
                    | ReadFlags::UNMOUNT;
                everything |= flags.intersects(whole);
                let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) else {
                    continue;
                };
                if !flags.contains(ReadFlags::CREATE) || is_complete(&directory.join(name)) {
                    files.insert(name.to_owned());
                }
            }
            Err(rustix::io::Errno::AGAIN) if got => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(match (everything, files.is_empty()) {
        (true, _) => Some(Change::Everything),
        (false, false) => Some(Change::Files(files)),
        (false, true) => None,
    })
}

/// A new entry that nobody will close after writing: a symbolic or a hard link.
fn is_complete(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink() || meta.nlink() > 1)
}
