//! What must be known of a pod after a reboot without the hub: how its containers ended (containerd
//! then only knows that they are gone; only for pods that are not always restarted, where it
//! decides whether work is done again), since when it is here, and why the node ended it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::times::Times;
use super::verdict::Verdict;
use crate::edged::runtime::ContainerState;

/// No container can have this name.
const POD_FILE: &str = ".pod.json";
const ASIDE_FILE: &str = ".pod.json.unreadable";

/// What is kept of the pod itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PodRecord {
    /// `status.startTime`, where a deadline is measured from it.
    pub(super) started_at_ms: Option<i64>,
    pub(super) verdict: Option<Verdict>,
    /// The addresses that the pod had, from when it gave them back.
    pub(super) ips: Option<Vec<String>>,
    /// Its conditions' times, from when it was over.
    pub(super) times: Option<Times>,
}

/// Writes down the pod's record; durable on return.
///
/// # Errors
/// When the file cannot be written: it is then only known until the next restart.
pub(super) fn record_pod(dir: &Path, record: &PodRecord) -> io::Result<()> {
    replace(&dir.join(POD_FILE), &serde_json::to_vec(record)?)
}

/// The pod's record; an empty one if none was written.
///
/// # Errors
/// When there is one that cannot be read: what it said is not known, and not nothing.
pub(super) fn recall_pod(dir: &Path) -> io::Result<PodRecord> {
    match std::fs::read(dir.join(POD_FILE)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PodRecord::default()),
        Err(error) => Err(error),
    }
}

/// Puts a record that cannot be read beside, for somebody to look at; where it is. One that an earlier
/// one was put beside for is replaced: they take no room.
///
/// # Errors
/// When it cannot be moved.
pub(super) fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let aside = dir.join(ASIDE_FILE);
    std::fs::rename(dir.join(POD_FILE), &aside)?;
    Ok(aside)
}

/// Puts a file in place as a whole, and on the disk.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let partial = path.with_extension("new");
    let mut out = std::fs::File::create(&partial)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(partial, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[derive(Serialize, Deserialize)]
struct Ended {
    attempt: u32,
    exit_code: i32,
    oom_killed: bool,
    started_at_ms: i64,
    finished_at_ms: i64,
}

fn file(dir: &Path, name: &str) -> Option<PathBuf> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    plain.then(|| dir.join(format!("{name}.json")))
}

/// Writes down how this attempt ended; durable on return.
///
/// # Errors
/// When the file cannot be written: the end is then only known until the next reboot.
pub(super) fn record(
    dir: &Path,
    name: &str,
    attempt: u32,
    state: &ContainerState,
) -> io::Result<()> {
    let (
        Some(path),
        ContainerState::Exited {
            exit_code,
            oom_killed,
            started_at_ms,
            finished_at_ms,
        },
    ) = (file(dir, name), state)
    else {
        return Ok(());
    };
    if recall(dir, name, attempt).is_some() {
        return Ok(());
    }
    let exit = Ended {
        attempt,
        exit_code: *exit_code,
        oom_killed: *oom_killed,
        started_at_ms: *started_at_ms,
        finished_at_ms: *finished_at_ms,
    };
    replace(&path, &serde_json::to_vec(&exit)?)
}

/// How this attempt ended, if it was written down.
pub(super) fn recall(dir: &Path, name: &str, attempt: u32) -> Option<ContainerState> {
    let bytes = std::fs::read(file(dir, name)?).ok()?;
    let exit: Ended = serde_json::from_slice(&bytes).ok()?;
    (exit.attempt == attempt).then_some(ContainerState::Exited {
        exit_code: exit.exit_code,
        oom_killed: exit.oom_killed,
        started_at_ms: exit.started_at_ms,
        finished_at_ms: exit.finished_at_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_recalled() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("exits");
        assert_eq!(recall_pod(&dir).unwrap(), PodRecord::default());
        let record = PodRecord {
            started_at_ms: Some(7),
            verdict: Some(Verdict {
                reason: "Evicted".to_owned(),
                message: "the disk is full".to_owned(),
                grace: std::time::Duration::from_secs(3),
                disruption: Some("the disk".to_owned()),
            }),
            ips: Some(vec!["10.88.0.7".to_owned()]),
            times: Some(Times::default()),
        };
        record_pod(&dir, &record).unwrap();
        assert_eq!(recall_pod(&dir).unwrap(), record);
        std::fs::write(dir.join(POD_FILE), "[").unwrap();
        assert!(recall_pod(&dir).is_err(), "not an absent one");
        let aside = set_aside(&dir).unwrap();
        assert_eq!(std::fs::read_to_string(aside).unwrap(), "[");
        assert_eq!(recall_pod(&dir).unwrap(), PodRecord::default());
    }

    #[test]
    fn an_exit_is_recalled_for_its_attempt_only() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("exits");
        let state = ContainerState::Exited {
            exit_code: 3,
            oom_killed: true,
            started_at_ms: 1,
            finished_at_ms: 2,
        };
        assert_eq!(recall(&dir, "c", 0), None);
        record(&dir, "c", 0, &ContainerState::Unknown).unwrap();
        assert_eq!(recall(&dir, "c", 0), None);
        record(&dir, "c", 0, &state).unwrap();
        assert_eq!(recall(&dir, "c", 0), Some(state.clone()));
        assert_eq!(recall(&dir, "c", 1), None);
        record(&dir, "c", 1, &state).unwrap();
        assert_eq!(
            (recall(&dir, "c", 0), recall(&dir, "c", 1)),
            (None, Some(state.clone()))
        );
        std::fs::write(dir.join("c.json"), "{").unwrap();
        assert_eq!(recall(&dir, "c", 1), None);
        record(&dir, "../c", 1, &state).unwrap();
        assert!(!dir.with_file_name("c.json").exists());
    }
}
