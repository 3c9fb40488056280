//! Going through and removing what containers left in a volume.
//!
//! The tree is theirs, and so is its shape: a directory may become a link to `/etc` between a look
//! and a step, be nested ten thousand deep, or hold a million entries. So every step is taken from
//! an open directory without following links, depth costs neither stack nor descriptors, and nothing
//! is collected: of a directory that is left for one below it, only the position is kept.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, fstat, openat, renameat, seek,
    statat, unlinkat,
};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Entries are read so many bytes at a time.
const BUFFER: usize = 4096;
/// A directory that is still not empty after so many rounds is being filled.
const ROUNDS_MAX: u32 = 64;

/// The entry and the directory it is in.
pub(super) struct Entry<'a> {
    pub(super) dir: &'a OwnedFd,
    pub(super) name: &'a CStr,
    pub(super) stat: Stat,
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Opens a directory; what it is reached by is the node's own, and may be a link.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn is_self(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Where to go on in a directory that was left, and which one it is.
struct Left {
    cookie: u64,
    id: (u64, u64),
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Shows everything below `root` on the same file system, a directory before what is in it. What
/// goes meanwhile is not shown.
///
/// # Errors
/// What `visit` answers, or that a directory was moved away while what is below it was shown.
pub(super) fn walk(
    root: OwnedFd,
    visit: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let device = fstat(&root)?.st_dev;
    let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
    let mut above: Vec<Left> = Vec::new();
    let mut dir = root;
    loop {
        if let Some((below, cookie)) = next_below(&dir, &mut buffer, device, visit)? {
            let id = id(&fstat(&dir)?);
            above.push(Left { cookie, id });
            dir = below;
            continue;
        }
        let Some(left) = above.pop() else {
            return Ok(());
        };
        let up = openat(&dir, c"..", DIRECTORY, Mode::empty())?;
        if id(&fstat(&up)?) != left.id {
            return Err(io::Error::other("a directory was moved while it was read"));
        }
        seek(&up, SeekFrom::Start(left.cookie))?;
        dir = up;
    }
}

/// Shows what is left in `dir` up to the next directory; that one, and where to go on after it.
fn next_below(
    dir: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
    device: u64,
    visit: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
) -> io::Result<Option<(OwnedFd, u64)>> {
    let mut entries = RawDir::new(dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if is_self(name) {
            continue;
        }
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            found => found?,
        };
        if stat.st_dev != device {
            continue;
        }
        visit(&Entry { dir, name, stat })?;
        if !is_dir(&stat) {
            continue;
        }
        match openat(dir, name, DIRECTORY, Mode::empty()) {
            Ok(below) => return Ok(Some((below, entry.next_entry_cookie()))),
            // It went, or something else has taken its place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Removes `path` and everything below it; nothing there is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let root = match openat(CWD, path, DIRECTORY, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(CWD, path, AtFlags::empty())?),
        Err(error) => return Err(error.into()),
    };
    // What is deep is brought up under a name of its own, and taken in its turn: so every directory
    // is opened once, whatever its depth.
    let mut lifted = Lifted {
        prefix: rand::random(),
        count: 0,
    };
    while empty(&root, &mut |name| {
        remove_dir(&root, name, &mut lifted)?;
        Ok(())
    })? {}
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Lifted {
    prefix: u64,
    count: u64,
}

impl Lifted {
    fn name(&mut self) -> io::Result<CString> {
        self.count += 1;
        Ok(CString::new(format!(
            "{:016x}-{}",
            self.prefix, self.count
        ))?)
    }
}

/// Removes what is in `dir`, directories by `remove_dir`; whether there was anything.
fn empty(dir: &OwnedFd, remove_dir: &mut dyn FnMut(&CStr) -> io::Result<()>) -> io::Result<bool> {
    seek(dir, SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut any = false;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if is_self(name) {
            continue;
        }
        any = true;
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => remove_dir(name)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(any)
}

/// Removes the directory `name` of `root`; directories in it that are not empty become `root`'s.
fn remove_dir(root: &OwnedFd, name: &CStr, lifted: &mut Lifted) -> io::Result<()> {
    for _ in 0..ROUNDS_MAX {
        match unlinkat(root, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let dir = openat(root, name, DIRECTORY, Mode::empty())?;
        empty(
            &dir,
            &mut |below| match unlinkat(&dir, below, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(Errno::NOTEMPTY | Errno::EXIST) => lift(&dir, below, root, lifted),
                Err(error) => Err(error.into()),
            },
        )?;
    }
    Err(io::Error::other(
        "a directory is filled while it is removed",
    ))
}

fn lift(dir: &OwnedFd, name: &CStr, root: &OwnedFd, lifted: &mut Lifted) -> io::Result<()> {
    Ok(renameat(dir, name, root, &lifted.name()?)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    /// Nested `depth` deep, with a file in each directory; far beyond `PATH_MAX`.
    fn nest(root: &Path, depth: usize) {
        std::fs::create_dir_all(root).unwrap();
        let mut dir = open(root).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&dir, c"d", Mode::from_raw_mode(0o700)).unwrap();
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(openat(&dir, c"f", flags, Mode::from_raw_mode(0o600)).unwrap());
            dir = openat(&dir, c"d", DIRECTORY, Mode::empty()).unwrap();
        }
    }

    fn shown(root: &Path) -> (usize, usize) {
        let (mut files, mut dirs) = (0, 0);
        walk(open(root).unwrap(), &mut |entry| {
            if is_dir(&entry.stat) {
                dirs += 1;
            } else {
                files += 1;
            }
            Ok(())
        })
        .unwrap();
        (files, dirs)
    }

    /// A stack of a worker's size, and as few descriptors as a service has.
    fn cramped(work: impl FnOnce() + Send + 'static) {
        let few = rustix::process::Rlimit {
            current: Some(64),
            maximum: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
        };
        let before = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        let thread = std::thread::Builder::new().stack_size(128 << 10);
        thread.spawn(work).unwrap().join().unwrap();
        rustix::process::setrlimit(rustix::process::Resource::Nofile, before).unwrap();
    }

    #[test]
    fn depth_costs_neither_stack_nor_descriptors() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("v");
        cramped(move || {
            nest(&root, 8000);
            assert_eq!(shown(&root), (8000, 8000));
            remove(&root).unwrap();
            assert!(!root.exists());
        });
    }

    #[test]
    fn a_directory_that_became_a_link_is_not_entered() {
        let place = tempfile::tempdir().unwrap();
        let (root, outside) = (place.path().join("v"), place.path().join("outside"));
        for dir in [&root.join("d"), &outside] {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(dir.join("f"), "").unwrap();
        }
        let mut shown = 0;
        walk(open(&root).unwrap(), &mut |_| {
            shown += 1;
            std::fs::remove_dir_all(root.join("d")).unwrap();
            symlink(&outside, root.join("d")).unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(shown, 1);
    }

    #[test]
    fn everything_is_shown_once_and_removed_and_no_link_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("v");
        let outside = place.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("mine"), "x").unwrap();
        // More than one buffer of entries at each level, so that a position is found again.
        for a in 0..60 {
            for b in 0..40 {
                let dir = root.join(format!("directory-with-a-long-name-{a:04}/{b:04}"));
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join("f"), "").unwrap();
            }
        }
        symlink(&outside, root.join("link")).unwrap();
        assert_eq!(shown(&root), (60 * 40 + 1, 60 + 60 * 40));
        remove(&root).unwrap();
        assert!(!root.exists());
        assert!(outside.join("mine").exists());
        remove(&root).unwrap();
        symlink(&outside, &root).unwrap();
        remove(&root).unwrap();
        assert!(std::fs::symlink_metadata(&root).is_err());
        assert_eq!(std::fs::metadata(outside.join("mine")).unwrap().size(), 1);
    }
}
