//! Which containers may have run, one empty file each, written before the process is started. A
//! daemon that dies while containerd makes a task takes that task along (its call is cancelled), and
//! what is left looks like a container that ran and was lost. It did not run: the start is taken up
//! again and counts as no restart, and a pod that is never restarted does not fail by it.
//!
//! The files are on tmpfs beside the logger configurations, which are written before the
//! container's record: after a reboot neither is there, and the log on disk has to tell.

use std::io;
use std::path::{Path, PathBuf};

/// The marks under the state directory.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    directory: PathBuf,
}

impl Marks {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join("log"),
        }
    }

    fn started(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.started"))
    }

    /// Configuration of the container's logger.
    pub(super) fn logger_config(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// The fifo that a container's input goes into, if it has any.
    pub(super) fn stdin(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.stdin"))
    }

    /// The fifo on which the container's logger is told to let go of the input.
    pub(super) fn stdin_end(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.stdin-end"))
    }

    /// From now on the container may have run.
    pub(super) fn starting(&self, id: &str) -> io::Result<()> {
        std::fs::write(self.started(id), b"")
    }

    /// When that was: the start of the container, for whoever asks, whenever.
    pub(super) fn started_at_ms(&self, id: &str) -> Option<i64> {
        let at = std::fs::metadata(self.started(id)).ok()?.modified().ok()?;
        let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_millis()).ok()
    }

    /// Whether a container without a task has certainly never run.
    pub(super) fn never_ran(&self, id: &str, log: &Path) -> bool {
        if self.logger_config(id).exists() {
            !self.started(id).exists()
        } else {
            !log.exists()
        }
    }

    /// The pod ends: what a removal that broke off after the container's record has left.
    pub(super) fn forget_pod(&self, uid: &str) {
        let prefix = format!("{uid}-");
        for entry in std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_bytes())
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::debug!(%error, pod = uid, "files of a removed pod left behind");
            }
        }
    }

    /// The container is removed.
    pub(super) fn forget(&self, id: &str) {
        for file in [
            self.logger_config(id),
            self.started(id),
            self.stdin(id),
            self.stdin_end(id),
        ] {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(%error, id, "files of a removed container left behind");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_never_ran_until_it_was_about_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let log = dir.path().join("0.log");
        let marks = Marks::new(dir.path());
        assert!(marks.never_ran("c", &log), "neither files nor log");
        std::fs::write(marks.logger_config("c"), "{}").unwrap();
        std::fs::write(&log, "").unwrap();
        assert!(
            marks.never_ran("c", &log),
            "the logger was there, the process was not"
        );
        marks.starting("c").unwrap();
        assert!(!marks.never_ran("c", &log));
        let (started, now) = (
            marks.started_at_ms("c").unwrap(),
            crate::clock::unix_millis(),
        );
        assert!((now - 60_000..=now).contains(&started), "{started} {now}");
        assert_eq!(marks.started_at_ms("d"), None);
        marks.forget("c");
        assert!(!marks.never_ran("c", &log), "after a reboot the log tells");
        marks.forget("c");
    }

    #[test]
    fn a_pod_takes_its_own_files_along() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let marks = Marks::new(dir.path());
        for id in ["a-1", "a-2", "ab-1"] {
            std::fs::write(marks.logger_config(id), "{}").unwrap();
        }
        marks.starting("a-1").unwrap();
        marks.forget_pod("a");
        let left = std::fs::read_dir(dir.path().join("log")).unwrap().count();
        assert_eq!(left, 1, "the other pod's");
    }
}
