//! Outbound: packets into a buffer.

use bytes::{BufMut, BytesMut};

use super::{Version, reason};
use crate::limits::{Limits, TOPIC_ALIASES_MAX};
use crate::message::{Message, Qos};

/// What CONNACK tells besides its code.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connack<'a> {
    pub(crate) session_present: bool,
    pub(crate) assigned_client: Option<&'a str>,
    /// Session expiry, where it is not what the client asked for.
    pub(crate) expiry_secs: Option<u32>,
}

pub(crate) fn connack(out: &mut BytesMut, version: Version, limits: &Limits, ack: &Connack<'_>) {
    if version == Version::V311 {
        out.put_slice(&[0x20, 2, u8::from(ack.session_present), 0]);
        return;
    }
    let mut properties = BytesMut::new();
    properties.put_u8(0x21);
    properties.put_u16(limits.receive_maximum);
    properties.put_u8(0x27);
    properties.put_u32(limits.packet_bytes_max);
    properties.put_u8(0x22);
    properties.put_u16(TOPIC_ALIASES_MAX);
    if let Some(secs) = ack.expiry_secs {
        properties.put_u8(0x11);
        properties.put_u32(secs);
    }
    if let Some(client) = ack.assigned_client {
        properties.put_u8(0x12);
        put_str(&mut properties, client);
    }
    out.put_u8(0x20);
    put_len(out, 2 + len_of(properties.len()) + properties.len());
    out.put_slice(&[u8::from(ack.session_present), reason::SUCCESS]);
    put_len(out, properties.len());
    out.put_slice(&properties);
}

pub(crate) fn connack_refused(out: &mut BytesMut, version: Version, code: u8) {
    match version {
        Version::V5 => out.put_slice(&[0x20, 3, 0, code, 0]),
        Version::V311 => {
            let code = match code {
                reason::BAD_VERSION => 1,
                reason::BAD_CLIENT_ID => 2,
                reason::BAD_CREDENTIALS => 4,
                reason::NOT_AUTHORIZED => 5,
                _ => 3,
            };
            out.put_slice(&[0x20, 2, 0, code]);
        }
    }
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP by their packet type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    Puback = 0x40,
    Pubrec = 0x50,
    Pubrel = 0x62,
    Pubcomp = 0x70,
}

impl Ack {
    const fn header(self) -> u8 {
        match self {
            Self::Puback => 0x40,
            Self::Pubrec => 0x50,
            Self::Pubrel => 0x62,
            Self::Pubcomp => 0x70,
        }
    }
}

/// The reason is sent to MQTT 5 clients only, and only when it is not success.
pub(crate) fn ack(out: &mut BytesMut, version: Version, kind: Ack, id: u16, code: u8) {
    let [high, low] = id.to_be_bytes();
    if version == Version::V5 && code != reason::SUCCESS {
        out.put_slice(&[kind.header(), 3, high, low, code]);
    } else {
        out.put_slice(&[kind.header(), 2, high, low]);
    }
}

pub(crate) fn suback(out: &mut BytesMut, version: Version, id: u16, codes: &[u8]) {
    let properties = usize::from(version == Version::V5);
    out.put_u8(0x90);
    put_len(out, 2 + properties + codes.len());
    out.put_u16(id);
    if version == Version::V5 {
        out.put_u8(0);
        out.put_slice(codes);
    } else {
        out.extend(codes.iter().map(|c| if *c > 2 { 0x80 } else { *c }));
    }
}

pub(crate) fn unsuback(out: &mut BytesMut, version: Version, id: u16, codes: &[u8]) {
    out.put_u8(0xb0);
    if version == Version::V5 {
        put_len(out, 3 + codes.len());
        out.put_u16(id);
        out.put_u8(0);
        out.put_slice(codes);
    } else {
        put_len(out, 2);
        out.put_u16(id);
    }
}

pub(crate) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// Only MQTT 5 has a DISCONNECT from the server.
pub(crate) fn disconnect(out: &mut BytesMut, version: Version, code: u8) {
    if version == Version::V5 {
        out.put_slice(&[0xe0, 2, code, 0]);
    }
}

/// One delivery of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Publish<'a> {
    pub(crate) message: &'a Message,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) is_dup: bool,
    pub(crate) id: u16,
    pub(crate) subscription_ids: &'a [u32],
    pub(crate) expiry_secs: Option<u32>,
}

impl Publish<'_> {
    fn properties_len(&self) -> usize {
        let expiry = if self.expiry_secs.is_some() { 5 } else { 0 };
        let ids: usize = self
            .subscription_ids
            .iter()
            .map(|id| 1 + len_of(usize::try_from(*id).unwrap_or(0)))
            .sum();
        self.message.properties.len() + expiry + ids
    }

    fn remaining_len(&self, version: Version) -> usize {
        let id = if self.qos == Qos::AtMostOnce { 0 } else { 2 };
        let properties = match version {
            Version::V311 => 0,
            Version::V5 => {
                let len = self.properties_len();
                len_of(len) + len
            }
        };
        2 + self.message.topic.len() + id + properties + self.message.payload.len()
    }

    /// Size of the whole packet.
    pub(crate) fn size(&self, version: Version) -> usize {
        let remaining = self.remaining_len(version);
        1 + len_of(remaining) + remaining
    }
}

pub(crate) fn publish(out: &mut BytesMut, version: Version, publish: &Publish<'_>) {
    let flags = u8::from(publish.is_dup) << 3 | publish.qos.bits() << 1 | u8::from(publish.retain);
    out.reserve(publish.size(version));
    out.put_u8(0x30 | flags);
    put_len(out, publish.remaining_len(version));
    put_str(out, &publish.message.topic);
    if publish.qos != Qos::AtMostOnce {
        out.put_u16(publish.id);
    }
    if version == Version::V5 {
        put_len(out, publish.properties_len());
        out.put_slice(&publish.message.properties);
        if let Some(secs) = publish.expiry_secs {
            out.put_u8(0x02);
            out.put_u32(secs);
        }
        for id in publish.subscription_ids {
            out.put_u8(0x0b);
            put_len(out, usize::try_from(*id).unwrap_or(0));
        }
    }
    out.put_slice(&publish.message.payload);
}

fn put_str(out: &mut BytesMut, text: &str) {
    // Every string that gets here is bounded far below 64 KiB.
    let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.put_u16(len);
    out.put_slice(&text.as_bytes()[..usize::from(len)]);
}

/// Length of a variable byte integer (MQTT 5 §1.5.5).
const fn len_of(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

fn put_len(out: &mut BytesMut, mut value: usize) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            out.put_u8(low);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_told_is_the_size_written() {
        for payload in [0, 100, 127, 16_384, 100_000] {
            let message = Message::new("a/b", vec![1_u8; payload], Qos::AtLeastOnce, false);
            for version in [Version::V311, Version::V5] {
                let packet = Publish {
                    message: &message,
                    qos: Qos::AtLeastOnce,
                    retain: true,
                    is_dup: true,
                    id: 7,
                    subscription_ids: &[1, 300],
                    expiry_secs: Some(9),
                };
                let mut out = BytesMut::new();
                publish(&mut out, version, &packet);
                assert_eq!(out.len(), packet.size(version));
                assert_eq!(out[0], 0x3b);
            }
        }
    }
}
