//! What each packet of a client means.

use std::sync::Arc;

use super::{Connection, End};
use crate::core::{ack_of, expires};
use crate::message::{Message, Qos};
use crate::pipeline::Request;
use crate::proto::encode::{self, Ack};
use crate::proto::{InPublish, Inbound, ProtocolError, Subscribe, SubscribeEntry, Version, reason};
use crate::record::Moment;
use crate::storage::{Batch, Publish};
use crate::topic;
use crate::trie::SubOptions;

/// QoS 2 packet ids of one client that wait for PUBREL.
const RECEIVED_IDS_MAX: usize = 1024;

impl Connection<'_> {
    pub(super) fn handle(&mut self, packet: Inbound) -> Result<(), End> {
        match packet {
            Inbound::Publish(publish) => return self.publish(*publish),
            Inbound::Puback { id } => self.acknowledged(id, Qos::AtLeastOnce),
            Inbound::Pubcomp { id } => self.acknowledged(id, Qos::ExactlyOnce),
            Inbound::Pubrec { id, is_refused } => self.pubrec(id, is_refused),
            Inbound::Pubrel { id } => return self.pubrel(id),
            Inbound::Subscribe(subscribe) => self.subscribe(subscribe),
            Inbound::Unsubscribe { id, filters } => self.unsubscribe(id, &filters),
            Inbound::Pingreq => encode::pingresp(&mut self.socket.out),
            Inbound::Disconnect {
                reason: code,
                expiry_secs,
            } => {
                if expiry_secs.is_some_and(|secs| secs > 0) && self.session_expiry_secs == 0 {
                    return Err(End::Protocol(ProtocolError::new(
                        reason::PROTOCOL_ERROR,
                        "a session without expiry cannot be given one",
                    )));
                }
                let secs_max = self.core.limits.session_expiry_max_secs;
                self.expiry_secs = expiry_secs.map(|secs| secs.min(secs_max));
                return Err(End::Asked {
                    with_will: code == reason::DISCONNECT_WITH_WILL,
                });
            }
            Inbound::Connect(_) => {
                return Err(End::Protocol(ProtocolError::new(
                    reason::PROTOCOL_ERROR,
                    "second CONNECT",
                )));
            }
        }
        Ok(())
    }

    fn publish(&mut self, publish: InPublish) -> Result<(), End> {
        self.core
            .counters
            .received(publish.topic.len() + publish.payload.len());
        let ack = ack_of(publish.qos);
        if !self.rights.may_publish(&publish.topic) {
            self.core.counters.refused();
            if self.version == Version::V311 && ack.is_some() {
                // Once for each connection: this ends it.
                tracing::info!(client = %self.client, topic = %publish.topic, "this client may not publish to this topic");
            } else {
                tracing::debug!(client = %self.client, topic = %publish.topic, "publish refused");
            }
            return match (ack, self.version) {
                (None, _) => Ok(()),
                (Some(kind), Version::V5) => {
                    self.answer(kind, publish.id, reason::NOT_AUTHORIZED);
                    Ok(())
                }
                // 3.1.1 has no way to refuse, and an acknowledgement would be a lie.
                (Some(_), Version::V311) => Err(End::Protocol(ProtocolError::new(
                    reason::NOT_AUTHORIZED,
                    "publish refused",
                ))),
            };
        }
        let mut batch = Batch::default();
        let mut router = self.core.router();
        if publish.qos == Qos::ExactlyOnce {
            match router.received(self.key, publish.id) {
                Some(true) => {
                    drop(router);
                    self.answer(Ack::Pubrec, publish.id, reason::SUCCESS);
                    return Ok(());
                }
                Some(false) => {
                    drop(router);
                    let request = Request::Repeated { id: publish.id };
                    self.parked = self.core.submit_commit(&self.pipeline, request, 0, batch);
                    return Ok(());
                }
                None if router.received_count(self.key) >= RECEIVED_IDS_MAX => {
                    return Err(End::Protocol(ProtocolError::new(
                        reason::QUOTA,
                        "too many QoS 2 publishes without PUBREL",
                    )));
                }
                None => router.receive(self.key, publish.id, &mut batch.ops),
            }
        }
        let message = Arc::new(Message {
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            properties: publish.properties,
            expires: expires(publish.expiry_secs),
        });
        let plan = router.plan(
            Arc::clone(&message),
            self.key,
            Moment::now(),
            &mut batch.ops,
        );
        drop(router);
        if self.core.wants(&message.topic) {
            batch.publish = Some(Publish {
                client: Arc::clone(&self.client),
                message: Arc::clone(&message),
            });
        }
        if ack.is_some() && !batch.is_empty() {
            batch.chain = Some(self.pipeline.chain().clone());
        }
        let request = Request::Publish {
            plan,
            ack: ack.map(|kind| (kind, publish.id)),
        };
        self.submit(request, message.bytes(), batch);
        Ok(())
    }

    fn answer(&mut self, kind: Ack, id: u16, code: u8) {
        self.submit(Request::Ack { kind, id, code }, 0, Batch::default());
    }

    fn acknowledged(&mut self, id: u16, qos: Qos) {
        let mut router = self.core.router();
        router.acknowledge(self.key, id, qos);
        if !router.has_many_stale() {
            return;
        }
        let mut ops = Vec::new();
        router.take_stale(&mut ops);
        drop(router);
        self.parked = self.core.submit_ops(ops);
    }

    fn pubrec(&mut self, id: u16, is_refused: bool) {
        if is_refused {
            self.acknowledged(id, Qos::ExactlyOnce);
            return;
        }
        let mut batch = Batch::default();
        let is_known = self
            .core
            .router()
            .release(self.key, id, Moment::now(), &mut batch.ops);
        let code = if is_known {
            reason::SUCCESS
        } else {
            reason::PACKET_ID_NOT_FOUND
        };
        let request = Request::Ack {
            kind: Ack::Pubrel,
            id,
            code,
        };
        self.submit(request, 0, batch);
    }

    fn pubrel(&mut self, id: u16) -> Result<(), End> {
        let mut batch = Batch::default();
        let mut router = self.core.router();
        if router.received(self.key, id) == Some(false) {
            return Err(End::Protocol(ProtocolError::new(
                reason::PROTOCOL_ERROR,
                "PUBREL before PUBREC",
            )));
        }
        let was_known = router.forget_received(self.key, id, &mut batch.ops);
        drop(router);
        let code = if was_known {
            reason::SUCCESS
        } else {
            reason::PACKET_ID_NOT_FOUND
        };
        let request = Request::Ack {
            kind: Ack::Pubcomp,
            id,
            code,
        };
        self.submit(request, 0, batch);
        Ok(())
    }

    fn subscribe(&mut self, subscribe: Subscribe) {
        let entries: Vec<(SubscribeEntry, Result<SubOptions, u8>)> = subscribe
            .entries
            .into_iter()
            .map(|entry| {
                let options = self.options_of(&entry, subscribe.subscription_id);
                (entry, options)
            })
            .collect();
        let mut batch = Batch::default();
        let answers = self
            .core
            .router()
            .subscribe(self.key, &entries, &mut batch.ops);
        let codes = answers.iter().map(|(code, _)| *code).collect();
        let granted = entries
            .into_iter()
            .zip(answers)
            .filter(|(_, (code, _))| *code < reason::UNSPECIFIED)
            .map(|((entry, _), (_, is_new))| (entry, is_new))
            .collect();
        let request = Request::Suback {
            id: subscribe.id,
            codes,
            granted,
        };
        self.submit(request, 0, batch);
    }

    fn options_of(&self, entry: &SubscribeEntry, id: u32) -> Result<SubOptions, u8> {
        let filter = match topic::split_share(&entry.filter) {
            Some((_, filter)) if topic::is_valid_filter(&entry.filter) => filter,
            _ => return Err(reason::FILTER_INVALID),
        };
        if !self.rights.may_subscribe(filter) {
            self.core.counters.refused();
            return Err(reason::NOT_AUTHORIZED);
        }
        Ok(SubOptions {
            qos: entry.qos,
            no_local: entry.no_local,
            retain_as_published: entry.retain_as_published,
            id,
        })
    }

    fn unsubscribe(&mut self, id: u16, filters: &[String]) {
        let mut batch = Batch::default();
        let existed = self
            .core
            .router()
            .unsubscribe(self.key, filters, &mut batch.ops);
        let codes = existed
            .iter()
            .map(|was| {
                if *was {
                    reason::SUCCESS
                } else {
                    reason::NO_SUBSCRIPTION
                }
            })
            .collect();
        self.submit(Request::Unsuback { id, codes }, 0, batch);
    }
}
