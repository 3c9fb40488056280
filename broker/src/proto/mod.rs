//! The protocol layer: bytes to packets and back, MQTT 3.1.1 and 5.
//!
//! Nothing outside this module knows the library that parses. Inbound packets are parsed and
//! validated by `mqtt-protocol-core`; its connection state machine is not used, because
//! acknowledgements, packet ids and QoS 2 state must follow our storage and not a socket. Outbound
//! packets are few and flat and are written straight into the connection's buffer.

mod decode;
pub(crate) mod encode;

pub(crate) use decode::Decoder;

use bytes::Bytes;

use crate::message::{Message, Qos};

/// Protocol version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V311,
    V5,
}

/// Reason codes of MQTT 5 (§2.4) that the broker uses.
pub(crate) mod reason {
    pub(crate) const SUCCESS: u8 = 0x00;
    pub(crate) const DISCONNECT_WITH_WILL: u8 = 0x04;
    pub(crate) const NO_SUBSCRIPTION: u8 = 0x11;
    pub(crate) const UNSPECIFIED: u8 = 0x80;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    pub(crate) const BAD_VERSION: u8 = 0x84;
    pub(crate) const BAD_CLIENT_ID: u8 = 0x85;
    pub(crate) const BAD_CREDENTIALS: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const SHUTTING_DOWN: u8 = 0x8b;
    pub(crate) const BAD_AUTH_METHOD: u8 = 0x8c;
    pub(crate) const KEEP_ALIVE: u8 = 0x8d;
    pub(crate) const TAKEN_OVER: u8 = 0x8e;
    pub(crate) const FILTER_INVALID: u8 = 0x8f;
    pub(crate) const TOPIC_INVALID: u8 = 0x90;
    pub(crate) const PACKET_ID_NOT_FOUND: u8 = 0x92;
    pub(crate) const TOPIC_ALIAS: u8 = 0x94;
    pub(crate) const QUOTA: u8 = 0x97;
}

/// Why the peer's bytes were not accepted; the connection ends with this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (reason 0x{reason:02x})")]
pub(crate) struct ProtocolError {
    pub(crate) reason: u8,
    pub(crate) what: &'static str,
}

impl ProtocolError {
    pub(crate) const fn new(reason: u8, what: &'static str) -> Self {
        Self { reason, what }
    }
}

/// A packet from a client.
#[derive(Debug)]
pub(crate) enum Inbound {
    Connect(Box<Connect>),
    Publish(Box<InPublish>),
    Puback {
        id: u16,
    },
    /// `is_refused`: MQTT 5 reason of 0x80 and above, the exchange ends here.
    Pubrec {
        id: u16,
        is_refused: bool,
    },
    Pubrel {
        id: u16,
    },
    Pubcomp {
        id: u16,
    },
    Subscribe(Subscribe),
    Unsubscribe {
        id: u16,
        filters: Vec<String>,
    },
    Pingreq,
    Disconnect {
        reason: u8,
        expiry_secs: Option<u32>,
    },
}

#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) client: String,
    pub(crate) is_clean: bool,
    pub(crate) keep_alive_secs: u16,
    /// How long the session outlives its connection; `u32::MAX` is for ever.
    pub(crate) expiry_secs: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_bytes_max: u32,
    pub(crate) has_auth_method: bool,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
    pub(crate) will: Option<Will>,
}

#[derive(Clone, Debug)]
pub(crate) struct Will {
    pub(crate) message: Message,
    pub(crate) delay_secs: u32,
    pub(crate) expiry_secs: Option<u32>,
    /// Its row in the storage, once it has one.
    pub(crate) row: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct InPublish {
    pub(crate) topic: Box<str>,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// 0 for QoS 0.
    pub(crate) id: u16,
    pub(crate) properties: Bytes,
    pub(crate) expiry_secs: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(crate) id: u16,
    /// 0 is none.
    pub(crate) subscription_id: u32,
    pub(crate) entries: Vec<SubscribeEntry>,
}

#[derive(Clone, Debug)]
pub(crate) struct SubscribeEntry {
    pub(crate) filter: String,
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) retain_handling: RetainHandling,
}

/// When a subscription is answered with retained messages (MQTT 5 §3.8.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetainHandling {
    Always,
    IfNew,
    Never,
}
