//! Sessions, subscriptions and retained messages: who gets what. Pure memory behind one short
//! lock; what has to be durable is returned as storage operations.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::limits::Limits;
use crate::message::Message;
use crate::pipeline::Pipeline;
use crate::proto::{Connect, Will, reason};
use crate::record::{self, Moment};
use crate::session::{Attached, Delivery, Session};
use crate::stats::{Counters, Held};
use crate::storage::{Loaded, Op};
use crate::trie::{Hit, SessionKey, Trie};

mod expiry;
mod publish;
mod requests;
mod wills;

pub(crate) use publish::Plan;
pub(crate) use wills::void;

/// The key of publishes that come from no session.
pub(crate) const NOBODY: SessionKey = 0;

/// Nodes of the tree that a filter may need.
fn levels_of(filter: &str) -> usize {
    1 + filter.bytes().filter(|b| *b == b'/').count()
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
    /// Rows of wills that will not be published.
    void_wills: Vec<u64>,
    /// Wills of connections that others had taken over when the last run died.
    late_wills: Vec<DueWill>,
    /// Clients whose session could not be read. What it says of its revision may be above ours.
    unreadable_sessions: Vec<Arc<str>>,
    /// Of the last state of a session that was written.
    revision: u64,
    next_key: SessionKey,
    next_row: u64,
    next_will: u64,
    hits: Vec<Hit>,
    /// Topic levels of all subscriptions.
    levels: usize,
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
            void_wills: Vec::new(),
            late_wills: Vec::new(),
            unreadable_sessions: Vec::new(),
            revision: 0,
            next_key: NOBODY + 1,
            next_row: 1,
            next_will: 1,
            hits: Vec::new(),
            levels: 0,
        }
    }

    pub(crate) fn held(&self) -> Held {
        Held {
            sessions: self.sessions.len(),
            subscriptions: self.sessions.values().map(|s| s.subscriptions.len()).sum(),
            retained: self.retained.len(),
            queued: self.sessions.values().map(Session::queued).sum(),
        }
    }

    /// Takes over what the storage kept. Returns how many rows could not be read.
    pub(crate) fn load(&mut self, loaded: Loaded, now: Moment) -> usize {
        let mut unreadable = 0;
        for (client, state) in loaded.sessions {
            let Some(record) = record::decode_session(&state) else {
                unreadable += 1;
                self.unreadable_sessions.push(client.into());
                continue;
            };
            self.revision = self.revision.max(record.revision);
            let life = record.life_left(now, self.limits.return_within);
            let secs_max = self.limits.session_expiry_max_secs;
            let expiry_secs = record.expiry_secs.min(secs_max);
            let key = self.add_session(client.into(), expiry_secs);
            for (filter, options) in record.subscriptions {
                self.trie.insert(&filter, key, options);
                self.levels += levels_of(&filter);
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.is_stored = true;
                    session.levels += levels_of(&filter);
                    session.subscriptions.insert(filter, options);
                }
            }
            if let Some(session) = self.sessions.get_mut(&key) {
                session.is_stored = true;
                session.ends_ms = record.ends_ms;
            }
            let life = life.min(Duration::from_secs(u64::from(secs_max)));
            self.start_expiry(key, expiry_secs, life, now.at);
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
        unreadable + self.load_wills(loaded.wills, now)
    }

    fn add_session(&mut self, client: Arc<str>, expiry_secs: u32) -> SessionKey {
        let key = self.next_key;
        self.next_key += 1;
        self.by_client.insert(Arc::clone(&client), key);
        let counters = Arc::clone(&self.counters);
        self.sessions
            .insert(key, Session::new(client, expiry_secs, counters));
        key
    }

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
            let mut is_over = false;
            if let Some(session) = self.sessions.get_mut(&key) {
                is_over = session.attached.is_none() && session.expiry_secs == 0;
                if let Some(old) = session.attached.take() {
                    old.pipeline.end(reason::TAKEN_OVER);
                }
            }
            if is_over {
                // It ended with the restart; what was left of it was the will.
                let ended = self.remove_session(key, ops);
                void(ended.map(|due| due.will), ops);
                found = None;
            } else if connect.is_clean {
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
        void(session.will.take(), ops);
        let is_changed = session.expiry_secs != connect.expiry_secs || session.ends_ms != 0;
        session.expiry_secs = connect.expiry_secs;
        session.ends_ms = 0;
        session.attach(Attached {
            pipeline: Arc::clone(pipeline),
            receive_maximum: connect.receive_maximum,
            packet_bytes_max: connect.packet_bytes_max,
        });
        if (session.expiry_secs > 0 && !session.is_stored) || (session.is_stored && is_changed) {
            session.is_stored = true;
            ops.push(session.put(&mut self.revision));
        }
        self.timers.retain(|(_, timed, _)| *timed != key);
        Ok(Welcome {
            key,
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
        now: Moment,
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
            if will.as_ref().is_some_and(|will| will.delay_secs > 0) {
                void(will, ops);
                return None;
            }
            return will.map(|will| DueWill { client, will });
        }
        session.detach();
        let was_secs = session.expiry_secs;
        session.expiry_secs = expiry_secs.unwrap_or(was_secs);
        let expiry_secs = session.expiry_secs;
        if expiry_secs == 0 {
            self.remove_session(key, ops);
            return will.map(|will| DueWill { client, will });
        }
        let life = Duration::from_secs(u64::from(expiry_secs));
        if expiry_secs != u32::MAX {
            session.ends_ms = now.wall_ms_of(now.at + life);
        }
        if session.is_stored && (session.ends_ms != 0 || was_secs != expiry_secs) {
            ops.push(session.put(&mut self.revision));
        }
        self.start_expiry(key, expiry_secs, life, now.at);
        let will = will?;
        if will.delay_secs == 0 {
            return Some(DueWill { client, will });
        }
        let at = now.at + Duration::from_secs(u64::from(will.delay_secs.min(expiry_secs)));
        self.timers.insert((at, key, Timer::Will));
        if let Some(session) = self.sessions.get_mut(&key) {
            session.will = Some(will);
        }
        None
    }

    /// Removes a session; its delayed will becomes due.
    fn remove_session(&mut self, key: SessionKey, ops: &mut Vec<Op>) -> Option<DueWill> {
        let session = self.sessions.remove(&key)?;
        self.by_client.remove(&session.client);
        self.levels = self.levels.saturating_sub(session.levels);
        for filter in session.subscriptions.keys() {
            self.trie.remove(filter, key);
        }
        self.timers.retain(|(_, timed, _)| *timed != key);
        if session.is_stored {
            self.revision = self.revision.saturating_add(1);
            ops.push(Op::SessionDelete {
                client: Arc::clone(&session.client),
                before: record::session_start(self.revision),
                rows_before: self.next_row,
            });
        }
        let client = session.client;
        session.will.map(|will| DueWill { client, will })
    }
}
