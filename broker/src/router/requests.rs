//! What clients ask of their sessions: packet ids, acknowledgements, subscriptions.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use super::{Router, levels_of};
use crate::limits::{STALE_ROWS_MAX, SUBSCRIPTION_LEVELS_SHARE};
use crate::message::Qos;
use crate::pipeline::Pipeline;
use crate::proto::{SubscribeEntry, reason};
use crate::record::{self, Moment};
use crate::storage::Op;
use crate::trie::{SessionKey, SubOptions};

impl Router {
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
        now: Moment,
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
        let rows_before = self.next_row;
        let unreadable = self.unreadable_sessions.drain(..);
        ops.extend(unreadable.map(|client| Op::SessionDelete {
            client,
            before: vec![u8::MAX],
            rows_before,
        }));
        ops.extend(self.void_wills.drain(..).map(|id| Op::WillDelete { id }));
    }

    /// Whether enough has gathered for a commit of its own.
    pub(crate) fn has_many_stale(&self) -> bool {
        self.stale.len() >= STALE_ROWS_MAX
    }

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
            if old.is_none() {
                let levels = levels_of(filter);
                let is_within_share = session.levels + levels <= SUBSCRIPTION_LEVELS_SHARE;
                if !is_within_share
                    && self.levels + levels > self.limits.subscription_levels_total_max
                {
                    answers.push((reason::QUOTA, false));
                    continue;
                }
                session.levels += levels;
                self.levels += levels;
            }
            if old != Some(options) {
                is_changed = true;
                session.subscriptions.insert(filter.into(), options);
                self.trie.insert(filter, key, options);
            }
            answers.push((options.qos.bits(), old.is_none()));
        }
        if is_changed && session.is_stored {
            ops.push(session.put(&mut self.revision));
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
                let levels = levels_of(filter);
                session.levels = session.levels.saturating_sub(levels);
                self.levels = self.levels.saturating_sub(levels);
            }
            existed.push(was);
        }
        if session.is_stored && existed.contains(&true) {
            ops.push(session.put(&mut self.revision));
        }
        existed
    }

    /// Takes away subscriptions that are no longer allowed, and what waits because of them.
    pub(crate) fn revoke(
        &mut self,
        key: SessionKey,
        may_read: &dyn Fn(&str) -> bool,
        ops: &mut Vec<Op>,
    ) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let filters = session.subscriptions.keys();
        let gone: Vec<String> = filters
            .filter(|filter| !may_read(filter))
            .map(ToString::to_string)
            .collect();
        if gone.is_empty() {
            return;
        }
        session.drop_queued(may_read, &mut self.stale);
        self.unsubscribe(key, &gone, ops);
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
