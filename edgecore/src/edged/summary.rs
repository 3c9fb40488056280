//! A pod's containers and state in words, as `kubectl get pods` would say it.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodStatus};

/// One container of a pod, for local diagnosis.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerSummary {
    pub name: String,
    /// The runtime's id of what runs, or ran last; empty before the first start.
    pub id: String,
    pub is_init: bool,
    pub is_running: bool,
    pub ready: bool,
    pub restarts: i64,
    /// Why it does not run; empty otherwise.
    pub reason: String,
}

impl ContainerSummary {
    fn of(status: &ContainerStatus, is_init: bool) -> Self {
        let id = status.container_id.as_deref().unwrap_or_default();
        Self {
            name: status.name.clone(),
            id: id.rsplit_once("://").map_or(id, |(_, id)| id).to_owned(),
            is_init,
            is_running: status.state.as_ref().is_some_and(|s| s.running.is_some()),
            ready: status.ready,
            restarts: i64::from(status.restart_count),
            reason: status.state.as_ref().map(reason).unwrap_or_default(),
        }
    }
}

/// Every container, init containers first.
pub(super) fn containers(status: &PodStatus) -> Vec<ContainerSummary> {
    let init = status.init_container_statuses.iter().flatten();
    let main = status.container_statuses.iter().flatten();
    init.map(|status| ContainerSummary::of(status, true))
        .chain(main.map(|status| ContainerSummary::of(status, false)))
        .collect()
}

fn reason(state: &ContainerState) -> String {
    if let Some(waiting) = &state.waiting {
        return waiting.reason.clone().unwrap_or_default();
    }
    let Some(ended) = &state.terminated else {
        return String::new();
    };
    match (&ended.reason, ended.signal) {
        (Some(reason), _) if !reason.is_empty() => reason.clone(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", ended.exit_code),
    }
}

/// What `kubectl get pods` shows under STATUS (kubernetes `pkg/printers/internalversion: printPod`).
pub(super) fn in_words(status: &PodStatus, terminating: bool) -> String {
    if terminating {
        return "Terminating".to_owned();
    }
    let phase = status.phase.clone().unwrap_or_default();
    let mut words = status.reason.clone().unwrap_or_else(|| phase.clone());
    let inits = status
        .init_container_statuses
        .as_deref()
        .unwrap_or_default();
    for (done, init) in inits.iter().enumerate() {
        let state = init.state.clone().unwrap_or_default();
        let has_succeeded = state.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
        let is_sidecar_up = state.running.is_some() && init.started == Some(true);
        if has_succeeded || is_sidecar_up {
            continue;
        }
        let why = reason(&state);
        return if why.is_empty() || why == "PodInitializing" {
            format!("Init:{done}/{}", inits.len())
        } else {
            format!("Init:{why}")
        };
    }
    let mut has_ready = false;
    for container in status.container_statuses.iter().flatten().rev() {
        let state = container.state.clone().unwrap_or_default();
        let why = reason(&state);
        if !why.is_empty() {
            words = why;
        } else if state.running.is_some() && container.ready {
            has_ready = true;
        }
    }
    if words == "Completed" && has_ready {
        "Running".clone_into(&mut words);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: serde_json::Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn words_as_kubectl_has_them() {
        let waiting = |reason: &str| serde_json::json!({"waiting": {"reason": reason}});
        let running = serde_json::json!({"running": {}});
        let ended = |code: i32, reason: &str| serde_json::json!({"terminated": {"exitCode": code, "reason": reason}});
        let one = |name: &str, state: &serde_json::Value, ready: bool| {
            serde_json::json!({"name": name, "state": state, "ready": ready, "restartCount": 0,
                "image": "i", "imageID": "", "containerID": "containerd://u-abc"})
        };
        for (inits, mains, phase, expected) in [
            (vec![], vec![one("a", &running, true)], "Running", "Running"),
            (
                vec![],
                vec![one("a", &waiting("CrashLoopBackOff"), false)],
                "Running",
                "CrashLoopBackOff",
            ),
            (
                vec![],
                vec![one("a", &ended(0, "Completed"), false)],
                "Succeeded",
                "Completed",
            ),
            (
                vec![],
                vec![
                    one("a", &ended(0, "Completed"), false),
                    one("b", &running, true),
                ],
                "Running",
                "Running",
            ),
            (
                vec![],
                vec![one("a", &ended(3, ""), false)],
                "Failed",
                "ExitCode:3",
            ),
            (
                vec![one("i", &running, false)],
                vec![one("a", &waiting("PodInitializing"), false)],
                "Pending",
                "Init:0/1",
            ),
            (
                vec![
                    one("i", &ended(0, "Completed"), false),
                    one("j", &ended(1, "Error"), false),
                ],
                vec![],
                "Pending",
                "Init:Error",
            ),
        ] {
            let made = status(
                serde_json::json!({"phase": phase, "initContainerStatuses": inits, "containerStatuses": mains}),
            );
            assert_eq!(in_words(&made, false), expected);
            assert_eq!(in_words(&made, true), "Terminating");
        }
        let evicted = status(serde_json::json!({"phase": "Failed", "reason": "Evicted"}));
        assert_eq!(in_words(&evicted, false), "Evicted");
    }

    #[test]
    fn containers_have_the_runtimes_id() {
        let made = status(serde_json::json!({"containerStatuses": [
            {"name": "a", "state": {"running": {}}, "ready": true, "restartCount": 2, "image": "i", "imageID": "", "containerID": "containerd://u-abc"},
            {"name": "b", "ready": false, "restartCount": 0, "image": "i", "imageID": ""},
        ]}));
        let found = containers(&made);
        assert_eq!(
            (found[0].id.as_str(), found[0].is_running, found[0].restarts),
            ("u-abc", true, 2)
        );
        assert_eq!((found[1].id.as_str(), found[1].is_running), ("", false));
    }
}
