//! Reads what is left of memory, disks and process ids.

use std::path::Path;

use super::manager::{Observation, Observations};
use super::threshold::Signal;
use crate::edged::node::{meminfo, nearest};

/// Looks once. What cannot be read is left out.
pub(super) fn read(disk: &Path, images: &Path) -> Observations {
    let mut found = Observations::new();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    found.extend(memory_left(&memory).map(|seen| (Signal::MemoryAvailable, seen)));
    for (path, space, inodes) in [
        (disk, Signal::NodefsAvailable, Signal::NodefsInodesFree),
        (images, Signal::ImagefsAvailable, Signal::ImagefsInodesFree),
    ] {
        let Some(fs) = nearest(path).and_then(|path| rustix::fs::statvfs(path).ok()) else {
            continue;
        };
        let left = |free: u64, all: u64| Observation {
            available: i64::try_from(free).unwrap_or(i64::MAX),
            capacity: i64::try_from(all).unwrap_or(i64::MAX),
        };
        if fs.f_blocks > 0 {
            let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
            found.insert(space, left(bytes(fs.f_bavail), bytes(fs.f_blocks)));
        }
        // File systems that make inodes as needed say that they have none.
        if fs.f_files > 0 {
            found.insert(inodes, left(fs.f_favail, fs.f_files));
        }
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let most = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    found.extend(pids_left(&load, &most).map(|seen| (Signal::PidAvailable, seen)));
    found
}

/// What the kernel thinks can be had without swapping; kubelet counts the same from its cgroup
/// (capacity without the working set).
fn memory_left(text: &str) -> Option<Observation> {
    Some(Observation {
        available: meminfo(text, "MemAvailable")?,
        capacity: meminfo(text, "MemTotal")?,
    })
}

fn pids_left(loadavg: &str, pid_max: &str) -> Option<Observation> {
    let tasks = loadavg.split_whitespace().nth(3)?.split_once('/')?.1;
    let capacity: i64 = pid_max.trim().parse().ok()?;
    let tasks: i64 = tasks.parse().ok()?;
    Some(Observation {
        available: capacity.saturating_sub(tasks).max(0),
        capacity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_read() {
        let place = tempfile::tempdir().unwrap();
        let seen = read(&place.path().join("not/made/yet"), place.path());
        for signal in [
            Signal::MemoryAvailable,
            Signal::NodefsAvailable,
            Signal::ImagefsAvailable,
            Signal::PidAvailable,
        ] {
            let one = seen[&signal];
            assert!(
                one.capacity > 0 && one.available <= one.capacity,
                "{signal:?}"
            );
        }
    }

    #[test]
    fn odd_files_say_nothing() {
        assert_eq!(memory_left("MemTotal: 5 kB\n"), None);
        assert_eq!(
            pids_left("0.1 0.2 0.3 1/200 77", "100").unwrap().available,
            0
        );
        assert_eq!(pids_left("0.1 0.2 0.3 1-200 77", "100"), None);
        assert_eq!(pids_left("", "x"), None);
    }
}
