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

fn field(number: u8, inner: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = inner.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap());
    out.extend_from_slice(inner);
    out
}

/// A value that nests in itself (`JSONSchemaProps.not`) is refused beyond the limit, not followed.
#[test]
fn depth_is_bounded() {
    let schema = types::lookup("apiextensions.k8s.io/v1", "JSONSchemaProps").unwrap();
    let not = schema.field("not").unwrap().number;
    let meta = field(
        1,
        &[
            field(1, b"apiextensions.k8s.io/v1"),
            field(2, b"JSONSchemaProps"),
        ]
        .concat(),
    );
    let nested = |levels: usize| {
        let mut raw = Vec::new();
        for _ in 0..levels {
            // Two-byte tag: the number is above 15.
            let mut outer = field(0, &raw);
            let tag = not << 3 | 2;
            outer.splice(
                0..1,
                [
                    u8::try_from(tag & 0x7f).unwrap() | 0x80,
                    u8::try_from(tag >> 7).unwrap(),
                ],
            );
            raw = outer;
        }
        decode(&[MAGIC.to_vec(), meta.clone(), field(2, &raw)].concat())
    };
    assert!(nested(50).is_ok());
    assert_eq!(nested(400), Err(ProtoError::TooLarge));
}

/// Many empty elements in a small body do not become many values.
#[test]
fn values_are_bounded() {
    let meta = field(1, &[field(1, b"v1"), field(2, b"Pod")].concat());
    let containers = [0x12, 0].repeat(400_000);
    let body = [MAGIC.to_vec(), meta, field(2, &field(2, &containers))].concat();
    assert_eq!(decode(&body), Err(ProtoError::TooLarge));
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
