//! The phase of a pod, after `kubelet_pods.go: getPhase`.

use k8s_openapi::api::core::v1::{Container, ContainerStatus};

use super::super::state::{RestartPolicy, Role, restarts};

/// What phase and conditions are made of.
pub(super) struct Facts<'a> {
    pub(super) restart: RestartPolicy,
    pub(super) inits: &'a [&'a Container],
    pub(super) init_statuses: &'a [ContainerStatus],
    pub(super) mains: &'a [&'a Container],
    pub(super) statuses: &'a [ContainerStatus],
    /// Nothing is restarted any more, whatever the policy says.
    pub(super) terminal: bool,
}

impl Facts<'_> {
    /// Some main container has run: a sidecar that is restarted does not undo that
    /// (`HasAnyRegularContainerStarted`).
    pub(super) fn has_run(&self) -> bool {
        self.statuses.iter().any(|status| {
            let states = [status.state.as_ref(), status.last_state.as_ref()];
            let mut states = states.into_iter().flatten();
            states.any(|state| state.running.is_some() || state.terminated.is_some())
        })
    }
}

pub(super) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(super) fn find<'a>(list: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    list.iter().find(|status| status.name == name)
}

/// Where a container stands.
enum Stage {
    Unknown,
    Waiting,
    Running {
        started: bool,
    },
    /// Ended, or waiting to run again.
    Stopped {
        exit_code: i32,
    },
}

fn stage(list: &[ContainerStatus], name: &str) -> (Stage, bool) {
    let Some(status) = find(list, name) else {
        return (Stage::Unknown, false);
    };
    let now = status.state.as_ref();
    let last = status.last_state.as_ref();
    if now.is_some_and(|state| state.running.is_some()) {
        let started = status.started == Some(true);
        return (Stage::Running { started }, false);
    }
    if let Some(end) = now.and_then(|state| state.terminated.as_ref()) {
        let exit_code = end.exit_code;
        return (Stage::Stopped { exit_code }, true);
    }
    if now.is_none_or(|state| state.waiting.is_none()) {
        return (Stage::Unknown, false);
    }
    match last.and_then(|state| state.terminated.as_ref()) {
        Some(end) => {
            let exit_code = end.exit_code;
            (Stage::Stopped { exit_code }, false)
        }
        None => (Stage::Waiting, false),
    }
}

#[derive(Default)]
struct Tally {
    unknown: u32,
    waiting: u32,
    running: u32,
    stopped: u32,
    succeeded: u32,
    pending_inits: u32,
    pending_sidecars: u32,
    failed_inits: u32,
}

fn tally(facts: &Facts<'_>) -> Tally {
    let mut tally = Tally::default();
    for init in facts.inits {
        match (is_sidecar(init), stage(facts.init_statuses, &init.name).0) {
            (false, Stage::Stopped { exit_code: 0 }) => {}
            (false, Stage::Stopped { .. }) => tally.failed_inits += 1,
            (false, _) => tally.pending_inits += 1,
            (true, Stage::Running { started }) => {
                tally.pending_sidecars += u32::from(!started);
                tally.running += 1;
            }
            // One that ended, or is to run again, says nothing about the pod.
            (true, Stage::Stopped { .. }) => {}
            (true, Stage::Waiting) => {
                tally.pending_sidecars += 1;
                tally.waiting += 1;
            }
            (true, Stage::Unknown) => {
                tally.pending_sidecars += 1;
                tally.unknown += 1;
            }
        }
    }
    for main in facts.mains {
        match stage(facts.statuses, &main.name) {
            (Stage::Running { .. }, _) => tally.running += 1,
            (Stage::Stopped { exit_code }, ended) => {
                tally.stopped += 1;
                tally.succeeded += u32::from(ended && exit_code == 0);
            }
            (Stage::Waiting, _) => tally.waiting += 1,
            (Stage::Unknown, _) => tally.unknown += 1,
        }
    }
    tally
}

/// Says it.
pub(super) fn of(facts: &Facts<'_>) -> &'static str {
    let tally = tally(facts);
    if tally.failed_inits > 0 && !restarts(facts.restart, Role::Init, false) {
        return "Failed";
    }
    let held = tally.pending_inits > 0 || (tally.pending_sidecars > 0 && !facts.has_run());
    if held || tally.waiting > 0 {
        return "Pending";
    }
    if tally.unknown > 0 || (tally.running == 0 && tally.stopped == 0) {
        return "Pending";
    }
    if tally.running > 0 {
        return "Running";
    }
    let all_well = tally.stopped == tally.succeeded;
    let again = !facts.terminal && restarts(facts.restart, Role::Main, all_well);
    match (again, all_well) {
        (true, _) => "Running",
        (false, true) => "Succeeded",
        (false, false) => "Failed",
    }
}

#[cfg(test)]
#[path = "phase_tests.rs"]
mod tests;
