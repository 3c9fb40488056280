//! The hub's half: one per connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::{Ids, Transmit};
use crate::extension::{Batch, BatchAck, Extensions, GROUP, Inventory};
use crate::limits;
use crate::message::{Content, Message, Operation, Route};

/// What the shell must act on.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Durable entries, oldest first, none of them seen on this session before. Store them in one
    /// transaction, in the order of the events, then call [`HubSession::ack_batch`]; if that
    /// fails, close the session. May be empty: a repeat whose acknowledgement was lost, which
    /// needs nothing but [`HubSession::ack_batch`] again.
    Batch(Batch),
    /// What the node holds; comes once, first, from our edges.
    Inventory(Inventory),
    /// A request or report of a plain kind: answer with [`HubSession::send`].
    Request(Box<Message>),
    /// The node has stored what was offered under this key.
    Acked {
        /// As given to [`HubSession::offer`].
        key: String,
        /// Version that was acknowledged.
        version: String,
    },
    /// The node could not store it; it is sent again after [`limits::RESEND_AFTER`].
    Refused {
        /// As given to [`HubSession::offer`].
        key: String,
        /// The node's words.
        reason: String,
    },
    /// Nothing was heard for too long, or the node does not read: close the session.
    Dead {
        /// Why, for the close frame and the log.
        reason: &'static str,
    },
}

#[derive(Debug)]
struct Flight {
    key: String,
    message: Message,
    sent_at: Instant,
}

/// State of one node's connection.
#[derive(Debug)]
pub struct HubSession {
    ids: Ids,
    extensions: Extensions,
    heard_at: Instant,
    /// When the inventory must be here; `None` once it is, and for a plain peer.
    inventory_due: Option<Instant>,
    /// Newest offer per key that is not in flight.
    offers: BTreeMap<String, Message>,
    /// Keys of `offers` in the order they are to leave.
    order: VecDeque<String>,
    /// By message id.
    in_flight: BTreeMap<String, Flight>,
    busy: BTreeSet<String>,
    /// What the node must have stored before it is told that it holds everything; `None`: nothing
    /// is to be told.
    unsynced: Option<BTreeSet<String>>,
    replies: VecDeque<Message>,
    events: VecDeque<Event>,
    /// Epoch and highest sequence number handed to the shell (or stored before this session).
    upstream: Option<(String, u64)>,
    now_ms: i64,
}

impl HubSession {
    /// A session that starts now. `ids` must be unique per connection.
    pub fn new(ids: Ids, extensions: Extensions, now: Instant) -> Self {
        Self {
            ids,
            extensions,
            heard_at: now,
            inventory_due: extensions.inventory.then(|| now + limits::INVENTORY_WITHIN),
            offers: BTreeMap::new(),
            order: VecDeque::new(),
            in_flight: BTreeMap::new(),
            busy: BTreeSet::new(),
            unsynced: None,
            replies: VecDeque::new(),
            events: VecDeque::new(),
            upstream: None,
            now_ms: 0,
        }
    }

    /// Says what is stored of the node's outbox: sequence number `stored` of `epoch`, 0 for
    /// nothing. Repeats are then filtered, and a gap closes the session.
    pub fn with_stored(mut self, epoch: impl Into<String>, stored: u64) -> Self {
        self.upstream = Some((epoch.into(), stored));
        self
    }

    /// Wall time for the `timestamp` of messages made here; nothing is decided by it.
    pub fn set_wall_time(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// What was negotiated.
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    /// Puts an object (or its deletion) on the way to the node. A newer offer under the same key
    /// replaces one that has not left yet; one object is never in flight twice, and offers leave
    /// in the order in which their keys were first offered.
    pub fn offer(&mut self, key: impl Into<String>, message: Message) {
        let key = key.into();
        if self.offers.insert(key.clone(), message).is_none() {
            self.order.push_back(key);
        }
    }

    /// Everything that concerns the node has been offered: it is told so when it has stored all of
    /// it. To a peer that does not know the word nothing is said.
    pub fn tell_synced(&mut self) {
        if self.extensions.synced {
            self.unsynced = Some(self.offers.keys().chain(&self.busy).cloned().collect());
            self.tell_if_synced();
        }
    }

    fn tell_if_synced(&mut self) {
        let (offers, busy) = (&self.offers, &self.busy);
        let Some(left) = &mut self.unsynced else {
            return;
        };
        left.retain(|key| offers.contains_key(key) || busy.contains(key));
        if left.is_empty() {
            self.unsynced = None;
            let route = Route::new("cloudhub", GROUP, &Operation::Synced, "inventory");
            let id = self.ids.fresh();
            self.send(Message::new(id, self.now_ms, route, Content::null()));
        }
    }

    /// Sends an answer or a notice that is not acknowledged.
    pub fn send(&mut self, message: Message) {
        if self.replies.len() >= limits::REPLIES_MAX {
            self.events.push_back(Event::Dead {
                reason: "node does not read its replies",
            });
            return;
        }
        self.replies.push_back(message);
    }

    /// Every entry of `epoch` up to `acked` is stored.
    pub fn ack_batch(&mut self, epoch: &str, acked: u64) {
        let ack = BatchAck {
            epoch: epoch.to_owned(),
            acked,
        };
        let route = Route::new("cloudhub", GROUP, &Operation::Response, "outbox");
        let content = Content::json(&ack).unwrap_or_default();
        let message = Message::new(self.ids.fresh(), self.now_ms, route, content);
        self.send(message);
    }

    /// Offers that wait or are in flight.
    pub fn outstanding(&self) -> usize {
        self.offers.len() + self.in_flight.len()
    }

    /// Anything was received: a frame, a ping, a pong. Any traffic is liveness.
    pub fn handle_heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// A message was received.
    pub fn handle_message(&mut self, message: Message, now: Instant) {
        self.handle_heard(now);
        match message.route.operation() {
            Operation::Keepalive => {}
            Operation::Response => self.handle_ack(&message),
            Operation::Error => self.handle_negative(&message),
            Operation::Ping => {
                let pong = message.reply(
                    self.ids.fresh(),
                    self.now_ms,
                    &message.route.source,
                    Content::string("ack"),
                );
                self.send(pong);
            }
            Operation::Batch if self.extensions.batch => match message.content.decode() {
                Ok(batch) => self.handle_batch(batch),
                Err(_) => self.events.push_back(Event::Dead {
                    reason: "malformed batch",
                }),
            },
            Operation::Inventory if self.extensions.inventory => match message.content.decode() {
                Ok(inventory) => {
                    self.inventory_due = None;
                    self.events.push_back(Event::Inventory(inventory));
                }
                Err(_) => self.events.push_back(Event::Dead {
                    reason: "malformed inventory",
                }),
            },
            Operation::Insert
            | Operation::Delete
            | Operation::Query
            | Operation::Update
            | Operation::Patch
            | Operation::Upload
            | Operation::Get
            | Operation::Batch
            | Operation::Inventory
            | Operation::Synced
            | Operation::Other(_) => self.events.push_back(Event::Request(Box::new(message))),
        }
    }

    fn handle_batch(&mut self, mut batch: Batch) {
        let rising = batch.entries.is_sorted_by(|a, b| a.seq < b.seq);
        if !rising || batch.entries.len() > limits::BATCH_ENTRIES_MAX {
            self.events.push_back(Event::Dead {
                reason: "malformed batch",
            });
            return;
        }
        let (epoch, seen) = self
            .upstream
            .get_or_insert_with(|| (batch.epoch.clone(), 0));
        if *epoch != batch.epoch {
            self.events.push_back(Event::Dead {
                reason: "batch of another epoch",
            });
            return;
        }
        if batch.after > *seen {
            self.events.push_back(Event::Dead {
                reason: "a batch is missing",
            });
            return;
        }
        batch.entries.retain(|entry| entry.seq > *seen);
        if let Some(last) = batch.entries.last() {
            *seen = last.seq;
        }
        self.events.push_back(Event::Batch(batch));
    }

    fn handle_ack(&mut self, message: &Message) {
        // Acknowledgements of what was not acknowledged mode (leases, tokens) are tolerated.
        if let Some(flight) = self.in_flight.remove(&message.header.parent_id) {
            self.busy.remove(&flight.key);
            self.events.push_back(Event::Acked {
                key: flight.key,
                version: flight.message.header.resource_version,
            });
            self.tell_if_synced();
        } else if message.route.group == "user" {
            // What an application sent is not sent again, but who sent it wants to know.
            self.events.push_back(Event::Acked {
                key: message.header.parent_id.clone(),
                version: String::new(),
            });
        }
    }

    fn handle_negative(&mut self, message: &Message) {
        if let Some(flight) = self.in_flight.get(&message.header.parent_id) {
            let reason = message.content.text().unwrap_or_default();
            self.events.push_back(Event::Refused {
                key: flight.key.clone(),
                reason,
            });
        }
    }

    /// The next thing to put on the socket, or `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if let Some(message) = self.replies.pop_front() {
            return Some(Transmit::Message(Box::new(message)));
        }
        if self.in_flight.len() >= limits::DOWNSTREAM_WINDOW {
            return None;
        }
        let at = self.order.iter().position(|key| !self.busy.contains(key))?;
        let key = self.order.remove(at)?;
        let mut message = self.offers.remove(&key)?;
        if message.header.id.is_empty() || self.in_flight.contains_key(&message.header.id) {
            message.header.id = self.ids.fresh();
        }
        self.busy.insert(key.clone());
        let flight = Flight {
            key,
            message: message.clone(),
            sent_at: now,
        };
        self.in_flight.insert(message.header.id.clone(), flight);
        Some(Transmit::Message(Box::new(message)))
    }

    /// The next thing that happened, or `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn silence_max(&self) -> std::time::Duration {
        if self.extensions.ping {
            limits::EXTENDED_SILENCE_MAX
        } else {
            limits::PLAIN_SILENCE_MAX
        }
    }

    /// When [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Instant {
        let silence = self.heard_at + self.silence_max();
        let silence = self.inventory_due.map_or(silence, |due| due.min(silence));
        self.in_flight
            .values()
            .map(|flight| flight.sent_at + limits::RESEND_AFTER)
            .min()
            .map_or(silence, |resend| resend.min(silence))
    }

    /// Time has passed: sends again what was not acknowledged, or gives the link up.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.heard_at + self.silence_max() <= now {
            self.events.push_back(Event::Dead {
                reason: "nothing heard from the node",
            });
            return;
        }
        if self.inventory_due.is_some_and(|due| due <= now) {
            self.events.push_back(Event::Dead {
                reason: "the node did not say what it holds",
            });
            return;
        }
        let late: Vec<String> = self
            .in_flight
            .iter()
            .filter(|(_, flight)| flight.sent_at + limits::RESEND_AFTER <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            let Some(flight) = self.in_flight.remove(&id) else {
                continue;
            };
            self.busy.remove(&flight.key);
            // A newer offer of the same object supersedes the one that was lost.
            if !self.offers.contains_key(&flight.key) {
                self.order.push_front(flight.key.clone());
                self.offers.insert(flight.key, flight.message);
            }
        }
    }
}
