use proptest::prelude::*;

use super::*;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    body: String,
    object: Value,
}

/// Bodies recorded from kubectl 1.32 and Helm, with what the reference server made of them.
#[test]
fn recorded_bodies() {
    let cases = include_str!("../tests/data/protobuf.jsonl");
    let mut n = 0;
    for line in cases.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let (_, _, object) = decode(&STANDARD.decode(&case.body).unwrap()).unwrap();
        assert_eq!(object, case.object, "{}", case.name);
        n += 1;
    }
    assert!(n > 20, "{n}");
}

#[test]
fn refusals() {
    assert_eq!(decode(b"{}"), Err(ProtoError::NoMagic));
    assert_eq!(decode(b"k8s\0\x0a\xff"), Err(ProtoError::Malformed));
    let unknown = decode(b"k8s\0\x0a\x07\x0a\x01a\x12\x02Zz");
    assert!(
        matches!(unknown, Err(ProtoError::UnknownKind { .. })),
        "{unknown:?}"
    );
}

#[test]
fn durations() {
    for (n, s) in [
        (0, "0s"),
        (1_500_000_000, "1.5s"),
        (90_000_000_000, "1m30s"),
        (3_600_000_000_000, "1h0m0s"),
    ] {
        assert_eq!(go_duration(n), s);
    }
    assert_eq!(go_duration(-1_500), "-1.5µs");
}

/// A schema nested in itself beyond the limit is refused, not followed.
#[test]
fn depth_is_bounded() {
    let mut raw = Vec::new();
    for _ in 0..400 {
        let mut outer = Vec::new();
        // JSONSchemaProps.not = 27? any nested message field will do: properties of PodSpec are too shallow.
        outer.push(0x0a);
        let mut len = raw.len();
        while len >= 0x80 {
            outer.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
            len >>= 7;
        }
        outer.push(u8::try_from(len).unwrap());
        outer.extend_from_slice(&raw);
        raw = outer;
    }
    let mut body = b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12".to_vec();
    let len = u16::try_from(raw.len()).unwrap();
    body.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
    body.push(u8::try_from(len >> 7).unwrap());
    body.extend_from_slice(&raw);
    drop(decode(&body));
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), pod in any::<bool>()) {
        drop(decode(&bytes));
        let mut body = MAGIC.to_vec();
        let meta: &[u8] = if pod { b"\x0a\x09\x0a\x02v1\x12\x03Pod\x12" } else { b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12" };
        body.extend_from_slice(meta);
        body.push(u8::try_from(bytes.len().min(127)).unwrap());
        body.extend_from_slice(&bytes);
        drop(decode(&body));
    }
}
