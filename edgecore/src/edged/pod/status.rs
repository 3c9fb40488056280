//! The PodStatus that the API shows, in kubelet's words. Pure: made anew from what was observed,
//! with only transition times taken over from the one before.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::convert;
use super::state::{Desired, Memory, Role, restarts};
use super::verdict::Verdict;
use crate::clock::UnixMillis;
use crate::edged::runtime::{Container as Seen, ContainerState};

/// Exit code of a container whose own was lost (kubelet: 137, `ContainerStatusUnknown`).
pub const EXIT_CODE_LOST: i32 = 137;

/// Why a container does not run although it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: &'static str,
    pub message: String,
}

/// What a status is made of.
pub struct View<'a> {
    pub pod: &'a Pod,
    pub want: &'a Desired,
    pub seen: &'a [Seen],
    pub memory: &'a Memory,
    pub troubles: &'a BTreeMap<String, Trouble>,
    /// The sandbox's addresses; `None` while none stands.
    pub pod_ips: Option<&'a [String]>,
    pub host_ip: &'a str,
    pub previous: Option<&'a PodStatus>,
    /// Why the node ended the pod.
    pub verdict: Option<&'a Verdict>,
    /// `startTime`, where it was written down.
    pub started_ms: Option<UnixMillis>,
    pub now: Instant,
    pub now_ms: UnixMillis,
}

/// A time in whole seconds, as the API has it.
pub fn time(at_ms: UnixMillis) -> Time {
    Time(Timestamp::from_second(at_ms.div_euclid(1000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Makes the status.
pub fn build(view: &View<'_>) -> PodStatus {
    let spec = view.pod.spec.as_ref();
    let inits: Vec<&Container> = spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .collect();
    let mains: Vec<&Container> = spec.iter().flat_map(|s| &s.containers).collect();
    let initialized = initialized(view);
    let init_statuses: Vec<ContainerStatus> =
        inits.iter().map(|c| container(view, c, true)).collect();
    let statuses: Vec<ContainerStatus> = mains
        .iter()
        .map(|c| container(view, c, initialized))
        .collect();
    let (phase, why) = ending(view, phase(view, &statuses, initialized));
    let (reason, message) = why.map_or((None, None), |(reason, message)| (Some(reason), message));
    let conditions = conditions(view, phase, initialized, &init_statuses, &statuses);
    let ips: Vec<String> = match view.pod_ips {
        Some([]) => vec![view.host_ip.to_owned()],
        Some(ips) => ips.to_vec(),
        None => Vec::new(),
    };
    let ips: Vec<String> = ips.into_iter().filter(|ip| !ip.is_empty()).collect();
    let known = view.previous.or(view.pod.status.as_ref());
    let start_time = view.started_ms.map(time);
    let start_time = start_time.or_else(|| known.and_then(|s| s.start_time.clone()));
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(conditions),
        container_statuses: Some(statuses),
        init_container_statuses: Some(init_statuses).filter(|list| !list.is_empty()),
        host_ip: Some(view.host_ip.to_owned()).filter(|ip| !ip.is_empty()),
        host_ips: Some(vec![HostIP {
            ip: view.host_ip.to_owned(),
        }])
        .filter(|_| !view.host_ip.is_empty()),
        pod_ip: ips.first().cloned(),
        pod_ips: Some(ips.into_iter().map(|ip| PodIP { ip }).collect::<Vec<_>>())
            .filter(|list| !list.is_empty()),
        start_time: start_time.or_else(|| Some(time(view.now_ms))),
        qos_class: Some(convert::qos(view.pod).as_str().to_owned()),
        ..PodStatus::default()
    }
}

fn current<'a>(view: &View<'a>, name: &str) -> Option<&'a Seen> {
    let mine = view.seen.iter().filter(|seen| seen.name == name);
    mine.max_by_key(|seen| seen.attempt)
}

fn previous_attempt<'a>(view: &View<'a>, name: &str, below: u32) -> Option<&'a Seen> {
    let mine = view
        .seen
        .iter()
        .filter(|seen| seen.name == name && seen.attempt < below);
    mine.max_by_key(|seen| seen.attempt)
}

fn role(view: &View<'_>, name: &str) -> Role {
    let wanted = view
        .want
        .containers
        .iter()
        .find(|wanted| wanted.name == name);
    wanted.map_or(Role::Main, |wanted| wanted.role)
}

/// Whether every init container has done its part, or the main ones run already.
fn initialized(view: &View<'_>) -> bool {
    let state = |name: &str| current(view, name).map(|seen| &seen.state);
    let inits_done = view.want.containers.iter().all(|wanted| match wanted.role {
        Role::Main => true,
        Role::Sidecar => matches!(state(&wanted.name), Some(ContainerState::Running { .. })),
        Role::Init => {
            matches!(
                state(&wanted.name),
                Some(ContainerState::Exited { exit_code: 0, .. })
            )
        }
    });
    let any_main = view.want.containers.iter().any(|wanted| {
        wanted.role == Role::Main
            && matches!(
                state(&wanted.name),
                Some(ContainerState::Running { .. } | ContainerState::Exited { .. })
            )
    });
    inits_done || any_main
}

/// The ended state of a container, or nothing if it has not ended.
pub fn terminated(seen: &Seen) -> Option<ContainerStateTerminated> {
    let container_id = Some(format!("containerd://{}", seen.id));
    match &seen.state {
        ContainerState::Created | ContainerState::Running { .. } => None,
        ContainerState::Exited {
            exit_code,
            oom_killed,
            started_at_ms,
            finished_at_ms,
        } => {
            let reason = match (exit_code, oom_killed) {
                (_, true) => "OOMKilled",
                (0, false) => "Completed",
                (_, false) => "Error",
            };
            Some(ContainerStateTerminated {
                container_id,
                exit_code: *exit_code,
                reason: Some(reason.to_owned()),
                started_at: Some(*started_at_ms).filter(|ms| *ms > 0).map(time),
                finished_at: Some(*finished_at_ms).filter(|ms| *ms > 0).map(time),
                ..ContainerStateTerminated::default()
            })
        }
        ContainerState::Unknown => Some(ContainerStateTerminated {
            container_id,
            exit_code: EXIT_CODE_LOST,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some(
                "The container could not be located when the pod was looked at".to_owned(),
            ),
            ..ContainerStateTerminated::default()
        }),
    }
}

fn waiting(reason: &str, message: Option<String>) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ApiState::default()
    }
}

fn ended(state: Option<ContainerStateTerminated>) -> Option<ApiState> {
    state.map(|terminated| ApiState {
        terminated: Some(terminated),
        ..ApiState::default()
    })
}

fn container(view: &View<'_>, container: &Container, initialized: bool) -> ContainerStatus {
    let name = container.name.as_str();
    let seen = current(view, name);
    let trouble = view.troubles.get(name);
    let mut status = ContainerStatus {
        name: name.to_owned(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: seen.map_or(0, |s| i32::try_from(s.attempt).unwrap_or(i32::MAX)),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let pending = || match trouble {
        Some(trouble) => waiting(trouble.reason, Some(trouble.message.clone())),
        None if initialized => waiting("ContainerCreating", None),
        None => waiting("PodInitializing", None),
    };
    let Some(seen) = seen else {
        status.state = Some(pending());
        return status;
    };
    status.last_state =
        previous_attempt(view, name, seen.attempt).and_then(|s| ended(terminated(s)));
    status.image_id.clone_from(&seen.image_id);
    match &seen.state {
        ContainerState::Created => status.state = Some(pending()),
        ContainerState::Running { started_at_ms } => {
            status.container_id = Some(format!("containerd://{}", seen.id));
            status.started = Some(true);
            status.ready = true;
            status.state = Some(ApiState {
                running: Some(ContainerStateRunning {
                    started_at: Some(time(*started_at_ms)),
                }),
                ..ApiState::default()
            });
        }
        ContainerState::Exited { exit_code, .. } => {
            status.ready = *exit_code == 0 && role(view, name) == Role::Init;
            after_exit(view, container, seen, trouble, &mut status);
        }
        ContainerState::Unknown => after_exit(view, container, seen, trouble, &mut status),
    }
    status
}

/// An ended container is `terminated`, unless it is to run again and has to wait for that.
fn after_exit(
    view: &View<'_>,
    container: &Container,
    seen: &Seen,
    trouble: Option<&Trouble>,
    status: &mut ContainerStatus,
) {
    let name = container.name.as_str();
    status.container_id = Some(format!("containerd://{}", seen.id));
    let end = ended(terminated(seen));
    let ok = matches!(seen.state, ContainerState::Exited { exit_code: 0, .. });
    let again = !view.want.delete
        && view.verdict.is_none()
        && !view.want.finished
        && restarts(view.want.restart, role(view, name), ok);
    if !again {
        status.state = end;
        return;
    }
    if let Some(trouble) = trouble {
        status.state = Some(waiting(trouble.reason, Some(trouble.message.clone())));
        status.last_state = end;
    } else if let Some(delay) = view.memory.backing_off(name, view.now) {
        let message = back_off_message(view.pod, name, delay.as_secs());
        status.state = Some(waiting("CrashLoopBackOff", Some(message)));
        status.last_state = end;
    } else {
        status.state = end;
    }
}

/// `back-off 10s restarting failed container=c pod=p_ns(uid)`, as kubelet writes it.
pub fn back_off_message(pod: &Pod, container: &str, delay_secs: u64) -> String {
    let id = convert::PodId::of(pod);
    let (minutes, seconds) = (delay_secs / 60, delay_secs % 60);
    let delay = match minutes {
        0 => format!("{seconds}s"),
        _ => format!("{minutes}m{seconds}s"),
    };
    format!(
        "back-off {delay} restarting failed container={container} pod={}_{}({})",
        id.name, id.namespace, id.uid
    )
}

/// `kubelet_pods.go: getPhase`.
fn phase(view: &View<'_>, statuses: &[ContainerStatus], initialized: bool) -> &'static str {
    let known = view.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    match known {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    let init_failed = view.want.containers.iter().any(|wanted| {
        wanted.role == Role::Init
            && !restarts(view.want.restart, Role::Init, false)
            && current(view, &wanted.name).is_some_and(|seen| match seen.state {
                ContainerState::Exited { exit_code, .. } => exit_code != 0,
                ContainerState::Unknown => true,
                ContainerState::Created | ContainerState::Running { .. } => false,
            })
    });
    if init_failed {
        return "Failed";
    }
    if !initialized {
        return "Pending";
    }
    let mut running = 0;
    let mut waiting = 0;
    let mut stopped = 0;
    let mut succeeded = 0;
    for status in statuses {
        let now = status.state.as_ref();
        let last = status.last_state.as_ref();
        if now.is_some_and(|s| s.running.is_some()) {
            running += 1;
        } else if let Some(end) = now.and_then(|s| s.terminated.as_ref()) {
            stopped += 1;
            succeeded += i32::from(end.exit_code == 0);
        } else if let Some(end) = last.and_then(|s| s.terminated.as_ref()) {
            // Waiting for its restart: has run, so it does not make the pod Pending.
            stopped += 1;
            succeeded += i32::from(end.exit_code == 0);
        } else {
            waiting += 1;
        }
    }
    let again = |ok| restarts(view.want.restart, Role::Main, ok) && !view.want.delete;
    if waiting > 0 {
        "Pending"
    } else if running > 0 {
        "Running"
    } else if stopped == 0 {
        "Pending"
    } else if stopped == succeeded {
        if again(true) { "Running" } else { "Succeeded" }
    } else if again(false) {
        "Running"
    } else {
        "Failed"
    }
}

/// A pod that the node ended is `Failed` for its reason, but not before nothing runs any more
/// (`kubelet/status/status_manager.go: mergePodStatus`).
fn ending(
    view: &View<'_>,
    phase: &'static str,
) -> (&'static str, Option<(String, Option<String>)>) {
    let known = view.pod.status.as_ref();
    if view.want.finished {
        let why = known.and_then(|s| Some((s.reason.clone()?, s.message.clone())));
        return (phase, why);
    }
    let runs = |seen: &Seen| matches!(seen.state, ContainerState::Running { .. });
    match view.verdict {
        Some(verdict) if !view.seen.iter().any(runs) => {
            let why = (verdict.reason.clone(), Some(verdict.message.clone()));
            ("Failed", Some(why))
        }
        _ => (phase, None),
    }
}

fn conditions(
    view: &View<'_>,
    phase: &str,
    initialized: bool,
    inits: &[ContainerStatus],
    statuses: &[ContainerStatus],
) -> Vec<PodCondition> {
    let complete = phase == "Succeeded";
    let unready = names(statuses.iter().filter(|s| !s.ready));
    let not_ready = if complete {
        Some(("PodCompleted", None))
    } else if phase == "Failed" {
        Some(("PodFailed", None))
    } else if unready.is_empty() {
        None
    } else {
        let message = format!("containers with unready status: [{unready}]");
        Some(("ContainersNotReady", Some(message)))
    };
    let not_initialized = if initialized || complete {
        complete.then_some(("PodCompleted", None))
    } else {
        let left = names(inits.iter().filter(|s| !s.ready));
        let message = format!("containers with incomplete status: [{left}]");
        Some(("ContainersNotInitialized", Some(message)))
    };
    let over = complete || phase == "Failed";
    let mut list = vec![
        condition(
            view,
            "PodReadyToStartContainers",
            view.pod_ips.is_some() && !over,
            None,
        ),
        condition(
            view,
            "Initialized",
            initialized || complete,
            not_initialized,
        ),
        condition(view, "Ready", not_ready.is_none(), not_ready.clone()),
        condition(view, "ContainersReady", not_ready.is_none(), not_ready),
        condition(view, "PodScheduled", true, None),
    ];
    // What others wrote (readiness gates, the scheduler) stays.
    let known = view
        .pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    for foreign in known {
        if !list.iter().any(|own| own.type_ == foreign.type_) {
            list.push(foreign.clone());
        }
    }
    list
}

fn names<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> String {
    let names: Vec<&str> = statuses.map(|s| s.name.as_str()).collect();
    names.join(" ")
}

fn condition(
    view: &View<'_>,
    kind: &str,
    holds: bool,
    why: Option<(&str, Option<String>)>,
) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let before = [view.previous, view.pod.status.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == kind)
        .filter(|c| c.status == status);
    let (reason, message) = match why {
        Some((reason, message)) => (Some(reason.to_owned()), message),
        None => (None, None),
    };
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        last_transition_time: before
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(time(view.now_ms))),
        ..PodCondition::default()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
