//! The status of one container.

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, Pod,
};

use super::super::convert;
use super::super::state::{Role, restarts};
use super::{EXIT_CODE_LOST, Trouble, View, current, previous_attempt, time};
use crate::edged::runtime::{Container as Seen, ContainerState};

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

fn role(view: &View<'_>, name: &str) -> Role {
    let mut all = view.want.containers.iter();
    let wanted = all.find(|wanted| wanted.name == name);
    wanted.map_or(Role::Main, |wanted| wanted.role)
}

/// The ended state, with what only this process knows of it.
fn end(view: &View<'_>, seen: &Seen) -> Option<ApiState> {
    let mut state = terminated(seen)?;
    let words = view.last_words.get(&seen.id);
    if let Some(words) = words.filter(|words| !words.is_empty()) {
        state.message = Some(words.clone());
    }
    if view.unstarted.contains_key(&seen.id) {
        state.reason = Some("StartError".to_owned());
        state.container_id = None;
    }
    Some(ApiState {
        terminated: Some(state),
        ..ApiState::default()
    })
}

/// Makes it. `inits`: the pod has init containers, so that a container that has not been started
/// waits for the pod (`kubelet_pods.go: convertToAPIContainerStatuses`).
pub(super) fn status(view: &View<'_>, container: &Container, inits: bool) -> ContainerStatus {
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
        None if inits => waiting("PodInitializing", None),
        None => waiting("ContainerCreating", None),
    };
    let Some(seen) = seen else {
        status.state = Some(pending());
        return status;
    };
    status.last_state = previous_attempt(view, name, seen.attempt).and_then(|s| end(view, s));
    status.image_id.clone_from(&seen.image_id);
    match &seen.state {
        ContainerState::Created => status.state = Some(pending()),
        ContainerState::Running { started_at_ms } => {
            status.container_id = Some(format!("containerd://{}", seen.id));
            let health = (view.health)(&seen.id);
            if !health.hooked {
                // Kubelet tells of a container when its postStart hook is over.
                status.state = Some(pending());
                return status;
            }
            status.started = Some(health.started);
            status.ready = health.ready && role(view, name) != Role::Init;
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
    if !view.unstarted.contains_key(&seen.id) {
        status.container_id = Some(format!("containerd://{}", seen.id));
    }
    let end = end(view, seen);
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
