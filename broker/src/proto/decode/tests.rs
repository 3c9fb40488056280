use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::proto::encode;

fn feed_all(decoder: &mut Decoder, mut bytes: &[u8]) -> Result<Vec<Inbound>, ProtocolError> {
    let mut packets = Vec::new();
    while !bytes.is_empty() {
        packets.extend(decoder.feed(&mut bytes)?);
    }
    Ok(packets)
}

const CONNECT_V5: &[u8] = &[
    0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0, 0, 1, b'a',
];
const CONNECT_V311: &[u8] = &[
    0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 10, 0, 1, b'a',
];

#[test]
fn the_version_is_taken_from_connect() {
    for (bytes, version) in [(CONNECT_V5, Version::V5), (CONNECT_V311, Version::V311)] {
        let mut decoder = Decoder::new(1024);
        let packets = feed_all(&mut decoder, bytes).unwrap();
        assert!(matches!(&packets[..], [Inbound::Connect(c)] if c.client == "a" && c.is_clean));
        assert_eq!(decoder.version(), Some(version));
    }
}

#[test]
fn a_packet_over_the_limit_is_refused_before_its_body_arrives() {
    let mut decoder = Decoder::new(64);
    let error = feed_all(&mut decoder, &[0x10, 0xff, 0x7f]).unwrap_err();
    assert_eq!(error.reason, 0x95);
}

#[test]
fn bytes_that_are_not_utf8_or_have_wildcards_are_no_topic() {
    for (topic, reason) in [([0xff_u8, 0xfe], 0x81), ([b'a', b'#'], 0x90)] {
        let mut decoder = Decoder::new(1024);
        feed_all(&mut decoder, CONNECT_V311).unwrap();
        let error = feed_all(&mut decoder, &[0x30, 4, 0, 2, topic[0], topic[1]]).unwrap_err();
        assert_eq!(error.reason, reason);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(
        is_v5: bool,
        kind in 0_u8..=255,
        body in prop::collection::vec(any::<u8>(), 0..80),
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut decoder = Decoder::new(1024);
        feed_all(&mut decoder, if is_v5 { CONNECT_V5 } else { CONNECT_V311 }).unwrap();
        let mut bytes = vec![kind, u8::try_from(body.len()).unwrap()];
        bytes.extend(body.iter().chain(&tail));
        let _ = feed_all(&mut decoder, &bytes);
        let mut fresh = Decoder::new(1024);
        let mut connect = vec![0x10, u8::try_from(body.len() + 8).unwrap(), 0, 4];
        connect.extend(b"MQTT");
        connect.push(if is_v5 { 5 } else { 4 });
        connect.push(kind);
        connect.extend(&body);
        let _ = feed_all(&mut fresh, &connect);
    }
}

/// A message property that is forwarded, encoded (MQTT 5 §2.2.2.2).
fn property() -> impl Strategy<Value = Vec<u8>> {
    let text = |id: u8, value: &str| {
        let mut out = vec![id];
        out.put_u16(u16::try_from(value.len()).unwrap());
        out.extend(value.as_bytes());
        out
    };
    prop_oneof![
        ("[a-z]{0,8}", "\\PC{0,12}").prop_map(move |(key, value)| {
            let mut out = text(0x26, &key);
            out.extend(&text(0, &value)[1..]);
            out
        }),
        any::<bool>().prop_map(|is_text| vec![1, u8::from(is_text)]),
        "[a-z/]{1,9}".prop_map(move |value| text(3, &value)),
        "[a-z]{1,9}".prop_map(move |value| text(8, &value)),
        "[a-z]{0,9}".prop_map(move |value| text(9, &value)),
    ]
}

/// Each property at most once, except the user's own.
fn properties() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(property(), 0..5).prop_map(|all| {
        let mut seen = Vec::new();
        let mut out = BytesMut::new();
        for one in all {
            if one[0] == 0x26 || !seen.contains(&one[0]) {
                seen.push(one[0]);
                out.put_slice(&one);
            }
        }
        out.freeze()
    })
}

#[derive(Clone, Debug)]
struct Sent {
    message: Message,
    is_dup: bool,
    id: u16,
    expiry_secs: Option<u32>,
}

fn sent() -> impl Strategy<Value = Sent> {
    (
        "[a-zA-Z$][a-z0-9 /\\u{e9}\\u{1f321}]{0,40}",
        prop::collection::vec(any::<u8>(), 0..600),
        0_u8..3,
        any::<(bool, bool)>(),
        1_u16..,
        prop::option::of(any::<u32>()),
        properties(),
    )
        .prop_map(
            |(topic, payload, qos, (retain, is_dup), id, expiry_secs, properties)| {
                let qos = Qos::from_bits(qos).unwrap();
                let mut message = Message::new(topic, payload, qos, retain);
                message.properties = properties;
                Sent {
                    message,
                    is_dup: is_dup && qos != Qos::AtMostOnce,
                    id: if qos == Qos::AtMostOnce { 0 } else { id },
                    expiry_secs,
                }
            },
        )
}

fn encoded(sent: &Sent, version: Version, out: &mut BytesMut) {
    let publish = encode::Publish {
        message: &sent.message,
        qos: sent.message.qos,
        retain: sent.message.retain,
        is_dup: sent.is_dup,
        id: sent.id,
        subscription_ids: &[],
        expiry_secs: sent.expiry_secs,
    };
    encode::publish(out, version, &publish);
}

fn connected(version: Version) -> Decoder {
    let mut decoder = Decoder::new(64 << 10);
    let connect = match version {
        Version::V311 => CONNECT_V311,
        Version::V5 => CONNECT_V5,
    };
    feed_all(&mut decoder, connect).unwrap();
    decoder
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V311), Just(Version::V5)]
}

proptest! {
    /// What the broker writes it reads back as it was, however the stream is cut.
    #[test]
    fn decode_undoes_encode(
        version in version(),
        messages in prop::collection::vec(sent(), 1..4),
        cuts in prop::collection::vec(1_usize..50, 1..40),
    ) {
        let mut bytes = BytesMut::new();
        for sent in &messages {
            encoded(sent, version, &mut bytes);
        }
        let mut decoder = connected(version);
        let mut got = Vec::new();
        let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            got.extend(feed_all(&mut decoder, now).unwrap());
            rest = later;
        }
        prop_assert_eq!(got.len(), messages.len());
        for (got, sent) in got.into_iter().zip(&messages) {
            let Inbound::Publish(got) = got else {
                return Err(TestCaseError::fail("not a publish"));
            };
            prop_assert_eq!(&got.topic, &sent.message.topic);
            prop_assert_eq!(&got.payload, &sent.message.payload);
            prop_assert_eq!(
                (got.qos, got.retain, got.id),
                (sent.message.qos, sent.message.retain, sent.id)
            );
            if version == Version::V5 {
                prop_assert_eq!(&got.properties, &sent.message.properties);
                prop_assert_eq!(got.expiry_secs, sent.expiry_secs);
            }
        }
    }

    /// One bit is another, the stream ends early: an error has a reason that can be told.
    #[test]
    fn damaged_packets_are_read_or_refused(
        version in version(),
        messages in prop::collection::vec(sent(), 1..3),
        at: prop::sample::Index,
        bit in 0_u8..8,
        end: prop::sample::Index,
    ) {
        let mut bytes = BytesMut::new();
        for sent in &messages {
            encoded(sent, version, &mut bytes);
        }
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        bytes.truncate(end.index(bytes.len()) + 1);
        if let Err(error) = feed_all(&mut connected(version), &bytes) {
            prop_assert!(error.reason >= 0x80, "{error}");
        }
        let mut connect = match version {
            Version::V311 => CONNECT_V311.to_vec(),
            Version::V5 => CONNECT_V5.to_vec(),
        };
        let at = at % connect.len();
        connect[at] ^= 1 << bit;
        if let Err(error) = feed_all(&mut Decoder::new(1024), &connect) {
            prop_assert!(error.reason != 0, "{error}");
        }
    }

    #[test]
    fn acknowledgements_are_read_back(version in version(), kind in 0_usize..4, id in 1_u16.., code: bool) {
        let kinds = [encode::Ack::Puback, encode::Ack::Pubrec, encode::Ack::Pubrel, encode::Ack::Pubcomp];
        // A code that all four packets may carry (MQTT 5 §3.4.2.1 and following).
        let refusal = if kind < 2 { reason::QUOTA } else { reason::PACKET_ID_NOT_FOUND };
        let code = if code { refusal } else { reason::SUCCESS };
        let mut bytes = BytesMut::new();
        encode::ack(&mut bytes, version, kinds[kind], id, code);
        let got = feed_all(&mut connected(version), &bytes).unwrap();
        let got = match got[..] {
            [Inbound::Puback { id }] => (0, id),
            [Inbound::Pubrec { id, .. }] => (1, id),
            [Inbound::Pubrel { id }] => (2, id),
            [Inbound::Pubcomp { id }] => (3, id),
            _ => return Err(TestCaseError::fail("something else")),
        };
        prop_assert_eq!(got, (kind, id));
    }

    /// Packets that were right, with some bytes turned: what random bytes do not reach.
    #[test]
    fn damaged_packets_do_not_panic(
        version in version(),
        sent in sent(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        is_cut: bool,
    ) {
        let mut bytes = BytesMut::new();
        encoded(&sent, version, &mut bytes);
        for (at, byte) in &damage {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if is_cut {
            bytes.truncate(bytes.len() / 2);
        }
        let _ = feed_all(&mut connected(version), &bytes);
        let mut connect = CONNECT_V5.to_vec();
        for (at, byte) in &damage {
            let at = at.index(connect.len());
            connect[at] = *byte;
        }
        let _ = feed_all(&mut Decoder::new(1024), &connect);
    }
}
