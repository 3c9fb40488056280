//! The conditions of a pod, after `kubelet/status/generate.go`.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};

use super::phase::{Facts, find, is_sidecar};
use super::{View, time};

/// Why a condition does not hold: reason and message.
type Why = (&'static str, Option<String>);

/// Makes all of them; what others wrote (readiness gates) stays.
pub(super) fn all(view: &View<'_>, phase: &str, facts: &Facts<'_>) -> Vec<PodCondition> {
    let over = matches!(phase, "Succeeded" | "Failed");
    let unready = unready(phase, facts);
    let gated = unready.clone().or_else(|| closed_gates(view));
    let (initialized, why) = initialized(phase, facts);
    let mut list = vec![
        condition(
            view,
            "PodReadyToStartContainers",
            view.pod_ips.is_some() && !over,
            None,
        ),
        condition(view, "Initialized", initialized, why),
        condition(view, "Ready", gated.is_none(), gated),
        condition(view, "ContainersReady", unready.is_none(), unready),
        condition(view, "PodScheduled", true, None),
    ];
    // `eviction_manager.go`, `preemption.go`
    if let Some(message) = view.verdict.and_then(|verdict| verdict.disruption.clone()) {
        let why = ("TerminationByKubelet", Some(message));
        list.push(condition(view, "DisruptionTarget", true, Some(why)));
    }
    let known = view.pod.status.as_ref();
    let known = known.iter().flat_map(|s| s.conditions.iter().flatten());
    for foreign in known {
        if !list.iter().any(|own| own.type_ == foreign.type_) {
            list.push(foreign.clone());
        }
    }
    list
}

/// `GenerateContainersReadyCondition`
fn unready(phase: &str, facts: &Facts<'_>) -> Option<Why> {
    match phase {
        "Succeeded" => return Some(("PodCompleted", None)),
        "Failed" => return Some(("PodFailed", None)),
        _ => {}
    }
    let sidecars = facts.inits.iter().filter(|init| is_sidecar(init));
    let sidecars = sidecars.filter_map(|init| find(facts.init_statuses, &init.name));
    let all = sidecars.chain(facts.statuses);
    let names = names(all.filter(|status| !status.ready));
    (!names.is_empty()).then(|| {
        let message = format!("containers with unready status: [{names}]");
        ("ContainersNotReady", Some(message))
    })
}

/// `GeneratePodReadyCondition`, the part about `spec.readinessGates`
fn closed_gates(view: &View<'_>) -> Option<Why> {
    let spec = view.pod.spec.as_ref()?;
    let known = view.pod.status.as_ref();
    let conditions = || known.iter().flat_map(|s| s.conditions.iter().flatten());
    let gates = spec.readiness_gates.iter().flatten().filter_map(|gate| {
        let kind = &gate.condition_type;
        match conditions().find(|condition| condition.type_ == *kind) {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{kind}\" does not exist."
            )),
            Some(condition) if condition.status != "True" => Some(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                condition.status
            )),
            Some(_) => None,
        }
    });
    let messages: Vec<String> = gates.collect();
    (!messages.is_empty()).then(|| ("ReadinessGatesNotReady", Some(messages.join(", "))))
}

/// `GeneratePodInitializedCondition`
fn initialized(phase: &str, facts: &Facts<'_>) -> (bool, Option<Why>) {
    if phase == "Succeeded" {
        return (true, Some(("PodCompleted", None)));
    }
    let incomplete = facts.inits.iter().filter_map(|init| {
        let status = find(facts.init_statuses, &init.name)?;
        let done = if is_sidecar(init) {
            status.started == Some(true)
        } else {
            status.ready
        };
        (!done).then_some(status)
    });
    let names = names(incomplete);
    if names.is_empty() || facts.has_run() {
        return (true, None);
    }
    let message = format!("containers with incomplete status: [{names}]");
    (false, Some(("ContainersNotInitialized", Some(message))))
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
    // What this node told is newer than what came back from the API.
    let known = view.pod.status.as_ref();
    let mut known = known.iter().flat_map(|s| s.conditions.iter().flatten());
    let since = if view.times.conditions.contains_key(kind) {
        view.times.since(kind, holds).map(time)
    } else {
        let before = known.find(|c| c.type_ == kind && c.status == status);
        before.and_then(|c| c.last_transition_time.clone())
    };
    let (reason, message) = match why {
        Some((reason, message)) => (Some(reason.to_owned()), message),
        None => (None, None),
    };
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        last_transition_time: Some(since.unwrap_or_else(|| time(view.now_ms))),
        ..PodCondition::default()
    }
}
