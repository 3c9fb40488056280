//! What is kept back from pods and when something counts as short: the part of kubelet's
//! configuration that is about amounts.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::ConfigError;
use super::keys::{Keys, wrong};
use super::schema::{Field, field, kubelet};
use crate::edged::capacity::Reserved;
use crate::edged::eviction::threshold::{self, Texts};
use crate::edged::quantity;

const PREFIX: &str = kubelet!("");

pub(super) const FIELDS: &[Field] = &[
    field(
        kubelet!("enforceNodeAllocatable"),
        "[\"pods\"]",
        "pods together get no more than what is not reserved; [\"none\"] only counts it",
    ),
    field(
        kubelet!("evictionHard"),
        "{\"memory.available\": \"100Mi\", \"nodefs.available\": \"10%\", \"nodefs.inodesFree\": \"5%\", \"imagefs.available\": \"15%\", \"pid.available\": \"5%\"}",
        "below this much pods are ended, one after the other; 0% switches one off",
    ),
    field(
        kubelet!("evictionMaxPodGracePeriod"),
        "0",
        "seconds a pod gets at most when a soft threshold ends it",
    ),
    field(
        kubelet!("evictionMinimumReclaim"),
        "{}",
        "what must be free beyond the threshold before the shortage is over",
    ),
    field(
        kubelet!("evictionPressureTransitionPeriod"),
        "\"5m0s\"",
        "a pressure condition stays this long after the shortage",
    ),
    field(
        kubelet!("evictionSoft"),
        "{}",
        "as evictionHard, after evictionSoftGracePeriod",
    ),
    field(
        kubelet!("evictionSoftGracePeriod"),
        "{}",
        "for each signal of evictionSoft: how long it has to hold, e.g. 1m30s",
    ),
    field(
        kubelet!("kubeReserved"),
        "{}",
        "kept back from pods: cpu, memory, ephemeral-storage, pid",
    ),
    field(kubelet!("maxPods"), "110", "pods of this node at most"),
    field(
        kubelet!("podPidsLimit"),
        "-1",
        "most processes of one pod; -1 for no limit",
    ),
    field(
        kubelet!("systemReserved"),
        "{}",
        "as kubeReserved; both together are kept back",
    ),
];

/// What kubelet's keys say about amounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeResources {
    pub reserved: Reserved,
    /// Whether what is kept back is kept from pods by a cgroup, too.
    pub enforce: bool,
    pub pod_pids_max: Option<i64>,
    pub eviction: threshold::Config,
}

pub(super) fn check(keys: &Keys) -> Result<NodeResources, ConfigError> {
    let kube = reserved(keys, kubelet!("kubeReserved"))?;
    let system = reserved(keys, kubelet!("systemReserved"))?;
    let both = Reserved {
        cpu_milli: kube.cpu_milli.saturating_add(system.cpu_milli),
        memory_bytes: kube.memory_bytes.saturating_add(system.memory_bytes),
        storage_bytes: kube.storage_bytes.saturating_add(system.storage_bytes),
        pids: kube.pids.saturating_add(system.pids),
    };
    let pids: i64 = keys.get(kubelet!("podPidsLimit"))?;
    Ok(NodeResources {
        reserved: both,
        enforce: enforced(keys)?,
        pod_pids_max: (pids > 0).then_some(pids),
        eviction: eviction(keys)?,
    })
}

fn reserved(keys: &Keys, path: &'static str) -> Result<Reserved, ConfigError> {
    let texts: BTreeMap<String, String> = keys.get(path)?;
    let mut found = Reserved::default();
    for (name, text) in texts {
        let amount = Quantity(text.clone());
        let (slot, value) = match name.as_str() {
            "cpu" => (&mut found.cpu_milli, quantity::milli(&amount)),
            "memory" => (&mut found.memory_bytes, quantity::value(&amount)),
            "ephemeral-storage" => (&mut found.storage_bytes, quantity::value(&amount)),
            "pid" => (&mut found.pids, quantity::value(&amount)),
            other => {
                let reason = format!(
                    "`{other}` cannot be kept back; cpu, memory, ephemeral-storage and pid can"
                );
                return Err(wrong(path, reason));
            }
        };
        let value = value.filter(|value| *value >= 0);
        *slot = value.ok_or_else(|| wrong(path, format!("`{text}` is no amount of {name}")))?;
    }
    Ok(found)
}

fn enforced(keys: &Keys) -> Result<bool, ConfigError> {
    const PATH: &str = kubelet!("enforceNodeAllocatable");
    let names: Vec<String> = keys.get(PATH)?;
    let known = ["pods", "none", ""];
    if let Some(other) = names.iter().find(|name| !known.contains(&name.as_str())) {
        let reason = format!("`{other}` is not supported, only `pods` or `none`");
        return Err(wrong(PATH, reason));
    }
    Ok(names.iter().any(|name| name == "pods"))
}

fn eviction(keys: &Keys) -> Result<threshold::Config, ConfigError> {
    let texts = Texts {
        hard: &keys.get(kubelet!("evictionHard"))?,
        soft: &keys.get(kubelet!("evictionSoft"))?,
        soft_grace: &keys.get(kubelet!("evictionSoftGracePeriod"))?,
        minimum_reclaim: &keys.get(kubelet!("evictionMinimumReclaim"))?,
    };
    let thresholds = threshold::parse(&texts)
        .map_err(|error| wrong(format!("{PREFIX}{}", error.key), error.reason))?;
    let grace_secs: u32 = keys.get(kubelet!("evictionMaxPodGracePeriod"))?;
    Ok(threshold::Config {
        thresholds,
        transition: keys.duration(kubelet!("evictionPressureTransitionPeriod"))?,
        pod_grace_max: Duration::from_secs(grace_secs.into()),
        ..threshold::Config::default()
    })
}
