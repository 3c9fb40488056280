use proptest::prelude::*;

use super::*;

fn actual(text: &str) -> Option<String> {
    let message: TwinMessage = decode(text.as_bytes()).ok()?;
    message.twin?.remove("t")??.actual?.value
}

#[test]
fn go_decoder_rules() {
    for (name, text, expected) in [
        (
            "plain",
            r#"{"twin":{"t":{"actual":{"value":"1"}}}}"#,
            Some("1"),
        ),
        (
            "any case",
            r#"{"TWIN":{"t":{"Actual":{"VALUE":"1"}}}}"#,
            Some("1"),
        ),
        (
            "map keys keep case",
            r#"{"twin":{"T":{"actual":{"value":"1"}}}}"#,
            None,
        ),
        (
            "last of two wins",
            r#"{"twin":{"t":{"actual":{"value":"1","VALUE":"2"}}}}"#,
            Some("2"),
        ),
        (
            "unknown ignored",
            r#"{"x":[{"y":1}],"twin":{"t":{"z":0,"actual":{"value":"1"}}}}"#,
            Some("1"),
        ),
        ("null absent", r#"{"twin":{"t":{"actual":null}}}"#, None),
        (
            "null value absent",
            r#"{"twin":{"t":{"actual":{"value":null}}}}"#,
            None,
        ),
        (
            "kelvin and long s",
            "{\"twin\":{\"t\":{\"actual\":{\"value\":\"1\",\"metadata\":{\"time\u{17f}tamp\":1}}}}}",
            Some("1"),
        ),
        (
            "number for text",
            r#"{"twin":{"t":{"actual":{"value":1}}}}"#,
            None,
        ),
    ] {
        assert_eq!(actual(text).as_deref(), expected, "{name}");
    }
}

#[test]
fn wrong_types_fail_the_whole_document() {
    for text in [
        "",
        "not json",
        "[]",
        "1",
        r#"{"timestamp":"1"}"#,
        r#"{"timestamp":1.5}"#,
        r#"{"event_id":7}"#,
        r#"{"twin":[]}"#,
        r#"{"twin":{"t":{"optional":"true"}}}"#,
        r#"{"twin":{"t":{"actual":"1"}}}"#,
        r#"{"twin":{}} trailing"#,
    ] {
        assert!(decode::<TwinMessage>(text.as_bytes()).is_err(), "{text}");
    }
    let bomb = "[".repeat(100_000);
    assert!(decode::<TwinMessage>(bomb.as_bytes()).is_err());
    let hidden = format!(r#"{{"x":{}"#, "[".repeat(100_000));
    assert!(decode::<TwinMessage>(hidden.as_bytes()).is_err());
    let large = vec![b' '; PAYLOAD_BYTES_MAX + 1];
    assert!(matches!(
        decode::<TwinMessage>(&large),
        Err(TwinDecodeError::TooLarge { .. })
    ));
    assert_eq!(
        decode::<TwinMessage>(b"null").unwrap(),
        TwinMessage::default()
    );
}

#[test]
fn output_is_gos() {
    let twin = MsgTwin {
        expected: Some(TwinValue {
            value: Some("<a&b>\u{2028}".into()),
            metadata: Some(ValueMetadata {
                timestamp: 9,
                device_timestamp: 0,
            }),
        }),
        optional: Some(true),
        metadata: Some(TypeMetadata { kind: "int".into() }),
        expected_version: Some(TwinVersion { cloud: 0, edge: 1 }),
        ..MsgTwin::default()
    };
    let message = TwinMessage {
        event_id: "e".into(),
        timestamp: 5,
        twin: Some(BTreeMap::from([
            ("z".into(), None),
            ("temp".into(), Some(twin)),
        ])),
    };
    assert_eq!(
        String::from_utf8(encode(&message)).unwrap(),
        r#"{"event_id":"e","timestamp":5,"twin":{"temp":{"expected":{"value":"\u003ca\u0026b\u003e\u2028","metadata":{"timestamp":9}},"optional":true,"metadata":{"type":"int"},"expected_version":{"cloud":0,"edge":1}},"z":null}}"#
    );
    let membership = MembershipUpdate {
        added_devices: Some(vec![Device {
            id: "default/d1".into(),
            name: "d1".into(),
            ..Device::default()
        }]),
        ..MembershipUpdate::default()
    };
    assert_eq!(
        String::from_utf8(encode(&membership)).unwrap(),
        r#"{"event_id":"","timestamp":0,"added_devices":[{"id":"default/d1","name":"d1"}],"removed_devices":null}"#
    );
}

#[test]
fn the_recorded_edge_report_survives_unchanged() {
    let recorded = r#"{"event_id":"e1","timestamp":1700000000000,"twin":{"temp":{"expected":{"value":"20"},"actual":{"value":"21","metadata":{"timestamp":1700000000000}},"optional":false,"metadata":{"type":"int"},"actual_version":{"cloud":0,"edge":1}}}}"#;
    let message: TwinMessage = decode(recorded.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(encode(&message)).unwrap(), recorded);
    let state = r#"{"event_id":"e2","timestamp":1700000000000,"device":{"name":"d1","state":"online","lastOnlineTime":"2026-01-02T03:04:05Z"}}"#;
    let message: StateMessage = decode(state.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(encode(&message)).unwrap(), state);
}

/// Text shaped like a payload, so that decoding often gets far.
fn payload() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        "[a-z<>&]{0,4}".prop_map(|s| format!("\"{s}\"")),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let key = prop_oneof![
            Just("twin"),
            Just("Expected"),
            Just("actual"),
            Just("value"),
            Just("METADATA"),
            Just("timestamp"),
            Just("type"),
            Just("optional"),
            Just("event_id"),
            Just("actual_version"),
            Just("cloud"),
        ];
        prop::collection::vec((key, inner), 0..4).prop_map(|fields| {
            let fields: Vec<_> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
            format!("{{{}}}", fields.join(","))
        })
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode::<TwinMessage>(&bytes);
        let _ = decode::<MembershipUpdate>(&bytes);
    }

    #[test]
    fn encoding_what_was_decoded_is_stable(text in payload()) {
        if let Ok(first) = decode::<TwinMessage>(text.as_bytes()) {
            let encoded = encode(&first);
            let again: TwinMessage = decode(&encoded).unwrap();
            prop_assert_eq!(&again, &first);
            prop_assert_eq!(encode(&again), encoded);
        }
    }
}
