//! The edge's half.

mod send;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::Ids;
use crate::body::Reply;
use crate::extension::{BatchAck, Extensions, GROUP, Inventory};
use crate::limits;
use crate::message::{Content, Message, Operation};

/// What the shell must act on.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The hub has stored every durable message up to this sequence number.
    Delivered {
        /// Inclusive.
        up_to: u64,
    },
    /// A plain hub has confirmed one durable message.
    DeliveredOne {
        /// Its sequence number.
        seq: u64,
    },
    /// A plain hub never confirmed it; it was sent [`limits::PLAIN_TRANSMISSIONS_MAX`] times.
    GaveUp {
        /// Its sequence number.
        seq: u64,
    },
    /// The hub pushes an object (insert, update, delete) or a notice. Make it durable, then call
    /// [`EdgeSession::ack`]; on failure [`EdgeSession::refuse`].
    Push(Box<Message>),
    /// The answer to [`EdgeSession::request`].
    Reply {
        /// Id of the request.
        to: String,
        /// The answer; classify its content with [`crate::body::Reply`].
        message: Box<Message>,
    },
    /// No answer came in [`limits::REPLY_WITHIN`], or the link broke.
    RequestFailed {
        /// Id of the request.
        to: String,
    },
    /// Nothing was heard for too long: close the socket and reconnect.
    LinkDead,
    /// The hub has our acknowledgement of everything that concerned this node at connect.
    Synced,
}

/// Refused because a bound is reached; try again when something was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session is full")]
pub struct Full;

#[derive(Debug)]
struct Durable {
    stream: String,
    message: Message,
    is_history: bool,
    /// Zero: not sent on this connection.
    transmissions: u32,
    sent_at: Option<Instant>,
}

#[derive(Debug)]
struct Latest {
    message: Message,
    /// Id it was last sent with on this connection, and when.
    in_flight: Option<(String, Instant)>,
}

#[derive(Debug)]
struct Link {
    extensions: Extensions,
    heard_at: Instant,
    ping_sent_at: Option<Instant>,
    keepalive_due: Instant,
}

/// State of the edge's half; lives as long as the process, over many connections.
#[derive(Debug)]
pub struct EdgeSession {
    ids: Ids,
    epoch: String,
    link: Option<Link>,
    /// Pushed and not yet delivered, by sequence number. `next_unsent` splits sent from unsent.
    durable: BTreeMap<u64, Durable>,
    next_unsent: u64,
    /// Highest sequence number the hub is known to have.
    acked: u64,
    latest: BTreeMap<String, Latest>,
    latest_order: VecDeque<String>,
    best_effort: VecDeque<Message>,
    best_effort_bytes: usize,
    requests: BTreeMap<String, (Option<Message>, Instant)>,
    /// Ids of the last pushes acknowledged on this connection (protocol §10.2).
    seen: VecDeque<String>,
    /// Acknowledgements and control: leave before anything else.
    priority: VecDeque<Message>,
    events: VecDeque<Event>,
    now_ms: i64,
}

impl EdgeSession {
    /// `ids` must be unique per process start; `epoch` is the outbox's.
    pub fn new(ids: Ids, epoch: impl Into<String>) -> Self {
        Self {
            ids,
            epoch: epoch.into(),
            link: None,
            durable: BTreeMap::new(),
            next_unsent: 0,
            acked: 0,
            latest: BTreeMap::new(),
            latest_order: VecDeque::new(),
            best_effort: VecDeque::new(),
            best_effort_bytes: 0,
            requests: BTreeMap::new(),
            seen: VecDeque::new(),
            priority: VecDeque::new(),
            events: VecDeque::new(),
            now_ms: 0,
        }
    }

    /// From the next connection on the outbox has another epoch; what was pushed goes again.
    pub fn set_epoch(&mut self, epoch: impl Into<String>) {
        self.epoch = epoch.into();
    }

    /// Wall time for the `timestamp` of messages made here; nothing is decided by it.
    pub fn set_wall_time(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// The upgrade succeeded. `acked` is the hub's answer for our epoch, `inventory` what the
    /// store holds. Everything undelivered becomes unsent again, oldest first.
    pub fn handle_connected(
        &mut self,
        extensions: Extensions,
        acked: Option<u64>,
        inventory: Inventory,
        now: Instant,
    ) {
        self.link = Some(Link {
            extensions,
            heard_at: now,
            ping_sent_at: None,
            keepalive_due: now,
        });
        self.seen.clear();
        self.rewind();
        // A hub that lost its store starts again from what we still have.
        self.acked = 0;
        if let Some(acked) = acked.filter(|_| extensions.batch) {
            self.deliver_up_to(acked);
        }
        if extensions.inventory {
            let message = inventory.into_message(self.ids.fresh(), self.now_ms);
            self.priority.push_back(message);
        }
    }

    /// The socket is gone.
    pub fn handle_disconnected(&mut self) {
        self.link = None;
        self.priority.clear();
        // It was said of this connection.
        self.events.retain(|event| *event != Event::Synced);
        self.rewind();
        let waiting = std::mem::take(&mut self.requests);
        self.events
            .extend(waiting.into_keys().map(|to| Event::RequestFailed { to }));
    }

    fn rewind(&mut self) {
        self.next_unsent = 0;
        for entry in self.durable.values_mut() {
            entry.sent_at = None;
        }
        self.latest_order.clear();
        for (key, entry) in &mut self.latest {
            entry.in_flight = None;
            self.latest_order.push_back(key.clone());
        }
    }

    /// Whether a connection stands.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// How many durable messages may still be pushed.
    pub fn capacity(&self) -> usize {
        limits::UPSTREAM_WINDOW.saturating_sub(self.durable.len())
    }

    /// The highest sequence number pushed and not delivered; the shell continues reading its
    /// outbox after it.
    pub fn last_pushed(&self) -> Option<u64> {
        self.durable.keys().next_back().copied()
    }

    /// Hands over a durable message from the outbox. Pushing one twice, or one that the hub has
    /// acknowledged on this connection, changes nothing.
    ///
    /// # Errors
    /// [`Full`] when [`Self::capacity`] is zero.
    pub fn push(&mut self, seq: u64, stream: String, message: Message) -> Result<(), Full> {
        self.push_row(seq, stream, message, false)
    }

    /// The same for a message of a backlog, after newer ones of its stream. A plain hub is not
    /// told the difference: it must be given messages in their old order.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_history(&mut self, seq: u64, stream: String, message: Message) -> Result<(), Full> {
        self.push_row(seq, stream, message, true)
    }

    /// Forgets what was pushed and not delivered: before a connection, for a shell that gives its
    /// rows a new order and pushes them again.
    pub fn forget_pushed(&mut self) {
        self.durable.clear();
        self.next_unsent = 0;
    }

    fn push_row(
        &mut self,
        seq: u64,
        stream: String,
        message: Message,
        is_history: bool,
    ) -> Result<(), Full> {
        // What the hub has is not pushed again by a shell that has not deleted its row yet.
        if self.durable.contains_key(&seq) || seq <= self.acked {
            return Ok(());
        }
        if self.capacity() == 0 {
            return Err(Full);
        }
        let entry = Durable {
            stream,
            message,
            is_history,
            transmissions: 0,
            sent_at: None,
        };
        self.durable.insert(seq, entry);
        Ok(())
    }

    /// Sets the newest value under `key` (e.g. a pod's status). It is sent until answered; an
    /// older value that was not sent yet is forgotten.
    ///
    /// # Errors
    /// [`Full`] when a new key would exceed [`limits::LATEST_KEYS_MAX`].
    pub fn set_latest(&mut self, key: &str, message: Message) -> Result<(), Full> {
        if !self.latest.contains_key(key) && self.latest.len() >= limits::LATEST_KEYS_MAX {
            return Err(Full);
        }
        self.latest.insert(
            key.to_owned(),
            Latest {
                message,
                in_flight: None,
            },
        );
        if !self.latest_order.iter().any(|queued| queued == key) {
            self.latest_order.push_back(key.to_owned());
        }
        Ok(())
    }

    /// Whether the value under `key` waits to be sent or to be answered.
    pub fn is_telling(&self, key: &str) -> bool {
        self.latest.contains_key(key)
    }

    /// Sends once if the link is up. When too many wait, the oldest is dropped; `true` says so.
    pub fn best_effort(&mut self, message: Message) -> bool {
        let bytes = message.content.raw().len();
        let mut full = false;
        while self.best_effort.len() >= limits::BEST_EFFORT_MAX
            || self.best_effort_bytes + bytes > limits::BEST_EFFORT_BYTES_MAX
        {
            if self.next_best_effort().is_none() {
                break;
            }
            full = true;
        }
        self.best_effort_bytes += bytes;
        self.best_effort.push_back(message);
        full
    }

    fn next_best_effort(&mut self) -> Option<Message> {
        let message = self.best_effort.pop_front()?;
        self.best_effort_bytes -= message.content.raw().len();
        Some(message)
    }

    /// Sends a request; `Reply` or `RequestFailed` follows with its id.
    ///
    /// # Errors
    /// [`Full`] when the link is down or [`limits::REQUESTS_MAX`] requests wait already.
    pub fn request(&mut self, message: Message, now: Instant) -> Result<String, Full> {
        if self.link.is_none() || self.requests.len() >= limits::REQUESTS_MAX {
            return Err(Full);
        }
        let id = message.header.id.clone();
        self.requests
            .insert(id.clone(), (Some(message), now + limits::REPLY_WITHIN));
        Ok(id)
    }

    /// Acknowledges a push that is durable now.
    pub fn ack(&mut self, push: &Message) {
        if self.link.is_some() {
            self.remember(&push.header.id);
            let ack = push.acknowledgement(self.ids.fresh(), self.now_ms);
            self.priority.push_back(ack);
        }
    }

    fn remember(&mut self, id: &str) {
        if self.seen.len() >= limits::SEEN_PUSHES_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(id.to_owned());
    }

    /// Tells the hub that a push could not be stored; it will come again.
    pub fn refuse(&mut self, push: &Message, reason: &str) {
        if self.link.is_some() {
            let negative = push.negative(self.ids.fresh(), self.now_ms, reason);
            self.priority.push_back(negative);
        }
    }

    /// Anything was received: a frame, a ping, a pong.
    pub fn handle_heard(&mut self, now: Instant) {
        if let Some(link) = &mut self.link {
            link.heard_at = now;
            link.ping_sent_at = None;
        }
    }

    /// A message was received.
    pub fn handle_message(&mut self, message: Message, now: Instant) {
        self.handle_heard(now);
        match message.route.operation() {
            Operation::Response => self.handle_response(message),
            Operation::Ping => {
                let pong = message.reply(
                    self.ids.fresh(),
                    self.now_ms,
                    &message.route.source,
                    Content::string("ack"),
                );
                self.priority.push_back(pong);
            }
            Operation::Synced => {
                if self
                    .link
                    .as_ref()
                    .is_some_and(|link| link.extensions.synced)
                {
                    self.events.push_back(Event::Synced);
                }
            }
            Operation::Insert
            | Operation::Delete
            | Operation::Query
            | Operation::Update
            | Operation::Patch
            | Operation::Upload
            | Operation::Error
            | Operation::Keepalive
            | Operation::Get
            | Operation::Batch
            | Operation::Inventory
            | Operation::Other(_) => self.handle_push(message),
        }
    }

    fn handle_push(&mut self, message: Message) {
        if self.seen.contains(&message.header.id) {
            let again = message.acknowledgement(self.ids.fresh(), self.now_ms);
            self.priority.push_back(again);
        } else if message.header.parent_id.is_empty() {
            self.events.push_back(Event::Push(Box::new(message)));
        } else {
            // `applicationResponse` and the like: an answer with an operation of its own.
            self.handle_response(message);
        }
    }

    fn handle_response(&mut self, message: Message) {
        if message.route.group == GROUP {
            if let Ok(ack) = message.content.decode::<BatchAck>()
                && ack.epoch == self.epoch
            {
                self.deliver_up_to(ack.acked);
            }
            return;
        }
        let to = message.header.parent_id.clone();
        if self.requests.remove(&to).is_some() {
            self.ack_reply(&message);
            self.events.push_back(Event::Reply {
                to,
                message: Box::new(message),
            });
            return;
        }
        if let Some(key) = self.latest_in_flight(&to) {
            // A hub whose store stumbled has not taken it: it stays in flight, and goes again
            // when its confirmation is late.
            if !is_passing_failure(&message) {
                self.latest.remove(&key);
            }
            return;
        }
        if let Some(seq) = self.durable_by_id(&to) {
            self.durable.remove(&seq);
            self.events.push_back(Event::DeliveredOne { seq });
            return;
        }
        // A late reply: acknowledge it all the same, or a plain hub sends it for ever (§8.4).
        self.ack_reply(&message);
    }

    /// A plain hub delivers some replies reliably (group `resource`) and waits for our OK.
    fn ack_reply(&mut self, message: &Message) {
        let plain = self.link.as_ref().is_some_and(|link| !link.extensions.ping);
        if plain && message.route.group == "resource" {
            self.ack(message);
        }
    }

    fn latest_in_flight(&self, id: &str) -> Option<String> {
        self.latest
            .iter()
            .find(|(_, entry)| entry.in_flight.as_ref().is_some_and(|(sent, _)| sent == id))
            .map(|(key, _)| key.clone())
    }

    fn durable_by_id(&self, id: &str) -> Option<u64> {
        self.durable
            .iter()
            .find(|(_, entry)| entry.message.header.id == id)
            .map(|(seq, _)| *seq)
    }

    fn deliver_up_to(&mut self, up_to: u64) {
        self.acked = self.acked.max(up_to);
        self.durable = self.durable.split_off(&up_to.saturating_add(1));
        self.events.push_back(Event::Delivered { up_to });
    }

    /// The next thing that happened, or `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called next; `None` while disconnected.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let link = self.link.as_ref()?;
        let liveness = link
            .ping_sent_at
            .map_or(link.heard_at + limits::PING_AFTER, |sent| {
                sent + limits::PONG_WITHIN
            });
        let keepalive = (!link.extensions.ping).then_some(link.keepalive_due);
        let within = confirm_within(link.extensions);
        let confirm = self
            .durable
            .values()
            .filter_map(|e| e.sent_at)
            .min()
            .map(|sent| sent + within);
        let answer = self
            .latest
            .values()
            .filter_map(|entry| entry.in_flight.as_ref())
            .map(|(_, sent)| *sent + limits::CONFIRM_WITHIN)
            .min();
        let reply = self.requests.values().map(|(_, deadline)| *deadline).min();
        [Some(liveness), keepalive, confirm, answer, reply]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed. Call whenever `poll_timeout` is due; then poll as usual.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(link) = &self.link else { return };
        if link
            .ping_sent_at
            .is_some_and(|sent| sent + limits::PONG_WITHIN <= now)
        {
            self.events.push_back(Event::LinkDead);
        }
        let extensions = link.extensions;
        if extensions.batch {
            self.resend_batches(now);
        } else {
            self.resend_unconfirmed(now, confirm_within(extensions));
        }
        for (key, entry) in &mut self.latest {
            let late = |sent: Instant| sent + limits::CONFIRM_WITHIN <= now;
            if entry.in_flight.take_if(|(_, sent)| late(*sent)).is_some() {
                self.latest_order.push_back(key.clone());
            }
        }
        let late: Vec<String> = self
            .requests
            .iter()
            .filter(|(_, (_, deadline))| *deadline <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for to in late {
            self.requests.remove(&to);
            self.events.push_back(Event::RequestFailed { to });
        }
    }
}

/// Whether an answer says that trying again, unchanged, can succeed.
fn is_passing_failure(answer: &Message) -> bool {
    matches!(
        Reply::classify(&answer.content),
        Reply::Failed(status) if status.code >= 500 || status.code == 429
    )
}

fn confirm_within(extensions: Extensions) -> Duration {
    if extensions.batch {
        limits::CONFIRM_WITHIN
    } else {
        limits::PLAIN_CONFIRM_WITHIN
    }
}
