//! Edged: keeps the pods of this node as the store says they should be, on containerd.
//!
//! ```text
//! store generation ┐                     ┌─ worker (pod a) ─┐
//! runtime changes  ├─▶ main loop: lists ─┼─ worker (pod b) ─┼─▶ Runtime, StatusSink
//! worker acted     ┘   once, dispatches  └─ worker (pod c) ─┘
//! ```
//!
//! The main loop reads desired pods and the runtime's containers once per wake-up and hands every
//! worker its part; it never acts itself. Nothing polls. A container that runs is adopted by its
//! labels; nothing is stopped because the store, the hub, the clock or this process failed.
//!
//! It does not pull configuration, does not talk to the hub and knows no wire format.

pub mod admission;
pub mod capacity;
mod deps;
pub mod disconnect;
mod events;
pub mod eviction;
pub mod image_gc;
pub mod logs;
mod main_loop;
mod networks;
pub mod node;
mod oom;
pub mod pod;
pub mod quantity;
mod reclaim;
pub mod runtime;
#[cfg(test)]
mod scripted;
pub mod statics;
mod summary;
pub mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clock;
use pod::convert::{Placement, PodId};
use pod::worker::Context;
use runtime::Runtime;

pub use summary::ContainerSummary;

pub use deps::{DesiredError, DesiredState, StatusSink, Token, TokenWish};

/// Commands of probes at the same time on one node: each starts a process of the runtime's own.
const PROBE_EXECS_MAX: usize = 8;

/// Sandboxes and containers being made at the same time, per processor. A start waits for other
/// processes most of its time; more at once only make all of them late (30 at once on two
/// processors: none runs before 60 % of the time that all need).
const STARTS_PER_CPU: i64 = 4;

/// What is fixed for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub node_name: String,
    /// Volumes that survive a reboot, e.g. `/var/lib/edgecore/pods`.
    pub disk_dir: PathBuf,
    /// Volumes that must not touch the disk, on a tmpfs, e.g. `/run/edgecore/volumes`.
    pub run_dir: PathBuf,
    /// e.g. `/var/log/pods`
    pub log_dir: PathBuf,
    pub log_bytes_max: u64,
    pub log_files_max: u32,
    /// Root of the pod cgroups, e.g. `/edgepods`.
    pub cgroup_root: String,
    /// Most pods the node takes (capacity `pods`).
    pub pods_max: u32,
    /// Most processes of one pod.
    pub pod_pids_max: Option<i64>,
    /// Kept back from pods.
    pub reserved: capacity::Reserved,
    /// What is kept back is kept from pods by their common cgroup, too.
    pub enforce_allocatable: bool,
    /// When something is short.
    pub eviction: eviction::threshold::Config,
    /// On the file system of images and writable layers.
    pub image_dir: PathBuf,
    /// False: the node is registered as unschedulable.
    pub schedulable: bool,
    /// Added to the node's own labels at registration.
    pub labels: BTreeMap<String, String>,
    /// When unused images are removed.
    pub images: image_gc::ImagePolicy,
    /// Told instead of the address of the default route.
    pub node_ip: Option<String>,
    /// What the operator decided for all pods.
    pub rules: pod::security::Rules,
}

impl Settings {
    /// The usual directories and limits; nothing counts as short.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            disk_dir: "/var/lib/edgecore/pods".into(),
            run_dir: "/run/edgecore/volumes".into(),
            log_dir: "/var/log/pods".into(),
            log_bytes_max: 10 << 20,
            log_files_max: 5,
            cgroup_root: "/edgepods".to_owned(),
            pods_max: 110,
            schedulable: true,
            pod_pids_max: None,
            reserved: capacity::Reserved::default(),
            enforce_allocatable: true,
            // A test's pods must not depend on how full the disk of its host is.
            eviction: eviction::threshold::Config {
                thresholds: Vec::new(),
                ..eviction::threshold::Config::default()
            },
            image_dir: "/var/lib/containerd".into(),
            labels: BTreeMap::new(),
            images: image_gc::ImagePolicy::default(),
            node_ip: None,
            rules: pod::security::Rules::default(),
        }
    }
}

/// What Edged is plugged into.
pub struct Deps {
    pub runtime: Arc<dyn Runtime>,
    pub desired: Arc<dyn DesiredState>,
    pub sink: Arc<dyn StatusSink>,
    pub settings: Settings,
}

/// One pod as this node has it, for local diagnosis.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSummary {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub phase: String,
    /// Ready containers of all, and restarts in sum.
    pub ready: usize,
    pub containers: usize,
    pub restarts: i64,
    /// Why the first container that does not run does not, or `Terminating`.
    pub reason: String,
    pub ip: String,
    /// As `kubectl get pods` says it.
    pub status: String,
    /// When this node took the pod.
    pub started_at_ms: Option<i64>,
    /// Init containers first.
    pub members: Vec<ContainerSummary>,
}

impl PodSummary {
    fn of(id: &PodId, status: &PodStatus, terminating: bool) -> Self {
        let containers = status.container_statuses.as_deref().unwrap_or_default();
        let reason = containers.iter().find_map(|c| {
            let state = c.state.as_ref()?;
            let waiting = state.waiting.as_ref().and_then(|w| w.reason.clone());
            waiting.or_else(|| state.terminated.as_ref()?.reason.clone())
        });
        Self {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            uid: id.uid.clone(),
            phase: status.phase.clone().unwrap_or_default(),
            ready: containers.iter().filter(|c| c.ready).count(),
            containers: containers.len(),
            restarts: containers.iter().map(|c| i64::from(c.restart_count)).sum(),
            reason: if terminating {
                "Terminating".to_owned()
            } else {
                reason.unwrap_or_default()
            },
            ip: status.pod_ip.clone().unwrap_or_default(),
            status: summary::in_words(status, terminating),
            started_at_ms: status.start_time.as_ref().map(|t| t.0.as_millisecond()),
            members: summary::containers(status),
        }
    }
}

/// Starts Edged.
pub struct Edged;

/// Holds a running Edged. Dropping it leaves the task running until the process ends.
pub struct EdgedHandle {
    stop: CancellationToken,
    resend: watch::Sender<u64>,
    context: Arc<Context>,
    task: JoinHandle<()>,
    images: JoinHandle<()>,
}

impl Edged {
    /// Starts the main loop on the current runtime.
    pub fn start(deps: Deps) -> EdgedHandle {
        Self::start_with_clock(deps, Box::new(clock::unix_millis))
    }

    /// As [`Edged::start`], with the wall clock given.
    pub fn start_with_clock(
        deps: Deps,
        now_ms: Box<dyn Fn() -> clock::UnixMillis + Send + Sync>,
    ) -> EdgedHandle {
        let settings = deps.settings;
        let machine = node::Machine::read();
        let dirs = volumes::Dirs {
            disk: settings.disk_dir.clone(),
            run: settings.run_dir.clone(),
        };
        if let Err(error) = dirs.close() {
            warn!(%error, "the directories of pods are open to other users of this node");
        }
        let context = Arc::new(Context {
            runtime: deps.runtime,
            desired: deps.desired,
            sink: deps.sink,
            placement: Placement {
                log_root: settings.log_dir.clone(),
                log_bytes_max: settings.log_bytes_max,
                log_files_max: settings.log_files_max,
                cgroup_root: settings.cgroup_root.clone(),
                node_hostname: machine.hostname.clone(),
                memory_bytes: machine.memory_bytes,
                pod_pids_max: settings.pod_pids_max,
                rules: settings.rules.clone(),
            },
            node_name: settings.node_name.clone(),
            allocatable: capacity::allocatable(
                &node::capacity(&settings, &machine),
                settings.reserved,
                &settings.eviction.thresholds,
            ),
            dirs,
            execs: Arc::new(Semaphore::new(PROBE_EXECS_MAX)),
            starts: Arc::new(Semaphore::new(
                usize::try_from(machine.cpus.max(1) * STARTS_PER_CPU).unwrap_or(1),
            )),
            ticks: AtomicU64::new(1),
            images: image_gc::Board::default(),
            poke: Notify::new(),
            board: Mutex::new(BTreeMap::new()),
            verdicts: Mutex::new(BTreeMap::new()),
            networks: Mutex::new(BTreeMap::new()),
            now_ms,
        });
        let stop = CancellationToken::new();
        let resend = watch::Sender::new(0);
        let keeper = image_gc::run(context.clone(), settings.images.clone(), stop.clone());
        let images = tokio::spawn(keeper);
        let (pressure, short) = watch::channel(node::Pressure::default());
        let active = watch::Sender::new(eviction::Active::default());
        let evictor = eviction::Evictor {
            context: context.clone(),
            config: settings.eviction.clone(),
            disk_dir: settings.disk_dir.clone(),
            image_dir: settings.image_dir.clone(),
            image_age_min: settings.images.min_age,
            active: active.subscribe(),
            pressure,
        };
        let told = resend.subscribe();
        let (adopted, found) = oneshot::channel();
        let main = main_loop::MainLoop::new(
            context.clone(),
            settings,
            machine,
            told,
            active,
            short,
            adopted,
        );
        let stopped = stop.clone();
        let reclaim = reclaim::run(context.clone(), stop.clone());
        let watcher = context.clone();
        let oom = async move {
            oom::run(&watcher).await;
            // A node without a kernel's log goes on without.
            std::future::pending::<()>().await;
        };
        let watcher = context.clone();
        let networks = async move {
            networks::run(watcher, found).await;
            // Everything has been looked at.
            std::future::pending::<()>().await;
        };
        let task = tokio::spawn(async move {
            // None goes on without the others.
            tokio::select! {
                () = main.run(stopped.clone()) => {}
                () = evictor.run(stopped.clone()) => {}
                () = reclaim => {}
                () = oom => {}
                () = networks => {}
            }
        });
        EdgedHandle {
            stop,
            resend,
            context,
            task,
            images,
        }
    }
}

impl EdgedHandle {
    /// The pods as they are now.
    pub fn pods(&self) -> Vec<PodSummary> {
        let board = self
            .context
            .board
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        board.values().cloned().collect()
    }

    /// The pods that are wanted here, from wherever they come.
    pub fn desired(&self) -> Arc<dyn DesiredState> {
        self.context.desired.clone()
    }

    /// Tells every status again, node and pods: the hub may have forgotten them.
    pub fn resend(&self) {
        self.resend
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Waits for the main loop to end, which it does only when stopped, or by a panic.
    pub async fn ended(&mut self) {
        let _ = (&mut self.task).await;
    }

    /// Stops looking after pods. Containers go on running.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
        let _ = self.images.await;
    }
}
