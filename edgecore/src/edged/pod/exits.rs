//! How containers ended, kept over a reboot: containerd then only knows that they are gone. Only
//! for pods that are not always restarted, where it decides whether work is done again.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::edged::runtime::ContainerState;

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
    std::fs::create_dir_all(dir)?;
    let partial = path.with_extension("new");
    let mut out = std::fs::File::create(&partial)?;
    out.write_all(&serde_json::to_vec(&exit)?)?;
    out.sync_all()?;
    std::fs::rename(partial, path)?;
    std::fs::File::open(dir)?.sync_all()
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
