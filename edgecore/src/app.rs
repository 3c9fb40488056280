//! The only place that makes channels and tasks. Order of start: store, MetaManager, Edged, bus,
//! link, local API; nothing on this way needs a hub or a right clock.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use wire::rules::Routes;

use crate::api::{self, ListenError, PodsQuery, Sources};
use crate::bus::{self, BusError, BusHandle};
use crate::clock;
use crate::config::{BusConfig, Config, RuntimeConfig};
use crate::dmi::{self, DmiDeps};
use crate::edged::runtime::Runtime;
use crate::edged::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use crate::edged::statics::{StaticDeps, StaticPods};
use crate::edged::{self, Edged, EdgedHandle};
use crate::heap;
use crate::hub::tls::Floor;
use crate::hub::{self, HubHandle, Link, LinkParts, Publisher, rotate};
use crate::meta::{self, MetaHandle, SealError, Sealer};
use crate::outbox;
use crate::servicebus::{Calls, ServiceBus};
use crate::store::{Store, StoreError};
use crate::supervise::{Exit, Phase, Supervisor};
use crate::twin;

/// Worker threads and their stacks: a node has one or two cores (design D13).
const WORKERS: usize = 2;
const STACK_BYTES: usize = 512 << 10;
/// Threads for blocking calls (file reads, database reads); they end when idle.
const BLOCKING_MAX: usize = 8;
/// Waiting for the writer thread to fold its log into the database.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(5);
/// The key that says where everything durable is.
const DATABASE: &str = "database.dataSource";
/// Questions for Edged's pods; more wait.
const PODS_QUERIES_MAX: usize = 8;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("cannot make `{path}` (`{key}`{})", advice(.source))]
    Directory {
        path: PathBuf,
        /// The configuration's key that says where.
        key: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("another edgecore runs on `{path}`")]
    Locked { path: PathBuf },
    #[error("cannot open the node's store `{path}`")]
    Open {
        path: PathBuf,
        #[source]
        source: StoreError,
    },
    #[error("the node's store failed")]
    Store(#[from] StoreError),
    #[error("cannot prepare the key that seals secrets")]
    Seal(#[from] SealError),
    #[error("cannot prepare the container runtime")]
    Containers(#[from] edged::runtime::RuntimeError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot start the bus")]
    Bus(#[from] BusError),
    #[error("core task `{0}` ended; see the log")]
    Ended(&'static str),
}

fn advice(error: &std::io::Error) -> &'static str {
    let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
    if is(&[ErrorKind::PermissionDenied]) {
        "; run edgecore as root"
    } else if is(&[ErrorKind::ReadOnlyFilesystem, ErrorKind::StorageFull]) {
        "; it needs a disk with room that it may write to"
    } else if is(&[ErrorKind::AlreadyExists, ErrorKind::NotADirectory]) {
        "; something that is no directory is in the way"
    } else {
        ""
    }
}

/// Runs the daemon until it is told to stop or a core task ends.
pub fn run(config: Config, file: Option<&Path>) -> Result<(), AppError> {
    tracing::info!(
        node = %config.node_name,
        version = env!("CARGO_PKG_VERSION"),
        config = ?file,
        "edgecore starts"
    );
    if !config.ignored.is_empty() {
        tracing::warn!(
            fields = config.ignored.join(", "),
            "fields of the configuration have no meaning here and are ignored"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_stack_size(STACK_BYTES)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    // Ends with the runtime; nothing waits for it.
    let _trimming = runtime.spawn(heap::keep_small());
    let exit = runtime.block_on(daemon(config));
    runtime.shutdown_timeout(Duration::from_secs(2));
    match exit? {
        Exit::Signal => {
            tracing::info!("edgecore stops; containers keep running");
            Ok(())
        }
        Exit::Fatal(task) => Err(AppError::Ended(task)),
    }
}

async fn daemon(config: Config) -> Result<Exit, AppError> {
    let data = config.data_dir().to_owned();
    make_dir(&data, DATABASE)?;
    make_dir(&config.run_dir, "outpost.runDirectory")?;
    let _lock = lock(&data)?;
    let (store, writer, told) = Store::open(&config.database).map_err(|source| AppError::Open {
        path: config.database.clone(),
        source,
    })?;
    if let Some(error) = told {
        tracing::error!(
            %error,
            "the database was rebuilt empty; objects come again from the hub, pods from containerd"
        );
    }
    let exit = assemble(&config, &store).await;
    store.close();
    let folded = tokio::task::spawn_blocking(move || writer.join());
    if tokio::time::timeout(CHECKPOINT_WITHIN, folded)
        .await
        .is_err()
    {
        tracing::warn!("the store did not close in time; its log is replayed at the next start");
    }
    exit
}

async fn assemble(config: &Config, store: &Store) -> Result<Exit, AppError> {
    let started = clock::monotonic();
    let mut supervisor = Supervisor::default();
    let node = config.node_name.clone();
    let key_file = config.data_dir().join("secrets.key");
    // Made at the first start and kept when the database is lost.
    let ran_before = key_file.exists();
    let sealer = Arc::new(Sealer::from_file(&key_file)?);
    let own = node.clone();
    let has_hub = config.hub.is_some();
    let outbox_bytes_max = config.outbox_bytes_max;
    let streams = config.streams.clone();
    let (conflict, history) = (config.twin_conflict.clone(), config.history);
    let values = config.twin_values;
    store
        .write(move |tx| {
            outbox::set_bytes_max(tx, outbox_bytes_max)?;
            outbox::set_rules(tx, &streams)?;
            // Without a hub the files of static pods are all there is.
            if has_hub {
                meta::mark_if_rebuilt(tx, ran_before)?;
            }
            twin::set_conflict(tx, &conflict)?;
            twin::set_values(tx, &values)?;
            twin::set_history_bounds(tx, history)?;
            twin::set_node(tx, &own)
        })
        .await?;

    let (hub, link) = match &config.hub {
        Some(hub) => {
            let (handle, link) = Link::new();
            (handle, Some((hub.clone(), link)))
        }
        None => (HubHandle::disabled(), None),
    };
    let meta_handle = MetaHandle::open(store.clone(), sealer, &node, hub.clone()).await?;

    let (pods, containers, desired) = match &config.runtime {
        Some(runtime) => {
            let (pods, containers, desired) =
                start_edged(config, runtime, &meta_handle, &hub, &mut supervisor)?;
            (Some(pods), Some(containers), Some(desired))
        }
        None => (None, None, None),
    };
    let bus = match &config.bus {
        Some(bus) => {
            let routes = meta_handle.routes();
            Some(start_bus(bus, store, &hub, routes, &mut supervisor).await?)
        }
        None => None,
    };
    let mappers = config.dmi.clone().map(|dmi| {
        let deps = DmiDeps {
            store: store.clone(),
            bus: bus.clone(),
            link_wake: hub.outbox_wake(),
            devices: meta_handle.devices(),
            deltas: bus
                .as_ref()
                .map_or_else(|| watch::channel(0).1, BusHandle::deltas),
        };
        let (handle, serving) = dmi::start(dmi, deps, supervisor.token(Phase::Intake));
        supervisor.spawn_intake("mappers", serving);
        handle
    });
    let calls = match config.service_bus.clone() {
        Some(service_bus) => {
            let (calls, serving) = ServiceBus::new(service_bus, hub.clone(), meta_handle.routes());
            let stop = supervisor.token(Phase::Intake);
            supervisor.spawn_intake("service bus", serving.run(stop));
            calls
        }
        None => Calls::disabled(),
    };
    if let Some((hub_config, link)) = link {
        let floor = Floor::default();
        if hub_config.rotate_certificates {
            let stop = supervisor.token(Phase::Core);
            let (config, node) = (hub_config.clone(), node.clone());
            supervisor.spawn(
                "certificate",
                rotate::run(config, node, hub.clone(), floor.clone(), stop),
            );
        }
        let parts = LinkParts {
            config: hub_config,
            node: node.clone(),
            store: store.clone(),
            meta: meta_handle,
            publish: publisher(bus.clone()),
            calls,
            floor,
        };
        let stop = supervisor.token(Phase::Core);
        supervisor.spawn("events", hub::keep_events(hub.clone(), store.clone(), stop));
        let stop = supervisor.token(Phase::Core);
        supervisor.spawn("link", link.run(parts, stop));
    }
    let listener = api::listen(&config.socket())?;
    let sources = Sources {
        node,
        hub_address: config
            .hub
            .as_ref()
            .map_or_else(String::new, |h| h.server.clone()),
        hub,
        store: store.clone(),
        database: config.database.clone(),
        pods,
        runtime: containers,
        desired,
        bus,
        mappers,
        started,
    };
    let stop = supervisor.token(Phase::Intake);
    supervisor.spawn_intake("api", api::serve(listener, sources, stop));
    tracing::info!("edgecore is ready");
    Ok(supervisor.run().await)
}

async fn start_bus(
    config: &BusConfig,
    store: &Store,
    hub: &HubHandle,
    routes: watch::Receiver<Arc<Routes>>,
    supervisor: &mut Supervisor,
) -> Result<BusHandle, AppError> {
    let stop = supervisor.token(Phase::Intake);
    let wake = hub.outbox_wake();
    let (handle, serving) = bus::start(config, store.clone(), wake, routes, stop).await?;
    supervisor.spawn_intake("bus", async move {
        serving.await;
        Ok::<_, std::convert::Infallible>(())
    });
    Ok(handle)
}

/// What the hub's messages cause on local MQTT.
fn publisher(bus: Option<BusHandle>) -> Publisher {
    Box::new(move |publishes| {
        for publish in publishes {
            if let Some(bus) = &bus {
                bus.publish(publish);
            }
        }
    })
}

/// Whom to ask for the pods, what runs them, and what wants them.
type PodParts = (
    mpsc::Sender<PodsQuery>,
    Arc<dyn Runtime>,
    Arc<dyn edged::DesiredState>,
);

fn start_edged(
    config: &Config,
    runtime: &RuntimeConfig,
    meta: &MetaHandle,
    hub: &HubHandle,
    supervisor: &mut Supervisor,
) -> Result<PodParts, AppError> {
    let containers: Arc<dyn Runtime> =
        ContainerdRuntime::connect(containerd(runtime, &config.run_dir))?;
    let settings = edged::Settings {
        disk_dir: runtime.root_dir.join("pods"),
        run_dir: config.run_dir.join("volumes"),
        log_dir: runtime.pod_logs_dir.clone(),
        log_bytes_max: runtime.log_bytes_max,
        log_files_max: runtime.log_files_max,
        cgroup_root: runtime.cgroup_root.clone(),
        pods_max: runtime.max_pods,
        pod_pids_max: runtime.resources.pod_pids_max,
        reserved: runtime.resources.reserved,
        enforce_allocatable: runtime.resources.enforce,
        eviction: runtime.resources.eviction.clone(),
        labels: config.node_labels.clone(),
        node_ip: config.node_ip.map(|ip| ip.to_string()),
        rules: edged::pod::security::Rules {
            unconfined_by_default: !runtime.seccomp_default,
            unsafe_sysctls: runtime.unsafe_sysctls.clone(),
            dns: edged::pod::dns::Site {
                cluster_dns: runtime.cluster_dns.clone(),
                cluster_domain: runtime.cluster_domain.clone(),
                resolv_conf: runtime.resolv_conf.clone(),
            },
        },
        images: runtime.image_policy.clone(),
        schedulable: config.register_schedulable,
        ..edged::Settings::new(config.node_name.clone())
    };
    hub.report_events(runtime.report_events);
    let statics = StaticPods::new(StaticDeps {
        node: config.node_name.clone(),
        directory: runtime.static_pods.clone(),
        desired: Arc::new(meta.clone()),
        sink: Arc::new(hub.clone()),
        hub: Arc::new(hub.clone()),
    });
    let handle = Edged::start(edged::Deps {
        runtime: Arc::clone(&containers),
        desired: Arc::new(statics.clone()),
        sink: Arc::new(statics.clone()),
        settings,
    });
    let stop = supervisor.token(Phase::Core);
    supervisor.spawn("static pods", statics.run(stop));
    let desired = handle.desired();
    let (ask, questions) = mpsc::channel(PODS_QUERIES_MAX);
    let stop = supervisor.token(Phase::Core);
    supervisor.spawn("edged", own_edged(handle, questions, stop));
    Ok((ask, containers, desired))
}

/// Owns Edged: answers for it and stops it.
async fn own_edged(
    mut handle: EdgedHandle,
    mut questions: mpsc::Receiver<PodsQuery>,
    stop: tokio_util::sync::CancellationToken,
) -> Result<(), &'static str> {
    loop {
        // Cancel-safe: a join handle by reference, a token, a channel receive.
        tokio::select! {
            () = handle.ended() => return Err("the pod loop ended"),
            () = stop.cancelled() => {
                handle.stop().await;
                return Ok(());
            }
            Some(reply) = questions.recv() => {
                // An asker that went away needs no answer.
                drop(reply.send(handle.pods()));
            }
        }
    }
}

pub(crate) fn containerd(runtime: &RuntimeConfig, run_dir: &Path) -> ContainerdConfig {
    ContainerdConfig {
        address: runtime.containerd.display().to_string(),
        namespace: runtime.namespace.clone(),
        state_dir: run_dir.to_owned(),
        snapshotter: runtime.snapshotter.clone(),
        cni_conf_dir: runtime.cni_conf_dir.clone(),
        cni_bin_dirs: runtime.cni_bin_dirs.clone(),
        logger_path: runtime.logger.clone(),
        cgroup_root: runtime.cgroup_root.clone(),
        seccomp_root: runtime.seccomp_dir.clone(),
        pod_cidr: runtime.pod_cidr.clone(),
        registries: runtime.registries.clone(),
        pulls_max: usize::try_from(runtime.image_pulls_max).unwrap_or(1),
        layers_max: usize::try_from(runtime.image_layers_max).unwrap_or(1),
        log_pod_bytes_max: runtime.log_pod_bytes_max,
        log_node_bytes_max: runtime.log_node_bytes_max,
        ..ContainerdConfig::default()
    }
}

fn make_dir(path: &Path, key: &'static str) -> Result<(), AppError> {
    crate::files::make_dir(path, 0o755).map_err(|source| AppError::Directory {
        path: path.to_owned(),
        key,
        source,
    })
}

/// Two daemons on one database would both be the writer.
fn lock(data: &Path) -> Result<std::fs::File, AppError> {
    let path = data.join("edgecore.lock");
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| AppError::Directory {
            path: path.clone(),
            key: DATABASE,
            source,
        })?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| AppError::Locked { path })?;
    Ok(file)
}
