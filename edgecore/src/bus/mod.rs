//! EventBus: local devices on MQTT, by the broker inside or by an external one.
//!
//! A device's message and everything it causes (twin rows, outbox row, the broker's session rows)
//! are one store job. Its acknowledgement leaves after the commit, then results are published,
//! then the link to the hub is woken. [`dispatch`] is that job's work as a plain function.

mod access;
mod certificates;
#[cfg(test)]
mod damage_tests;
mod external;
mod listen;
mod passwords;
mod rows;
#[cfg(test)]
mod rule_tests;
mod storage;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use broker::{Broker, BrokerHandle, Limits, PublishError, Qos};
use rusqlite::Connection;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wire::message::{Content, Message, Operation, Route};
use wire::rules::Routes;
use wire::topic::{self, Inbound};

use crate::clock::UnixMillis;
use crate::config::{BusConfig, BusMode, MqttConfig};
use crate::outbox;
use crate::store::{Store, StoreError};
use crate::twin::{self, LocalPublish, Outcome};

pub use passwords::change as change_password;

pub(crate) use certificates::Certificates;
pub(crate) use external::address as external_address;

use access::BusAccess;
use external::External;
use storage::BusStorage;

pub(crate) use storage::{after_commit, count_refused};

/// Why the bus did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    #[error("cannot listen for MQTT on `{listen}`")]
    Listen {
        listen: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the broker's sessions")]
    Load(#[source] broker::StorageError),
    #[error("`{url}` is not the URL of an MQTT broker (tcp://host:port or ssl://host:port)")]
    Url { url: String },
    #[error("TLS of the MQTT listeners is not usable")]
    ListenerTls(#[source] crate::hub::tls::TlsError),
    #[error("TLS towards the external broker is not usable")]
    Tls(#[source] crate::hub::tls::TlsError),
}

/// Numbers for `edgecore status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusStatus {
    /// The broker inside, when it runs.
    pub internal: Option<broker::Stats>,
    /// Whether the external broker is connected, when there is one.
    pub external_connected: Option<bool>,
    /// Messages received from the external broker.
    pub external_in: u64,
    /// Results and other publishes of the runtime that were dropped: a queue was full.
    pub publishes_dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    dropped: AtomicU64,
    external_in: AtomicU64,
    external_connected: AtomicU64,
}

/// Publishes to local MQTT clients. Clones share the brokers.
#[derive(Clone, Debug)]
pub struct BusHandle {
    internal: Option<BrokerHandle>,
    listen: Option<std::net::SocketAddr>,
    external: Option<external::Outlet>,
    counters: Arc<Counters>,
    deltas: watch::Sender<u64>,
}

impl BusHandle {
    /// Rises when a delta is published: a device does not report what is desired of it.
    pub fn deltas(&self) -> watch::Receiver<u64> {
        self.deltas.subscribe()
    }

    /// Where the broker inside listens, when it runs.
    pub fn listen_addr(&self) -> Option<std::net::SocketAddr> {
        self.listen
    }

    /// Publishes with QoS 1, not retained, as KubeEdge does. Never waits: a full queue drops the
    /// message and counts it; what must not be lost is in the outbox or in a twin, not here.
    pub fn publish(&self, publish: LocalPublish) {
        if publish.topic.ends_with("/twin/update/delta") {
            self.deltas.send_modify(|deltas| *deltas += 1);
        }
        if let Some(outlet) = &self.external
            && !outlet.publish(publish.clone())
        {
            self.dropped(&publish.topic);
        }
        if let Some(broker) = &self.internal {
            let sent = broker.publish(&publish.topic, publish.payload, Qos::AtLeastOnce, false);
            match sent {
                Ok(()) => {}
                Err(PublishError::Topic) => {
                    tracing::debug!(topic = publish.topic, "not a topic; not published");
                }
                Err(_) => self.dropped(&publish.topic),
            }
        }
    }

    /// The numbers now.
    pub fn status(&self) -> BusStatus {
        let is_connected = self.counters.external_connected.load(Ordering::Relaxed) > 0;
        BusStatus {
            internal: self.internal.as_ref().map(BrokerHandle::stats),
            external_connected: self.external.as_ref().map(|_| is_connected),
            external_in: self.counters.external_in.load(Ordering::Relaxed),
            publishes_dropped: self.counters.dropped.load(Ordering::Relaxed),
        }
    }

    fn dropped(&self, topic: &str) {
        self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(topic, "local publish dropped: the bus is behind");
    }
}

/// The bus at work: ends after `stop`, when clients are told and open commits are reported.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Loads the broker, binds its port and prepares the external client. The returned future has to
/// be spawned; nothing is served before. What devices publish on topics of `routes` goes to the hub.
///
/// # Errors
/// See [`BusError`]; none is worth a retry without a change of configuration, except `Listen`.
pub async fn start(
    config: &BusConfig,
    store: Store,
    link_wake: Arc<Notify>,
    routes: watch::Receiver<Arc<Routes>>,
    stop: CancellationToken,
) -> Result<(BusHandle, Serving), BusError> {
    let counters = Arc::new(Counters::default());
    let external = match config.mode {
        BusMode::Internal => None,
        BusMode::Both | BusMode::External => Some(External::new(config, Arc::clone(&counters))?),
    };
    let mut handle = BusHandle {
        internal: None,
        listen: None,
        external: external.as_ref().map(External::outlet),
        counters,
        deltas: watch::Sender::new(0),
    };
    let mut internal = None;
    if config.mode != BusMode::External {
        let at = |source| BusError::Listen {
            listen: config.listen.clone(),
            source,
        };
        // The plain one last: nobody connects before all can be served.
        let mut listeners = listen::bind(&config.inside).await?;
        let listener = TcpListener::bind(&config.listen).await.map_err(at)?;
        let addr = listener.local_addr().map_err(at)?;
        let storage = Arc::new(BusStorage::new(
            store.clone(),
            Arc::clone(&link_wake),
            routes.clone(),
        ));
        let broker = Broker::load(
            limits(&config.inside),
            Arc::clone(&storage) as Arc<dyn broker::Storage>,
            Arc::new(BusAccess::new(&config.inside)),
        )
        .await
        .map_err(BusError::Load)?;
        handle.internal = Some(broker.handle());
        handle.listen = Some(addr);
        storage.set_handle(handle.clone());
        tracing::info!(listen = %addr, "MQTT broker listens");
        listeners.push(listener.into());
        internal = Some((broker, listeners));
    }
    let for_external = handle.clone();
    let serving = async move {
        let inside = async {
            if let Some((broker, listeners)) = internal {
                broker.serve(listeners, stop.clone()).await;
            }
        };
        let outside = async {
            if let Some(external) = external {
                external
                    .run(store, for_external, link_wake, routes, stop.clone())
                    .await;
            }
        };
        tokio::join!(inside, outside);
    };
    Ok((handle, Box::pin(serving)))
}

fn limits(config: &MqttConfig) -> Limits {
    Limits {
        packet_bytes_max: config.packet_bytes_max,
        packets_per_second: config.packets_per_second,
        bytes_per_second: config.bytes_per_second,
        session_expiry_max_secs: config.session_expiry_max_secs,
        ..Limits::default()
    }
}

/// Whether a publish of a local client concerns the runtime.
fn inbound(topic: &str, routes: &Routes) -> Option<Inbound> {
    if let Some(known) = topic::parse(topic) {
        return Some(known).filter(Inbound::is_open_to_clients);
    }
    let is_wanted = |filter: &String| broker::topic::matches(filter, topic);
    let is_uploaded = !topic::is_runtime_only(topic) && routes.topics.iter().any(is_wanted);
    is_uploaded.then(|| Inbound::Upload {
        topic: topic.to_owned(),
    })
}

/// Acts on a local client's message inside the store's transaction.
pub fn dispatch(
    tx: &Connection,
    inbound: &Inbound,
    payload: &[u8],
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    match inbound {
        Inbound::Upload { topic } => {
            // KubeEdge: source bus, group user, the topic verbatim, the payload as a string
            // (edge/pkg/eventbus/mqtt/handler.go); bytes that are no UTF-8 become U+FFFD there too.
            let route = Route::new("bus", "user", &Operation::Upload, topic.clone());
            let content = Content::string(&String::from_utf8_lossy(payload));
            let message = Message::new(Uuid::new_v4().to_string(), now, route, content);
            outbox::append(tx, &format!("upload/{topic}"), &message.encode(), now)?;
            Ok(Outcome {
                publishes: Vec::new(),
                queued: true,
            })
        }
        Inbound::DeviceTwin { .. }
        | Inbound::DeviceState { .. }
        | Inbound::MembershipGet { .. } => twin::handle_publish(tx, inbound, payload, now),
    }
}
