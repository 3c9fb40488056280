//! An external broker (KubeEdge's mqttMode 1 and 2), as a client of it.
//!
//! Persistent session and manual acknowledgements: a message of a device is acknowledged to that
//! broker after our commit; one that could not be committed is not, and the connection is made
//! anew so that the broker sends it again. The promise is weaker than the broker's inside: what
//! the external broker acknowledges to the device is that broker's business.
//!
//! rumqttc's state lives as long as its connection ([`Reader::take_back`]). What it did not bring to
//! an end goes again over the next one, with new packet ids; a result may then come twice.

mod reader;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rumqttc::{AsyncClient, MqttOptions, MqttState, Publish, QoS, TlsConfiguration, Transport};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::rules::Routes;

use self::reader::Reader;
use self::subscriptions::{Subscriptions, follow};
use super::{BusError, BusHandle, Counters};
use crate::config::BusConfig;
use crate::hub::tls::{Floor, mutual};
use crate::store::Store;
use crate::twin::LocalPublish;

/// Results waiting for the external broker; full drops and counts (the bus's answer).
const OUTLET_MESSAGES_MAX: usize = 1024;
/// Messages being stored at once. The next ones wait.
const UNACKNOWLEDGED_MAX: usize = 256;
/// What one message may have to say: result, document, delta.
const RESULTS_OF_ONE: usize = 3;
/// Messages that wait to be stored. A broker that sends more without an acknowledgement is asked
/// for them again.
const WAITING_MAX: usize = 1024;
/// rumqttc's own queue between its two halves.
const REQUESTS_MAX: usize = 64;
/// Results on their way to the broker without its acknowledgement.
const IN_FLIGHT_MAX: u16 = 100;
/// Largest packet, both ways; the broker inside has the same.
const PACKET_BYTES_MAX: usize = 256 << 10;
const KEEP_ALIVE: Duration = Duration::from_secs(60);

enum Command {
    Publish(LocalPublish),
    /// The commit stands. Void when the connection it came by (a number) is gone.
    Acknowledge {
        publish: Publish,
        connection: u64,
    },
}

/// The sending side for results.
#[derive(Clone, Debug)]
pub(super) struct Outlet(mpsc::Sender<Command>);

impl Outlet {
    /// Whether there was room. Acknowledgements have some of their own: one that is dropped narrows
    /// the broker's window until the next reconnect.
    pub(super) fn publish(&self, publish: LocalPublish) -> bool {
        self.0.capacity() > UNACKNOWLEDGED_MAX && self.0.try_send(Command::Publish(publish)).is_ok()
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Publish(publish) => f.debug_tuple("Publish").field(&publish.topic).finish(),
            Self::Acknowledge { publish, .. } => {
                f.debug_tuple("Acknowledge").field(&publish.pkid).finish()
            }
        }
    }
}

/// What the connection, the commits and the sender know together.
#[derive(Debug, Default)]
struct Shared {
    /// Number of the connection; rises with each.
    connection: AtomicU64,
    unacknowledged: AtomicUsize,
    /// Another message may be stored.
    room: Notify,
    /// A failed commit.
    changed: Notify,
    /// Number of a connection that has to be made anew because a commit failed on it.
    failed: AtomicU64,
    /// Subscribed: results and acknowledgements may follow.
    is_up: watch::Sender<bool>,
    /// Results that an earlier connection did not bring to an end, oldest first: at most what
    /// rumqttc holds at once (its window, its queue, and one between them).
    unfinished: Mutex<VecDeque<LocalPublish>>,
}

impl Shared {
    fn unfinished(&self) -> MutexGuard<'_, VecDeque<LocalPublish>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to send. Cancel-safe.
    async fn next(&self, commands: &mut mpsc::Receiver<Command>) -> Option<Command> {
        let mut is_up = self.is_up.subscribe();
        loop {
            // Its sender is here: no error.
            is_up.wait_for(|is_up| *is_up).await.ok()?;
            if let Some(publish) = self.unfinished().pop_front() {
                return Some(Command::Publish(publish));
            }
            // Neither arm takes anything before it is chosen.
            tokio::select! {
                command = commands.recv() => return command,
                _ = is_up.changed() => {}
            }
        }
    }
}

pub(super) struct External {
    options: MqttOptions,
    /// Whose session it is, and where.
    session: String,
    commands: mpsc::Receiver<Command>,
    outlet: Outlet,
    counters: Arc<Counters>,
}

impl External {
    pub(super) fn new(config: &BusConfig, counters: Arc<Counters>) -> Result<Self, BusError> {
        let (sender, commands) = mpsc::channel(OUTLET_MESSAGES_MAX + UNACKNOWLEDGED_MAX);
        Ok(Self {
            options: options(config)?,
            session: format!("{} {}", config.client_id, config.external),
            commands,
            outlet: Outlet(sender),
            counters,
        })
    }

    pub(super) fn outlet(&self) -> Outlet {
        self.outlet.clone()
    }

    /// Runs until `stop`.
    pub(super) async fn run(
        self,
        store: Store,
        handle: BusHandle,
        link_wake: Arc<Notify>,
        routes: watch::Receiver<Arc<Routes>>,
        stop: CancellationToken,
    ) {
        let (client, mut events) = AsyncClient::new(self.options, REQUESTS_MAX);
        events.state = new_state();
        let shared = Arc::new(Shared::default());
        let known = Subscriptions::load(store.clone(), self.session).await;
        let is_up = shared.is_up.subscribe();
        let reader = Reader {
            client: client.clone(),
            outlet: self.outlet,
            store,
            handle,
            link_wake,
            routes: routes.clone(),
            shared: Arc::clone(&shared),
            known: known.clone(),
            counters: self.counters,
        };
        // Parts: the reader must never wait for room in the client's queue, which only the
        // reader's own polling empties.
        tokio::select! {
            () = reader.run(events) => {}
            () = send(client.clone(), self.commands, shared) => {}
            () = follow(client, routes, is_up, known) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// What rumqttc remembers of a connection, at its beginning. Without any acknowledgement it tells the
/// order of what it sent by the ids, which must not begin anew by then; subscriptions take some too.
fn new_state() -> MqttState {
    MqttState::new(2 * IN_FLIGHT_MAX, true)
}

async fn send(client: AsyncClient, mut commands: mpsc::Receiver<Command>, shared: Arc<Shared>) {
    let mut is_up = shared.is_up.subscribe();
    while let Some(command) = shared.next(&mut commands).await {
        shared.room.notify_one();
        let down = is_up.wait_for(|is_up| !*is_up);
        let sent = match command {
            Command::Publish(publish) => {
                let (topic, payload) = (publish.topic.clone(), publish.payload.clone());
                // A publish that is dropped here was not queued.
                tokio::select! {
                    biased;
                    sent = client.publish(topic, QoS::AtLeastOnce, false, payload) => sent,
                    _ = down => {
                        shared.unfinished().push_back(publish);
                        Ok(())
                    }
                }
            }
            Command::Acknowledge {
                publish,
                connection,
            } if connection == shared.connection.load(Ordering::Acquire) => {
                // Without this connection it is void.
                tokio::select! {
                    biased;
                    sent = client.ack(&publish) => sent,
                    _ = down => Ok(()),
                }
            }
            Command::Acknowledge { .. } => Ok(()),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "not sent to the external MQTT broker");
        }
    }
}

/// Where a broker is, by its URL.
pub(crate) struct Address<'a> {
    pub(crate) is_tls: bool,
    host: &'a str,
    port: u16,
}

/// `tcp://host:port`, `ssl://host:port`; IPv6 in brackets.
pub(crate) fn address(url: &str) -> Option<Address<'_>> {
    let (scheme, authority) = url.split_once("://")?;
    let (is_tls, default_port) = match scheme {
        "tcp" | "mqtt" => (false, 1883),
        "ssl" | "tls" | "mqtts" => (true, 8883),
        _ => return None,
    };
    let authority = authority.trim_end_matches('/');
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, default_port),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(Address { is_tls, host, port })
}

fn options(config: &BusConfig) -> Result<MqttOptions, BusError> {
    let wrong = || BusError::Url {
        url: config.external.clone(),
    };
    let address = address(&config.external).ok_or_else(wrong)?;
    let mut options = MqttOptions::new(config.client_id.clone(), address.host, address.port);
    options
        .set_clean_session(false)
        .set_manual_acks(true)
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX)
        .set_inflight(IN_FLIGHT_MAX);
    if !config.username.is_empty() {
        options.set_credentials(config.username.clone(), config.password.clone());
    }
    if address.is_tls {
        let files = config.tls.as_ref().ok_or_else(wrong)?;
        let tls = mutual(files, &Floor::default()).map_err(BusError::Tls)?;
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
    }
    Ok(options)
}
