//! Which pods this node takes, decided again here although the scheduler decided already: pods come
//! by name, by hand and from files, and the hub may know less of the node than the node does
//! (`kubelet/lifecycle/predicate.go`). Pure.
//!
//! A pod is looked at once, in the order of creation. What was taken stays, whatever else comes:
//! only new pods are refused. One that would fit if pods on their way out were gone waits for them.

mod affinity;
mod fit;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::capacity::Amounts;
use super::node::Pressure;
use super::pod::resources::{Qos, qos};
use super::pod::verdict::Verdict;
use fit::Used;

/// `scheduling.SystemCriticalPriority`: from here on a pod is critical.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// A preempted pod may end by its own grace, at most this long.
const PREEMPTED_GRACE_MAX: Duration = Duration::from_secs(30);

/// What the node says of itself.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    pub allocatable: &'a Amounts,
    pub pressure: Pressure,
    /// Labels that nobody but this node can give. Others may have been changed in the hub, which
    /// the node is not told; it does not judge by them.
    pub labels: &'a BTreeMap<String, String>,
}

/// Where a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not decided.
    New,
    /// Taken; uses what it asks for.
    Taken,
    /// On its way out; uses what it asks for until it is gone.
    Leaving,
    /// Uses nothing.
    Over,
}

/// A pod and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub uid: &'a str,
    pub pod: &'a Pod,
    pub standing: Standing,
}

/// Why a pod is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
    /// Room could be made by ending others.
    short: bool,
}

impl Refusal {
    fn new(reason: &str, message: String) -> Self {
        Self {
            reason: reason.to_owned(),
            message,
            short: false,
        }
    }

    /// As the pod's end.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            reason: self.reason.clone(),
            message: format!("Pod was rejected: {}", self.message),
            grace: Duration::ZERO,
            disruption: None,
        }
    }
}

/// What became of a new pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Take,
    /// Until others are gone.
    Wait,
    Refuse(Refusal),
}

/// What follows for pods that are new, and for those that must go for a critical one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    pub decisions: BTreeMap<String, Decision>,
    pub preempted: BTreeSet<String>,
}

/// How a pod ends that gave way to a critical one (`kubelet/preemption/preemption.go`).
pub fn preempted(pod: &Pod) -> Verdict {
    let own = pod
        .spec
        .as_ref()
        .and_then(|s| s.termination_grace_period_seconds);
    let own = Duration::from_secs(own.and_then(|s| u64::try_from(s).ok()).unwrap_or(30));
    Verdict {
        reason: "Preempting".to_owned(),
        message: "Preempted in order to admit critical pod".to_owned(),
        grace: own.min(PREEMPTED_GRACE_MAX),
        disruption: Some("Pod was preempted by Kubelet to accommodate a critical pod.".to_owned()),
    }
}

/// From a file of this node, not from the hub.
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|a| a.get(SOURCE_ANNOTATION));
    source.is_some_and(|source| source != "api")
}

/// The system does not do without it (`kubelet/types/pod_update.go: IsCriticalPod`).
pub fn is_critical(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let is_mirror = annotations.is_some_and(|a| a.contains_key(MIRROR_ANNOTATION));
    is_static(pod) || is_mirror || priority(pod) >= CRITICAL_PRIORITY
}

pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// Decides about every new pod.
pub fn review(subjects: &[Subject<'_>], node: &Node<'_>) -> Review {
    // Most looks find nothing new, and cost nothing.
    if subjects
        .iter()
        .all(|subject| subject.standing != Standing::New)
    {
        return Review::default();
    }
    let mut used = Used::default();
    let mut leaving = Used::default();
    let mut staying: Vec<Subject<'_>> = Vec::new();
    for subject in subjects {
        match subject.standing {
            Standing::Taken => {
                used.add(subject.pod);
                staying.push(*subject);
            }
            Standing::Leaving => leaving.add(subject.pod),
            Standing::New | Standing::Over => {}
        }
    }
    let mut new: Vec<&Subject<'_>> = subjects
        .iter()
        .filter(|subject| subject.standing == Standing::New)
        .collect();
    new.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut review = Review::default();
    for subject in new {
        let pod = subject.pod;
        let decision = match refusal(pod, &used, node) {
            None if fits_beside(pod, &used, &leaving, node) => Decision::Take,
            None => Decision::Wait,
            Some(refusal) if refusal.short && is_critical(pod) => {
                let victims = victims(pod, &staying, &used, node);
                if victims.is_empty() {
                    Decision::Refuse(refusal)
                } else {
                    staying.retain(|other| {
                        let goes = victims.contains(other.uid);
                        if goes {
                            used.remove(other.pod);
                            leaving.add(other.pod);
                        }
                        !goes
                    });
                    // One that was new itself begins and ends: its status says why.
                    for victim in &victims {
                        if let Some(decision) = review.decisions.get_mut(victim) {
                            *decision = Decision::Take;
                        }
                    }
                    review.preempted.extend(victims);
                    Decision::Wait
                }
            }
            Some(refusal) => Decision::Refuse(refusal),
        };
        if matches!(decision, Decision::Take | Decision::Wait) {
            used.add(pod);
            staying.push(*subject);
        }
        review.decisions.insert(subject.uid.to_owned(), decision);
    }
    review
}

/// By creation, as kubelet sorts them; names make equal times certain.
fn order<'a>(subject: &Subject<'a>) -> (Option<i64>, &'a str, &'a str, &'a str) {
    let meta = &subject.pod.metadata;
    let created = meta.creation_timestamp.as_ref();
    (
        created.map(|at| at.0.as_millisecond()),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        subject.pod.metadata.uid.as_deref().unwrap_or_default(),
    )
}

/// Whether there is room now, with those still here that are about to go.
fn fits_beside(pod: &Pod, used: &Used, leaving: &Used, node: &Node<'_>) -> bool {
    let mut both = used.clone();
    both.join(leaving);
    both.check(pod, node.allocatable).is_none() && !both.has_port_of(pod)
}

fn refusal(pod: &Pod, used: &Used, node: &Node<'_>) -> Option<Refusal> {
    under_pressure(pod, node.pressure)
        .or_else(|| other_system(pod))
        .or_else(|| used.check(pod, node.allocatable))
        .or_else(|| {
            let suits = affinity::suits(pod, node.labels);
            let name = "NodeAffinity";
            let text = "node(s) didn't match Pod's node affinity/selector";
            (!suits).then(|| predicate(name, text))
        })
        .or_else(|| {
            let text = "node(s) didn't have free ports for the requested pod ports";
            used.has_port_of(pod).then(|| predicate("NodePorts", text))
        })
}

fn predicate(name: &str, text: &str) -> Refusal {
    Refusal::new(name, format!("Predicate {name} failed: {text}"))
}

/// `eviction_manager.go: Admit`.
fn under_pressure(pod: &Pod, pressure: Pressure) -> Option<Refusal> {
    let held = [
        (pressure.memory, "MemoryPressure"),
        (pressure.disk, "DiskPressure"),
        (pressure.pids, "PIDPressure"),
    ];
    let names: Vec<&str> = held
        .iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, name)| *name)
        .collect();
    if names.is_empty() || is_critical(pod) {
        return None;
    }
    if names == ["MemoryPressure"]
        && (qos(pod) != Qos::BestEffort || tolerates(pod, "node.kubernetes.io/memory-pressure"))
    {
        return None;
    }
    let message = format!("The node had condition: [{}]. ", names.join(" "));
    Some(Refusal::new("Evicted", message))
}

fn tolerates(pod: &Pod, taint: &str) -> bool {
    let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
    tolerations.into_iter().any(|toleration| {
        let key = toleration.key.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        let value = toleration.value.as_deref().unwrap_or_default();
        (key == taint && (exists || value.is_empty()) || key.is_empty() && exists)
            && (effect.is_empty() || effect == "NoSchedule")
    })
}

fn other_system(pod: &Pod) -> Option<Refusal> {
    let labels = pod.metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        let text = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        let reason = "PodOSSelectorNodeLabelDoesNotMatch";
        return Some(Refusal::new(reason, text.to_owned()));
    }
    let os = pod.spec.as_ref()?.os.as_ref()?;
    let text = "Failed to admit pod as the OS field doesn't match node OS";
    (os.name != "linux").then(|| Refusal::new("PodOSNotSupported", text.to_owned()))
}

/// The fewest and least important pods without which a critical one fits; none if that is not
/// enough. Best-effort pods go first, guaranteed ones last, and of equals the lower priority.
fn victims(pod: &Pod, staying: &[Subject<'_>], used: &Used, node: &Node<'_>) -> BTreeSet<String> {
    let rank = |pod: &Pod| match qos(pod) {
        Qos::BestEffort => 0,
        Qos::Burstable => 1,
        Qos::Guaranteed => 2,
    };
    let mut candidates: Vec<&Subject<'_>> = staying
        .iter()
        .filter(|other| {
            let lower = priority(other.pod) < priority(pod);
            !is_critical(other.pod) || lower && !is_static(other.pod)
        })
        .collect();
    candidates.sort_by_key(|other| (rank(other.pod), priority(other.pod), order(other)));
    let mut left = used.clone();
    let mut chosen: Vec<&Subject<'_>> = Vec::new();
    for other in candidates {
        if refusal(pod, &left, node).is_none() {
            break;
        }
        left.remove(other.pod);
        chosen.push(other);
    }
    if refusal(pod, &left, node).is_some() {
        return BTreeSet::new();
    }
    // What was chosen early may turn out not to be needed; the most important is spared first.
    for other in chosen.clone().into_iter().rev() {
        left.add(other.pod);
        if refusal(pod, &left, node).is_some() {
            left.remove(other.pod);
        } else {
            chosen.retain(|kept| kept.uid != other.uid);
        }
    }
    chosen.iter().map(|other| other.uid.to_owned()).collect()
}

#[cfg(test)]
mod tests;
