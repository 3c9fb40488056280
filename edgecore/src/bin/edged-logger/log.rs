//! The log file, its rotation and its times.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;

use super::{Config, LINE_BYTES_MAX, quota};

/// Rotation defaults, as kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
const BYTES_MAX_DEFAULT: u64 = 10 << 20;
const FILES_MAX_DEFAULT: u32 = 5;

/// The log file and its rotated predecessors `<path>.1` (newest) and up.
pub(super) struct Log {
    config: Config,
    file: File,
    /// Locks the current file, until there is nothing more to be written.
    lock: Option<File>,
    written: u64,
    entry: Vec<u8>,
    /// Entries of each stream that could not be written since the last one that could.
    lost: [u64; 2],
    /// Each stream's last entry in the file left its line open.
    is_open: [bool; 2],
}

/// The two streams, in the order in which they are counted.
const STREAMS: [&str; 2] = ["stdout", "stderr"];

impl Log {
    pub(super) fn open(mut config: Config) -> io::Result<Self> {
        let file = append(&config.path)?;
        let written = file.metadata()?.len();
        let lock = lock(&config.path);
        if config.bytes_max == 0 {
            config.bytes_max = BYTES_MAX_DEFAULT;
        }
        if config.files_max == 0 {
            config.files_max = FILES_MAX_DEFAULT;
        }
        Ok(Self {
            config,
            file,
            lock,
            written,
            entry: Vec::with_capacity(LINE_BYTES_MAX + 64),
            lost: [0; 2],
            is_open: [false; 2],
        })
    }

    /// The container has ended and its words are written: followers need not wait any more.
    pub(super) fn complete(&mut self) {
        self.lock = None;
    }

    /// Writes one entry. If the disk is full it is dropped, and the container does not notice; the
    /// next one that can be written comes with one before it that says how many are missing.
    pub(super) fn write(&mut self, stream: &str, tag: &[u8], line: &[u8]) {
        let number = usize::from(stream == "stderr");
        let mut is_open = self.is_open;
        self.entry.clear();
        for (stream, (lost, is_open)) in STREAMS.into_iter().zip(self.lost.iter().zip(&mut is_open))
        {
            if *lost > 0 {
                // It also ends a line whose end is among the missing.
                let gap = if *is_open { " " } else { "" };
                let text = format!("{gap}[outpost: {lost} log entries could not be written here]");
                push(&mut self.entry, stream, b"F", text.as_bytes());
                *is_open = false;
            }
        }
        push(&mut self.entry, stream, tag, line);
        if self.append() {
            self.lost = [0; 2];
            self.is_open = is_open;
            if let Some(is_open) = self.is_open.get_mut(number) {
                *is_open = tag == b"P";
            }
        } else if let Some(lost) = self.lost.get_mut(number) {
            *lost = lost.saturating_add(1);
        }
    }

    /// Writes what was put together, in one write; whether it was taken.
    fn append(&mut self) -> bool {
        let length = u64::try_from(self.entry.len()).unwrap_or(u64::MAX);
        if self.written > 0 && self.written.saturating_add(length) > self.config.bytes_max {
            self.rotate();
        }
        let is_taken = self.file.write_all(&self.entry).is_ok();
        if is_taken {
            self.written = self.written.saturating_add(length);
        } else {
            // Half an entry would swallow the next one.
            drop(self.file.set_len(self.written));
        }
        is_taken
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.config.path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    }

    /// Renames `.n` to `.n+1`, oldest dropped, once the new file is there. If anything fails the
    /// same file goes on.
    fn rotate(&mut self) {
        let fresh = self.beside(".new");
        // A crash may have left one.
        drop(std::fs::remove_file(&fresh));
        let Ok(file) = append(&fresh) else {
            return;
        };
        // Before anybody can find it under the log's name.
        let lock = self.lock.is_some().then(|| lock(&fresh)).flatten();
        let kept = self.config.files_max.saturating_sub(1);
        for number in (1..kept).rev() {
            let older = self.beside(&format!(".{}", number + 1));
            // The first rotations have no older files to move.
            drop(std::fs::rename(self.beside(&format!(".{number}")), older));
        }
        let is_moved = kept == 0 || std::fs::rename(&self.config.path, self.beside(".1")).is_ok();
        if is_moved && std::fs::rename(&fresh, &self.config.path).is_ok() {
            self.file = file;
            self.lock = lock;
            self.written = 0;
        }
        quota::enforce(
            &self.config.path,
            self.config.pod_bytes_max,
            self.config.node_bytes_max,
        );
    }
}

/// `<RFC 3339 nanoseconds> <stream> <F|P> <line>`
fn push(out: &mut Vec<u8>, stream: &str, tag: &[u8], line: &[u8]) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let time = timestamp(now.as_secs(), now.subsec_nanos());
    for part in [time.as_bytes(), stream.as_bytes(), tag] {
        out.extend_from_slice(part);
        out.push(b' ');
    }
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// Held by its closing, which `inotify` tells followers of: a file of its own, open for writing. A
/// log without one is a log without end to wait for.
fn lock(path: &Path) -> Option<File> {
    let file = append(path).ok()?;
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.is_ok().then_some(file)
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

/// RFC 3339 in UTC with nanoseconds (days to civil date after Howard Hinnant's `chrono` paper).
fn timestamp(secs: u64, nanos: u32) -> String {
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        for (secs, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.000000005Z"),
            (1_700_000_000, 123_456_789, "2023-11-14T22:13:20.123456789Z"),
        ] {
            assert_eq!(timestamp(secs, nanos), text);
        }
    }

    /// A disk that is full: 64 KiB of it.
    struct SmallDisk(tempfile::TempDir);

    impl SmallDisk {
        fn mount() -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let options = std::ffi::CString::new("size=64k").unwrap();
            let flags = rustix::mount::MountFlags::empty();
            let at = dir.path();
            rustix::mount::mount("tmpfs", at, "tmpfs", flags, Some(options.as_c_str())).ok()?;
            Some(Self(dir))
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(self.0.path(), flags);
        }
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        let Some(disk) = SmallDisk::mount() else {
            eprintln!("SKIPPED a_full_disk_loses_lines_and_nothing_else: not allowed to mount");
            return;
        };
        let path = disk.0.path().join("0.log");
        let mut log = Log::open(Config {
            path: path.clone(),
            bytes_max: 1 << 20,
            files_max: 3,
            pod_bytes_max: 0,
            node_bytes_max: 0,
            is_terminal: false,
            holds: None,
        })
        .unwrap();
        let other = disk.0.path().join("other");
        std::fs::write(&other, vec![0; 30 << 10]).unwrap();
        let line = [b'x'; 1000];
        log.write("stderr", b"P", b"open");
        for _ in 0..100 {
            log.write("stdout", b"F", &line);
        }
        log.write("stderr", b"F", &line);
        std::fs::remove_file(other).unwrap();
        log.write("stdout", b"F", b"again");
        let text = std::fs::read_to_string(&path).unwrap();
        let said: Vec<&str> = text
            .lines()
            .map(|entry| entry.split_once(' ').unwrap().1)
            .collect();
        let full = said.iter().filter(|entry| entry.len() > line.len()).count();
        assert!(full > 10 && full < 100, "{full}");
        let lost = 100 - full;
        assert_eq!(
            said.get(full + 1..),
            Some(
                &[
                    &*format!("stdout F [outpost: {lost} log entries could not be written here]"),
                    "stderr F  [outpost: 1 log entries could not be written here]",
                    "stdout F again",
                ][..]
            )
        );
    }
}
