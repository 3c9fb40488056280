//! Since when what is told of a pod has been so: the one part of a status that cannot be made anew.
//! Kept beside the pod's other files of this boot, so that a restart of the daemon renews nothing;
//! for a pod that is over also in its record, which outlives a reboot.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::PodStatus;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;

const FILE: &str = "times.json";

/// When a pod began here, and its conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// `status.startTime`
    pub started_at_ms: Option<UnixMillis>,
    /// By type: whether it holds, and since when.
    pub conditions: BTreeMap<String, (bool, UnixMillis)>,
}

impl Times {
    /// Those that a status tells.
    pub fn of(status: &PodStatus) -> Self {
        let conditions = status.conditions.iter().flatten().filter_map(|condition| {
            let at = condition.last_transition_time.as_ref()?.0.as_millisecond();
            let holds = condition.status == "True";
            Some((condition.type_.clone(), (holds, at)))
        });
        Self {
            started_at_ms: status.start_time.as_ref().map(|at| at.0.as_millisecond()),
            conditions: conditions.collect(),
        }
    }

    /// Since when the condition has been as it is now.
    pub fn since(&self, kind: &str, holds: bool) -> Option<UnixMillis> {
        let (held, at_ms) = self.conditions.get(kind)?;
        (*held == holds).then_some(*at_ms)
    }
}

/// Writes them down for the next process of this boot; not durable, since the next boot starts
/// everything anew.
///
/// # Errors
/// When the file cannot be written: the times are then renewed by the next process.
pub(super) fn keep(dir: &Path, times: &Times) -> io::Result<()> {
    crate::files::make_dir(dir, 0o700)?;
    let partial = dir.join("times.new");
    std::fs::write(&partial, serde_json::to_vec(times)?)?;
    std::fs::rename(partial, dir.join(FILE))
}

/// What an earlier process of this boot told; nothing if it cannot be read.
pub(super) fn recall(dir: &Path) -> Option<Times> {
    serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_recalled_and_hold_for_the_state_they_were_told_with() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("told");
        assert_eq!(recall(&dir), None);
        let times = Times {
            started_at_ms: Some(7000),
            conditions: [("Ready".to_owned(), (true, 9000))].into(),
        };
        keep(&dir, &times).unwrap();
        assert_eq!(recall(&dir).as_ref(), Some(&times));
        assert_eq!(times.since("Ready", true), Some(9000));
        assert_eq!(times.since("Ready", false), None, "it has changed since");
        assert_eq!(times.since("Initialized", true), None);
        std::fs::write(dir.join(FILE), "{").unwrap();
        assert_eq!(recall(&dir), None);
    }
}
