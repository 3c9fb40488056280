//! PUBLISH: topic aliases, and the properties that go on to subscribers.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use mqtt_protocol_core::mqtt::connection::{PacketData, RawPacket};
use mqtt_protocol_core::mqtt::packet::{Properties, Property, v3_1_1, v5_0};

use super::{Decoder, MALFORMED, of_library};
use crate::limits::TOPIC_ALIASES_MAX;
use crate::message::Qos;
use crate::proto::{InPublish, Inbound, ProtocolError, Version, reason};
use crate::topic::is_valid_name;

#[derive(Default)]
pub(super) struct Forwarded {
    pub(super) bytes: Bytes,
    pub(super) expiry_secs: Option<u32>,
    pub(super) will_delay_secs: u32,
    topic_alias: Option<u16>,
}

/// What of a message's properties goes on to subscribers unchanged.
pub(super) fn forwarded(properties: &Properties) -> Result<Forwarded, ProtocolError> {
    let mut found = Forwarded::default();
    let mut bytes = BytesMut::new();
    for property in properties {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the library has checked which may occur; all others are forwarded"
        )]
        match property {
            Property::TopicAlias(p) => found.topic_alias = Some(p.val()),
            Property::SubscriptionIdentifier(_) => {
                return Err(ProtocolError::new(
                    reason::PROTOCOL_ERROR,
                    "a client may not send a subscription identifier",
                ));
            }
            Property::MessageExpiryInterval(p) => found.expiry_secs = Some(p.val()),
            Property::WillDelayInterval(p) => found.will_delay_secs = p.val(),
            Property::ResponseTopic(p) if !is_valid_name(p.val()) => {
                return Err(ProtocolError::new(
                    reason::TOPIC_INVALID,
                    "bad response topic",
                ));
            }
            other => bytes.put_slice(&other.to_continuous_buffer()),
        }
    }
    found.bytes = bytes.freeze();
    Ok(found)
}

impl Decoder {
    pub(super) fn publish(
        &mut self,
        version: Version,
        flags: u8,
        raw: RawPacket,
    ) -> Result<Inbound, ProtocolError> {
        let data: Arc<[u8]> = match raw.data {
            PacketData::Publish(data) => data,
            PacketData::Normal(data) => data.into(),
        };
        let (topic, payload, id, forwarded) = match version {
            Version::V311 => {
                let (packet, _) = v3_1_1::Publish::parse(flags, data).map_err(of_library)?;
                let payload = Bytes::copy_from_slice(packet.payload().as_slice());
                (
                    Box::from(packet.topic_name()),
                    payload,
                    packet.packet_id(),
                    Forwarded::default(),
                )
            }
            Version::V5 => {
                let (packet, _) = v5_0::Publish::parse(flags, data).map_err(of_library)?;
                let payload = Bytes::copy_from_slice(packet.payload().as_slice());
                let forwarded = forwarded(packet.props())?;
                (
                    Box::from(packet.topic_name()),
                    payload,
                    packet.packet_id(),
                    forwarded,
                )
            }
        };
        let topic: Box<str> = match forwarded.topic_alias {
            Some(alias) => self.aliased(alias, topic)?,
            None => topic,
        };
        let qos = Qos::from_bits(flags >> 1 & 3).ok_or(MALFORMED)?;
        let is_dup = flags & 8 != 0;
        if (qos == Qos::AtMostOnce && is_dup) || (qos != Qos::AtMostOnce && id == Some(0)) {
            return Err(MALFORMED);
        }
        if !is_valid_name(&topic) {
            return Err(ProtocolError::new(reason::TOPIC_INVALID, "bad topic name"));
        }
        Ok(Inbound::Publish(Box::new(InPublish {
            topic,
            payload,
            qos,
            retain: flags & 1 != 0,
            id: id.unwrap_or(0),
            properties: forwarded.bytes,
            expiry_secs: forwarded.expiry_secs,
        })))
    }

    /// The topic that an alias stands for; a topic beside it is what it stands for from now on.
    fn aliased(&mut self, alias: u16, topic: Box<str>) -> Result<Box<str>, ProtocolError> {
        const UNKNOWN: ProtocolError = ProtocolError::new(reason::TOPIC_ALIAS, "bad topic alias");
        if alias == 0 || alias > TOPIC_ALIASES_MAX {
            return Err(UNKNOWN);
        }
        let index = usize::from(alias - 1);
        if topic.is_empty() {
            let known = self.aliases.get(index).filter(|known| !known.is_empty());
            return known.cloned().ok_or(UNKNOWN);
        }
        if !is_valid_name(&topic) {
            return Err(ProtocolError::new(reason::TOPIC_INVALID, "bad topic name"));
        }
        if self.aliases.len() <= index {
            self.aliases.resize(index + 1, Box::default());
        }
        self.aliases[index].clone_from(&topic);
        Ok(topic)
    }
}
