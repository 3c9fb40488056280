//! What devices and mappers report, and what they are told about it.

use super::*;

#[test]
fn every_reading_is_one_row() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    for _ in 0..50 {
        update(tx, r#"{"twin":{"temp":{"actual":{"value":"21"}}}}"#);
    }
    let edges: Vec<_> = take_reports(tx)
        .iter()
        .map(|(_, m)| m.content.decode::<Value>().unwrap())
        .map(|body| body["twin"]["temp"]["actual_version"]["edge"].as_i64())
        .collect();
    assert_eq!(edges, (1..=50).map(Some).collect::<Vec<_>>());
}

#[test]
fn an_unreadable_document_starts_anew() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    tx.execute("UPDATE devices SET document = x'00'", [])
        .unwrap();
    let told = update(
        tx,
        r#"{"event_id":"e","twin":{"temp":{"actual":{"value":"1"}}}}"#,
    );
    assert_eq!(tails(&told), ["result", "document"]);
}

#[test]
fn fault_16_and_21_a_mapper_may_leave_things_out_and_names_types() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    wished(tx, "7", "30", &json!({}));
    take_reports(tx);
    let tell = |twin: MapperTwin| mapper_reported(tx, "default", "t1", vec![twin], T).unwrap();
    let twin = |observed: &str, reported: Option<&str>, kind: &str| MapperTwin {
        name: "level".into(),
        observed: Some(observed.into()),
        reported: reported.map(Into::into),
        kind: Some(kind.into()),
        reported_at_ms: None,
    };
    tell(twin("", None, "")).unwrap();
    tell(twin("12", Some("12"), "INT")).unwrap();
    let told = last_twin(tx)["level"].clone();
    assert_eq!(told["metadata"]["type"], "int");
    assert_eq!(told["sync"]["state"], "pending");
    let desired = desired_values(tx, "default", "t1").unwrap().unwrap();
    assert_eq!(desired["level"], "30", "an echo replaces no wish");
    tell(twin("30", None, "int")).unwrap();
    assert_eq!(told_sync(tx)["state"], "acknowledged");
    assert!(
        tell(twin("30", Some("x"), "int")).is_err(),
        "the mapper hears of it"
    );
    wished(tx, "8", "31", &json!({}));
    mapper_refused(tx, "default", "t1", "mapper is not there", T).unwrap();
    assert_eq!(told_sync(tx)["reason"], "mapper is not there");
    mapper_state(tx, "default", "t1", "disconnected", T)
        .unwrap()
        .unwrap();
    assert_eq!(devices(tx).unwrap()[0].state, "offline");
    let unknown = mapper_state(tx, "default", "nope", "ok", T).unwrap();
    assert_eq!(unknown.unwrap_err().code, device_twin::Code::NotFound);
}

#[test]
fn fault_15_a_value_object_without_a_value_is_not_given() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    for payload in [
        r#"{"twin":{"x":{"actual":{}}}}"#,
        r#"{"twin":{"x":{"actual":{},"expected":{}}}}"#,
        r#"{"twin":{"x":{"actual":null,"expected":{"metadata":{}}}}}"#,
        r#"{"twin":{"x":{}}}"#,
    ] {
        assert_eq!(tails(&update(tx, payload))[0], "result", "{payload}");
        let cloud = "$hw/events/device/default/t1/twin/cloud_updated";
        publish(tx, cloud, payload);
        let told = update(tx, r#"{"twin":{"y":{"actual":{"value":"1"}}}}"#);
        assert_eq!(
            told[0].1["twin"]["y"]["actual"]["value"], "1",
            "the device works on"
        );
    }
}

#[test]
fn fault_17_a_device_that_cannot_be_stored_is_told_and_comes_again() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    tx.execute_batch(
        "CREATE TRIGGER no BEFORE INSERT ON devices BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    .unwrap();
    let object = json!({"metadata": {"namespace": "dev", "name": "new"}});
    assert!(device_upserted(tx, &object, T).is_err(), "not acknowledged");
    let list = json!({"added_devices": [{"id": "dev/new"}]}).to_string();
    assert!(membership(tx, list.as_bytes(), T).is_err());
    let told = update(tx, r#"{"twin":{"y":{"actual":{"value":"1"}}}}"#);
    assert_eq!(tails(&told), ["result", "document"], "others work on");
    tx.execute_batch("DROP TRIGGER no").unwrap();
    device_upserted(tx, &object, T).unwrap();
    assert_eq!(devices(tx).unwrap().len(), 2);
}

#[test]
fn fault_22_wider_values_are_taken_where_the_configuration_says_so() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    let wide = device_twin::ValueRule {
        bytes_max: 600,
        is_text: true,
    };
    let said = |id: &str, value: &str| {
        let payload = json!({"event_id": id, "twin": {"t": {"actual": {"value": value}}}});
        update(tx, &payload.to_string())[0].1.clone()
    };
    for (value, is_taken) in [
        ("25 °C".to_owned(), true),
        ("x".repeat(600), true),
        ("x".repeat(601), false),
        ("a\nb".to_owned(), false),
    ] {
        set_values(tx, &wide).unwrap();
        let told = said("wide", &value);
        if is_taken {
            assert_eq!(told["twin"]["t"]["actual"]["value"], value);
        } else {
            assert_eq!(told["code"], 400, "{value}");
            assert!(told["reason"].as_str().unwrap().contains("600 bytes"));
        }
        set_values(tx, &device_twin::ValueRule::default()).unwrap();
        assert_eq!(said("theirs", &value)["code"], 400, "{value}");
    }
    // What was taken before stays.
    let got = publish(tx, "$hw/events/device/default/t1/twin/get", "{}");
    assert_eq!(got[0].1["twin"]["t"]["actual"]["value"], "x".repeat(600));
}

#[test]
fn fault_22_whoever_sent_a_value_that_is_not_taken_hears_why() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    for value in ["25 °C", &"x".repeat(513)] {
        let payload = json!({"event_id": "e", "twin": {"t": {"actual": {"value": value}}}});
        let told = update(tx, &payload.to_string());
        assert_eq!(told[0].0, "device/default/t1/twin/update/result");
        assert_eq!(
            (&told[0].1["code"], &told[0].1["event_id"]),
            (&json!(400), &json!("e"))
        );
        let twin = MapperTwin {
            name: "t".into(),
            reported: Some(value.into()),
            ..MapperTwin::default()
        };
        let refused = mapper_reported(tx, "default", "t1", vec![twin], T).unwrap();
        assert!(refused.unwrap_err().reason.starts_with("The value of twin"));
    }
    assert!(take_reports(tx).is_empty());
}
