//! What a pod asks for and may use: its class, its sums, the cgroup values of pod and container.
//! Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::convert::Placement;
use crate::edged::quantity;
use crate::edged::runtime::Resources;

/// Least CPU shares of a cgroup, what a pod without a CPU request gets (`cm/helpers_linux.go`).
pub const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
/// Of guaranteed pods and of those that guard the node.
pub const OOM_SCORE_GUARANTEED: i32 = -997;

/// `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    /// As in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// Under the root of the pods' cgroups; guaranteed pods are directly there
    /// (`cm/qos_container_manager_linux.go`).
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Guaranteed => "",
            Self::Burstable => "/burstable",
            Self::BestEffort => "/besteffort",
        }
    }
}

/// `v1.PodQOSClass` of the pod (`pkg/apis/core/v1/helper/qos`).
pub fn qos(pod: &Pod) -> Qos {
    let mut any = false;
    let mut guaranteed = true;
    for container in all(pod) {
        for name in ["cpu", "memory"] {
            let limit = amount(container, name, true).filter(|v| *v > 0);
            let request = amount(container, name, false).filter(|v| *v > 0).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

fn all(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    spec.into_iter()
        .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
}

/// Thousandths for cpu, whole units for everything else.
fn read(name: &str, quantity: &Quantity) -> Option<i64> {
    if name == "cpu" {
        quantity::milli(quantity)
    } else {
        quantity::value(quantity)
    }
}

fn amount(container: &Container, name: &str, limit: bool) -> Option<i64> {
    let resources = container.resources.as_ref()?;
    let list: Option<&BTreeMap<String, Quantity>> = if limit {
        resources.limits.as_ref()
    } else {
        resources.requests.as_ref()
    };
    read(name, list?.get(name)?)
}

/// What a container asks for; a limit without a request is one (the API's default).
pub fn request(container: &Container, name: &str) -> i64 {
    let asked = amount(container, name, false).or_else(|| amount(container, name, true));
    asked.unwrap_or(0).max(0)
}

/// A container's limit, if it has one above zero.
pub fn limit(container: &Container, name: &str) -> Option<i64> {
    amount(container, name, true).filter(|v| *v > 0)
}

/// Names of everything the pod asks for.
pub fn names(pod: &Pod) -> std::collections::BTreeSet<String> {
    let mut found = std::collections::BTreeSet::new();
    for resources in all(pod).filter_map(|c| c.resources.as_ref()) {
        for list in [&resources.requests, &resources.limits] {
            found.extend(list.iter().flatten().map(|(name, _)| name.clone()));
        }
    }
    let overhead = pod.spec.as_ref().and_then(|s| s.overhead.as_ref());
    found.extend(overhead.into_iter().flatten().map(|(name, _)| name.clone()));
    found
}

/// A pod's sum of what `of` says of a container: containers and sidecars run together, an init
/// container runs with the sidecars before it, and the greater of both counts
/// (`component-helpers/resource: PodRequests`).
fn sum(pod: &Pod, of: impl Fn(&Container) -> i64) -> i64 {
    let Some(spec) = &pod.spec else {
        return 0;
    };
    let mut sidecars: i64 = 0;
    let mut starting: i64 = 0;
    for init in spec.init_containers.iter().flatten() {
        let value = of(init);
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(value);
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars.saturating_add(value));
        }
    }
    let running = spec.containers.iter().map(of);
    let running = running.fold(sidecars, i64::saturating_add);
    running.max(starting)
}

fn overhead(pod: &Pod, name: &str) -> i64 {
    let spec = pod.spec.as_ref();
    let found = spec.and_then(|s| s.overhead.as_ref()?.get(name));
    found
        .and_then(|quantity| read(name, quantity))
        .unwrap_or(0)
        .max(0)
}

/// What the pod asks for of one resource: thousandths for cpu, units for everything else.
pub fn pod_request(pod: &Pod, name: &str) -> i64 {
    sum(pod, |container| request(container, name)).saturating_add(overhead(pod, name))
}

/// The pod's limit if every container of it has one.
pub fn pod_limit(pod: &Pod, name: &str) -> Option<i64> {
    if !all(pod).all(|container| limit(container, name).is_some()) {
        return None;
    }
    let limits = sum(pod, |container| limit(container, name).unwrap_or(0));
    (limits > 0).then(|| limits.saturating_add(overhead(pod, name)))
}

/// The sum of those limits that there are; a container without one counts nothing.
pub fn limits_sum(pod: &Pod, name: &str) -> i64 {
    sum(pod, |container| limit(container, name).unwrap_or(0))
}

/// CPU shares for thousandths of a CPU.
pub fn shares(milli: i64) -> Option<u64> {
    let shares = milli.saturating_mul(1024) / 1000;
    u64::try_from(shares.clamp(SHARES_MIN, SHARES_MAX)).ok()
}

fn quota(milli: i64) -> i64 {
    milli.saturating_mul(100).max(1000)
}

/// Cgroup values of the pod as a whole (`cm/helpers_linux.go: ResourceConfigForPod`).
pub fn of_pod(pod: &Pod, placement: &Placement) -> Resources {
    Resources {
        cpu_shares: shares(pod_request(pod, "cpu")),
        cpu_quota_us: pod_limit(pod, "cpu").map(quota),
        memory_limit_bytes: pod_limit(pod, "memory"),
        pids_limit: placement.pod_pids_max,
        oom_score_adj: None,
    }
}

/// Whom the kernel ends last: who guards the node (`qos/policy.go`).
pub fn is_node_critical(pod: &Pod) -> bool {
    let class = pod
        .spec
        .as_ref()
        .and_then(|s| s.priority_class_name.as_deref());
    class == Some("system-node-critical")
}

/// Cgroup values of one container (`kuberuntime_container_linux.go`, `cm/helpers_linux.go`,
/// `qos/policy.go`).
pub fn resources(container: &Container, qos: Qos, node_memory_bytes: i64) -> Resources {
    let adjust = match qos {
        Qos::Guaranteed => i64::from(OOM_SCORE_GUARANTEED),
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let asked = request(container, "memory").saturating_mul(1000);
            (1000 - asked / node_memory_bytes.max(1)).clamp(3, 999)
        }
    };
    Resources {
        cpu_shares: shares(request(container, "cpu")),
        cpu_quota_us: limit(container, "cpu").map(quota),
        memory_limit_bytes: limit(container, "memory"),
        pids_limit: None,
        oom_score_adj: i32::try_from(adjust).ok(),
    }
}

/// Absolute cgroup of the pod.
pub fn cgroup(pod: &Pod, placement: &Placement) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    format!("{}{}/pod{uid}", placement.cgroup_root, qos(pod).directory())
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
