//! From a message to its subscribers: planned before the commit, delivered after it.

use std::sync::Arc;
use std::time::Instant;

use super::Router;
use crate::message::{Message, Qos};
use crate::proto::{RetainHandling, SubscribeEntry, reason};
use crate::record::{self, Moment};
use crate::session::{Delivery, Queued};
use crate::storage::Op;
use crate::topic;
use crate::trie::{Hit, SessionKey};

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

impl Router {
    /// Decides who gets a message and what of that has to be durable first.
    pub(crate) fn plan(
        &mut self,
        message: Arc<Message>,
        from: SessionKey,
        now: Moment,
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

    fn plan_retained(&mut self, message: &Message, now: Moment, ops: &mut Vec<Op>) -> bool {
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

    pub(super) fn set_retained(&mut self, message: &Arc<Message>) {
        if let Some(old) = self.retained.remove(&message.topic) {
            self.retained_bytes = self.retained_bytes.saturating_sub(old.bytes());
        }
        if !message.payload.is_empty() {
            self.retained_bytes += message.bytes();
            self.retained
                .insert(message.topic.clone(), Arc::clone(message));
        }
    }

    /// Queues the retained messages that new subscriptions ask for.
    pub(crate) fn send_retained(
        &mut self,
        key: SessionKey,
        granted: &[(SubscribeEntry, bool)],
        now: Instant,
    ) {
        for (entry, is_new) in granted {
            if !wants_retained(entry, *is_new) {
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
            for message in found.into_iter().filter(|m| !m.is_expired(now)) {
                self.push_retained(key, entry, &message);
            }
        }
    }

    fn push_retained(&mut self, key: SessionKey, entry: &SubscribeEntry, message: &Arc<Message>) {
        let id = self
            .sessions
            .get(&key)
            .and_then(|s| s.subscriptions.get(entry.filter.as_str()))
            .map_or(0, |o| o.id);
        let target = Target {
            key,
            qos: entry.qos.min(message.qos),
            retain: true,
            subscription_ids: if id == 0 { Vec::new() } else { vec![id] },
            place: Place::InMemory,
        };
        self.push(target, message);
    }

    /// Whether anybody is subscribed to the broker's counters.
    pub(crate) fn has_sys_listeners(&self) -> bool {
        self.trie.has_root("$SYS")
    }

    /// Gives messages that nothing keeps to new subscriptions, as if they were retained.
    pub(crate) fn send_unkept(
        &mut self,
        key: SessionKey,
        granted: &[(SubscribeEntry, bool)],
        messages: Vec<Message>,
    ) {
        for message in messages.into_iter().map(Arc::new) {
            for (entry, is_new) in granted {
                if wants_retained(entry, *is_new) && topic::matches(&entry.filter, &message.topic) {
                    self.push_retained(key, entry, &message);
                }
            }
        }
    }

    /// Routes a message of QoS 0 that nothing keeps.
    pub(crate) fn publish_unkept(&mut self, message: Message) {
        let message = Arc::new(message);
        for target in self.targets(&message, super::NOBODY, None) {
            self.push(target, &message);
        }
    }
}

/// MQTT 5 §3.8.3.1; a shared subscription is given no retained messages (§4.8.2).
fn wants_retained(entry: &SubscribeEntry, is_new: bool) -> bool {
    let is_wanted = match entry.retain_handling {
        RetainHandling::Always => true,
        RetainHandling::IfNew => is_new,
        RetainHandling::Never => false,
    };
    is_wanted && !entry.filter.starts_with("$share/")
}
