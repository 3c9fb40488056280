//! Inbound: bytes to [`Inbound`].

use bytes::Bytes;
use mqtt_protocol_core::mqtt::common::Cursor;
use mqtt_protocol_core::mqtt::connection::{PacketBuildResult, PacketBuilder, RawPacket};
use mqtt_protocol_core::mqtt::packet::{
    Properties, Property, Qos as LibQos, RetainHandling as LibRetain, SubEntry, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::MqttError;

use super::{
    Connect, Inbound, ProtocolError, RetainHandling, Subscribe, SubscribeEntry, Version, Will,
    reason,
};
use crate::limits::{CLIENT_ID_BYTES_MAX, CONNECT_BYTES_MAX};
use crate::message::{Message, Qos};
use crate::topic::is_valid_name;

mod publish;

use publish::forwarded;

const MALFORMED: ProtocolError = ProtocolError::new(reason::MALFORMED, "malformed packet");

/// Splits a stream into packets. The first must be CONNECT; it fixes the version.
pub(crate) struct Decoder {
    builder: PacketBuilder,
    /// Bound of the packets after CONNECT.
    packet_bytes_max: u32,
    version: Option<Version>,
    /// Topics by alias, from 1 (MQTT 5 §3.3.2.3.4).
    aliases: Vec<Box<str>>,
}

impl Decoder {
    pub(crate) fn new(packet_bytes_max: u32) -> Self {
        Self {
            builder: PacketBuilder::with_maximum_packet_size(
                packet_bytes_max.min(CONNECT_BYTES_MAX),
            ),
            packet_bytes_max,
            version: None,
            aliases: Vec::new(),
        }
    }

    /// The version of the connection, once known. After an error in CONNECT it is the best guess.
    pub(crate) fn version(&self) -> Option<Version> {
        self.version
    }

    /// Takes bytes from the front of `input`; a packet when one is complete. Call again until
    /// `input` is empty.
    pub(crate) fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Inbound>, ProtocolError> {
        let mut cursor = Cursor::new(*input);
        let built = self.builder.feed(&mut cursor);
        let taken = usize::try_from(cursor.position()).unwrap_or(input.len());
        *input = input.get(taken..).unwrap_or_default();
        match built {
            PacketBuildResult::Incomplete => Ok(None),
            PacketBuildResult::Error(error) => Err(of_library(error)),
            PacketBuildResult::Complete(raw) => self.parse(raw).map(Some),
        }
    }

    fn parse(&mut self, raw: RawPacket) -> Result<Inbound, ProtocolError> {
        let (kind, flags) = (raw.packet_type(), raw.flags());
        let expected_flags = match kind {
            3 => flags,
            6 | 8 | 10 => 2,
            _ => 0,
        };
        if flags != expected_flags {
            return Err(ProtocolError::new(
                reason::MALFORMED,
                "bad fixed header flags",
            ));
        }
        match (self.version, kind) {
            (None, 1) => self.connect(&raw),
            (None, _) => Err(ProtocolError::new(
                reason::PROTOCOL_ERROR,
                "CONNECT expected",
            )),
            (Some(_), 1) => Err(ProtocolError::new(reason::PROTOCOL_ERROR, "second CONNECT")),
            (Some(version), 3) => self.publish(version, flags, raw),
            (Some(Version::V311), kind) => parse_v311(kind, &raw),
            (Some(Version::V5), kind) => parse_v5(kind, &raw),
        }
    }

    fn connect(&mut self, raw: &RawPacket) -> Result<Inbound, ProtocolError> {
        let data = raw.data_as_slice();
        let version = match data {
            [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => Version::V311,
            [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => Version::V5,
            [0, 4, b'M', b'Q', b'T', b'T', level, ..] => {
                self.version = Some(if *level > 5 {
                    Version::V5
                } else {
                    Version::V311
                });
                return Err(ProtocolError::new(
                    reason::BAD_VERSION,
                    "unknown protocol level",
                ));
            }
            [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => {
                self.version = Some(Version::V311);
                return Err(ProtocolError::new(
                    reason::BAD_VERSION,
                    "MQTT 3.1 is not spoken",
                ));
            }
            _ => return Err(ProtocolError::new(reason::PROTOCOL_ERROR, "not MQTT")),
        };
        self.version = Some(version);
        self.builder.set_maximum_packet_size(self.packet_bytes_max);
        let flags = *data.get(7).ok_or(MALFORMED)?;
        let has_will = flags & 0x04 != 0;
        let will_qos = Qos::from_bits(flags >> 3 & 3).ok_or(MALFORMED)?;
        let will_retain = flags & 0x20 != 0;
        if flags & 1 != 0 || (!has_will && (will_qos != Qos::AtMostOnce || will_retain)) {
            return Err(ProtocolError::new(reason::MALFORMED, "bad connect flags"));
        }
        let connect = match version {
            Version::V311 => connect_v311(raw, will_qos, will_retain)?,
            Version::V5 => connect_v5(raw, will_qos, will_retain)?,
        };
        if connect.client.len() > CLIENT_ID_BYTES_MAX || connect.client.contains('\0') {
            return Err(ProtocolError::new(
                reason::BAD_CLIENT_ID,
                "bad client identifier",
            ));
        }
        if connect.client.is_empty() && version == Version::V311 && !connect.is_clean {
            return Err(ProtocolError::new(
                reason::BAD_CLIENT_ID,
                "a session needs a client identifier",
            ));
        }
        Ok(Inbound::Connect(Box::new(connect)))
    }
}

fn of_library(error: MqttError) -> ProtocolError {
    let code = u8::try_from(error as u16).unwrap_or(reason::MALFORMED);
    ProtocolError::new(code.max(reason::UNSPECIFIED), "packet not accepted")
}

fn connect_v311(raw: &RawPacket, qos: Qos, retain: bool) -> Result<Connect, ProtocolError> {
    let packet = raw
        .parse_exact(v3_1_1::Connect::parse)
        .map_err(of_library)?;
    let will = match (packet.will_topic(), packet.will_payload()) {
        (Some(topic), Some(payload)) => {
            Some(will(topic, payload, qos, retain, &Properties::new())?)
        }
        _ => None,
    };
    Ok(Connect {
        version: Version::V311,
        client: packet.client_id().to_owned(),
        is_clean: packet.clean_session(),
        keep_alive_secs: packet.keep_alive(),
        expiry_secs: if packet.clean_session() { 0 } else { u32::MAX },
        receive_maximum: u16::MAX,
        packet_bytes_max: u32::MAX,
        has_auth_method: false,
        username: packet.user_name().map(str::to_owned),
        password: packet.password().map(<[u8]>::to_vec),
        will,
    })
}

fn connect_v5(raw: &RawPacket, qos: Qos, retain: bool) -> Result<Connect, ProtocolError> {
    let packet = raw.parse_exact(v5_0::Connect::parse).map_err(of_library)?;
    let will = match (packet.will_topic(), packet.will_payload()) {
        (Some(topic), Some(payload)) => {
            Some(will(topic, payload, qos, retain, packet.will_props())?)
        }
        _ => None,
    };
    let mut connect = Connect {
        version: Version::V5,
        client: packet.client_id().to_owned(),
        is_clean: packet.clean_start(),
        keep_alive_secs: packet.keep_alive(),
        expiry_secs: 0,
        receive_maximum: u16::MAX,
        packet_bytes_max: u32::MAX,
        has_auth_method: false,
        username: packet.user_name().map(str::to_owned),
        password: packet.password().map(<[u8]>::to_vec),
        will,
    };
    for property in packet.props() {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the library has checked which may occur; the rest say nothing to a broker"
        )]
        match property {
            Property::SessionExpiryInterval(p) => connect.expiry_secs = p.val(),
            Property::ReceiveMaximum(p) => connect.receive_maximum = p.val(),
            Property::MaximumPacketSize(p) => connect.packet_bytes_max = p.val(),
            Property::AuthenticationMethod(_) => connect.has_auth_method = true,
            _ => {}
        }
    }
    if connect.receive_maximum == 0 || connect.packet_bytes_max == 0 {
        return Err(ProtocolError::new(
            reason::PROTOCOL_ERROR,
            "a limit of zero",
        ));
    }
    Ok(connect)
}

fn will(
    topic: &str,
    payload: &[u8],
    qos: Qos,
    retain: bool,
    properties: &Properties,
) -> Result<Will, ProtocolError> {
    if !is_valid_name(topic) {
        return Err(ProtocolError::new(reason::TOPIC_INVALID, "bad will topic"));
    }
    let mut message = Message::new(topic, Bytes::copy_from_slice(payload), qos, retain);
    let forwarded = forwarded(properties)?;
    message.properties = forwarded.bytes;
    Ok(Will {
        message,
        delay_secs: forwarded.will_delay_secs,
        expiry_secs: forwarded.expiry_secs,
        row: None,
    })
}

fn parse_v311(kind: u8, raw: &RawPacket) -> Result<Inbound, ProtocolError> {
    let data = raw.data_as_slice();
    match kind {
        4 => Ok(Inbound::Puback {
            id: plain_id(data)?,
        }),
        5 => Ok(Inbound::Pubrec {
            id: plain_id(data)?,
            is_refused: false,
        }),
        6 => Ok(Inbound::Pubrel {
            id: plain_id(data)?,
        }),
        7 => Ok(Inbound::Pubcomp {
            id: plain_id(data)?,
        }),
        8 => {
            let packet = raw
                .parse_exact(v3_1_1::Subscribe::parse)
                .map_err(of_library)?;
            subscribe(packet.packet_id(), 0, packet.entries())
        }
        10 => {
            let packet = raw
                .parse_exact(v3_1_1::Unsubscribe::parse)
                .map_err(of_library)?;
            let filters = packet.entries().iter().map(|e| e.as_str().to_owned());
            Ok(Inbound::Unsubscribe {
                id: non_zero(packet.packet_id())?,
                filters: filters.collect(),
            })
        }
        12 if data.is_empty() => Ok(Inbound::Pingreq),
        14 if data.is_empty() => Ok(Inbound::Disconnect {
            reason: reason::SUCCESS,
            expiry_secs: None,
        }),
        _ => Err(ProtocolError::new(
            reason::PROTOCOL_ERROR,
            "unexpected packet type",
        )),
    }
}

fn parse_v5(kind: u8, raw: &RawPacket) -> Result<Inbound, ProtocolError> {
    let data = raw.data_as_slice();
    match kind {
        4 => {
            let packet = raw.parse_exact(v5_0::Puback::parse).map_err(of_library)?;
            Ok(Inbound::Puback {
                id: packet.packet_id(),
            })
        }
        5 => {
            let packet = raw.parse_exact(v5_0::Pubrec::parse).map_err(of_library)?;
            Ok(Inbound::Pubrec {
                id: packet.packet_id(),
                is_refused: packet.reason_code().is_some_and(|c| c.is_failure()),
            })
        }
        6 => {
            let packet = raw.parse_exact(v5_0::Pubrel::parse).map_err(of_library)?;
            Ok(Inbound::Pubrel {
                id: packet.packet_id(),
            })
        }
        7 => {
            let packet = raw.parse_exact(v5_0::Pubcomp::parse).map_err(of_library)?;
            Ok(Inbound::Pubcomp {
                id: packet.packet_id(),
            })
        }
        8 => {
            let packet = raw
                .parse_exact(v5_0::Subscribe::parse)
                .map_err(of_library)?;
            let mut subscription_id = 0;
            for property in packet.props() {
                if let Property::SubscriptionIdentifier(p) = property {
                    subscription_id = p.val();
                    if subscription_id == 0 {
                        return Err(ProtocolError::new(
                            reason::PROTOCOL_ERROR,
                            "subscription identifier of zero",
                        ));
                    }
                }
            }
            subscribe(packet.packet_id(), subscription_id, packet.entries())
        }
        10 => {
            let packet = raw
                .parse_exact(v5_0::Unsubscribe::parse)
                .map_err(of_library)?;
            let filters = packet.entries().iter().map(|e| e.as_str().to_owned());
            Ok(Inbound::Unsubscribe {
                id: non_zero(packet.packet_id())?,
                filters: filters.collect(),
            })
        }
        12 if data.is_empty() => Ok(Inbound::Pingreq),
        14 => {
            let packet = raw
                .parse_exact(v5_0::Disconnect::parse)
                .map_err(of_library)?;
            let mut expiry_secs = None;
            for property in packet.props().iter().flatten() {
                if let Property::SessionExpiryInterval(p) = property {
                    expiry_secs = Some(p.val());
                }
            }
            Ok(Inbound::Disconnect {
                reason: data.first().copied().unwrap_or(reason::SUCCESS),
                expiry_secs,
            })
        }
        15 => Err(ProtocolError::new(
            reason::BAD_AUTH_METHOD,
            "extended authentication is not offered",
        )),
        _ => Err(ProtocolError::new(
            reason::PROTOCOL_ERROR,
            "unexpected packet type",
        )),
    }
}

fn plain_id(data: &[u8]) -> Result<u16, ProtocolError> {
    match data {
        [high, low] => non_zero(u16::from_be_bytes([*high, *low])),
        _ => Err(MALFORMED),
    }
}

fn non_zero(id: u16) -> Result<u16, ProtocolError> {
    if id == 0 { Err(MALFORMED) } else { Ok(id) }
}

fn subscribe(
    id: u16,
    subscription_id: u32,
    entries: &[SubEntry],
) -> Result<Inbound, ProtocolError> {
    let entries = entries
        .iter()
        .map(|entry| {
            let options = entry.sub_opts();
            SubscribeEntry {
                filter: entry.topic_filter().to_owned(),
                qos: match options.qos() {
                    LibQos::AtMostOnce => Qos::AtMostOnce,
                    LibQos::AtLeastOnce => Qos::AtLeastOnce,
                    LibQos::ExactlyOnce => Qos::ExactlyOnce,
                },
                no_local: options.nl(),
                retain_as_published: options.rap(),
                retain_handling: match options.rh() {
                    LibRetain::SendRetained => RetainHandling::Always,
                    LibRetain::SendRetainedIfNotExists => RetainHandling::IfNew,
                    LibRetain::DoNotSendRetained => RetainHandling::Never,
                },
            }
        })
        .collect();
    Ok(Inbound::Subscribe(Subscribe {
        id: non_zero(id)?,
        subscription_id,
        entries,
    }))
}

#[cfg(test)]
mod tests;
