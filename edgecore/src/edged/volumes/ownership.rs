//! `fsGroup`: what a volume's files must look like for the pod's group
//! (`pkg/volume/volume_linux.go`, `SetVolumeOwnership`).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, chownat, fstat, openat};
use rustix::io::Errno;

use super::tree;

/// What the group gains on a file, on a directory of a volume that may be written.
const WRITABLE_FILE: u32 = 0o660;
const WRITABLE_DIR: u32 = 0o2770;
/// The same on a volume that is only read.
const READABLE_FILE: u32 = 0o440;
const READABLE_DIR: u32 = 0o2550;

/// The mode of a file that is only read, given to the pod's group.
pub(super) fn readable_file(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() {
        mode | READABLE_FILE
    } else {
        mode
    }
}

/// The mode of a directory that is only read, given to the pod's group.
pub(super) fn readable_dir(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() {
        mode | READABLE_DIR
    } else {
        mode
    }
}

/// When the files of a volume that was there before are looked at (`fsGroupChangePolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ChangePolicy {
    #[default]
    Always,
    /// Only if the root is not as it should be: a volume with many files starts at once.
    OnRootMismatch,
}

impl ChangePolicy {
    pub(super) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("OnRootMismatch") => Self::OnRootMismatch,
            _ => Self::Always,
        }
    }
}

/// Gives everything below `root` to the group, which may then read and write it. Links are given
/// away, not followed, and what is looked at is what is changed: another pod may use the volume now,
/// and put a link to a file of the node where a file of its own was. The root is last, so that an
/// interrupted walk is seen as a mismatch.
pub(super) fn give_to_group(root: &Path, group: u32, policy: ChangePolicy) -> io::Result<()> {
    let top = tree::open(root)?;
    let stat = fstat(&top)?;
    let is_done = stat.st_gid == group && stat.st_mode & WRITABLE_DIR == WRITABLE_DIR;
    if policy == ChangePolicy::OnRootMismatch && is_done {
        return Ok(());
    }
    tree::walk(top, &mut |entry| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(entry.dir, entry.name, flags, Mode::empty()) {
            Ok(held) => give(&held, group),
            // A file may go while the walk is on its way.
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })?;
    give(&tree::open(root)?, group)
}

fn give(held: &OwnedFd, group: u32) -> io::Result<()> {
    let stat = fstat(held)?;
    if stat.st_gid != group {
        chownat(
            held,
            c"",
            None,
            Some(Gid::from_raw(group)),
            AtFlags::EMPTY_PATH,
        )?;
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Ok(());
    }
    let add = if tree::is_dir(&stat) {
        WRITABLE_DIR
    } else {
        WRITABLE_FILE
    };
    // Changing the group drops the set-id bits: the mode is set after it. By what is open, not by a
    // name; a descriptor that only names a file has no other way.
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777 | add);
    Ok(rustix::fs::chmod(path.as_str(), mode)?)
}
