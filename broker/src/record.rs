//! The blobs the storage keeps: sessions, wills, queued and retained messages. Each starts with a
//! format number; an unknown or torn blob decodes to `None` and is left out, with one warning.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes};

use crate::message::{Message, Qos};
use crate::proto::Will;
use crate::trie::SubOptions;

/// What is written. In 2 a session had neither revision nor end, in 1 a message no time of writing.
/// It only rises: it is the first byte by which states of a session are compared.
const FORMAT: u8 = 3;
const FORMAT_WITHOUT_ENDS: u8 = 2;
const FORMAT_WITHOUT_TIMES: u8 = 1;
/// Times before this are of a clock that was not set yet: nothing is counted by them.
const CLOCK_SET_MS: u64 = 1_577_836_800_000;

/// A moment by both clocks: the one that runs evenly, and the one that outlives the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    /// Unix milliseconds.
    pub(crate) wall_ms: u64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            at: Instant::now(),
            wall_ms: wall.map_or(0, |wall| u64::try_from(wall.as_millis()).unwrap_or(0)),
        }
    }

    /// What the wall clock will show at a moment; 0 when it is not set.
    pub(crate) fn wall_ms_of(self, at: Instant) -> u64 {
        if self.wall_ms < CLOCK_SET_MS {
            return 0;
        }
        let ahead = at.saturating_duration_since(self.at).as_millis();
        self.wall_ms
            .saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }

    /// Whole seconds since something was written; 0 where the clocks do not tell.
    fn seconds_since(self, written_ms: u64) -> u64 {
        if written_ms < CLOCK_SET_MS {
            return 0;
        }
        self.wall_ms.saturating_sub(written_ms) / 1000
    }
}

/// A persistent session as kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    /// Rises with everything that is written of sessions.
    pub(crate) revision: u64,
    pub(crate) expiry_secs: u32,
    /// When it ends unless its client comes back, in Unix milliseconds; 0 while the client is
    /// connected, and when the clock was not set as it left.
    pub(crate) ends_ms: u64,
    pub(crate) subscriptions: Vec<(Box<str>, SubOptions)>,
}

impl SessionRecord {
    /// How long the session lives on after a start, `within` being the time in which its client may
    /// come back whatever the clock says.
    ///
    /// Never longer than the client asked for, and all of that when the clocks do not tell: a node
    /// without a battery behind its clock starts in the past.
    pub(crate) fn life_left(&self, now: Moment, within: Duration) -> Duration {
        let whole = Duration::from_secs(u64::from(self.expiry_secs));
        if self.ends_ms == 0 || now.wall_ms < CLOCK_SET_MS {
            return whole;
        }
        let left = Duration::from_millis(self.ends_ms.saturating_sub(now.wall_ms));
        left.max(within).min(whole)
    }
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

/// How every state of a session begins: states compare as bytes like their revisions.
pub(crate) fn session_start(revision: u64) -> Vec<u8> {
    let mut out = vec![FORMAT];
    out.put_u64(revision);
    out
}

pub(crate) fn encode_session<'a>(
    revision: u64,
    expiry_secs: u32,
    ends_ms: u64,
    subscriptions: impl ExactSizeIterator<Item = (&'a str, &'a SubOptions)>,
) -> Vec<u8> {
    let mut out = session_start(revision);
    out.put_u32(expiry_secs);
    out.put_u64(ends_ms);
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
    let has_end = input.format > FORMAT_WITHOUT_ENDS;
    let revision = if has_end { input.u64()? } else { 0 };
    let expiry_secs = input.u32()?;
    let ends_ms = if has_end { input.u64()? } else { 0 };
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
        revision,
        expiry_secs,
        ends_ms,
        subscriptions,
    })
}

pub(crate) fn encode_queued(
    packet_id: u16,
    qos: Qos,
    retain: bool,
    subscription_ids: &[u32],
    message: Option<&Message>,
    now: Moment,
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

pub(crate) fn decode_queued(bytes: &[u8], now: Moment) -> Option<QueueRecord> {
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

pub(crate) fn encode_message(message: &Message, now: Moment) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.bytes());
    out.put_u8(FORMAT);
    put_message(&mut out, message, now);
    out
}

pub(crate) fn decode_message(bytes: &[u8], now: Moment) -> Option<Message> {
    Reader::new(bytes)?.message(now)
}

/// A will as kept until it is published or void.
pub(crate) fn encode_will(will: &Will, now: Moment) -> Vec<u8> {
    let mut out = vec![FORMAT];
    out.put_u32(will.delay_secs);
    out.put_u32(will.expiry_secs.unwrap_or(u32::MAX));
    put_message(&mut out, &will.message, now);
    out
}

/// The will of row `row`.
pub(crate) fn decode_will(row: u64, bytes: &[u8], now: Moment) -> Option<Will> {
    let mut input = Reader::new(bytes)?;
    let delay_secs = input.u32()?;
    let expiry_secs = Some(input.u32()?).filter(|secs| *secs != u32::MAX);
    Some(Will {
        message: input.message(now)?,
        delay_secs,
        expiry_secs,
        row: Some(row),
    })
}

fn put_message(out: &mut Vec<u8>, message: &Message, now: Moment) {
    out.put_u8(message.qos.bits() | u8::from(message.retain) << 2);
    // Whole seconds left, and from when: a clock that turns out to have jumped counts for nothing.
    let left = message.expires.map(|at| {
        u32::try_from(at.saturating_duration_since(now.at).as_secs()).unwrap_or(u32::MAX - 1)
    });
    out.put_u32(left.unwrap_or(u32::MAX));
    if left.is_some() {
        out.put_u64(now.wall_ms);
    }
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

struct Reader<'a> {
    rest: &'a [u8],
    format: u8,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let (&format, rest) = bytes.split_first()?;
        matches!(format, FORMAT | FORMAT_WITHOUT_ENDS | FORMAT_WITHOUT_TIMES)
            .then_some(Self { rest, format })
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
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

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.take(len)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn message(&mut self, now: Moment) -> Option<Message> {
        let flags = self.u8()?;
        let left = Some(self.u32()?).filter(|left| *left != u32::MAX);
        let passed = match left {
            Some(_) if self.format != FORMAT_WITHOUT_TIMES => now.seconds_since(self.u64()?),
            Some(_) | None => 0,
        };
        let expires = left.map(|left| {
            let left = u64::from(left).saturating_sub(passed);
            now.at + Duration::from_secs(left)
        });
        let topic = self.text()?.into();
        let properties = Bytes::copy_from_slice(self.bytes()?);
        let payload = Bytes::copy_from_slice(self.bytes()?);
        Some(Message {
            topic,
            payload,
            qos: Qos::from_bits(flags & 3)?,
            retain: flags & 4 != 0,
            properties,
            expires,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::Limits;
    use crate::router::Router;

    #[test]
    fn what_is_written_is_read_back() {
        let now = Moment::now();
        let mut message = Message::new("a/b", &b"payload"[..], Qos::ExactlyOnce, true);
        message.expires = Some(now.at + Duration::from_secs(60));
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
        let bytes = encode_session(8, 5, 6, [("a/#", &options)].into_iter());
        let read = decode_session(&bytes).unwrap();
        assert_eq!((read.revision, read.expiry_secs, read.ends_ms), (8, 5, 6));
        assert_eq!(read.subscriptions, [("a/#".into(), options)]);
        // As it was written before there were ends.
        let mut old = bytes.clone();
        old[0] = FORMAT_WITHOUT_ENDS;
        old.drain(13..21);
        old.drain(1..9);
        let old = decode_session(&old).unwrap();
        assert_eq!((old.revision, old.expiry_secs, old.ends_ms), (0, 5, 0));
        assert_eq!(old.subscriptions, read.subscriptions);
    }

    #[test]
    fn what_is_left_of_a_session_counts_from_its_end() {
        const WEEK_SECS: u64 = 7 * 86_400;
        let left_ms = CLOCK_SET_MS + 500_000_000_000;
        let ends_ms = left_ms + WEEK_SECS * 1000;
        let day = 86_400_000;
        for (name, ends_ms, wall_ms, expected_secs) in [
            ("six of seven days ago", ends_ms, left_ms + 6 * day, 86_400),
            ("at once", ends_ms, left_ms, WEEK_SECS),
            ("a week and a day ago", ends_ms, left_ms + 8 * day, 10),
            ("just before the end", ends_ms, ends_ms - 3_000, 10),
            ("the clock is behind", ends_ms, left_ms - day, WEEK_SECS),
            ("the clock is not set", ends_ms, 7_000, WEEK_SECS),
            ("it was not set then", 0, left_ms, WEEK_SECS),
        ] {
            let now = Moment {
                at: Instant::now(),
                wall_ms,
            };
            let record = SessionRecord {
                revision: 1,
                expiry_secs: u32::try_from(WEEK_SECS).unwrap(),
                ends_ms,
                subscriptions: Vec::new(),
            };
            let left = record.life_left(now, Duration::from_secs(10));
            assert_eq!(left, Duration::from_secs(expected_secs), "{name}");
            let short = SessionRecord {
                expiry_secs: 4,
                ..record
            };
            assert!(short.life_left(now, Duration::from_secs(10)) <= Duration::from_secs(4));
        }
    }

    #[test]
    fn what_is_left_of_a_message_counts_from_its_publication() {
        let written = Moment {
            at: Instant::now(),
            wall_ms: CLOCK_SET_MS + 1_000,
        };
        let mut message = Message::new("a", &b"v"[..], Qos::AtLeastOnce, false);
        message.expires = Some(written.at + Duration::from_secs(60));
        let bytes = encode_message(&message, written);
        let after = |wall_ms| {
            let now = Moment { wall_ms, ..written };
            let expires = decode_message(&bytes, now).unwrap().expires.unwrap();
            expires.saturating_duration_since(now.at).as_secs()
        };
        for (name, wall_ms, left) in [
            ("at once", CLOCK_SET_MS + 1_000, 60),
            ("later", CLOCK_SET_MS + 11_000, 50),
            ("too late", CLOCK_SET_MS + 1_000_000, 0),
            ("a clock that was set back", 5, 60),
        ] {
            assert_eq!(after(wall_ms), left, "{name}");
        }
        let unset = Moment {
            wall_ms: 7,
            ..written
        };
        let bytes = encode_message(&message, unset);
        assert_eq!(
            decode_message(&bytes, written).unwrap().expires,
            message.expires
        );
        // As it was written before there were times.
        let mut old = encode_message(&message, written);
        old[0] = FORMAT_WITHOUT_TIMES;
        old.drain(6..14);
        assert_eq!(decode_message(&old, written), Some(message));
    }

    #[test]
    fn a_will_is_read_back() {
        let now = Moment::now();
        for expiry_secs in [None, Some(9)] {
            let message = Message::new("a", &b"gone"[..], Qos::ExactlyOnce, true);
            let will = Will {
                message,
                delay_secs: 7,
                expiry_secs,
                row: None,
            };
            let read = decode_will(3, &encode_will(&will, now), now).unwrap();
            assert_eq!(
                (read.delay_secs, read.expiry_secs, read.row),
                (7, expiry_secs, Some(3))
            );
            assert_eq!(read.message, will.message);
        }
    }

    /// Two rows of each kind, the first of each for `a`.
    fn rows(now: Moment) -> crate::storage::Loaded {
        let options = SubOptions {
            qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: true,
            id: 3,
        };
        let mut message = Message::new("t/x", &b"reading"[..], Qos::AtLeastOnce, true);
        message.expires = Some(now.at + Duration::from_secs(60));
        let will = Will {
            message: message.clone(),
            delay_secs: 7,
            expiry_secs: None,
            row: None,
        };
        let subscriptions = [("t/#", &options)];
        let session = encode_session(5, 1000, 0, subscriptions.into_iter());
        let queued = encode_queued(7, Qos::AtLeastOnce, true, &[3], Some(&message), now);
        let both = ["a", "b"].map(ToOwned::to_owned);
        let numbered = || both.clone().into_iter().zip(1..);
        crate::storage::Loaded {
            sessions: both.clone().map(|client| (client, session.clone())).into(),
            queue: numbered().map(|(c, id)| (id, c, queued.clone())).collect(),
            retained: both
                .clone()
                .map(|t| (t, encode_message(&message, now)))
                .into(),
            received: Vec::new(),
            wills: numbered()
                .map(|(c, id)| (id, c, encode_will(&will, now)))
                .collect(),
        }
    }

    proptest! {
        /// A row that was torn, or in which a bit turned, costs itself and what hangs on it.
        #[test]
        fn a_damaged_row_leaves_the_others_as_they_were(
            kind in 0_usize..4,
            at: prop::sample::Index,
            bit in prop::option::of(0_u8..8),
        ) {
            let now = Moment::now();
            let mut loaded = rows(now);
            let blob = match kind {
                0 => &mut loaded.sessions[0].1,
                1 => &mut loaded.queue[0].2,
                2 => &mut loaded.retained[0].1,
                _ => &mut loaded.wills[0].2,
            };
            let at = at.index(blob.len());
            match bit {
                Some(bit) => blob[at] ^= 1 << bit,
                None => blob.truncate(at),
            }
            let mut router = Router::new(Limits::default(), std::sync::Arc::default());
            let unreadable = router.load(loaded, now);
            prop_assert!(bit.is_some() || unreadable > 0, "a torn row was taken for a whole one");
            prop_assert!(unreadable <= 2);
            let held = router.held();
            prop_assert!(held.sessions >= 1 && held.subscriptions >= 1);
            prop_assert!(held.retained >= 1 && held.queued >= 1);
            let mut ops = Vec::new();
            let due = router.fire_timers(now.at + Duration::from_secs(900), &mut ops);
            prop_assert!(due.iter().any(|due| &*due.client == "b"));
        }

        #[test]
        fn torn_blobs_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            let now = Moment::now();
            let _ = (decode_session(&bytes), decode_queued(&bytes, now), decode_message(&bytes, now));
            let _ = decode_will(1, &bytes, now);
        }
    }
}
