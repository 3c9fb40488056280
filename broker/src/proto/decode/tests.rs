use proptest::prelude::*;

use super::*;

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
