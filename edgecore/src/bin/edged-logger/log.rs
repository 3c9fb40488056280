//! The log file, its rotation and its times.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Config, LINE_BYTES_MAX, quota};

/// Rotation defaults, as kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
const BYTES_MAX_DEFAULT: u64 = 10 << 20;
const FILES_MAX_DEFAULT: u32 = 5;

/// The log file and its rotated predecessors `<path>.1` (newest) and up.
pub(super) struct Log {
    config: Config,
    file: File,
    written: u64,
    entry: Vec<u8>,
}

impl Log {
    pub(super) fn open(mut config: Config) -> io::Result<Self> {
        let file = append(&config.path)?;
        let written = file.metadata()?.len();
        if config.bytes_max == 0 {
            config.bytes_max = BYTES_MAX_DEFAULT;
        }
        if config.files_max == 0 {
            config.files_max = FILES_MAX_DEFAULT;
        }
        Ok(Self {
            config,
            file,
            written,
            entry: Vec::with_capacity(LINE_BYTES_MAX + 64),
        })
    }

    /// `<RFC 3339 nanoseconds> <stream> <F|P> <line>`, one write per entry. Dropped if the disk
    /// is full: the container must not notice.
    pub(super) fn write(&mut self, stream: &str, tag: &[u8], line: &[u8]) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.entry.clear();
        let time = timestamp(now.as_secs(), now.subsec_nanos());
        for part in [time.as_bytes(), stream.as_bytes(), tag] {
            self.entry.extend_from_slice(part);
            self.entry.push(b' ');
        }
        self.entry.extend_from_slice(line);
        self.entry.push(b'\n');
        let length = u64::try_from(self.entry.len()).unwrap_or(u64::MAX);
        if self.written > 0 && self.written.saturating_add(length) > self.config.bytes_max {
            self.rotate();
        }
        if self.file.write_all(&self.entry).is_ok() {
            self.written = self.written.saturating_add(length);
        } else {
            // Half an entry would swallow the next one.
            drop(self.file.set_len(self.written));
        }
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
        let kept = self.config.files_max.saturating_sub(1);
        for number in (1..kept).rev() {
            let older = self.beside(&format!(".{}", number + 1));
            // The first rotations have no older files to move.
            drop(std::fs::rename(self.beside(&format!(".{number}")), older));
        }
        let is_moved = kept == 0 || std::fs::rename(&self.config.path, self.beside(".1")).is_ok();
        if is_moved && std::fs::rename(&fresh, &self.config.path).is_ok() {
            self.file = file;
            self.written = 0;
        }
        quota::enforce(
            &self.config.path,
            self.config.pod_bytes_max,
            self.config.node_bytes_max,
        );
    }
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
        })
        .unwrap();
        let other = disk.0.path().join("other");
        std::fs::write(&other, vec![0; 30 << 10]).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..100 {
            log.write("stdout", b"F", &line);
        }
        std::fs::remove_file(other).unwrap();
        log.write("stdout", b"F", b"again");
        let text = std::fs::read_to_string(&path).unwrap();
        let lengths: Vec<usize> = text.lines().map(str::len).collect();
        let (last, full) = lengths.split_last().unwrap();
        assert!(full.len() > 10 && full.len() < 100, "{}", full.len());
        assert!(full.iter().all(|length| *length == full[0]), "{lengths:?}");
        assert!(text.ends_with(" stdout F again\n") && *last < full[0]);
    }
}
