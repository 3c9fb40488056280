//! Which id a container gets.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::container_id;
use crate::edged::runtime::{ContainerSpec, RuntimeError};

/// Ids that containerd cannot use any more: a shim that died while its task was made can leave the
/// task's directory behind, and every later task of that id fails on it until containerd restarts
/// (1.6, 1.7). Or the clean-up of a task whose making we did not live to see the end of takes the
/// directory of the next one of that id away (2.1). The container then gets another id.
#[derive(Debug, Default)]
pub(super) struct Spoilt(Mutex<BTreeSet<String>>);

/// Further ids for one attempt.
const SPARE_IDS: u32 = 3;
/// Spoilt ids remembered; an id that is forgotten is found out again by one failed start.
const SPOILT_MAX: usize = 64;

impl Spoilt {
    /// The id for a container: the first that is not spoilt.
    pub(super) fn usable(&self, spec: &ContainerSpec) -> String {
        let spoilt = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let usual = container_id(&spec.pod_uid, &spec.name, spec.attempt);
        if !spoilt.contains(&usual) {
            return usual;
        }
        (1..=SPARE_IDS)
            .map(|spare| {
                let name = format!("{}#{spare}", spec.name);
                container_id(&spec.pod_uid, &name, spec.attempt)
            })
            .find(|id| !spoilt.contains(id))
            .unwrap_or(usual)
    }

    /// Whether the failure spoils the id, and another one may be tried at once.
    pub(super) fn note(&self, id: &str, error: &RuntimeError) -> bool {
        // A failed `task create` is told as a failed start.
        let (RuntimeError::Start { reason } | RuntimeError::Create { reason }) = error else {
            return false;
        };
        // `mkdir <state>/<id>: file exists`, `rename <state>/<id>/…: no such file or directory`;
        // containerd has no code of its own for either.
        let is_left = reason.contains("mkdir") && reason.contains("file exists");
        let is_taken = reason.contains("failed to start shim")
            && reason.contains(&format!("/{id}/"))
            && reason.contains("no such file or directory");
        if !(is_left || is_taken) {
            return false;
        }
        let mut spoilt = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spoilt.len() >= SPOILT_MAX {
            spoilt.clear();
        }
        spoilt.insert(id.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoilt_id_gives_way_to_a_spare_one_until_they_are_used_up() {
        let spoilt = Spoilt::default();
        let spec = ContainerSpec {
            pod_uid: "u".to_owned(),
            name: "c".to_owned(),
            ..ContainerSpec::default()
        };
        let usual = spoilt.usable(&spec);
        let failed = |reason: &str| RuntimeError::Start {
            reason: reason.to_owned(),
        };
        assert!(!spoilt.note(&usual, &failed("no such image")));
        assert_eq!(spoilt.usable(&spec), usual);
        let left = failed("task create: failed to start shim: mkdir /run/x: file exists");
        let missing = |path: &str| {
            failed(&format!(
                "task create: failed to start shim: start failed: rename {path}: no such file or directory"
            ))
        };
        assert!(!spoilt.note(&usual, &missing("/usr/bin/shim")));
        let other = Spoilt::default();
        assert!(other.note(&usual, &missing(&format!("/run/t/{usual}/bootstrap.json"))));
        for _ in 0..=SPARE_IDS {
            assert!(spoilt.note(&spoilt.usable(&spec), &left));
        }
        assert_eq!(spoilt.usable(&spec), usual, "all are spoilt");
        assert!(
            !spoilt.note(&usual, &left),
            "no reason to try again at once"
        );
        let next = ContainerSpec { attempt: 1, ..spec };
        assert_ne!(spoilt.usable(&next), usual);
    }
}
