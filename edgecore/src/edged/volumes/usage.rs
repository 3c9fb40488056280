//! How much of the node's disk a pod's volumes take (`pkg/volume/metrics_du.go`).

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Space and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

/// What lies below a directory on its own file system: allocated blocks, a file with several names
/// once. One `lstat` an entry; to be called off the asynchronous threads.
pub(crate) fn of_directory(root: &Path) -> io::Result<Usage> {
    let meta = std::fs::symlink_metadata(root)?;
    let device = meta.dev();
    let mut usage = Usage {
        bytes: meta.blocks().saturating_mul(512),
        inodes: 1,
    };
    let mut linked = BTreeSet::new();
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        // What goes while it is counted is not counted.
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != device
                || meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino())
            {
                continue;
            }
            usage = usage
                + Usage {
                    bytes: meta.blocks().saturating_mul(512),
                    inodes: 1,
                };
            if meta.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    Ok(usage)
}

/// What a whole file system holds, in one call: for a tmpfs of our own.
pub(super) fn of_file_system(path: &Path) -> io::Result<Usage> {
    let fs = rustix::fs::statvfs(path)?;
    Ok(Usage {
        bytes: fs
            .f_blocks
            .saturating_sub(fs.f_bfree)
            .saturating_mul(fs.f_frsize),
        inodes: fs.f_files.saturating_sub(fs.f_ffree),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_once() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("v");
        std::fs::create_dir_all(root.join("d")).unwrap();
        let empty = of_directory(&root).unwrap();
        assert_eq!(empty.inodes, 2);
        std::fs::write(root.join("d/f"), vec![7; 64 << 10]).unwrap();
        std::fs::hard_link(root.join("d/f"), root.join("g")).unwrap();
        std::os::unix::fs::symlink("/", root.join("l")).unwrap();
        let full = of_directory(&root).unwrap();
        assert_eq!(full.inodes, 4, "a second name is no second file");
        let grown = full.bytes - empty.bytes;
        assert!((64 << 10..128 << 10).contains(&grown), "{grown}");
        assert!(of_directory(&place.path().join("no")).is_err());
    }
}
