//! The PodStatus that the API shows, in kubelet's words. Pure: made anew from what was observed,
//! with only times taken over from the one before.

mod conditions;
mod container;
mod phase;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::convert;
use super::state::{Desired, Health, Memory};
use super::times::Times;
use super::verdict::Verdict;
use crate::clock::UnixMillis;
use crate::edged::runtime::{Container as Seen, ContainerState};

pub use container::{back_off_message, terminated};

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
    /// What hooks and probes say of the container with this id, if it runs.
    pub health: &'a dyn Fn(&str) -> Health,
    /// What ended containers said last, by id.
    pub last_words: &'a BTreeMap<String, String>,
    /// Attempts of which no process came to be, by id.
    pub unstarted: &'a BTreeMap<String, Seen>,
    /// The sandbox's addresses; `None` while none stands.
    pub pod_ips: Option<&'a [String]>,
    pub host_ip: &'a str,
    /// As told before, also by an earlier process.
    pub times: &'a Times,
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
    let make = |containers: &[&Container]| -> Vec<ContainerStatus> {
        let each = containers.iter();
        each.map(|c| container::status(view, c, !inits.is_empty()))
            .collect()
    };
    let (init_statuses, statuses) = (make(&inits), make(&mains));
    let facts = phase::Facts {
        restart: view.want.restart,
        inits: &inits,
        init_statuses: &init_statuses,
        mains: &mains,
        statuses: &statuses,
        terminal: view.want.delete || view.verdict.is_some(),
    };
    let (phase, why) = ending(view, phase(view, &facts));
    let (reason, message) = why.map_or((None, None), |(reason, message)| (Some(reason), message));
    let conditions = conditions::all(view, phase, &facts);
    let ips: Vec<String> = match view.pod_ips {
        Some([]) => vec![view.host_ip.to_owned()],
        Some(ips) => ips.to_vec(),
        None => Vec::new(),
    };
    let ips: Vec<String> = ips.into_iter().filter(|ip| !ip.is_empty()).collect();
    let started_ms = view.started_ms.or(view.times.started_at_ms);
    let known = view.pod.status.as_ref();
    let start_time = started_ms.map(time);
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

/// A phase that the API knows as final stays.
fn phase(view: &View<'_>, facts: &phase::Facts<'_>) -> &'static str {
    let known = view.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    match known {
        Some("Succeeded") => "Succeeded",
        Some("Failed") => "Failed",
        _ => phase::of(facts),
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

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
