//! The runtime on containerd's own API: no CRI, no pause container. One code path for containerd
//! 1.6, 1.7 and 2.x; nothing newer than 1.6's services is needed.
//!
//! What is where: `channel` the connection and its errors, `content`/`document`/`image`/`import`/`archive`/
//! `pull`/`snapshot` from references to unpacked snapshots, `spec` the pure OCI spec builder, `start` what a
//! container is given, `record` and `task` containers and their processes, `exec` commands in them, `cgroup` the host's tree, `events` the daemon's news. Namespaces and network of a pod
//! are [`super::sandbox`] and [`super::cni`].
//!
//! The source of truth is the daemon: container labels, task states, and what is pinned under the
//! state directory. Nothing is remembered here that a restart could lose.

mod archive;
mod cgroup;
mod channel;
mod collect;
mod content;
mod document;
mod events;
mod exec;
mod flight;
mod holder;
mod holder_program;
mod host;
mod ids;
mod image;
mod import;
mod layer;
mod marks;
mod platform;
mod pull;
mod record;
pub(super) mod reference;
mod registry;
mod retire;
mod signals;
mod snapshot;
mod spec;
mod start;
mod stats;
mod store;
mod task;
mod unpack;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::cgroup::Cgroups;
use self::channel::{CALL, Daemon, TASK};
use self::exec::Execs;
use self::ids::Spoilt;
use self::image::ImageError;
use self::marks::Marks;
use self::reference::normalize;
pub use self::registry::{Registries, RegistryHost};
use self::spec::HostFacts;
pub(crate) use self::spec::PodPaths;
use self::stats::Stats;
use self::store::ImageStore;
use super::cni::Cni;
use super::cni::follow::Follower;
use super::sandbox::Sandboxes;
use super::session::{AttachRequest, ExecRequest, Session};
use super::{
    CgroupUsage, Container, ContainerSpec, ExecOutput, FsUsage, Image, NetworkHealth, NodeLimits,
    PodStats, PullOptions, Reclaim, Runtime, RuntimeError, RuntimeInfo, Sandbox, SandboxSpec,
};

/// How the runtime is reached and where it keeps its things.
#[derive(Clone, Debug)]
pub struct ContainerdConfig {
    /// Path of the daemon's socket, with or without `unix://`.
    pub address: String,
    /// containerd namespace; ours alone, since runc's state is keyed by namespace and id.
    pub namespace: String,
    /// On tmpfs, so that a reboot forgets pins, network leases and logger configurations.
    pub state_dir: PathBuf,
    pub snapshotter: String,
    pub cni_conf_dir: PathBuf,
    /// Searched in order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The `edged-logger` executable.
    pub logger_path: PathBuf,
    /// Most bytes of all logs of one pod, and of all pods; 0 is no limit. Held by the loggers.
    pub log_pod_bytes_max: u64,
    pub log_node_bytes_max: u64,
    /// Root of all pods' cgroups.
    pub cgroup_root: String,
    /// Other namespaces of the same daemon whose images count as present (preloaded images).
    pub adopt_namespaces: Vec<String>,
    pub registries: Registries,
    /// Images that come in at the same time; links at the edge are thin.
    pub pulls_max: usize,
    /// Layers of one image that come in at the same time.
    pub layers_max: usize,
    /// Addresses of the built-in network; `None` takes a free range.
    pub pod_cidr: Option<String>,
    /// Where `Localhost` seccomp profiles lie.
    pub seccomp_root: PathBuf,
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".to_owned(),
            namespace: "edgecore".to_owned(),
            state_dir: PathBuf::from("/run/edgecore"),
            snapshotter: "overlayfs".to_owned(),
            cni_conf_dir: PathBuf::from("/etc/cni/net.d"),
            cni_bin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            logger_path: PathBuf::from("/usr/libexec/edged-logger"),
            log_pod_bytes_max: 256 << 20,
            log_node_bytes_max: 2 << 30,
            cgroup_root: "/edgepods".to_owned(),
            adopt_namespaces: vec!["k8s.io".to_owned(), "default".to_owned()],
            registries: Registries::default(),
            pulls_max: 2,
            layers_max: 3,
            pod_cidr: None,
            seccomp_root: PathBuf::from("/var/lib/edgecore/seccomp"),
        }
    }
}

/// [`Runtime`] on containerd.
pub struct ContainerdRuntime {
    config: ContainerdConfig,
    daemon: Daemon,
    cgroups: Cgroups,
    host: HostFacts,
    sandboxes: Sandboxes,
    spoilt: Spoilt,
    execs: Execs,
    images: Arc<ImageStore>,
    stats: Stats,
    changes: watch::Receiver<u64>,
    network_changes: Arc<AtomicU64>,
    events: JoinHandle<()>,
    follower: JoinHandle<()>,
}

impl Drop for ContainerdRuntime {
    fn drop(&mut self) {
        self.events.abort();
        self.follower.abort();
    }
}

/// `<pod uid>-<12 hex of name/attempt>`: containerd allows 76 characters, a uid and a container
/// name together can have 99.
pub(crate) fn container_id(pod_uid: &str, name: &str, attempt: u32) -> String {
    let hash = hex::encode(Sha256::digest(format!("{name}/{attempt}").as_bytes()));
    format!("{pod_uid}-{}", &hash[..12])
}

impl ContainerdRuntime {
    /// Builds the runtime and starts listening for events. The daemon may be absent: it is
    /// connected to when it comes. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Only for a configuration that can never work.
    pub fn connect(config: ContainerdConfig) -> Result<Arc<Self>, RuntimeError> {
        let daemon = Daemon::lazy(&config.address, &config.namespace)?;
        let cgroups = Cgroups::detect();
        let host = host::facts(&cgroups);
        let cni = Cni::new(
            config.cni_conf_dir.clone(),
            config.cni_bin_dirs.clone(),
            config.state_dir.join("cni"),
        )
        .with_pod_cidr(config.pod_cidr.clone());
        let (announce, changes) = watch::channel(0);
        let network_changes = Arc::new(AtomicU64::new(0));
        let follower = Follower::new(
            config.cni_conf_dir.clone(),
            Arc::clone(&network_changes),
            announce.clone(),
        );
        let events = tokio::spawn(events::watch_events(
            daemon.clone(),
            config.namespace.clone(),
            announce,
        ));
        let execs = Execs::new(daemon.clone(), config.state_dir.join("exec"));
        Ok(Arc::new(Self {
            spoilt: Spoilt::default(),
            execs,
            stats: Stats::detect(),
            sandboxes: Sandboxes::new(config.state_dir.clone(), cni),
            images: ImageStore::new(config.clone(), daemon.clone()),
            daemon,
            cgroups,
            host,
            changes,
            network_changes,
            events,
            follower: tokio::spawn(follower.run()),
            config,
        }))
    }

    /// Waits until nothing of ended commands is left behind, or for `limit`: for a program that
    /// ends after one.
    pub async fn settle(&self, limit: std::time::Duration) {
        self.execs.settle(limit).await;
    }

    /// Brings in the images of an archive (a tar of an OCI image layout, or what `docker save`
    /// writes). `name` overrides what
    /// the archive calls its image; it must then hold exactly one.
    ///
    /// # Errors
    /// [`RuntimeError::Pull`] with what is wrong with the archive, or the daemon is away.
    pub async fn import_archive(
        &self,
        path: &Path,
        name: Option<&str>,
    ) -> Result<Vec<Image>, RuntimeError> {
        self.images.import(path, name).await
    }

    /// Keeps an image from ever being collected, or ends that.
    ///
    /// # Errors
    /// The image is not there, or the daemon is away.
    pub async fn pin_image(&self, reference: &str, pinned: bool) -> Result<(), RuntimeError> {
        self.images.pin(reference, pinned).await
    }
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    async fn info(&self) -> RuntimeInfo {
        let version = self
            .daemon
            .call("version", CALL, self.daemon.version().version(()))
            .await;
        let network = self.sandboxes.network_status();
        RuntimeInfo {
            ready: version.is_ok(),
            version: version.map_or_else(
                |_| "containerd://unknown".to_owned(),
                |answer| format!("containerd://{}", answer.version.trim_start_matches('v')),
            ),
            network_ready: network.is_ok(),
            network_reason: network.err().unwrap_or_default(),
        }
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let name = normalize(reference)?.whole();
        let failed = |error: ImageError| error.into_pull(reference);
        let found = match self.images.present(&name).await.map_err(failed)? {
            None => self.images.adopt(&name).await.map_err(failed)?,
            some => some,
        };
        Ok(found.map(|(target, facts)| image::describe(&name, &target, &facts)))
    }

    async fn pull(&self, reference: &str, options: &PullOptions) -> Result<Image, RuntimeError> {
        self.images.pull(reference, options).await
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        self.images.list().await
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        self.images.remove(reference).await
    }

    async fn reclaim_images(&self, reclaim: &Reclaim) -> Result<u64, RuntimeError> {
        let containers = self.containers().await?;
        self.images.reclaim(reclaim, &containers).await
    }

    async fn image_fs(&self) -> Result<FsUsage, RuntimeError> {
        self.images.disk().await
    }

    async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        if !spec.cgroup_parent.is_empty() {
            if let Err(error) = self.cgroups.create(&spec.cgroup_parent) {
                tracing::warn!(%error, pod = spec.pod_uid, "pod cgroup not made; runc will try");
            }
            let refused = self.cgroups.limit(&spec.cgroup_parent, &spec.resources);
            for (limit, error) in refused {
                tracing::warn!(%error, pod = spec.pod_uid, limit, "limit of the pod not set");
            }
        }
        self.sandboxes.ensure(spec).await
    }

    async fn check_network(&self, pod_uid: &str) -> NetworkHealth {
        self.sandboxes.check_network(pod_uid).await
    }

    async fn abandon_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        self.sandboxes.abandon(pod_uid).await
    }

    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        Marks::new(&self.config.state_dir).forget_pod(pod_uid);
        if self.sandboxes.may_have_holder(pod_uid) {
            holder::remove(&self.daemon, &self.config.snapshotter, pod_uid).await?;
        }
        let cgroup_parent = self.sandboxes.remove(pod_uid).await?;
        if let Some(parent) = cgroup_parent.filter(|parent| !parent.is_empty()) {
            let cgroups = self.cgroups.clone();
            let removed = tokio::task::spawn_blocking(move || cgroups.remove(&parent)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(%error, pod = pod_uid, "pod cgroup not removed");
            }
        }
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        let mut list = self.sandboxes.list().await?;
        // One whose pod's directory a reboot has emptied is a remainder too.
        for pod_uid in holder::pod_uids(&self.daemon).await? {
            if !list.iter().any(|sandbox| sandbox.pod_uid == pod_uid) {
                list.push(Sandbox {
                    pod_uid,
                    ips: Vec::new(),
                });
            }
        }
        Ok(list)
    }

    fn network_changes(&self) -> u64 {
        self.network_changes.load(Ordering::Acquire)
    }

    async fn start(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        self.start_container(spec).await
    }

    async fn signal_stop(&self, id: &str) -> Result<(), RuntimeError> {
        const TERM: u32 = 15;
        let record = record::get(&self.daemon, id)
            .await?
            .ok_or_else(|| RuntimeError::NotFound { id: id.to_owned() })?;
        let signal = record
            .labels
            .get(record::label::STOP_SIGNAL)
            .and_then(|name| signals::number(name))
            .unwrap_or(TERM);
        task::kill(&self.daemon, id, signal, false).await
    }

    async fn kill(&self, id: &str) -> Result<(), RuntimeError> {
        const KILL: u32 = 9;
        task::kill(&self.daemon, id, KILL, true).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: std::time::Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        self.execs.run(id, command, timeout).await
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Session, RuntimeError> {
        self.execs.open(id, request).await
    }

    async fn attach(&self, id: &str, request: &AttachRequest) -> Result<Session, RuntimeError> {
        let marks = Marks::new(&self.config.state_dir);
        self.execs.attach(id, request, &marks).await
    }

    async fn stats(&self) -> Result<Vec<PodStats>, RuntimeError> {
        let snapshotter = &self.config.snapshotter;
        Ok(self.stats.look(&self.daemon, snapshotter).await?)
    }

    async fn retire(&self, id: &str) -> Result<(), RuntimeError> {
        let marks = Marks::new(&self.config.state_dir);
        retire::retire(&self.daemon, &self.cgroups, &marks, id).await
    }

    fn started_at_ms(&self, id: &str) -> Option<i64> {
        Marks::new(&self.config.state_dir).started_at_ms(id)
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        task::delete(&self.daemon, &self.config.snapshotter, id).await?;
        Marks::new(&self.config.state_dir).forget(id);
        Ok(())
    }

    async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let marks = Marks::new(&self.config.state_dir);
        let containers = record::list(&self.daemon, &self.cgroups, &marks).await?;
        self.images.used.touch_all(&containers);
        Ok(containers)
    }

    fn missing_controllers(&self) -> Vec<&'static str> {
        self.cgroups.missing()
    }

    fn cgroup_usage(&self, cgroup: &str) -> Option<CgroupUsage> {
        self.cgroups.usage(cgroup)
    }

    async fn layer_bytes(&self, id: &str) -> Result<u64, RuntimeError> {
        Ok(layer::usage(&self.daemon, &self.config.snapshotter, id, TASK).await?)
    }

    async fn apply_node_limits(&self, limits: &NodeLimits) -> Result<(), RuntimeError> {
        let (cgroups, limits) = (self.cgroups.clone(), limits.clone());
        let failed = |reason: String| RuntimeError::Other {
            step: "node cgroups",
            reason,
        };
        let refused = tokio::task::spawn_blocking(move || cgroups.arrange(&limits))
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        for (limit, error) in refused {
            tracing::warn!(%error, limit, "limit of all pods not set");
        }
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}
