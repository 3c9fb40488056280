//! The blobs the storage keeps: sessions, queued and retained messages. Each starts with a format
//! number; an unknown or torn blob decodes to `None` and is left out, with one warning.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};

use crate::message::{Message, Qos};
use crate::trie::SubOptions;

const FORMAT: u8 = 1;

/// A persistent session as kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    pub(crate) expiry_secs: u32,
    pub(crate) subscriptions: Vec<(Box<str>, SubOptions)>,
}

/// A queued message as kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueRecord {
    pub(crate) packet_id: u16,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: Vec<u32>,
    /// `None` after PUBREC: only the packet id is still needed.
    pub(crate) message: Option<Message>,
}

pub(crate) fn encode_session<'a>(
    expiry_secs: u32,
    subscriptions: impl ExactSizeIterator<Item = (&'a str, &'a SubOptions)>,
) -> Vec<u8> {
    let mut out = vec![FORMAT];
    out.put_u32(expiry_secs);
    put_count(&mut out, subscriptions.len());
    for (filter, options) in subscriptions {
        put_bytes(&mut out, filter.as_bytes());
        out.put_u8(
            options.qos.bits()
                | u8::from(options.no_local) << 2
                | u8::from(options.retain_as_published) << 3,
        );
        out.put_u32(options.id);
    }
    out
}

pub(crate) fn decode_session(bytes: &[u8]) -> Option<SessionRecord> {
    let mut input = Reader::new(bytes)?;
    let expiry_secs = input.u32()?;
    let count = input.u32()?;
    let mut subscriptions = Vec::new();
    for _ in 0..count {
        let filter = input.text()?.into();
        let flags = input.u8()?;
        let options = SubOptions {
            qos: Qos::from_bits(flags & 3)?,
            no_local: flags & 4 != 0,
            retain_as_published: flags & 8 != 0,
            id: input.u32()?,
        };
        subscriptions.push((filter, options));
    }
    Some(SessionRecord {
        expiry_secs,
        subscriptions,
    })
}

pub(crate) fn encode_queued(
    packet_id: u16,
    qos: Qos,
    retain: bool,
    subscription_ids: &[u32],
    message: Option<&Message>,
    now: Instant,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.map_or(16, |m| m.bytes() + 16));
    out.put_u8(FORMAT);
    out.put_u16(packet_id);
    out.put_u8(qos.bits() | u8::from(retain) << 2 | u8::from(message.is_some()) << 3);
    put_count(&mut out, subscription_ids.len());
    for id in subscription_ids {
        out.put_u32(*id);
    }
    if let Some(message) = message {
        put_message(&mut out, message, now);
    }
    out
}

pub(crate) fn decode_queued(bytes: &[u8], now: Instant) -> Option<QueueRecord> {
    let mut input = Reader::new(bytes)?;
    let packet_id = input.u16()?;
    let flags = input.u8()?;
    let count = input.u32()?;
    let mut subscription_ids = Vec::new();
    for _ in 0..count {
        subscription_ids.push(input.u32()?);
    }
    let message = if flags & 8 == 0 {
        None
    } else {
        Some(input.message(now)?)
    };
    Some(QueueRecord {
        packet_id,
        qos: Qos::from_bits(flags & 3)?,
        retain: flags & 4 != 0,
        subscription_ids,
        message,
    })
}

pub(crate) fn encode_message(message: &Message, now: Instant) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.bytes());
    out.put_u8(FORMAT);
    put_message(&mut out, message, now);
    out
}

pub(crate) fn decode_message(bytes: &[u8], now: Instant) -> Option<Message> {
    Reader::new(bytes)?.message(now)
}

fn put_message(out: &mut Vec<u8>, message: &Message, now: Instant) {
    out.put_u8(message.qos.bits() | u8::from(message.retain) << 2);
    // Whole seconds left, from now: the node's clock may jump while it is off.
    let left = message.expires.map(|at| {
        u32::try_from(at.saturating_duration_since(now).as_secs()).unwrap_or(u32::MAX - 1)
    });
    out.put_u32(left.unwrap_or(u32::MAX));
    put_bytes(out, message.topic.as_bytes());
    put_bytes(out, &message.properties);
    put_bytes(out, &message.payload);
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let (format, rest) = bytes.split_first()?;
        (*format == FORMAT).then_some(Self(rest))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.take(len)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn message(&mut self, now: Instant) -> Option<Message> {
        let flags = self.u8()?;
        let left = self.u32()?;
        let topic = self.text()?.into();
        let properties = Bytes::copy_from_slice(self.bytes()?);
        let payload = Bytes::copy_from_slice(self.bytes()?);
        Some(Message {
            topic,
            payload,
            qos: Qos::from_bits(flags & 3)?,
            retain: flags & 4 != 0,
            properties,
            expires: (left != u32::MAX).then(|| now + Duration::from_secs(u64::from(left))),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let now = Instant::now();
        let mut message = Message::new("a/b", &b"payload"[..], Qos::ExactlyOnce, true);
        message.expires = Some(now + Duration::from_secs(60));
        let bytes = encode_queued(7, Qos::AtLeastOnce, true, &[3, 4], Some(&message), now);
        let read = decode_queued(&bytes, now).unwrap();
        assert_eq!(read.message.as_ref(), Some(&message));
        assert_eq!(
            (read.packet_id, read.qos, read.retain),
            (7, Qos::AtLeastOnce, true)
        );
        assert_eq!(read.subscription_ids, [3, 4]);
        assert_eq!(
            decode_message(&encode_message(&message, now), now),
            Some(message)
        );

        let options = SubOptions {
            qos: Qos::AtLeastOnce,
            no_local: true,
            retain_as_published: false,
            id: 9,
        };
        let bytes = encode_session(5, [("a/#", &options)].into_iter());
        let read = decode_session(&bytes).unwrap();
        assert_eq!(read.expiry_secs, 5);
        assert_eq!(read.subscriptions, [("a/#".into(), options)]);
    }

    proptest! {
        #[test]
        fn torn_blobs_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            let now = Instant::now();
            let _ = (decode_session(&bytes), decode_queued(&bytes, now), decode_message(&bytes, now));
        }
    }
}
