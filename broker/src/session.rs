//! One client's session: its subscriptions, the messages that wait for it, its packet ids.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;

use crate::limits::{INFLIGHT_MAX, Limits, OUTBOX_BYTES, QUEUE_BYTES_SHARE};
use crate::message::{Message, Qos};
use crate::pipeline::Pipeline;
use crate::proto::encode::{self, Ack};
use crate::proto::{Will, reason};
use crate::record;
use crate::stats::Counters;
use crate::storage::Op;
use crate::trie::SubOptions;

/// The connection a session has now.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_bytes_max: u32,
}

/// A message on its way to one client.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// 0 for QoS 0.
    pub(crate) id: u16,
    /// Its row in the storage, when it has one.
    pub(crate) row: Option<u64>,
    pub(crate) is_dup: bool,
    /// It was sent on an earlier connection and is owed to the end, even when it expires meanwhile.
    pub(crate) is_owed: bool,
    /// QoS 2: PUBREC has come, PUBCOMP has not.
    pub(crate) is_released: bool,
    pub(crate) subscription_ids: Vec<u32>,
}

/// What became of a delivery that was to be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    Yes,
    /// It did not fit and is gone; counted.
    Dropped,
    /// It did not fit and must not be dropped silently: the connection has to end.
    Overflow,
}

/// Bytes waiting for one session, counted for all sessions together too.
#[derive(Debug)]
struct QueueBytes {
    used: usize,
    counters: Arc<Counters>,
}

impl QueueBytes {
    fn total(&self) -> usize {
        self.counters.queued_bytes.load(Ordering::Relaxed)
    }

    fn add(&mut self, bytes: usize) {
        self.used += bytes;
        self.counters
            .queued_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&mut self, bytes: usize) {
        let bytes = bytes.min(self.used);
        self.used -= bytes;
        self.counters
            .queued_bytes
            .fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for QueueBytes {
    fn drop(&mut self) {
        self.sub(self.used);
    }
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Arc<str>,
    pub(crate) expiry_secs: u32,
    /// As in its row: see [`record::SessionRecord`].
    pub(crate) ends_ms: u64,
    pub(crate) subscriptions: HashMap<Box<str>, SubOptions>,
    /// Packet ids of QoS 2 publishes from the client; true once they are stored.
    pub(crate) received: HashMap<u16, bool>,
    pub(crate) attached: Option<Attached>,
    /// A row of the storage stands for this session.
    pub(crate) is_stored: bool,
    /// A will that waits for its delay.
    pub(crate) will: Option<Will>,
    queue: VecDeque<Delivery>,
    inflight: VecDeque<Delivery>,
    bytes: QueueBytes,
    /// Messages on their way through a commit that have a place in the queue already.
    reserved: usize,
    /// Topic levels of its subscriptions.
    pub(crate) levels: usize,
    ids: HashSet<u16>,
    last_id: u16,
}

impl Session {
    pub(crate) fn new(client: Arc<str>, expiry_secs: u32, counters: Arc<Counters>) -> Self {
        Self {
            client,
            expiry_secs,
            ends_ms: 0,
            subscriptions: HashMap::new(),
            received: HashMap::new(),
            attached: None,
            is_stored: false,
            will: None,
            queue: VecDeque::new(),
            inflight: VecDeque::new(),
            bytes: QueueBytes { used: 0, counters },
            reserved: 0,
            levels: 0,
            ids: HashSet::new(),
            last_id: 0,
        }
    }

    /// Its row as it is now; `revision` is the last one given, and rises.
    pub(crate) fn put(&self, revision: &mut u64) -> Op {
        *revision = revision.saturating_add(1);
        let subscriptions = self.subscriptions.iter().map(|(f, o)| (&**f, o));
        Op::SessionPut {
            client: Arc::clone(&self.client),
            state: record::encode_session(*revision, self.expiry_secs, self.ends_ms, subscriptions),
        }
    }

    fn has_room(&self, limits: &Limits, bytes: usize) -> bool {
        self.queue.len() + self.inflight.len() + self.reserved < limits.queue_messages()
            && self.bytes.used + bytes <= limits.queue_bytes_max
            && (self.bytes.used + bytes <= QUEUE_BYTES_SHARE
                || self.bytes.total() + bytes <= limits.queue_bytes_total_max)
    }

    /// Messages that wait or are unacknowledged.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len() + self.inflight.len()
    }

    /// Takes a place and a packet id for a message that is about to be committed.
    pub(crate) fn reserve(&mut self, limits: &Limits, bytes: usize) -> Option<u16> {
        if !self.has_room(limits, bytes) {
            return None;
        }
        let id = self.take_id()?;
        self.reserved += 1;
        self.bytes.add(bytes);
        Some(id)
    }

    /// Gives back what [`Self::reserve`] took.
    pub(crate) fn unreserve(&mut self, id: u16, bytes: usize) {
        self.reserved = self.reserved.saturating_sub(1);
        self.bytes.sub(bytes);
        self.ids.remove(&id);
    }

    /// Queues a committed message in its reserved place.
    pub(crate) fn push_reserved(&mut self, delivery: Delivery) {
        self.reserved = self.reserved.saturating_sub(1);
        self.queue.push_back(delivery);
    }

    /// Queues a message that has no row.
    pub(crate) fn push(&mut self, mut delivery: Delivery, limits: &Limits) -> Queued {
        let bytes = delivery.message.bytes();
        if self.attached.is_none() && (delivery.qos == Qos::AtMostOnce || self.expiry_secs == 0) {
            return Queued::Dropped;
        }
        let mut outcome = Queued::Yes;
        while !self.has_room(limits, bytes) {
            if self.drop_oldest_qos0() {
                outcome = Queued::Dropped;
                continue;
            }
            let is_fatal = delivery.qos != Qos::AtMostOnce && self.expiry_secs == 0;
            return if is_fatal {
                Queued::Overflow
            } else {
                Queued::Dropped
            };
        }
        if delivery.qos != Qos::AtMostOnce {
            let Some(id) = self.take_id() else {
                return Queued::Dropped;
            };
            delivery.id = id;
        }
        self.bytes.add(bytes);
        self.queue.push_back(delivery);
        outcome
    }

    /// Puts back a message read from the storage at start.
    pub(crate) fn restore(&mut self, delivery: Delivery) {
        self.bytes.add(delivery.message.bytes());
        self.ids.insert(delivery.id);
        self.last_id = delivery.id;
        self.queue.push_back(delivery);
    }

    fn drop_oldest_qos0(&mut self) -> bool {
        let Some(at) = self.queue.iter().position(|d| d.qos == Qos::AtMostOnce) else {
            return false;
        };
        if let Some(gone) = self.queue.remove(at) {
            self.bytes.sub(gone.message.bytes());
        }
        true
    }

    fn take_id(&mut self) -> Option<u16> {
        if self.ids.len() >= usize::from(u16::MAX) {
            return None;
        }
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.ids.insert(self.last_id) {
                return Some(self.last_id);
            }
        }
    }

    /// A new connection: whatever was sent and not acknowledged goes again, first and in order.
    pub(crate) fn attach(&mut self, attached: Attached) {
        while let Some(mut again) = self.inflight.pop_back() {
            again.is_dup = true;
            again.is_owed = true;
            self.queue.push_front(again);
        }
        self.attached = Some(attached);
    }

    /// The connection is gone: QoS 0 is not kept.
    pub(crate) fn detach(&mut self) {
        self.attached = None;
        let bytes = &mut self.bytes;
        self.queue.retain(|d| {
            let keep = d.qos != Qos::AtMostOnce;
            if !keep {
                bytes.sub(d.message.bytes());
            }
            keep
        });
    }

    /// Encodes what may be sent now. Rows of messages that will never be sent go to `stale`.
    pub(crate) fn encode_outgoing(
        &mut self,
        out: &mut BytesMut,
        now: Instant,
        stale: &mut Vec<u64>,
        counters: &Counters,
    ) {
        let Some(attached) = &self.attached else {
            return;
        };
        let version = attached.pipeline.version();
        let window = usize::from(attached.receive_maximum.min(INFLIGHT_MAX));
        let packet_bytes_max = usize::try_from(attached.packet_bytes_max).unwrap_or(usize::MAX);
        while out.len() < OUTBOX_BYTES {
            let Some(next) = self.queue.front() else {
                break;
            };
            if next.qos != Qos::AtMostOnce && self.inflight.len() >= window {
                break;
            }
            let Some(next) = self.queue.pop_front() else {
                break;
            };
            if next.is_released {
                encode::ack(out, version, Ack::Pubrel, next.id, reason::SUCCESS);
                self.inflight.push_back(next);
                continue;
            }
            let packet = encode::Publish {
                message: &next.message,
                qos: next.qos,
                retain: next.retain,
                is_dup: next.is_dup,
                id: next.id,
                subscription_ids: &next.subscription_ids,
                expiry_secs: next.message.expires.map(|at| {
                    let left = at.saturating_duration_since(now).as_secs();
                    u32::try_from(left).unwrap_or(u32::MAX)
                }),
            };
            let is_late = !next.is_owed && next.message.is_expired(now);
            if is_late || packet.size(version) > packet_bytes_max {
                counters.dropped();
                self.forget(&next, stale);
                continue;
            }
            encode::publish(out, version, &packet);
            counters.sent(next.message.topic.len() + next.message.payload.len());
            if next.qos == Qos::AtMostOnce {
                self.bytes.sub(next.message.bytes());
            } else {
                self.inflight.push_back(next);
            }
        }
    }

    /// Drops what waits on topics that may not be read (any more).
    pub(crate) fn drop_queued(&mut self, may_read: &dyn Fn(&str) -> bool, stale: &mut Vec<u64>) {
        let queue = std::mem::take(&mut self.queue);
        for delivery in queue {
            // After PUBREC only the packet id is left, and its exchange has to end.
            if delivery.is_released || may_read(&delivery.message.topic) {
                self.queue.push_back(delivery);
            } else {
                self.forget(&delivery, stale);
            }
        }
    }

    fn forget(&mut self, delivery: &Delivery, stale: &mut Vec<u64>) {
        self.bytes.sub(delivery.message.bytes());
        self.ids.remove(&delivery.id);
        stale.extend(delivery.row);
    }

    /// PUBACK, PUBCOMP, or a PUBREC that refuses: the exchange is over.
    pub(crate) fn acknowledge(&mut self, id: u16, qos: Qos, stale: &mut Vec<u64>) {
        let found = self
            .inflight
            .iter()
            .position(|d| d.id == id && d.qos == qos);
        if let Some(done) = found.and_then(|at| self.inflight.remove(at)) {
            self.forget(&done, stale);
        }
    }

    /// PUBREC: returns whether the id is known, and the row that has to say so before PUBREL.
    pub(crate) fn release(&mut self, id: u16) -> (bool, Option<u64>) {
        let found = self
            .inflight
            .iter_mut()
            .find(|d| d.id == id && d.qos == Qos::ExactlyOnce);
        let Some(delivery) = found else {
            return (false, None);
        };
        let was_released = std::mem::replace(&mut delivery.is_released, true);
        (true, delivery.row.filter(|_| !was_released))
    }
}
