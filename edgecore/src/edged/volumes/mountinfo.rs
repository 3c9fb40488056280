//! What is mounted where, as the kernel says (`proc(5)`, `/proc/self/mountinfo`), and its end.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Unmounting is tried again for what appeared meanwhile; more rounds mean that somebody mounts
/// on purpose.
const ROUNDS_MAX: usize = 8;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountPoint {
    pub(super) path: PathBuf,
    pub(super) is_shared: bool,
    pub(super) is_slave: bool,
}

/// Everything mounted in this mount namespace, in the order of mounting.
pub(super) fn read() -> io::Result<Vec<MountPoint>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|b| *b == b' ');
    let path = unescape(fields.nth(4)?);
    let optional = fields.skip(1).take_while(|field| *field != b"-");
    let mut point = MountPoint {
        path,
        is_shared: false,
        is_slave: false,
    };
    for field in optional {
        point.is_shared |= field.starts_with(b"shared:");
        point.is_slave |= field.starts_with(b"master:");
    }
    Some(point)
}

/// Space, tab, newline and backslash are written as `\040` and so on.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|_| *byte == b'\\');
        let octal = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(octal) = octal {
            out.push(octal);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(*byte);
            rest = tail;
        }
    }
    OsString::from_vec(out).into()
}

/// The mount that `path` lies on.
pub(super) fn containing<'a>(mounts: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    mounts
        .iter()
        .rev()
        .filter(|mount| path.starts_with(&mount.path))
        .max_by_key(|mount| mount.path.components().count())
}

/// Unmounts everything at and below `dir`, and makes sure of it: what is removed afterwards must
/// not be the other side of a bind.
pub(super) fn unmount_all(dir: &Path) -> io::Result<()> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for _ in 0..ROUNDS_MAX {
        let mut below: Vec<PathBuf> = read()?
            .into_iter()
            .map(|mount| mount.path)
            .filter(|path| path.starts_with(&dir))
            .collect();
        if below.is_empty() {
            return Ok(());
        }
        // The last one mounted is on top.
        below.reverse();
        below.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        for path in below {
            match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // Went with another one.
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Err(io::Error::other(
        "something is mounted there again and again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime shared:1 master:2 - ext3 /dev/root rw";
        let point = parse(line).unwrap();
        assert_eq!(point.path, Path::new(r"/mnt 2\x"));
        assert!(point.is_shared && point.is_slave);
        let point = parse(b"1 2 0:3 / /a rw - shared:9 x rw").unwrap();
        assert!(!point.is_shared, "what follows the dash is no option");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 3"), None);
    }

    #[test]
    fn the_innermost_mount_contains_a_path() {
        let mounts: Vec<MountPoint> = ["/", "/a", "/a/b"]
            .map(|path| MountPoint {
                path: path.into(),
                is_shared: false,
                is_slave: false,
            })
            .into();
        for (path, want) in [("/a/b/c", "/a/b"), ("/a/bc", "/a"), ("/x", "/")] {
            let found = containing(&mounts, Path::new(path)).unwrap();
            assert_eq!(found.path, Path::new(want), "{path}");
        }
    }
}
