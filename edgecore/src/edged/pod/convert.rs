//! A Kubernetes pod as the runtime and the state machine see it. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use sha2::{Digest, Sha256};

use super::dns::{self, Names};
pub use super::resources::{Qos, cgroup, qos, resources};
use super::state::{Desired, RestartPolicy, Role, WantContainer};
use super::{env, hooks, network, security, sysctl};
use crate::edged::runtime::{ContainerSpec, Mount, SandboxSpec};

/// A container that cannot be made from what the pod says; shown as `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// What identifies a pod on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodId {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl PodId {
    pub fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        }
    }
}

/// Log limits and directories that every container of this node shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub log_root: PathBuf,
    pub log_bytes_max: u64,
    pub log_files_max: u32,
    /// Root of the pod cgroups, e.g. `/edgepods`.
    pub cgroup_root: String,
    pub node_hostname: String,
    pub memory_bytes: i64,
    /// Most processes of one pod (`podPidsLimit`).
    pub pod_pids_max: Option<i64>,
    pub rules: security::Rules,
}

/// The part of the pod that decides what happens next.
pub fn desired(pod: &Pod, removed: bool) -> Desired {
    let spec = pod.spec.as_ref();
    let delete = removed || pod.metadata.deletion_timestamp.is_some();
    let grace_secs = pod
        .metadata
        .deletion_grace_period_seconds
        .or_else(|| spec.and_then(|s| s.termination_grace_period_seconds))
        .unwrap_or(30);
    let restart = match spec.and_then(|s| s.restart_policy.as_deref()) {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    };
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let inits = spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let inits = inits.map(|container| WantContainer {
        name: container.name.clone(),
        attempts: attempts(pod, &container.name),
        post_start: hooks::post_start(container).is_some(),
        hash: spec_hash(container),
        role: match container.restart_policy.as_deref() {
            Some("Always") => Role::Sidecar,
            _ => Role::Init,
        },
    });
    let mains = spec.iter().flat_map(|s| &s.containers);
    let mains = mains.map(|container| WantContainer {
        name: container.name.clone(),
        attempts: attempts(pod, &container.name),
        post_start: hooks::post_start(container).is_some(),
        hash: spec_hash(container),
        role: Role::Main,
    });
    Desired {
        delete,
        suspended: false,
        grace: Duration::from_secs(u64::try_from(grace_secs).unwrap_or(0)),
        restart,
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        verdict: None,
        containers: inits.chain(mains).collect(),
    }
}

/// How often the API knows this container to have been started.
fn attempts(pod: &Pod, name: &str) -> u32 {
    let status = pod.status.iter();
    let mut all = status.flat_map(|s| {
        let inits = s.init_container_statuses.iter().flatten();
        inits.chain(s.container_statuses.iter().flatten())
    });
    let known = all.find(|status| status.name == name);
    let known = known.filter(|s| s.restart_count > 0 || s.container_id.is_some());
    let restarts = known.and_then(|status| u32::try_from(status.restart_count).ok());
    restarts.map_or(0, |restarts| restarts.saturating_add(1))
}

/// Finds a container of the pod by name.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .find(|container| container.name == name)
}

/// What makes a running container another one. Name and image only, as kubelet since 1.31
/// (`pickFieldsToHash`): nothing else may change in a pod, and a new release of ours that reads
/// one field more must not restart every container on the node.
pub fn spec_hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(container.name.as_bytes());
    hash.update([0]);
    hash.update(image.as_bytes());
    let digest = hash.finalize();
    hex::encode(digest.get(..8).unwrap_or_default())
}

/// The policy, or the default that the tag implies.
pub fn pull_policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => {
            let image = container.image.as_deref().unwrap_or_default();
            let last = image.rsplit('/').next().unwrap_or_default();
            let floating =
                !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
            if floating {
                PullPolicy::Always
            } else {
                PullPolicy::IfNotPresent
            }
        }
    }
}

/// What the pod is called.
pub fn names(pod: &Pod, placement: &Placement) -> Names {
    dns::names(pod, &placement.node_hostname, &placement.rules.dns)
}

/// The pod's namespaces and network.
pub fn sandbox_spec(pod: &Pod, placement: &Placement) -> SandboxSpec {
    let id = PodId::of(pod);
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let ports = spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            let host = u16::try_from(port.host_port?).ok().filter(|p| *p != 0)?;
            let inner = u16::try_from(port.container_port).ok()?;
            let protocol = port
                .protocol
                .as_deref()
                .unwrap_or("TCP")
                .to_ascii_lowercase();
            let address = port.host_ip.clone().unwrap_or_default();
            Some((host, inner, protocol, address))
        });
    let port_mappings = if host_network {
        Vec::new()
    } else {
        ports.collect()
    };
    SandboxSpec {
        hostname: names(pod, placement).kernel,
        host_network,
        host_ipc: spec.and_then(|s| s.host_ipc) == Some(true),
        port_mappings,
        sysctls: sysctl::of(pod).collect(),
        // What cannot be read was refused before.
        network: network::of(pod).unwrap_or_default(),
        share_pid: spec.and_then(|s| s.share_process_namespace) == Some(true),
        cgroup_parent: cgroup(pod, placement),
        resources: super::resources::of_pod(pod, placement),
        pod_uid: id.uid,
        namespace: id.namespace,
        name: id.name,
    }
}

/// Where kubelet keeps the logs of a pod: `<root>/<ns>_<name>_<uid>`.
pub fn log_directory(id: &PodId, placement: &Placement) -> PathBuf {
    placement
        .log_root
        .join(format!("{}_{}_{}", id.namespace, id.name, id.uid))
}

/// Everything needed to create one container.
///
/// # Errors
/// See [`env::resolve`] and [`security::of`].
pub fn container_spec(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    sources: &env::Sources,
    facts: &env::Facts,
    mounts: Vec<Mount>,
    placement: &Placement,
) -> Result<ContainerSpec, ConfigError> {
    let id = PodId::of(pod);
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let env = env::resolve(pod, container, sources, facts)?;
    let values: BTreeMap<String, String> = env.iter().cloned().collect();
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|text| env::expand(text, &values))
            .collect()
    };
    let log_path = log_directory(&id, placement)
        .join(&container.name)
        .join(format!("{attempt}.log"));
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt,
        spec_hash: spec_hash(container),
        image: container.image.clone().unwrap_or_default(),
        command: expand(&container.command),
        args: expand(&container.args),
        env,
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        mounts,
        resources: {
            let mut values = resources(container, qos(pod), placement.memory_bytes);
            if super::resources::is_node_critical(pod) {
                values.oom_score_adj = Some(super::resources::OOM_SCORE_GUARANTEED);
            }
            values
        },
        cgroup_parent: cgroup(pod, placement),
        host_network: spec.host_network == Some(true),
        host_pid: spec.host_pid == Some(true),
        share_pid: spec.share_process_namespace == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        log_path,
        log_bytes_max: placement.log_bytes_max,
        log_files_max: placement.log_files_max,
        pod_uid: id.uid,
        pod_namespace: id.namespace,
        pod_name: id.name,
        ..security::of(pod, container, &placement.rules)?
    })
}

#[cfg(test)]
#[path = "convert_tests.rs"]
pub(crate) mod tests;
