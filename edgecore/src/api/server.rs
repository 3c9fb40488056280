//! The serving end.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::devices;
use super::sessions::{Kind, Sessions};
use super::stats::NodeStats;
use super::status::{
    DeviceStatus, DiskStatus, LinkStatus, MapperStatus, MemoryStatus, MqttStatus, Status,
};
use crate::bus::BusHandle;
use crate::clock;
use crate::dmi::DmiHandle;
use crate::edged::image_gc::{self, ReclaimError};
use crate::edged::runtime::Runtime;
use crate::edged::{DesiredState, PodSummary};
use crate::hub::HubHandle;
use crate::outbox;
use crate::store::{Store, StoreError};
use crate::twin;

/// Askers served at once; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 8;
/// Desired values set at once.
const DEVICE_BODY_MAX: usize = 64 << 10;
/// A connection that sends no request is closed.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// A question to Edged's owner for its pods.
pub type PodsQuery = oneshot::Sender<Vec<PodSummary>>;

/// Where the answers come from.
pub struct Sources {
    pub node: String,
    pub hub_address: String,
    pub hub: HubHandle,
    pub store: Store,
    pub database: PathBuf,
    /// `None` on a node without pods.
    pub pods: Option<mpsc::Sender<PodsQuery>>,
    /// What runs the pods, for sessions and statistics; `None` on a node without pods.
    pub runtime: Option<Arc<dyn Runtime>>,
    /// What the pods of this node want, for what may be removed; `None` on a node without pods.
    pub desired: Option<Arc<dyn DesiredState>>,
    /// `None` on a node without MQTT.
    pub bus: Option<BusHandle>,
    /// `None` on a node without mappers.
    pub mappers: Option<DmiHandle>,
    pub started: Instant,
}

/// Why the local API cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `{socket}`")]
pub struct ListenError {
    socket: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Makes the socket, mode 0600. One that a dead daemon left is replaced.
pub fn listen(socket: &Path) -> Result<UnixListener, ListenError> {
    let at = |source| ListenError {
        socket: socket.to_owned(),
        source,
    };
    if let Some(parent) = socket.parent() {
        crate::files::make_dir(parent, 0o755).map_err(at)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(at)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(at)?;
    Ok(listener)
}

/// What one connection is served from.
struct Served {
    sources: Sources,
    sessions: Option<Sessions>,
}

/// Serves until `stop`.
pub async fn serve(
    listener: UnixListener,
    sources: Sources,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let sessions = sources
        .runtime
        .clone()
        .map(|runtime| Sessions::new(runtime, stop.child_token()));
    let sources = Arc::new(Served { sources, sessions });
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // Cancel-safe: an accept that is dropped has taken nothing, nor has a permit.
        let (stream, permit) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(_) = connections.join_next() => continue,
            accepted = async {
                let permit = Arc::clone(&room).acquire_owned().await;
                listener.accept().await.map(|(stream, _)| (stream, permit))
            } => accepted?,
        };
        if !is_allowed(&stream) {
            tracing::warn!("somebody other than root knocked at the local API");
            continue;
        }
        let sources = Arc::clone(&sources);
        connections.spawn(async move {
            let _held = permit;
            serve_one(stream, sources).await;
        });
    }
}

/// Root, or whoever this runs as: beside the socket's mode, since `exec` is root in containers.
fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn serve_one(stream: UnixStream, sources: Arc<Served>) {
    let service = service_fn(move |request| {
        let sources = Arc::clone(&sources);
        async move { Ok::<_, Infallible>(answer(request, &sources).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        .keep_alive(false)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "local API connection ended early");
    }
}

async fn answer(request: Request<Incoming>, served: &Served) -> Response<Full<Bytes>> {
    let sources = &served.sources;
    if devices::is_ours(request.uri().path()) {
        return about_devices(request, sources).await;
    }
    let kind = match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => return json(status(sources).await),
        (&Method::GET, "/pods") => return json(Ok::<_, StoreError>(summaries(sources).await)),
        (&Method::GET, "/stats") => {
            return json(match &sources.runtime {
                Some(runtime) => NodeStats::look(runtime.as_ref()).await,
                None => Ok(NodeStats::default()),
            });
        }
        (&Method::POST, "/images/prune") => return json(prune(sources).await),
        (&Method::GET, "/metrics") => return metrics(sources).await,
        (&Method::GET, "/healthz") => return text(StatusCode::OK, "ok"),
        (&Method::POST, "/exec") => Kind::Exec,
        (&Method::POST, "/attach") => Kind::Attach,
        _ => {
            return text(
                StatusCode::NOT_FOUND,
                "known: GET /status, /pods, /stats, /metrics, /devices/…, /history/…, /healthz; POST /exec, /attach, /images/prune",
            );
        }
    };
    match &served.sessions {
        Some(sessions) => {
            let pods = summaries(sources).await;
            sessions.answer(kind, request, &pods).await
        }
        None => text(
            StatusCode::NOT_FOUND,
            "this node runs no pods (modules.edged.enable is false)",
        ),
    }
}

async fn about_devices(request: Request<Incoming>, sources: &Sources) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, DEVICE_BODY_MAX).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
    };
    let query = head.uri.query().unwrap_or_default();
    let path = head.uri.path();
    let (code, said) = devices::answer(sources, &head.method, path, query, &body.to_bytes()).await;
    text(code, &said)
}

fn json<T: serde::Serialize, E: std::fmt::Display>(answer: Result<T, E>) -> Response<Full<Bytes>> {
    match answer.map(|answer| serde_json::to_string(&answer)) {
        Ok(Ok(body)) => text(StatusCode::OK, &body),
        Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(code: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = code;
    response
}

/// The ledger's counters, as Prometheus reads them.
async fn metrics(sources: &Sources) -> Response<Full<Bytes>> {
    match sources.store.read(outbox::report::Report::read).await {
        Ok(report) => text(StatusCode::OK, &report.metrics()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Removes the images that nobody needs; the bytes freed.
async fn prune(sources: &Sources) -> Result<u64, ReclaimError> {
    match (&sources.runtime, &sources.desired) {
        (Some(runtime), Some(desired)) => {
            image_gc::reclaim(&**runtime, &**desired, Duration::ZERO, None).await
        }
        _ => Ok(0),
    }
}

/// Collects the status. Reads only; works offline.
async fn status(sources: &Sources) -> Result<Status, StoreError> {
    let now = clock::monotonic();
    let (devices, ledger, outbox_bytes) = sources
        .store
        .read(|tx| Ok((twin::devices(tx)?, outbox::ledger(tx)?, outbox::bytes(tx)?)))
        .await?;
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: sources.node.clone(),
        uptime_secs: (now - sources.started).as_secs(),
        link: link(sources, now),
        mqtt: sources.bus.as_ref().map(mqtt),
        pods: summaries(sources).await,
        devices: devices
            .into_iter()
            .map(|device| DeviceStatus {
                namespace: device.namespace,
                name: device.name,
                state: device.state,
                properties: device.properties,
                pending: device.pending,
            })
            .collect(),
        mappers: sources
            .mappers
            .iter()
            .flat_map(DmiHandle::mappers)
            .map(MapperStatus::from)
            .collect(),
        ledger: ledger.into_iter().map(Into::into).collect(),
        disk: disk(&sources.database, outbox_bytes),
        memory: memory(),
    })
}

fn link(sources: &Sources, now: Instant) -> LinkStatus {
    let state = sources.hub.link().borrow().clone();
    LinkStatus {
        state: state.phase.as_str().to_owned(),
        hub: sources.hub_address.clone(),
        since_secs: (now - state.since).as_secs(),
        extensions: if state.is_connected() {
            state.extensions.to_header()
        } else {
            String::new()
        },
        reason: state.reason,
        connects: state.connects,
    }
}

/// The pods as Edged has them.
async fn summaries(sources: &Sources) -> Vec<PodSummary> {
    let Some(ask) = &sources.pods else {
        return Vec::new();
    };
    let (reply, answer) = oneshot::channel();
    if ask.send(reply).await.is_err() {
        return Vec::new();
    }
    answer.await.unwrap_or_default()
}

fn mqtt(bus: &BusHandle) -> MqttStatus {
    let status = bus.status();
    MqttStatus {
        listen: bus
            .listen_addr()
            .map_or_else(String::new, |addr| addr.to_string()),
        external_connected: status.external_connected,
        publishes_dropped: status.publishes_dropped,
    }
}

fn disk(database: &Path, outbox_bytes: u64) -> DiskStatus {
    let size = |suffix: &str| {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        std::fs::metadata(path).map_or(0, |metadata| metadata.len())
    };
    let free = database
        .parent()
        .and_then(|dir| rustix::fs::statvfs(dir).ok())
        .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let written = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    DiskStatus {
        database_bytes: size("") + size("-wal"),
        outbox_bytes,
        free_bytes: free,
        written_bytes: field(&written, "write_bytes:"),
    }
}

fn memory() -> MemoryStatus {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    MemoryStatus {
        rss_bytes: field(&rollup, "Rss:") << 10,
        pss_bytes: field(&rollup, "Pss:") << 10,
    }
}

/// The number behind `name` in a `/proc` file.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}
