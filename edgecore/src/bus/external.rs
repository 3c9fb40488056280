//! An external broker (KubeEdge's mqttMode 1 and 2), as a client of it.
//!
//! Persistent session and manual acknowledgements: a message of a device is acknowledged to that
//! broker after our commit; one that could not be committed is not, and the connection is made
//! anew so that the broker sends it again. The promise is weaker than the broker's inside: what
//! the external broker acknowledges to the device is that broker's business.
//!
//! rumqttc's state lives as long as its connection ([`Reader::take_back`]). What it did not bring to
//! an end goes again over the next one, with new packet ids; a result may then come twice.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, MqttState, Packet, Publish, QoS,
    Request, SubscribeFilter, TlsConfiguration, Transport,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::rules::Routes;
use wire::topic::FILTERS;

use super::{BusError, BusHandle, Counters, dispatch, inbound, storage::after_commit};
use crate::clock;
use crate::config::BusConfig;
use crate::hub::backoff::Backoff;
use crate::hub::tls::{Floor, mutual};
use crate::store::{Store, StoreError};
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
/// Pause before a busy store is asked again.
const BUSY_RETRY: Duration = Duration::from_millis(2);
/// After a message that could not be stored, before the broker is asked for it again.
const STORE_AGAIN: Duration = Duration::from_secs(1);

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
    commands: mpsc::Receiver<Command>,
    outlet: Outlet,
    counters: Arc<Counters>,
}

impl External {
    pub(super) fn new(config: &BusConfig, counters: Arc<Counters>) -> Result<Self, BusError> {
        let (sender, commands) = mpsc::channel(OUTLET_MESSAGES_MAX + UNACKNOWLEDGED_MAX);
        Ok(Self {
            options: options(config)?,
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
        let reader = Reader {
            client: client.clone(),
            outlet: self.outlet,
            store,
            handle,
            link_wake,
            routes: routes.clone(),
            shared: Arc::clone(&shared),
            counters: self.counters,
        };
        // Parts: the reader must never wait for room in the client's queue, which only the
        // reader's own polling empties.
        tokio::select! {
            () = reader.run(events) => {}
            () = send(client.clone(), self.commands, shared) => {}
            () = follow(client, routes) => {}
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

/// Subscribes to what rules add, and leaves what they drop. Each new connection subscribes to all
/// of it by itself.
async fn follow(client: AsyncClient, mut routes: watch::Receiver<Arc<Routes>>) {
    let mut known = Arc::clone(&routes.borrow_and_update());
    while routes.changed().await.is_ok() {
        let wanted = Arc::clone(&routes.borrow_and_update());
        for topic in known.topics.difference(&wanted.topics) {
            if let Err(error) = client.unsubscribe(topic.clone()).await {
                tracing::debug!(%error, "topic of a rule not left at the external MQTT broker");
            }
        }
        for topic in wanted.topics.difference(&known.topics) {
            if let Err(error) = client.subscribe(topic.clone(), QoS::AtLeastOnce).await {
                tracing::warn!(%error, "no subscription for a rule at the external MQTT broker");
            }
        }
        known = wanted;
    }
    // Who told is gone, and with it everything else.
    std::future::pending::<()>().await;
}

struct Reader {
    client: AsyncClient,
    outlet: Outlet,
    store: Store,
    handle: BusHandle,
    link_wake: Arc<Notify>,
    routes: watch::Receiver<Arc<Routes>>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
}

impl Reader {
    async fn run(self, mut events: EventLoop) {
        let mut backoff = Backoff::default();
        let mut down_since = Instant::now();
        let mut waiting = VecDeque::new();
        loop {
            let connection = self.shared.connection.load(Ordering::Acquire);
            let Some(event) = self.next_event(&mut events, &mut waiting, connection).await else {
                waiting.clear();
                self.take_back(&mut events);
                tracing::warn!(
                    "a device message was not stored; asking the external MQTT broker for it again"
                );
                self.down();
                down_since = Instant::now();
                tokio::time::sleep(STORE_AGAIN).await;
                continue;
            };
            match event {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    backoff.reset();
                    self.up();
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    waiting.push_back(publish);
                    if waiting.len() > WAITING_MAX {
                        self.shared.failed.store(connection, Ordering::Release);
                    }
                }
                Ok(Event::Incoming(_) | Event::Outgoing(_)) => {}
                Err(error) => {
                    waiting.clear();
                    self.take_back(&mut events);
                    if self.counters.external_connected.load(Ordering::Relaxed) > 0 {
                        down_since = Instant::now();
                        tracing::warn!(%error, "external MQTT broker lost; reconnecting");
                    } else {
                        tracing::debug!(%error, "external MQTT broker not reached");
                    }
                    self.down();
                    let wait = backoff.next(down_since.elapsed(), rand::random());
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Stores what waits as far as there is room for what it causes, until rumqttc has something to
    /// tell; `None` when the connection has to be made anew. What is not stored is not acknowledged,
    /// so a broker stops at its window.
    async fn next_event(
        &self,
        events: &mut EventLoop,
        waiting: &mut VecDeque<Publish>,
        connection: u64,
    ) -> Option<Result<Event, ConnectionError>> {
        // Dropped half-way only where the connection is dropped too.
        let mut poll = pin!(events.poll());
        loop {
            while self.has_room()
                && let Some(publish) = waiting.pop_front()
            {
                self.received(publish).await;
            }
            tokio::select! {
                event = &mut poll => return Some(event),
                () = self.failed(connection) => return None,
                () = self.shared.room.notified(), if !waiting.is_empty() => {}
            }
        }
    }

    /// Whether another message may be stored: none of what it causes will be dropped.
    fn has_room(&self) -> bool {
        let unacknowledged = self.shared.unacknowledged.load(Ordering::Acquire);
        let results = RESULTS_OF_ONE * (unacknowledged + 1);
        unacknowledged < UNACKNOWLEDGED_MAX
            && self.outlet.0.capacity() > UNACKNOWLEDGED_MAX + results
    }

    async fn failed(&self, connection: u64) {
        while self.shared.failed.load(Ordering::Acquire) != connection || connection == 0 {
            self.shared.changed.notified().await;
        }
    }

    fn up(&self) {
        self.shared.connection.fetch_add(1, Ordering::AcqRel);
        self.counters.external_connected.store(1, Ordering::Relaxed);
        tracing::info!("external MQTT broker connected");
        let routes = Arc::clone(&self.routes.borrow());
        let filters = FILTERS
            .into_iter()
            .chain(routes.topics.iter().map(String::as_str))
            .map(|filter| SubscribeFilter::new(filter.to_owned(), QoS::AtLeastOnce));
        // A broker that lost its sessions knows nothing of ours. The queue has room: it was emptied
        // when the last connection ended, and nothing but what was on its way into it came since.
        if let Err(error) = self.client.try_subscribe_many(filters) {
            tracing::warn!(%error, "subscriptions not renewed at the external MQTT broker");
        }
        self.shared.is_up.send_replace(true);
    }

    /// Takes back what the connection that is gone did not bring to an end, and rumqttc's state.
    ///
    /// rumqttc would send it again with its old packet ids beside new ones, without regard for its
    /// own window, so that one of two that collide is lost; a collision would stop everything until
    /// an acknowledgement that never comes; what it has read and not handed over would be
    /// acknowledged on the next connection, where the id means another message; and with a broker
    /// that lost the session all of it would be dropped.
    fn take_back(&self, events: &mut EventLoop) {
        self.shared.is_up.send_replace(false);
        // Takes everything out of its state and its queue.
        events.clean();
        let collided = events.state.collision.take();
        // Acknowledgements are void, subscriptions are made anew; there is nothing else.
        let publishes = events.pending.drain(..).filter_map(|request| {
            let Request::Publish(publish) = request else {
                return None;
            };
            Some(publish)
        });
        let (sent, queued): (Vec<_>, Vec<_>) = publishes.partition(|publish| publish.pkid != 0);
        let again: Vec<Publish> = sent.into_iter().chain(collided).chain(queued).collect();
        let mut unfinished = self.shared.unfinished();
        for publish in again.into_iter().rev() {
            unfinished.push_front(LocalPublish {
                topic: publish.topic,
                payload: publish.payload.into(),
            });
        }
        drop(unfinished);
        events.state = new_state();
    }

    fn down(&self) {
        self.counters.external_connected.store(0, Ordering::Relaxed);
        // Acknowledgements of the old connection are void from here on.
        self.shared.connection.fetch_add(1, Ordering::AcqRel);
    }

    async fn received(&self, publish: Publish) {
        self.counters.external_in.fetch_add(1, Ordering::Relaxed);
        let wanted = Arc::clone(&self.routes.borrow());
        let Some(inbound) = inbound(&publish.topic, &wanted) else {
            // Nothing of ours; a broker that sent it wants its acknowledgement all the same.
            self.acknowledge(publish);
            return;
        };
        let inbound = Arc::new(inbound);
        loop {
            let (inbound, payload) = (Arc::clone(&inbound), publish.payload.clone());
            let (copy, connection) = (
                publish.clone(),
                self.shared.connection.load(Ordering::Acquire),
            );
            let gate = Arc::clone(&self.shared);
            let (shared, outlet) = (Arc::clone(&self.shared), self.outlet.clone());
            let (handle, link_wake) = (self.handle.clone(), Arc::clone(&self.link_wake));
            shared.unacknowledged.fetch_add(1, Ordering::AcqRel);
            let submitted = self.store.submit_fn(
                move |tx| {
                    // After a message that was not stored, none of the same connection is: the
                    // broker sends all of them again, in their order.
                    if gate.failed.load(Ordering::Acquire) == connection {
                        return Err(StoreError::Refused(
                            "an earlier message of this connection was not stored".into(),
                        ));
                    }
                    dispatch(tx, &inbound, &payload, clock::unix_millis())
                        .inspect_err(|_| gate.failed.store(connection, Ordering::Release))
                },
                move |result| {
                    shared.unacknowledged.fetch_sub(1, Ordering::AcqRel);
                    match result {
                        Ok(outcome) => {
                            acknowledge(&outlet, copy, connection);
                            after_commit(outcome, Some(&handle), &link_wake);
                        }
                        Err(error) => {
                            tracing::debug!(%error, "device message not stored");
                            shared.failed.store(connection, Ordering::Release);
                        }
                    }
                    shared.changed.notify_one();
                    shared.room.notify_one();
                },
            );
            match submitted {
                Ok(()) => return,
                Err(error) => {
                    self.shared.unacknowledged.fetch_sub(1, Ordering::AcqRel);
                    if !matches!(error, StoreError::Busy) {
                        self.shared.failed.store(connection, Ordering::Release);
                        self.shared.changed.notify_one();
                        return;
                    }
                    tokio::time::sleep(BUSY_RETRY).await;
                }
            }
        }
    }

    fn acknowledge(&self, publish: Publish) {
        let connection = self.shared.connection.load(Ordering::Acquire);
        acknowledge(&self.outlet, publish, connection);
    }
}

fn acknowledge(outlet: &Outlet, publish: Publish, connection: u64) {
    if publish.qos == QoS::AtMostOnce {
        return;
    }
    let command = Command::Acknowledge {
        publish,
        connection,
    };
    // Without room the broker sends the message again after the next reconnect, and the event is
    // applied twice; the channel has room for every message that may be unacknowledged.
    if outlet.0.try_send(command).is_err() {
        tracing::debug!("acknowledgement to the external MQTT broker dropped");
    }
}

fn options(config: &BusConfig) -> Result<MqttOptions, BusError> {
    let wrong = || BusError::Url {
        url: config.external.clone(),
    };
    let (scheme, authority) = config.external.split_once("://").ok_or_else(wrong)?;
    let (is_tls, default_port) = match scheme {
        "tcp" | "mqtt" => (false, 1883),
        "ssl" | "tls" | "mqtts" => (true, 8883),
        _ => return Err(wrong()),
    };
    let authority = authority.trim_end_matches('/');
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (authority, default_port),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong());
    }
    let mut options = MqttOptions::new(config.client_id.clone(), host, port);
    options
        .set_clean_session(false)
        .set_manual_acks(true)
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX)
        .set_inflight(IN_FLIGHT_MAX);
    if !config.username.is_empty() {
        options.set_credentials(config.username.clone(), config.password.clone());
    }
    if is_tls {
        let files = config.tls.as_ref().ok_or_else(wrong)?;
        let tls = mutual(files, &Floor::default()).map_err(BusError::Tls)?;
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
    }
    Ok(options)
}
