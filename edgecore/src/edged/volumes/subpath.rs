//! `subPath`: one file or directory inside a volume, found without leaving it and bound before
//! anybody can exchange it.
//!
//! What lies in a volume belongs to the containers: they may replace a directory by a link to
//! `/etc` between a look and a mount. So every part of the path is opened below the one before it,
//! links are read and followed here, and what was opened is bound through `/proc/self/fd`, not
//! through its name (`pkg/volume/util/subpath/subpath_linux.go` does the same). The runtime is
//! given the bind, `<run>/<uid>/volume-subpaths/<volume>/<container>/<index>`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, readlinkat, stat, statat,
};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// Links followed on one path (the kernel's own `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// Binds removed from one place before it is given up.
const STACKED_MAX: usize = 64;

/// Why a sub-path cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubPathError {
    #[error("it leads out of the volume")]
    Escapes,
    #[error("too many links")]
    Links,
    #[error("cannot {step}")]
    Io {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

fn failed(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> SubPathError {
    move |error| SubPathError::Io {
        step,
        source: error.into(),
    }
}

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens what `path` names inside `root`, making directories that are missing with the root's own
/// mode. The root itself may be a link: only the node's administrator makes it.
pub(super) fn open_inside(root: &Path, path: &Path) -> Result<OwnedFd, SubPathError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let base = rustix::fs::open(root, flags, Mode::empty()).map_err(failed("open the volume"))?;
    let mode = Mode::from_raw_mode(fstat(&base).map_err(failed("look at the volume"))?.st_mode);
    let mut todo = parts(path)?;
    // Directories above the one being looked at; `..` in a link goes back to what was opened.
    let mut above = Vec::new();
    let mut at = base;
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        let Some(part) = part else {
            at = above.pop().ok_or(SubPathError::Escapes)?;
            continue;
        };
        let next = match openat(&at, &part, LOOK, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => {
                make_dir(&at, &part, mode)?;
                openat(&at, &part, LOOK, Mode::empty())
            }
            found => found,
        };
        let next = next.map_err(failed("open a part of the path"))?;
        let meta = fstat(&next).map_err(failed("look at a part of the path"))?;
        if FileType::from_raw_mode(meta.st_mode) == FileType::Symlink {
            links += 1;
            if links > LINKS_MAX {
                return Err(SubPathError::Links);
            }
            let target = readlinkat(&next, "", Vec::new()).map_err(failed("read a link"))?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            for part in parts(&target)?.into_iter().rev() {
                todo.push_front(part);
            }
            continue;
        }
        above.push(std::mem::replace(&mut at, next));
    }
    Ok(at)
}

/// The parts of a relative path; `None` is `..`.
fn parts(path: &Path) -> Result<VecDeque<Option<OsString>>, SubPathError> {
    path.components()
        .filter(|c| !matches!(c, Component::CurDir))
        .map(|component| match component {
            Component::Normal(part) => Ok(Some(part.to_owned())),
            Component::ParentDir => Ok(None),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {
                Err(SubPathError::Escapes)
            }
        })
        .collect()
}

fn make_dir(at: &OwnedFd, part: &OsString, mode: Mode) -> Result<(), SubPathError> {
    match mkdirat(at, part, mode) {
        // Somebody was faster; it is opened like any other.
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(failed("create a directory")(error)),
    }
    // Whatever the umask is. What is there now may be a link: then its mode is not changed.
    let made = openat(
        at,
        part,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    match made {
        Ok(made) => rustix::fs::fchmod(&made, mode).map_err(failed("set a mode")),
        Err(_) => Ok(()),
    }
}

/// Binds what was opened onto `target`, unless it is bound there already.
pub(super) fn bind(source: &OwnedFd, target: &Path) -> Result<(), SubPathError> {
    let wanted = fstat(source).map_err(failed("look at the source"))?;
    let same = |found: &Stat| (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino);
    if stat(target).is_ok_and(|found| same(&found)) {
        return Ok(());
    }
    unstack(target)?;
    place(
        target,
        FileType::from_raw_mode(wanted.st_mode) == FileType::Directory,
    )?;
    let held = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount_bind(held.as_str(), target).map_err(failed("bind"))?;
    match stat(target) {
        Ok(found) if same(&found) => Ok(()),
        Ok(_) => Err(SubPathError::Escapes),
        Err(error) => Err(failed("look at the bind")(error)),
    }
}

/// Takes away what is bound there: another version of the same file, perhaps many.
fn unstack(target: &Path) -> Result<(), SubPathError> {
    for _ in 0..STACKED_MAX {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed("unmount the bind before it")(error)),
        }
    }
    Ok(())
}

/// An empty file or directory to bind onto.
fn place(target: &Path, is_dir: bool) -> Result<(), SubPathError> {
    let io = |step| move |source| SubPathError::Io { step, source };
    let parent = target.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(io("create the place to bind"))?;
    let found = statat(rustix::fs::CWD, target, AtFlags::SYMLINK_NOFOLLOW);
    let found = found.map(|meta| FileType::from_raw_mode(meta.st_mode) == FileType::Directory);
    match found {
        Ok(found) if found == is_dir => return Ok(()),
        Ok(true) => std::fs::remove_dir(target).map_err(io("clear the place to bind"))?,
        Ok(false) => std::fs::remove_file(target).map_err(io("clear the place to bind"))?,
        Err(_) => {}
    }
    let made = if is_dir {
        std::fs::create_dir(target)
    } else {
        std::fs::File::create(target).map(drop)
    };
    made.map_err(io("create the place to bind"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn inode(fd: &OwnedFd) -> u64 {
        fstat(fd).unwrap().st_ino
    }

    #[test]
    fn what_is_inside_is_found_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("v");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/file"), "x").unwrap();
        std::fs::create_dir(place.path().join("secret")).unwrap();
        symlink("a/b", root.join("in")).unwrap();
        symlink("../a/file", root.join("a/loop-free")).unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("/etc", root.join("abs")).unwrap();
        symlink("a/../../secret", root.join("sly")).unwrap();
        symlink("self", root.join("self")).unwrap();
        for (path, want) in [
            ("a/b", Some("a/b")),
            ("a/file", Some("a/file")),
            ("in", Some("a/b")),
            ("a/loop-free", Some("a/file")),
            ("./a/./b", Some("a/b")),
            ("", Some("")),
            ("out", None),
            ("out/x", None),
            ("abs/passwd", None),
            ("sly", None),
            ("self", None),
            ("..", None),
            ("../secret", None),
            ("/etc", None),
            ("a/file/x", None),
        ] {
            let found = open_inside(&root, Path::new(path)).ok();
            let want = want.map(|want| std::fs::metadata(root.join(want)).unwrap().ino());
            assert_eq!(found.map(|fd| inode(&fd)), want, "`{path}`");
        }
        assert!(!place.path().join("secret/x").exists());
    }

    #[test]
    fn what_is_missing_is_made_like_the_root() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("v");
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o770)).unwrap();
        open_inside(&root, Path::new("x/y")).unwrap();
        for path in ["x", "x/y"] {
            let mode = std::fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
            assert_eq!(mode, 0o770, "{path}");
        }
    }
}
