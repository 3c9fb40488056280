//! What comes from the external broker: stored, then acknowledged.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, Outgoing, Packet, Publish, QoS, Request,
    SubscribeFilter,
};
use tokio::sync::{Notify, watch};
use wire::rules::Routes;

use super::subscriptions::{self, Subscriptions};
use super::{Command, Outlet, RESULTS_OF_ONE, Shared, UNACKNOWLEDGED_MAX, WAITING_MAX, new_state};
use crate::bus::{BusHandle, Counters, dispatch, inbound, storage::after_commit};
use crate::clock;
use crate::hub::backoff::Backoff;
use crate::store::{Store, StoreError};
use crate::twin::LocalPublish;

/// Pause before a busy store is asked again.
const BUSY_RETRY: Duration = Duration::from_millis(2);
/// Filters in one SUBSCRIBE: each has at most 2 KiB, and the packet is bounded.
const SUBSCRIBED_AT_ONCE: usize = 64;
/// After a message that could not be stored, before the broker is asked for it again.
const STORE_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Reader {
    pub(super) client: AsyncClient,
    pub(super) outlet: Outlet,
    pub(super) store: Store,
    pub(super) handle: BusHandle,
    pub(super) link_wake: Arc<Notify>,
    pub(super) routes: watch::Receiver<Arc<Routes>>,
    pub(super) shared: Arc<Shared>,
    pub(super) known: Subscriptions,
    pub(super) counters: Arc<Counters>,
}

impl Reader {
    pub(super) async fn run(self, mut events: EventLoop) {
        let mut backoff = Backoff::default();
        let mut down_since = Instant::now();
        let mut is_told = false;
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
                Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                    backoff.reset();
                    self.up(connack.session_present).await;
                }
                Ok(Event::Incoming(Packet::UnsubAck(ack))) => {
                    self.known.left(ack.pkid, &self.routes.borrow());
                }
                Ok(Event::Outgoing(Outgoing::Unsubscribe(pkid))) => self.known.sent(pkid),
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
                    } else if is_told {
                        tracing::debug!(%error, "external MQTT broker not reached");
                    } else {
                        tracing::warn!(%error, "external MQTT broker not reached; trying again");
                    }
                    is_told = true;
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

    async fn up(&self, session_present: bool) {
        if !session_present {
            self.known.forget();
        }
        let routes = Arc::clone(&self.routes.borrow());
        self.known.hold(&routes).await;
        self.shared.connection.fetch_add(1, Ordering::AcqRel);
        self.counters.external_connected.store(1, Ordering::Relaxed);
        tracing::info!("external MQTT broker connected");
        // A broker that lost its sessions knows nothing of ours. The queue has room: it was emptied
        // when the last connection ended, and nothing but what was on its way into it came since.
        let filters: Vec<&str> = subscriptions::filters(&routes).collect();
        for some in filters.chunks(SUBSCRIBED_AT_ONCE) {
            let some = some
                .iter()
                .map(|filter| SubscribeFilter::new((*filter).to_owned(), QoS::AtLeastOnce));
            if let Err(error) = self.client.try_subscribe_many(some) {
                tracing::warn!(%error, "subscriptions not renewed at the external MQTT broker");
            }
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
        self.known.disconnected();
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
