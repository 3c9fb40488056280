//! What a pod worker may ask of the container runtime. Two implementations: containerd's native
//! API, and the scripted fake that the worker's tests drive.

pub mod cni;
pub mod containerd;
pub mod fake;
mod image;
mod keyring;
mod masquerade;
mod network;
pub mod sandbox;
mod security;
pub mod session;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

pub(crate) use self::containerd::reference::{full as full_reference, split as split_reference};
pub use self::image::{
    FsUsage, Image, OnProgress, PullOptions, PullProgress, Reclaim, RegistryAuth,
};
pub use self::keyring::Keyring;
pub use self::network::{NetworkHealth, NetworkWish};
pub use self::security::{AppArmorChoice, GroupsPolicy, SeccompChoice};

/// One pod's shared namespaces and network, before any container exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxSpec {
    pub pod_uid: String,
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    pub host_network: bool,
    pub host_ipc: bool,
    /// `(host_port, container_port, protocol in lower case, host ip or empty)`
    pub port_mappings: Vec<(u16, u16, String, String)>,
    pub network: NetworkWish,
    /// Named with dots; a slash stands for a dot within a part.
    pub sysctls: BTreeMap<String, String>,
    /// The containers see each other's processes.
    pub share_pid: bool,
    /// Absolute cgroup of the pod, e.g. `/edgepods/burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Limits of that cgroup, over all containers together.
    pub resources: Resources,
}

/// A sandbox that stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    pub pod_uid: String,
    /// Empty for host network (the node's own address is the pod's).
    pub ips: Vec<String>,
}

/// A host path bound into a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
    /// Mounts below the source are read-only too.
    pub recursive_read_only: bool,
    /// e.g. `rslave`, empty for private.
    pub propagation: String,
}

/// Resource limits as cgroups want them; `None` leaves the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_shares: Option<u64>,
    /// Quota per 100 ms period, in microseconds.
    pub cpu_quota_us: Option<i64>,
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub oom_score_adj: Option<i32>,
}

impl Resources {
    /// Controllers that these limits need, by name. CPU shares alone need none: every container
    /// has some, and without the controller all are alike.
    pub fn controllers(&self) -> Vec<&'static str> {
        let mut needed = Vec::new();
        if self.cpu_quota_us.is_some() {
            needed.push("cpu");
        }
        if self.memory_limit_bytes.is_some() {
            needed.push("memory");
        }
        if self.pids_limit.is_some() {
            needed.push("pids");
        }
        needed
    }
}

/// What a cgroup uses, its children included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupUsage {
    /// Without what the kernel could drop at once (kubelet's working set).
    pub memory_bytes: u64,
    pub pids: u64,
}

/// What all pods of the node together may use, and how their classes share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLimits {
    /// e.g. `/edgepods`
    pub cgroup_root: String,
    pub all_pods: Resources,
    pub burstable_cpu_shares: u64,
}

/// Everything needed to create one container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    pub pod_uid: String,
    pub pod_namespace: String,
    pub pod_name: String,
    pub name: String,
    /// Counts restarts from 0; part of the container's id.
    pub attempt: u32,
    /// Hash of what was asked for; adoption compares it.
    pub spec_hash: String,
    /// Image reference as written in the pod; must be present (see [`Runtime::pull`]).
    pub image: String,
    /// Empty: the image's entrypoint.
    pub command: Vec<String>,
    /// Empty: the image's cmd (unless `command` is given).
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<String>,
    pub mounts: Vec<Mount>,
    pub resources: Resources,
    pub cgroup_parent: String,
    pub host_network: bool,
    pub host_pid: bool,
    /// In the pod's own PID namespace, not one of its own.
    pub share_pid: bool,
    pub host_ipc: bool,
    pub tty: bool,
    pub stdin: bool,
    /// The input ends with the first session that had it.
    pub stdin_once: bool,
    pub privileged: bool,
    pub read_only_rootfs: bool,
    pub no_new_privileges: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub supplemental_groups: Vec<i64>,
    pub groups_policy: GroupsPolicy,
    pub seccomp: SeccompChoice,
    pub apparmor: AppArmorChoice,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
    /// Absolute path of the CRI-format log file, `…/<container>/<attempt>.log`.
    pub log_path: PathBuf,
    pub log_bytes_max: u64,
    pub log_files_max: u32,
}

/// A container's state as the runtime has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running {
        started_at_ms: i64,
    },
    Exited {
        exit_code: i32,
        oom_killed: bool,
        started_at_ms: i64,
        finished_at_ms: i64,
    },
    /// The record is there but its task is gone (reboot, shim killed): the exit code is lost.
    Unknown,
}

/// One container that carries our labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub pod_uid: String,
    pub pod_namespace: String,
    pub pod_name: String,
    pub name: String,
    pub attempt: u32,
    pub spec_hash: String,
    pub image: String,
    /// Digest reference of the image, e.g. `docker.io/library/busybox@sha256:…`.
    pub image_id: String,
    pub log_path: PathBuf,
    pub state: ContainerState,
}

/// What the runtime is, for node status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// e.g. `containerd://1.6.20`
    pub version: String,
    pub ready: bool,
    /// False with a reason when no CNI configuration or plugin is found.
    pub network_ready: bool,
    pub network_reason: String,
}

/// What a command inside a container came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub exit_code: i32,
    /// Both streams as they came, cut to [`EXEC_OUTPUT_BYTES_MAX`].
    pub output: Vec<u8>,
}

/// Most output that [`Runtime::exec_sync`] keeps (kubelet: 10 KiB for a probe); the rest is read
/// and dropped.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 10 << 10;

/// Why the runtime refused. `reason()` is what kubelet would put in the container status.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    #[error("containerd does not answer at `{address}`")]
    Unavailable {
        address: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("image `{reference}` is not present")]
    ImageNotPresent { reference: String },
    #[error("image reference `{reference}` is not valid: {reason}")]
    InvalidImageName { reference: String, reason: String },
    #[error("cannot pull image `{reference}`: {reason}")]
    Pull { reference: String, reason: String },
    /// Nobody answered, or with an error of its own: the image may well be there.
    #[error("cannot pull image `{reference}`: {reason}")]
    RegistryUnavailable { reference: String, reason: String },
    #[error("cannot create container: {reason}")]
    Create { reason: String },
    #[error("cannot start container: {reason}")]
    Start { reason: String },
    /// A command that could not be run at all; `exit_code` is what a shell would say: 127 for one
    /// that is not there, else 126.
    #[error("cannot run the command: {reason}")]
    Exec { exit_code: i32, reason: String },
    #[error("network set-up failed: {reason}")]
    Network { reason: String },
    #[error("container `{id}` is not known to the runtime")]
    NotFound { id: String },
    #[error("{step} took longer than {limit:?}")]
    Timeout { step: &'static str, limit: Duration },
    #[error("{step} failed: {reason}")]
    Other { step: &'static str, reason: String },
}

impl RuntimeError {
    fn unsupported(step: &'static str) -> Self {
        Self::Other {
            step,
            reason: "this runtime cannot".to_owned(),
        }
    }
}

/// What one container uses. Counters grow from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStats {
    pub name: String,
    pub id: String,
    /// CPU time used so far.
    pub cpu_ns: u64,
    /// Memory that cannot be taken back without harm: usage less inactive file cache.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    /// 0: no limit.
    pub memory_limit_bytes: u64,
    pub processes: u64,
    /// Written by the container over its image.
    pub rootfs_bytes: u64,
    pub log_bytes: u64,
}

/// What one pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStats {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Network of the pod; 0 with the host's network.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub containers: Vec<ContainerStats>,
}

/// The container runtime as a pod worker sees it. Every method is idempotent: a worker repeats
/// it after a crash without first asking how far it got.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    async fn info(&self) -> RuntimeInfo;
    /// How often the configuration of the pods' network has changed.
    fn network_changes(&self) -> u64 {
        0
    }

    /// The image if it is present with all its content.
    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError>;
    /// Pulls (or finds) the image. A transfer that breaks off goes on where it stopped, in this
    /// call or in a later one; however many callers ask for one image, it is fetched once.
    async fn pull(&self, reference: &str, options: &PullOptions) -> Result<Image, RuntimeError>;
    /// Every image of ours that is complete, by name.
    async fn images(&self) -> Result<Vec<Image>, RuntimeError>;
    /// Forgets an image by name; its content goes as soon as nothing else needs it. Containers
    /// made from it keep running.
    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError>;
    /// Removes images that no container uses and nobody asked to keep, least recently used first,
    /// and what broken pulls left; returns the bytes freed. `edged::image_gc::reclaim` fills in
    /// what the pods of this node want kept.
    async fn reclaim_images(&self, reclaim: &Reclaim) -> Result<u64, RuntimeError>;

    /// The filesystem that holds the images.
    async fn image_fs(&self) -> Result<FsUsage, RuntimeError>;

    /// Makes the pod's namespaces and network, or returns what stands already.
    async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError>;
    /// Removes network, namespaces and pod cgroup. No tasks may be left; records of containers that
    /// are over may ([`Runtime::retire`]).
    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError>;
    /// How the network of a pod with a sandbox stands; executes plugins.
    async fn check_network(&self, _pod_uid: &str) -> NetworkHealth {
        NetworkHealth::Good
    }
    /// The next [`Runtime::ensure_sandbox`] makes the sandbox anew; until then it stands.
    async fn abandon_sandbox(&self, _pod_uid: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::unsupported("sandbox made anew"))
    }
    /// Pod uids whose sandbox stands on this node.
    async fn sandboxes(&self) -> Result<Vec<Sandbox>, RuntimeError>;

    /// Creates and starts; returns the container's id. An existing one of the same id is reused.
    async fn start(&self, spec: &ContainerSpec) -> Result<String, RuntimeError>;
    /// Sends the image's stop signal (TERM by default); returns at once.
    async fn signal_stop(&self, id: &str) -> Result<(), RuntimeError>;
    /// SIGKILL to every process of the container; returns at once.
    async fn kill(&self, id: &str) -> Result<(), RuntimeError>;
    /// Runs a command in a running container and waits for its end: probes and hooks. After
    /// `timeout` the process is killed and the answer is [`RuntimeError::Timeout`];
    /// [`Duration::MAX`] waits for ever. A command that cannot be run is [`RuntimeError::Exec`].
    /// A child left in the background does not hold the answer up. Cancel-safe: dropping the
    /// future kills the process.
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError>;
    /// Starts a command in a running container and talks with it.
    async fn exec(
        &self,
        id: &str,
        request: &session::ExecRequest,
    ) -> Result<session::Session, RuntimeError> {
        let _ = (id, request);
        Err(RuntimeError::unsupported("command in a container"))
    }
    /// Joins the process that a container runs: its output from now on, its input if it has one.
    /// Hanging up leaves it running.
    async fn attach(
        &self,
        id: &str,
        request: &session::AttachRequest,
    ) -> Result<session::Session, RuntimeError> {
        let _ = (id, request);
        Err(RuntimeError::unsupported("attaching"))
    }
    /// What every pod's containers use now.
    async fn stats(&self) -> Result<Vec<PodStats>, RuntimeError> {
        Ok(Vec::new())
    }
    /// Gives back what a container that is over still holds: its task, and with a pod's last task the
    /// shim. Its record stays, and how it ended with it, over restarts of the daemon and of the
    /// machine; it is never started again. Refused while it runs.
    async fn retire(&self, id: &str) -> Result<(), RuntimeError>;
    /// When the process of a container that was started came to be, as listings tell it.
    fn started_at_ms(&self, _id: &str) -> Option<i64> {
        None
    }
    /// Deletes task, container record and snapshot of a container that is not running.
    async fn remove(&self, id: &str) -> Result<(), RuntimeError>;
    /// Every container that carries our labels, exited ones too.
    async fn containers(&self) -> Result<Vec<Container>, RuntimeError>;

    /// Cgroup controllers that limits need and this host lacks: such limits are dropped.
    fn missing_controllers(&self) -> Vec<&'static str> {
        Vec::new()
    }
    /// What the processes of a cgroup use now; nothing if it cannot be read.
    fn cgroup_usage(&self, _cgroup: &str) -> Option<CgroupUsage> {
        None
    }
    /// Bytes of a container's writable layer.
    async fn layer_bytes(&self, _id: &str) -> Result<u64, RuntimeError> {
        Ok(0)
    }
    /// Makes the cgroups above the pods' own and writes their limits.
    async fn apply_node_limits(&self, _limits: &NodeLimits) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Rises whenever some container changed state, and after every reconnect to the daemon.
    /// Only a hint: the reader lists again.
    fn changes(&self) -> watch::Receiver<u64>;
}
