//! What leaves next, and what leaves again.

use std::time::{Duration, Instant};

use super::{EdgeSession, Event};
use crate::extension::{Batch, Entry};
use crate::limits;
use crate::message::{Content, Message, Operation, Route};
use crate::resource::{Kind, ResourcePath};
use crate::session::Transmit;

impl EdgeSession {
    /// The next thing to put on the socket, or `None`. Priority: acknowledgements and control,
    /// requests, newest states, durable messages in order, best effort.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        let extensions = self.link.as_ref()?.extensions;
        if let Some(message) = self.keepalive(now) {
            return Some(message);
        }
        if let Some(message) = self.priority.pop_front() {
            return Some(Transmit::Message(Box::new(message)));
        }
        if let Some(message) = self
            .requests
            .values_mut()
            .find_map(|(message, _)| message.take())
        {
            return Some(Transmit::Message(Box::new(message)));
        }
        if let Some(message) = self.next_latest(now) {
            return Some(Transmit::Message(Box::new(message)));
        }
        let durable = if extensions.batch {
            self.next_batch(now)
        } else {
            self.next_single(now)
        };
        if let Some(message) = durable {
            return Some(Transmit::Message(Box::new(message)));
        }
        self.next_best_effort()
            .map(|message| Transmit::Message(Box::new(message)))
    }

    fn keepalive(&mut self, now: Instant) -> Option<Transmit> {
        let link = self.link.as_mut()?;
        if !link.extensions.ping && link.keepalive_due <= now {
            link.keepalive_due = now + limits::KEEPALIVE_EVERY;
            let route = Route::new("websocket", "resource", &Operation::Keepalive, "node");
            let message = Message::new(
                self.ids.fresh(),
                self.now_ms,
                route,
                Content::string("ping"),
            );
            return Some(Transmit::Message(Box::new(message)));
        }
        // A plain peer answers WebSocket pings too (§3.2), so half-open links are found there.
        if link.ping_sent_at.is_none() && link.heard_at + limits::PING_AFTER <= now {
            link.ping_sent_at = Some(now);
            return Some(Transmit::Ping);
        }
        None
    }

    fn next_latest(&mut self, now: Instant) -> Option<Message> {
        while let Some(key) = self.latest_order.pop_front() {
            if let Some(entry) = self.latest.get_mut(&key) {
                let mut message = entry.message.clone();
                if entry.in_flight.is_some() || message.header.id.is_empty() {
                    message.header.id = self.ids.fresh();
                }
                entry.in_flight = Some((message.header.id.clone(), now));
                return Some(message);
            }
        }
        None
    }

    fn next_batch(&mut self, now: Instant) -> Option<Message> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let before = self.durable.range(..self.next_unsent).next_back();
        let after = before.map_or(self.acked, |(seq, _)| *seq);
        for (seq, entry) in self.durable.range_mut(self.next_unsent..) {
            let size = entry.message.content.raw().len() + 512;
            let full = entries.len() >= limits::BATCH_ENTRIES_MAX
                || bytes + size > limits::BATCH_BYTES_MAX;
            if full && !entries.is_empty() {
                break;
            }
            bytes += size;
            entry.transmissions += 1;
            entry.sent_at = Some(now);
            entries.push(Entry {
                seq: *seq,
                stream: entry.stream.clone(),
                message: entry.message.clone(),
                history: entry.is_history,
            });
        }
        self.next_unsent = entries.last()?.seq + 1;
        let batch = Batch {
            epoch: self.epoch.clone(),
            after,
            entries,
        };
        Some(batch.into_message(self.ids.fresh(), self.now_ms))
    }

    fn next_single(&mut self, now: Instant) -> Option<Message> {
        let (seq, entry) = self.durable.range_mut(self.next_unsent..).next()?;
        entry.transmissions += 1;
        entry.sent_at = Some(now);
        self.next_unsent = seq + 1;
        let (seq, message) = (*seq, entry.message.clone());
        if !is_confirmed_by_plain_hub(&message) {
            // Nothing will ever come back: handing it to the socket is all there is (§5.1.7).
            self.durable.remove(&seq);
            self.events.push_back(Event::DeliveredOne { seq });
        }
        Some(message)
    }

    /// Acknowledgements are cumulative: when the oldest is late, everything after it goes again.
    pub(super) fn resend_batches(&mut self, now: Instant) {
        let oldest = self
            .durable
            .values()
            .filter_map(|entry| entry.sent_at)
            .min();
        if oldest.is_some_and(|sent| sent + limits::CONFIRM_WITHIN <= now) {
            self.next_unsent = 0;
            for entry in self.durable.values_mut() {
                entry.sent_at = None;
            }
        }
    }

    pub(super) fn resend_unconfirmed(&mut self, now: Instant, within: Duration) {
        let mut gave_up = Vec::new();
        for (seq, entry) in &mut self.durable {
            if entry.sent_at.is_none_or(|sent| sent + within > now) {
                continue;
            }
            entry.sent_at = None;
            if entry.transmissions >= limits::PLAIN_TRANSMISSIONS_MAX {
                gave_up.push(*seq);
            } else {
                self.next_unsent = self.next_unsent.min(*seq);
            }
        }
        for seq in gave_up {
            self.durable.remove(&seq);
            self.events.push_back(Event::GaveUp { seq });
        }
    }
}

/// Whether a plain cloudcore answers this durable message: twin and state reports are confirmed,
/// uploads are not (§5.1.5, §5.1.7).
fn is_confirmed_by_plain_hub(message: &Message) -> bool {
    match ResourcePath::parse(&message.route.resource) {
        // Never answered (§5.1.4).
        ResourcePath::Object {
            kind: Kind::Event, ..
        } => false,
        ResourcePath::DeviceTwin { .. }
        | ResourcePath::DeviceState { .. }
        | ResourcePath::Object { .. } => message.route.operation() != Operation::Upload,
        ResourcePath::Membership
        | ResourcePath::MembershipDetail
        | ResourcePath::Node
        | ResourcePath::TwinConfirmation
        | ResourcePath::ClusterCa
        | ResourcePath::Other(_) => false,
    }
}
