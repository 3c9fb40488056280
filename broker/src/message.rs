//! The application message as the broker carries it.

use std::time::Instant;

use bytes::Bytes;

/// Quality of service of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// At most once.
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl Qos {
    /// The two bits of the protocol; `None` for 3.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }

    /// The two bits of the protocol.
    pub const fn bits(self) -> u8 {
        match self {
            Self::AtMostOnce => 0,
            Self::AtLeastOnce => 1,
            Self::ExactlyOnce => 2,
        }
    }
}

/// An application message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic name, validated: no wildcards, bounded levels.
    pub topic: Box<str>,
    /// Payload as the publisher sent it.
    pub payload: Bytes,
    /// QoS of the publish.
    pub qos: Qos,
    /// Retain flag of the publish.
    pub retain: bool,
    /// MQTT 5 properties that are forwarded unchanged, encoded.
    pub(crate) properties: Bytes,
    /// When the message stops being worth delivering (MQTT 5 Message Expiry Interval).
    pub(crate) expires: Option<Instant>,
}

impl Message {
    /// A message without MQTT 5 properties.
    pub fn new(
        topic: impl Into<Box<str>>,
        payload: impl Into<Bytes>,
        qos: Qos,
        retain: bool,
    ) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain,
            properties: Bytes::new(),
            expires: None,
        }
    }

    /// What the message counts for in a queue's byte bound.
    pub(crate) fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len() + 64
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}
