//! What is kept back from pods and when something counts as short: the part of kubelet's
//! configuration that is about amounts.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::ConfigError;
use super::raw::Kubelet;
use super::valid::wrong;
use crate::edged::capacity::Reserved;
use crate::edged::eviction::threshold::{self, Texts};
use crate::edged::quantity;

const PREFIX: &str = "modules.edged.tailoredKubeletConfig";

/// What kubelet's keys say about amounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeResources {
    pub reserved: Reserved,
    /// Whether what is kept back is kept from pods by a cgroup, too.
    pub enforce: bool,
    pub pod_pids_max: Option<i64>,
    pub eviction: threshold::Config,
}

pub(super) fn check(kubelet: &Kubelet) -> Result<NodeResources, ConfigError> {
    let kube = reserved("kubeReserved", &kubelet.kube_reserved)?;
    let system = reserved("systemReserved", &kubelet.system_reserved)?;
    let both = Reserved {
        cpu_milli: kube.cpu_milli.saturating_add(system.cpu_milli),
        memory_bytes: kube.memory_bytes.saturating_add(system.memory_bytes),
        storage_bytes: kube.storage_bytes.saturating_add(system.storage_bytes),
        pids: kube.pids.saturating_add(system.pids),
    };
    Ok(NodeResources {
        reserved: both,
        enforce: enforced(&kubelet.enforce_node_allocatable)?,
        pod_pids_max: (kubelet.pod_pids_limit > 0).then_some(kubelet.pod_pids_limit),
        eviction: eviction(kubelet)?,
    })
}

fn reserved(key: &str, texts: &BTreeMap<String, String>) -> Result<Reserved, ConfigError> {
    let mut found = Reserved::default();
    for (name, text) in texts {
        let amount = Quantity(text.clone());
        let (slot, value) = match name.as_str() {
            "cpu" => (&mut found.cpu_milli, quantity::milli(&amount)),
            "memory" => (&mut found.memory_bytes, quantity::value(&amount)),
            "ephemeral-storage" => (&mut found.storage_bytes, quantity::value(&amount)),
            "pid" => (&mut found.pids, quantity::value(&amount)),
            other => {
                let reason = format!("`{other}` cannot be kept back");
                return Err(wrong(format!("{PREFIX}.{key}"), reason));
            }
        };
        let value = value.filter(|value| *value >= 0);
        let bad = || wrong(format!("{PREFIX}.{key}"), format!("`{text}` is no amount"));
        *slot = value.ok_or_else(bad)?;
    }
    Ok(found)
}

fn enforced(names: &[String]) -> Result<bool, ConfigError> {
    let key = || format!("{PREFIX}.enforceNodeAllocatable");
    let mut pods = false;
    for name in names {
        match name.as_str() {
            "pods" => pods = true,
            "none" | "" => {}
            other => {
                let reason = format!("`{other}` is not supported, only `pods` or `none`");
                return Err(wrong(key(), reason));
            }
        }
    }
    Ok(pods)
}

fn eviction(kubelet: &Kubelet) -> Result<threshold::Config, ConfigError> {
    let texts = Texts {
        hard: &kubelet.eviction_hard,
        soft: &kubelet.eviction_soft,
        soft_grace: &kubelet.eviction_soft_grace_period,
        minimum_reclaim: &kubelet.eviction_minimum_reclaim,
    };
    let thresholds = threshold::parse(&texts)
        .map_err(|error| wrong(format!("{PREFIX}.{}", error.key), error.reason))?;
    let text = &kubelet.eviction_pressure_transition_period;
    let transition = threshold::duration(text).ok_or_else(|| {
        wrong(
            format!("{PREFIX}.evictionPressureTransitionPeriod"),
            format!("`{text}` is no duration"),
        )
    })?;
    let grace = u64::from(kubelet.eviction_max_pod_grace_period);
    Ok(threshold::Config {
        thresholds,
        transition,
        pod_grace_max: std::time::Duration::from_secs(grace),
        ..threshold::Config::default()
    })
}
