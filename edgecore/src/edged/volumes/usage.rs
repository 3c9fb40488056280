//! How much of the node's disk a pod's volumes take (`pkg/volume/metrics_du.go`).

use std::io;
use std::path::Path;

use super::tree;

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
/// once, by a part for each name. To be called off the asynchronous threads.
pub(crate) fn of_directory(root: &Path) -> io::Result<Usage> {
    let root = tree::open(root)?;
    let mut sum = Sum::default();
    sum.add(&rustix::fs::fstat(&root)?);
    // A container may move directories about meanwhile: what was counted until then counts.
    let _ = tree::walk(root, &mut |entry| {
        sum.add(&entry.stat);
        Ok(())
    });
    Ok(Usage {
        bytes: sum.bytes,
        inodes: (sum.parts + PARTS / 2) / PARTS,
    })
}

/// Parts of a file; so that a file of many names need not be remembered.
const PARTS: u64 = 1 << 20;

/// Of another width on other machines.
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
}

#[derive(Default)]
struct Sum {
    bytes: u64,
    parts: u64,
}

impl Sum {
    fn add(&mut self, stat: &rustix::fs::Stat) {
        let is_dir = tree::is_dir(stat);
        let links = if is_dir {
            1
        } else {
            wide(stat.st_nlink).max(1)
        };
        let bytes = u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        self.bytes = self.bytes.saturating_add(bytes / links);
        self.parts = self.parts.saturating_add(PARTS / links);
    }
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
