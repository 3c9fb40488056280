//! Sessions, subscriptions and retained messages: who gets what. Pure memory behind one short
//! lock; what has to be durable is returned as storage operations.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::limits::{Limits, STALE_ROWS_MAX};
use crate::message::{Message, Qos};
use crate::pipeline::Pipeline;
use crate::proto::{Connect, RetainHandling, SubscribeEntry, Will, reason};
use crate::record;
use crate::session::{Attached, Delivery, Queued, Session};
use crate::stats::Counters;
use crate::storage::{Loaded, Op};
use crate::topic;
use crate::trie::{Hit, SessionKey, SubOptions, Trie};

/// The key of publishes that come from no session.
pub(crate) const NOBODY: SessionKey = 0;

/// What is to happen to a message once it is durable.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) message: Arc<Message>,
    from: SessionKey,
    subscriptions_version: u64,
    targets: Vec<Target>,
    changes_retained: bool,
}

#[derive(Debug)]
struct Target {
    key: SessionKey,
    qos: Qos,
    retain: bool,
    subscription_ids: Vec<u32>,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Decided when the message is delivered.
    InMemory,
    /// A row is part of the commit and a packet id is taken.
    Row { row: u64, id: u16 },
    /// The queue was full.
    Refused,
}

/// A will that is due.
#[derive(Debug)]
pub(crate) struct DueWill {
    pub(crate) client: Arc<str>,
    pub(crate) will: Will,
}

/// Result of a connect.
#[derive(Debug)]
pub(crate) struct Welcome {
    pub(crate) key: SessionKey,
    pub(crate) client: Arc<str>,
    pub(crate) is_present: bool,
    pub(crate) due: Option<DueWill>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Expiry,
    Will,
}

#[derive(Debug)]
pub(crate) struct Router {
    limits: Limits,
    counters: Arc<Counters>,
    sessions: HashMap<SessionKey, Session>,
    by_client: HashMap<Arc<str>, SessionKey>,
    trie: Trie,
    retained: BTreeMap<Box<str>, Arc<Message>>,
    retained_bytes: usize,
    /// Retained changes on their way through a commit: until they land, none may be skipped.
    retained_in_flight: usize,
    timers: BTreeSet<(Instant, SessionKey, Timer)>,
    stale: Vec<u64>,
    next_key: SessionKey,
    next_row: u64,
    hits: Vec<Hit>,
}

impl Router {
    pub(crate) fn new(limits: Limits, counters: Arc<Counters>) -> Self {
        Self {
            limits,
            counters,
            sessions: HashMap::new(),
            by_client: HashMap::new(),
            trie: Trie::default(),
            retained: BTreeMap::new(),
            retained_bytes: 0,
            retained_in_flight: 0,
            timers: BTreeSet::new(),
            stale: Vec::new(),
            next_key: NOBODY + 1,
            next_row: 1,
            hits: Vec::new(),
        }
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Takes over what the storage kept. Returns how many rows could not be read.
    pub(crate) fn load(&mut self, loaded: Loaded, now: Instant) -> usize {
        let mut unreadable = 0;
        for (client, state) in loaded.sessions {
            let Some(record) = record::decode_session(&state) else {
                unreadable += 1;
                continue;
            };
            let key = self.add_session(client.into(), record.expiry_secs);
            for (filter, options) in record.subscriptions {
                self.trie.insert(&filter, key, options);
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.is_stored = true;
                    session.subscriptions.insert(filter, options);
                }
            }
            if let Some(session) = self.sessions.get_mut(&key) {
                session.is_stored = true;
            }
            self.start_expiry(key, record.expiry_secs, now);
        }
        for (row, client, blob) in loaded.queue {
            self.next_row = self.next_row.max(row + 1);
            let session = self
                .by_client
                .get(client.as_str())
                .and_then(|key| self.sessions.get_mut(key));
            let (Some(session), Some(record)) = (session, record::decode_queued(&blob, now)) else {
                unreadable += 1;
                self.stale.push(row);
                continue;
            };
            let is_released = record.message.is_none();
            let message = record
                .message
                .unwrap_or_else(|| Message::new("", "", record.qos, false));
            session.restore(Delivery {
                message: Arc::new(message),
                qos: record.qos,
                retain: record.retain,
                id: record.packet_id,
                row: Some(row),
                // It may have been sent before the restart.
                is_dup: true,
                is_owed: false,
                is_released,
                subscription_ids: record.subscription_ids,
            });
        }
        for (topic, blob) in loaded.retained {
            if let Some(message) = record::decode_message(&blob, now) {
                self.set_retained(&Arc::new(message));
            } else {
                tracing::debug!(topic, "retained message not readable");
                unreadable += 1;
            }
        }
        for (client, id) in loaded.received {
            if let Some(key) = self.by_client.get(client.as_str())
                && let Some(session) = self.sessions.get_mut(key)
            {
                session.received.insert(id, true);
            }
        }
        unreadable
    }

    fn add_session(&mut self, client: Arc<str>, expiry_secs: u32) -> SessionKey {
        let key = self.next_key;
        self.next_key += 1;
        self.by_client.insert(Arc::clone(&client), key);
        self.sessions.insert(key, Session::new(client, expiry_secs));
        key
    }

    // ---- connections -------------------------------------------------------------------------

    /// Gives a connection its session; ends the session's earlier connection.
    pub(crate) fn connect(
        &mut self,
        client: &Arc<str>,
        connect: &Connect,
        pipeline: &Arc<Pipeline>,
        ops: &mut Vec<Op>,
    ) -> Result<Welcome, u8> {
        let mut due = None;
        let mut is_present = false;
        let mut found = self.by_client.get(client).copied();
        if let Some(key) = found {
            if let Some(session) = self.sessions.get_mut(&key)
                && let Some(old) = session.attached.take()
            {
                old.pipeline.end(reason::TAKEN_OVER);
            }
            if connect.is_clean {
                due = self.remove_session(key, ops);
                found = None;
            }
        }
        let key = match found {
            Some(key) => {
                is_present = true;
                key
            }
            None if self.sessions.len() >= self.limits.sessions_max => return Err(reason::QUOTA),
            None => self.add_session(Arc::clone(client), connect.expiry_secs),
        };
        let Some(session) = self.sessions.get_mut(&key) else {
            return Err(reason::UNSPECIFIED);
        };
        // A delayed will is not sent when the session goes on (MQTT 5 §3.1.3.2.2).
        session.will = None;
        let is_changed = session.expiry_secs != connect.expiry_secs;
        session.expiry_secs = connect.expiry_secs;
        session.attach(Attached {
            pipeline: Arc::clone(pipeline),
            receive_maximum: connect.receive_maximum,
            packet_bytes_max: connect.packet_bytes_max,
        });
        if (session.expiry_secs > 0 && !session.is_stored) || (session.is_stored && is_changed) {
            session.is_stored = true;
            ops.push(Op::SessionPut {
                client: Arc::clone(client),
                state: session.record(),
            });
        }
        self.timers.retain(|(_, timed, _)| *timed != key);
        Ok(Welcome {
            key,
            client: Arc::clone(client),
            is_present,
            due,
        })
    }

    /// The session's row did not reach the storage.
    pub(crate) fn session_not_stored(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.is_stored = false;
        }
    }

    /// Ends a connection's hold on its session. Returns its will when it is due now.
    pub(crate) fn disconnect(
        &mut self,
        key: SessionKey,
        pipeline: &Arc<Pipeline>,
        expiry_secs: Option<u32>,
        will: Option<Will>,
        now: Instant,
        ops: &mut Vec<Op>,
    ) -> Option<DueWill> {
        let Some(session) = self.sessions.get_mut(&key) else {
            // Replaced by a clean start: the session has ended.
            return will.map(|will| DueWill {
                client: pipeline.client(),
                will,
            });
        };
        let client = Arc::clone(&session.client);
        let is_ours = session
            .attached
            .as_ref()
            .is_some_and(|a| Arc::ptr_eq(&a.pipeline, pipeline));
        if !is_ours {
            // Taken over and continued: a will with a delay is void.
            return will
                .filter(|w| w.delay_secs == 0)
                .map(|will| DueWill { client, will });
        }
        session.detach();
        if let Some(secs) = expiry_secs
            && secs != session.expiry_secs
        {
            session.expiry_secs = secs;
            if secs > 0 {
                ops.push(Op::SessionPut {
                    client: Arc::clone(&client),
                    state: session.record(),
                });
            }
        }
        let expiry_secs = session.expiry_secs;
        if expiry_secs == 0 {
            self.remove_session(key, ops);
            return will.map(|will| DueWill { client, will });
        }
        self.start_expiry(key, expiry_secs, now);
        let will = will?;
        if will.delay_secs == 0 {
            return Some(DueWill { client, will });
        }
        let at = now + Duration::from_secs(u64::from(will.delay_secs.min(expiry_secs)));
        self.timers.insert((at, key, Timer::Will));
        if let Some(session) = self.sessions.get_mut(&key) {
            session.will = Some(will);
        }
        None
    }

    fn start_expiry(&mut self, key: SessionKey, expiry_secs: u32, now: Instant) {
        if expiry_secs != u32::MAX {
            let at = now + Duration::from_secs(u64::from(expiry_secs));
            self.timers.insert((at, key, Timer::Expiry));
        }
    }

    /// Removes a session; its delayed will becomes due.
    fn remove_session(&mut self, key: SessionKey, ops: &mut Vec<Op>) -> Option<DueWill> {
        let session = self.sessions.remove(&key)?;
        self.by_client.remove(&session.client);
        for filter in session.subscriptions.keys() {
            self.trie.remove(filter, key);
        }
        self.timers.retain(|(_, timed, _)| *timed != key);
        if session.is_stored {
            ops.push(Op::SessionDelete {
                client: Arc::clone(&session.client),
            });
        }
        let client = session.client;
        session.will.map(|will| DueWill { client, will })
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _, _)| *at)
    }

    /// Fires what is due: sessions that expire, wills whose delay is over.
    pub(crate) fn fire_timers(&mut self, now: Instant, ops: &mut Vec<Op>) -> Vec<DueWill> {
        let mut due = Vec::new();
        while let Some((at, key, timer)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, key, timer));
            match timer {
                Timer::Expiry => due.extend(self.remove_session(key, ops)),
                Timer::Will => due.extend(self.sessions.get_mut(&key).and_then(|session| {
                    let client = Arc::clone(&session.client);
                    session.will.take().map(|will| DueWill { client, will })
                })),
            }
        }
        due
    }

    // ---- publishes ---------------------------------------------------------------------------

    /// Decides who gets a message and what of that has to be durable first.
    pub(crate) fn plan(
        &mut self,
        message: Arc<Message>,
        from: SessionKey,
        now: Instant,
        ops: &mut Vec<Op>,
    ) -> Plan {
        let mut targets = self.targets(&message, from, None);
        for target in &mut targets {
            let Some(session) = self.sessions.get_mut(&target.key) else {
                continue;
            };
            if !session.is_stored || target.qos == Qos::AtMostOnce {
                continue;
            }
            let Some(id) = session.reserve(&self.limits, message.bytes()) else {
                target.place = Place::Refused;
                self.counters.dropped();
                continue;
            };
            let row = self.next_row;
            self.next_row += 1;
            target.place = Place::Row { row, id };
            ops.push(Op::QueuePut {
                id: row,
                client: Arc::clone(&session.client),
                message: record::encode_queued(
                    id,
                    target.qos,
                    target.retain,
                    &target.subscription_ids,
                    Some(&message),
                    now,
                ),
            });
        }
        let changes_retained = message.retain && self.plan_retained(&message, now, ops);
        Plan {
            from,
            subscriptions_version: self.trie.version(),
            targets,
            changes_retained,
            message,
        }
    }

    fn plan_retained(&mut self, message: &Message, now: Instant, ops: &mut Vec<Op>) -> bool {
        let current = self.retained.get(&message.topic);
        if message.payload.is_empty() {
            if current.is_none() && self.retained_in_flight == 0 {
                return false;
            }
            ops.push(Op::RetainedDelete {
                topic: message.topic.clone(),
            });
        } else {
            if self.retained_in_flight == 0 && current.is_some_and(|old| **old == *message) {
                return false;
            }
            let replaced = current.map_or(0, |old| old.bytes());
            let is_full = self.retained_bytes - replaced + message.bytes()
                > self.limits.retained_bytes_max
                || (current.is_none()
                    && self.retained.len() + self.retained_in_flight
                        >= self.limits.retained_messages_max);
            if is_full {
                self.counters.dropped();
                tracing::debug!(topic = %message.topic, "message not retained: limit reached");
                return false;
            }
            ops.push(Op::RetainedPut {
                topic: message.topic.clone(),
                message: record::encode_message(message, now),
            });
        }
        self.retained_in_flight += 1;
        true
    }

    /// Matching sessions, each once, with the highest QoS of its matching subscriptions.
    fn targets(
        &mut self,
        message: &Message,
        from: SessionKey,
        known: Option<&[Target]>,
    ) -> Vec<Target> {
        let mut hits = std::mem::take(&mut self.hits);
        hits.clear();
        let sessions = &self.sessions;
        let is_online = |key: SessionKey| sessions.get(&key).is_some_and(|s| s.attached.is_some());
        self.trie.matches(&message.topic, &is_online, &mut hits);
        hits.sort_by_key(|hit| hit.key);
        let mut targets: Vec<Target> = Vec::with_capacity(hits.len());
        for Hit { key, options } in &hits {
            if (options.no_local && *key == from)
                || known.is_some_and(|k| k.iter().any(|t| t.key == *key))
            {
                continue;
            }
            let qos = options.qos.min(message.qos);
            let retain = options.retain_as_published && message.retain;
            match targets.last_mut().filter(|t| t.key == *key) {
                Some(target) => {
                    target.qos = target.qos.max(qos);
                    target.retain |= retain;
                }
                None => targets.push(Target {
                    key: *key,
                    qos,
                    retain,
                    subscription_ids: Vec::new(),
                    place: Place::InMemory,
                }),
            }
            if options.id != 0
                && let Some(target) = targets.last_mut()
            {
                target.subscription_ids.push(options.id);
            }
        }
        self.hits = hits;
        targets
    }

    /// Delivers a message that is as durable as it has to be.
    pub(crate) fn deliver(&mut self, plan: Plan) {
        let message = plan.message;
        if self.trie.version() != plan.subscriptions_version {
            // Subscriptions changed while the message was committed: whoever came meanwhile has
            // not seen it as a retained message and gets it too.
            for target in self.targets(&message, plan.from, Some(&plan.targets)) {
                self.push(target, &message);
            }
        }
        for target in plan.targets {
            self.push(target, &message);
        }
        if plan.changes_retained {
            self.retained_in_flight = self.retained_in_flight.saturating_sub(1);
            self.set_retained(&message);
        }
    }

    /// Gives up a message whose commit failed.
    pub(crate) fn abandon(&mut self, plan: &Plan) {
        if plan.changes_retained {
            self.retained_in_flight = self.retained_in_flight.saturating_sub(1);
        }
        for target in &plan.targets {
            if let Place::Row { id, .. } = target.place
                && let Some(session) = self.sessions.get_mut(&target.key)
            {
                session.unreserve(id, plan.message.bytes());
            }
        }
    }

    fn push(&mut self, target: Target, message: &Arc<Message>) {
        let Some(session) = self.sessions.get_mut(&target.key) else {
            return;
        };
        let mut delivery = Delivery {
            message: Arc::clone(message),
            qos: target.qos,
            retain: target.retain,
            id: 0,
            row: None,
            is_dup: false,
            is_owed: false,
            is_released: false,
            subscription_ids: target.subscription_ids,
        };
        match target.place {
            Place::Refused => return,
            Place::Row { row, id } => {
                delivery.id = id;
                delivery.row = Some(row);
                session.push_reserved(delivery);
            }
            Place::InMemory => match session.push(delivery, &self.limits) {
                Queued::Yes => {}
                Queued::Dropped => {
                    if session.attached.is_some() {
                        self.counters.dropped();
                    }
                }
                Queued::Overflow => {
                    self.counters.dropped();
                    if let Some(attached) = &session.attached {
                        attached.pipeline.end(reason::QUOTA);
                    }
                }
            },
        }
        if let Some(attached) = &session.attached {
            attached.pipeline.wake();
        }
    }

    fn set_retained(&mut self, message: &Arc<Message>) {
        if let Some(old) = self.retained.remove(&message.topic) {
            self.retained_bytes = self.retained_bytes.saturating_sub(old.bytes());
        }
        if !message.payload.is_empty() {
            self.retained_bytes += message.bytes();
            self.retained
                .insert(message.topic.clone(), Arc::clone(message));
        }
    }

    // ---- QoS 2 from clients ------------------------------------------------------------------

    /// Whether a packet id was received: `Some(true)` when it is stored.
    pub(crate) fn received(&self, key: SessionKey, id: u16) -> Option<bool> {
        self.sessions.get(&key)?.received.get(&id).copied()
    }

    pub(crate) fn received_count(&self, key: SessionKey) -> usize {
        self.sessions.get(&key).map_or(0, |s| s.received.len())
    }

    pub(crate) fn receive(&mut self, key: SessionKey, id: u16, ops: &mut Vec<Op>) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.received.insert(id, false);
            if session.is_stored {
                ops.push(Op::ReceivedAdd {
                    client: Arc::clone(&session.client),
                    packet_id: id,
                });
            }
        }
    }

    /// The commit of a received packet id ended.
    pub(crate) fn received_stored(&mut self, key: SessionKey, id: u16, is_ok: bool) {
        if let Some(session) = self.sessions.get_mut(&key) {
            if is_ok {
                session.received.insert(id, true);
            } else {
                session.received.remove(&id);
            }
        }
    }

    /// PUBREL; whether the id was known.
    pub(crate) fn forget_received(&mut self, key: SessionKey, id: u16, ops: &mut Vec<Op>) -> bool {
        let Some(session) = self.sessions.get_mut(&key) else {
            return false;
        };
        let was_known = session.received.remove(&id).is_some();
        if was_known && session.is_stored {
            ops.push(Op::ReceivedRemove {
                client: Arc::clone(&session.client),
                packet_id: id,
            });
        }
        was_known
    }

    // ---- acknowledgements from clients -------------------------------------------------------

    pub(crate) fn acknowledge(&mut self, key: SessionKey, id: u16, qos: Qos) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.acknowledge(id, qos, &mut self.stale);
        }
    }

    /// PUBREC; whether the id is known. The row must say so before PUBREL is sent, since PUBREL
    /// lets the client forget the id.
    pub(crate) fn release(
        &mut self,
        key: SessionKey,
        id: u16,
        now: Instant,
        ops: &mut Vec<Op>,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&key) else {
            return false;
        };
        let (is_known, row) = session.release(id);
        if let Some(row) = row {
            ops.push(Op::QueuePut {
                id: row,
                client: Arc::clone(&session.client),
                message: record::encode_queued(id, Qos::ExactlyOnce, false, &[], None, now),
            });
        }
        is_known
    }

    /// Rows that are no longer needed ride along with the next commit.
    pub(crate) fn take_stale(&mut self, ops: &mut Vec<Op>) {
        if !self.stale.is_empty() {
            ops.push(Op::QueueRemove {
                ids: std::mem::take(&mut self.stale),
            });
        }
    }

    /// Whether enough has gathered for a commit of its own.
    pub(crate) fn has_many_stale(&self) -> bool {
        self.stale.len() >= STALE_ROWS_MAX
    }

    // ---- subscriptions -----------------------------------------------------------------------

    /// Adds subscriptions (already allowed and valid). Returns a code and whether it is new each.
    pub(crate) fn subscribe(
        &mut self,
        key: SessionKey,
        entries: &[(SubscribeEntry, Result<SubOptions, u8>)],
        ops: &mut Vec<Op>,
    ) -> Vec<(u8, bool)> {
        let Some(session) = self.sessions.get_mut(&key) else {
            return entries
                .iter()
                .map(|_| (reason::UNSPECIFIED, false))
                .collect();
        };
        let mut is_changed = false;
        let mut answers = Vec::with_capacity(entries.len());
        for (entry, options) in entries {
            let options = match options {
                Ok(options) => *options,
                Err(code) => {
                    answers.push((*code, false));
                    continue;
                }
            };
            let filter = entry.filter.as_str();
            let old = session.subscriptions.get(filter).copied();
            if old.is_none() && session.subscriptions.len() >= self.limits.subscriptions_max {
                answers.push((reason::QUOTA, false));
                continue;
            }
            if old != Some(options) {
                is_changed = true;
                session.subscriptions.insert(filter.into(), options);
                self.trie.insert(filter, key, options);
            }
            answers.push((options.qos.bits(), old.is_none()));
        }
        if is_changed && session.is_stored {
            ops.push(Op::SessionPut {
                client: Arc::clone(&session.client),
                state: session.record(),
            });
        }
        answers
    }

    /// Removes subscriptions; whether each existed.
    pub(crate) fn unsubscribe(
        &mut self,
        key: SessionKey,
        filters: &[String],
        ops: &mut Vec<Op>,
    ) -> Vec<bool> {
        let Some(session) = self.sessions.get_mut(&key) else {
            return vec![false; filters.len()];
        };
        let mut existed = Vec::with_capacity(filters.len());
        for filter in filters {
            let was = session.subscriptions.remove(filter.as_str()).is_some();
            if was {
                self.trie.remove(filter, key);
            }
            existed.push(was);
        }
        if session.is_stored && existed.contains(&true) {
            ops.push(Op::SessionPut {
                client: Arc::clone(&session.client),
                state: session.record(),
            });
        }
        existed
    }

    /// Queues the retained messages that new subscriptions ask for.
    pub(crate) fn send_retained(
        &mut self,
        key: SessionKey,
        granted: &[(SubscribeEntry, bool)],
        now: Instant,
    ) {
        for (entry, is_new) in granted {
            let is_wanted = match entry.retain_handling {
                RetainHandling::Always => true,
                RetainHandling::IfNew => *is_new,
                RetainHandling::Never => false,
            };
            if !is_wanted || entry.filter.starts_with("$share/") {
                continue;
            }
            let found: Vec<Arc<Message>> = if entry.filter.contains(['+', '#']) {
                self.retained
                    .values()
                    .filter(|m| topic::matches(&entry.filter, &m.topic))
                    .cloned()
                    .collect()
            } else {
                self.retained
                    .get(entry.filter.as_str())
                    .cloned()
                    .into_iter()
                    .collect()
            };
            let id = self
                .sessions
                .get(&key)
                .and_then(|s| s.subscriptions.get(entry.filter.as_str()))
                .map_or(0, |o| o.id);
            for message in found.into_iter().filter(|m| !m.is_expired(now)) {
                let target = Target {
                    key,
                    qos: entry.qos.min(message.qos),
                    retain: true,
                    subscription_ids: if id == 0 { Vec::new() } else { vec![id] },
                    place: Place::InMemory,
                };
                self.push(target, &message);
            }
        }
    }

    /// Encodes what a connection may send now.
    pub(crate) fn encode_outgoing(
        &mut self,
        key: SessionKey,
        pipeline: &Arc<Pipeline>,
        out: &mut BytesMut,
        now: Instant,
    ) {
        if let Some(session) = self.sessions.get_mut(&key)
            && session
                .attached
                .as_ref()
                .is_some_and(|a| Arc::ptr_eq(&a.pipeline, pipeline))
        {
            session.encode_outgoing(out, now, &mut self.stale, &self.counters);
        }
    }
}
