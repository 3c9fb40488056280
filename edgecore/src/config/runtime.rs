//! `modules.edged…`: how pods are run. Images, networks, amounts and logs have files of their own.

use std::net::IpAddr;
use std::path::PathBuf;

use super::keys::{Keys, absolute};
use super::resources::{self, NodeResources};
use super::schema::{Field, field, kubelet, usual};
use super::{ConfigError, container_logs, images, network};
use crate::edged::image_gc::ImagePolicy;
use crate::edged::runtime::containerd::Registries;

pub(super) const FIELDS: &[Field] = &[
    field(
        "modules.edged.enable",
        "true",
        "false runs no pods (devices only)",
    ),
    field(
        "modules.edged.remoteRuntimeEndpoint",
        "\"\"",
        "older name of tailoredKubeletConfig.containerRuntimeEndpoint; used if not empty",
    ),
    field(
        "modules.edged.reportEvent",
        "true",
        "send pod events to the hub",
    ),
    field(
        "modules.edged.rootDirectory",
        "\"/var/lib/edgecore/edged\"",
        "the pods' volumes and records (pods/), data of PersistentVolumeClaims (storage/)",
    ),
    field(
        kubelet!("allowedUnsafeSysctls"),
        "[]",
        "sysctls beyond the safe ones that pods may set; a trailing `*` allows a prefix",
    ),
    usual(
        kubelet!("containerRuntimeEndpoint"),
        "\"unix:///run/containerd/containerd.sock\"",
        "containerd's socket",
    ),
    field(
        kubelet!("seccompDefault"),
        "true",
        "containers that say nothing of seccomp get RuntimeDefault; false: Unconfined",
    ),
    field(
        kubelet!("staticPodPath"),
        "\"/etc/edgecore/manifests\"",
        "directory of static pods; need not exist",
    ),
    field(
        "outpost.cgroupRoot",
        "\"/edgepods\"",
        "root of the pods' cgroups",
    ),
    field(
        "outpost.containerdNamespace",
        "\"edgecore\"",
        "containerd namespace of our images and containers",
    ),
    field(
        "outpost.seccompDirectory",
        "\"/var/lib/edgecore/seccomp\"",
        "where seccomp profiles of type Localhost lie",
    ),
];

/// How pods are run.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// containerd's socket, a path.
    pub containerd: PathBuf,
    pub namespace: String,
    pub snapshotter: String,
    pub cgroup_root: String,
    pub registries: Registries,
    pub image_pulls_max: u32,
    pub image_layers_max: u32,
    pub image_policy: ImagePolicy,
    pub cni_bin_dirs: Vec<PathBuf>,
    pub cni_conf_dir: PathBuf,
    /// Volumes and records of pods, and claims' data.
    pub root_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    /// The program that writes container logs.
    pub logger: PathBuf,
    pub log_bytes_max: u64,
    pub log_files_max: u32,
    /// All logs of one pod, and of the node.
    pub log_pod_bytes_max: u64,
    pub log_node_bytes_max: u64,
    pub max_pods: u32,
    pub resources: NodeResources,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    /// Containers that say nothing of seccomp are filtered.
    pub seccomp_default: bool,
    pub seccomp_dir: PathBuf,
    /// Names, or prefixes with a trailing `*`.
    pub unsafe_sysctls: Vec<String>,
    /// Addresses of the built-in pod network.
    pub pod_cidr: Option<String>,
    pub report_events: bool,
    /// Directory of static pods.
    pub static_pods: PathBuf,
}

/// `None`: no pods on this node.
pub(super) fn check(keys: &Keys) -> Result<Option<RuntimeConfig>, ConfigError> {
    let is_on: bool = keys.get("modules.edged.enable")?;
    if !is_on {
        return Ok(None);
    }
    let logs = container_logs::check(keys)?;
    Ok(Some(RuntimeConfig {
        containerd: containerd(keys)?,
        namespace: keys.text("outpost.containerdNamespace")?,
        snapshotter: keys.text("outpost.snapshotter")?,
        cgroup_root: keys.text("outpost.cgroupRoot")?,
        registries: images::registries(keys)?,
        image_pulls_max: images::pulls_max(keys)?,
        image_layers_max: images::layers_max(keys)?,
        image_policy: images::policy(keys)?,
        cni_bin_dirs: network::plugin_dirs(keys)?,
        cni_conf_dir: keys.absolute("outpost.cniConfDirectory")?,
        root_dir: keys.absolute("modules.edged.rootDirectory")?,
        pod_logs_dir: keys.absolute(kubelet!("podLogsDir"))?,
        logger: container_logs::program(keys)?,
        log_bytes_max: logs.file_bytes,
        log_files_max: logs.files,
        log_pod_bytes_max: logs.pod_bytes,
        log_node_bytes_max: logs.node_bytes,
        max_pods: keys.get(kubelet!("maxPods"))?,
        resources: resources::check(keys)?,
        cluster_dns: network::cluster_dns(keys)?,
        cluster_domain: keys.text(kubelet!("clusterDomain"))?,
        resolv_conf: keys.get(kubelet!("resolvConf"))?,
        seccomp_default: keys.get(kubelet!("seccompDefault"))?,
        seccomp_dir: keys.absolute("outpost.seccompDirectory")?,
        unsafe_sysctls: keys.get(kubelet!("allowedUnsafeSysctls"))?,
        pod_cidr: network::pod_cidr(keys)?,
        report_events: keys.get("modules.edged.reportEvent")?,
        static_pods: static_pods(keys)?,
    }))
}

fn containerd(keys: &Keys) -> Result<PathBuf, ConfigError> {
    const OLDER: &str = "modules.edged.remoteRuntimeEndpoint";
    const ENDPOINT: &str = kubelet!("containerRuntimeEndpoint");
    let (path, endpoint) = match keys.optional(OLDER)? {
        Some(endpoint) => (OLDER, endpoint),
        None => (ENDPOINT, keys.text(ENDPOINT)?),
    };
    let socket = endpoint.strip_prefix("unix://").unwrap_or(&endpoint);
    absolute(path, socket)
}

/// KubeEdge's files carry the key empty.
fn static_pods(keys: &Keys) -> Result<PathBuf, ConfigError> {
    let path = keys.optional_file(kubelet!("staticPodPath"))?;
    Ok(path.unwrap_or_else(|| PathBuf::from("/etc/edgecore/manifests")))
}
