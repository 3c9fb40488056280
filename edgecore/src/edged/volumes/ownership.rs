//! `fsGroup`: what a volume's files must look like for the pod's group
//! (`pkg/volume/volume_linux.go`, `SetVolumeOwnership`).

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

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
/// away, not followed; the root is last, so that an interrupted walk is seen as a mismatch.
pub(super) fn give_to_group(root: &Path, group: u32, policy: ChangePolicy) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(root)?;
    let is_done = meta.gid() == group && meta.mode() & WRITABLE_DIR == WRITABLE_DIR;
    if policy == ChangePolicy::OnRootMismatch && is_done {
        return Ok(());
    }
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let path = entry.path();
            // A file may go while the walk is on its way: another pod may use the volume.
            let Some(meta) = gone_is_none(std::fs::symlink_metadata(&path))? else {
                continue;
            };
            if meta.is_dir() {
                dirs.push(path.clone());
            }
            gone_is_none(give(&path, &meta, group))?;
        }
    }
    give(root, &meta, group)
}

fn give(path: &Path, meta: &std::fs::Metadata, group: u32) -> io::Result<()> {
    if meta.gid() != group {
        std::os::unix::fs::lchown(path, None, Some(group))?;
    }
    if meta.is_symlink() {
        return Ok(());
    }
    let add = if meta.is_dir() {
        WRITABLE_DIR
    } else {
        WRITABLE_FILE
    };
    // Changing the group drops the set-id bits: the mode is set after it.
    std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(meta.mode() & 0o7777 | add),
    )
}

fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
