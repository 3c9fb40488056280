//! The conformance vectors as bytes on topics (device plane, Appendix B).

use super::*;

#[test]
fn vectors_1_to_4_report_and_desire() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    let first =
        r#"{"event_id":"e1","twin":{"temp":{"actual":{"value":"23"},"metadata":{"type":"int"}}}}"#;
    let inbound = topic::parse("$hw/events/device/default/t1/twin/update").unwrap();
    let outcome = handle_publish(tx, &inbound, first.as_bytes(), T).unwrap();
    assert!(outcome.queued);
    assert_eq!(outcome.publishes.len(), 2, "no delta");
    assert_eq!(
        String::from_utf8(outcome.publishes[0].payload.clone()).unwrap(),
        format!(
            r#"{{"event_id":"e1","timestamp":{T},"twin":{{"temp":{{"actual":{{"value":"23","metadata":{{"timestamp":{T}}}}},"optional":true,"metadata":{{"type":"int"}}}}}}}}"#
        )
    );
    assert_eq!(
        outcome.publishes[0].topic,
        "$hw/events/device/default/t1/twin/update/result"
    );
    assert_eq!(bodies(&outcome)[1].1["twin"]["temp"]["last"], Value::Null);
    let reports = take_reports(tx);
    assert_eq!(reports.len(), 1);
    let route = &reports[0].1.route;
    assert_eq!(
        (
            route.source.as_str(),
            route.group.as_str(),
            route.operation.as_str(),
            route.resource.as_str()
        ),
        (
            "twin",
            "resource",
            "update",
            "device/default/t1/twin/edge_updated"
        )
    );
    assert!(
        reports[0].1.content.raw().starts_with("{\"event_id\":"),
        "an object"
    );

    let second = update(tx, &first.replace("e1", "e2"));
    assert_eq!(
        tails(&second),
        ["result", "document"],
        "2: an equal value is processed in full"
    );
    assert_eq!(
        last_twin(tx)["temp"]["actual_version"],
        json!({"cloud": 0, "edge": 2})
    );

    let bad = update(
        tx,
        r#"{"event_id":"e3","twin":{"temp":{"actual":{"value":"x"}}}}"#,
    );
    assert_eq!(tails(&bad), ["result"], "3");
    assert_eq!(
        bad[0].1,
        json!({"event_id": "e3", "timestamp": T, "code": 400, "reason": "the value is not int or integer"})
    );
    assert!(take_reports(tx).is_empty(), "what is refused is not told");

    let wish = update(
        tx,
        r#"{"event_id":"e4","twin":{"temp":{"expected":{"value":"30"}}}}"#,
    );
    assert_eq!(tails(&wish), ["result", "document", "delta"], "4");
    assert_eq!(wish[2].1["delta"], json!({"temp": "30"}));
    assert_ne!(wish[2].1["event_id"], "e4");
    assert_eq!(
        last_twin(tx)["temp"],
        json!({"expected": {"value": "30", "metadata": {"timestamp": T}}, "optional": true,
               "metadata": {"type": "int"}, "expected_version": {"cloud": 0, "edge": 1},
               "sync": {"state": "pending"}})
    );
}

#[test]
fn vectors_5_to_8_refusals_go_to_the_real_topic() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    for (vector, payload, event_id, reason) in [
        (
            "5",
            r#"{"event_id":"e","twin":{"t":{"actual":{"value":"1e+3"}}}}"#,
            "e",
            "The value of twin must only include",
        ),
        (
            "5",
            r#"{"event_id":"e","twin":{"t":{"actual":{"value":"two words"}}}}"#,
            "e",
            "The value of twin must only include",
        ),
        ("6", "not json", "", "Unmarshal update request body failed"),
        (
            "6",
            r#"{"event_id":"e"}"#,
            "e",
            "Update twin error, key:twin does not exist",
        ),
        (
            "a bare number",
            r#"{"event_id":"e","twin":{"t":{"actual":{"value":1}}}}"#,
            "",
            "Unmarshal update request body failed",
        ),
        (
            "7",
            r#"{"event_id":"e","twin":{"t":{"actual":{"value":"1"},"metadata":{"type":"x"}}}}"#,
            "e",
            "the value type is not allowed",
        ),
    ] {
        let told = update(tx, payload);
        assert_eq!(tails(&told), ["result"], "{vector}");
        assert_eq!(told[0].0, "device/default/t1/twin/update/result");
        assert_eq!(told[0].1["code"], 400, "{vector}");
        assert_eq!(told[0].1["event_id"], event_id, "{vector}");
        let text = told[0].1["reason"].as_str().unwrap();
        assert!(text.starts_with(reason), "{vector}: {text}");
    }
    // 7 with `Updated` is accepted (Appendix A); an empty value object counts as absent.
    let told = update(
        tx,
        r#"{"twin":{"n":{"actual":{"value":"1"},"metadata":{"type":"Updated"}}}}"#,
    );
    assert_eq!(told[0].1["twin"]["n"]["metadata"]["type"], "string");
    assert_eq!(
        update(tx, r#"{"twin":{"n":{"actual":{}}}}"#)[0].1["twin"],
        json!({})
    );
    // 8
    update(
        tx,
        r#"{"twin":{"t":{"actual":{"value":"1"},"metadata":{"type":"int"}}}}"#,
    );
    let told = update(
        tx,
        r#"{"twin":{"t":{"actual":{"value":"5"},"metadata":{"type":"string"}}}}"#,
    );
    assert_eq!(told[0].1["twin"]["t"]["metadata"]["type"], "int");
    // Unknown device.
    let told = publish(
        tx,
        "$hw/events/device/default/nope/twin/update",
        r#"{"event_id":"e","twin":{}}"#,
    );
    assert_eq!(told[0].1["code"], 404);
    assert_eq!(
        told[0].1["reason"],
        "update rejected due to the device is not existed"
    );
    assert_eq!(told[0].1["event_id"], "e");
}

#[test]
fn vectors_9_to_12_remove_revive_and_get() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    update(
        tx,
        r#"{"twin":{"temp":{"expected":{"value":"30"},"actual":{"value":"23"},"metadata":{"type":"int"}}}}"#,
    );
    let told = update(tx, r#"{"event_id":"e","twin":{"temp":null}}"#);
    assert_eq!(told[0].1["twin"], json!({"temp": null}), "9");
    assert_eq!(told[1].1["twin"]["temp"]["current"], Value::Null);
    assert_eq!(tails(&told), ["result", "document"]);
    assert_eq!(
        last_twin(tx)["temp"],
        json!({"expected": {}, "actual": {}, "optional": true, "metadata": {"type": "deleted"},
               "expected_version": {"cloud": 0, "edge": 2}, "actual_version": {"cloud": 0, "edge": 2}})
    );
    let told = update(tx, r#"{"twin":{"temp":{"actual":{"value":"hot"}}}}"#);
    assert_eq!(
        told[0].1["twin"]["temp"]["metadata"]["type"], "string",
        "10"
    );
    assert_eq!(told[1].1["twin"]["temp"]["last"], Value::Null, "10");
    let told = update(
        tx,
        r#"{"event_id":"e8","TWIN":{"b":{"Actual":{"VALUE":"true"},"metadata":{"type":"boolean"}}}}"#,
    );
    assert_eq!(told[0].1["twin"]["b"]["actual"]["value"], "true", "11");
    update(
        tx,
        r#"{"twin":{"gone":{"actual":{"value":"1"}},"b":{"actual":{"value":"false"}}}}"#,
    );
    update(tx, r#"{"twin":{"gone":null}}"#);
    let get = "$hw/events/device/default/t1/twin/get";
    let told = publish(tx, get, r#"{"event_id":"g1"}"#);
    assert_eq!(told[0].0, "device/default/t1/twin/get/result", "12");
    assert_eq!(told[0].1["event_id"], "g1");
    let twin = told[0].1["twin"].as_object().unwrap();
    assert_eq!(twin.keys().collect::<Vec<_>>(), ["b", "temp"]);
    assert!(twin["b"].get("actual_version").is_none());
    let told = publish(tx, "$hw/events/device/a/b/twin/get", "{}");
    assert_eq!(
        told[0].1["reason"],
        "Device a/b not found while getting twin"
    );
    assert_eq!(publish(tx, get, "x")[0].1["code"], 400);
}

#[test]
fn vectors_13_to_15_the_cloud_syncs() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    update(
        tx,
        r#"{"twin":{"b":{"actual":{"value":"true"},"metadata":{"type":"boolean"}}}}"#,
    );
    take_reports(tx);
    let sync = |value: &str, cloud: i64| {
        let payload = json!({"event_id": "c", "twin": {"b": {"expected": {"value": value},
            "metadata": {"type": "boolean"}, "expected_version": {"cloud": cloud, "edge": 0}}}});
        let topic = "$hw/events/device/default/t1/twin/cloud_updated";
        publish(tx, topic, &payload.to_string())
    };
    assert_eq!(tails(&sync("false", 5)), ["document", "delta"], "13");
    assert!(take_reports(tx).is_empty(), "13: nothing to the cloud");
    assert_eq!(tails(&sync("true", 4)), ["delta"], "14");
    assert_eq!(last_twin(tx)["b"]["expected"]["value"], "false", "14");
    update(tx, r#"{"twin":{"b":{"expected":{"value":"true"}}}}"#);
    take_reports(tx);
    sync("false", 9);
    assert_eq!(
        last_twin(tx)["b"]["expected_version"],
        json!({"cloud": 5, "edge": 1}),
        "15"
    );
}

#[test]
fn fault_23_vector_16_states() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    let state = |payload: &str| publish(tx, "$hw/events/device/default/t1/state/update", payload);
    let told = state(r#"{"event_id":"s","State":"online"}"#);
    assert_eq!(told[0].0, "device/default/t1/state/update/result");
    assert_eq!(
        told[0].1["device"],
        json!({"name": "t1", "state": "online", "lastOnlineTime": "2026-08-01T12:00:00Z"})
    );
    let reports = take_reports(tx);
    assert_eq!(reports[0].0, "state/default/t1");
    assert_eq!(
        reports[0].1.route.resource,
        "device/default/t1/state/update"
    );
    assert!(reports[0].1.content.text().is_some(), "a string of JSON");
    assert_eq!(
        reports[0].1.content.decode::<Value>().unwrap(),
        told[0].1,
        "one body for both"
    );
    assert_eq!(
        state(r#"{"state":"offline"}"#)[0].1["device"]["lastOnlineTime"],
        "2026-08-01T12:00:00Z",
        "kept; KubeEdge erases it"
    );
    assert_eq!(take_reports(tx).len(), 1);
    for bad in [r#"{"state":"weird"}"#, "x", r#"{"state":7}"#] {
        assert_eq!(state(bad)[0].1["code"], 400, "{bad}");
    }
    assert!(take_reports(tx).is_empty());
    let listed = devices(tx).unwrap();
    assert_eq!(listed[0].state, "offline");
    assert_eq!(listed[0].last_online_ms, Some(T));
}

#[test]
fn vectors_17_and_18_membership() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    let body = |added: &[&str], removed: &[&str]| {
        let list = |ids: &[&str]| -> Value {
            let one = |id: &&str| json!({"id": id, "name": id.rsplit('/').next()});
            if ids.is_empty() {
                Value::Null
            } else {
                ids.iter().map(one).collect()
            }
        };
        json!({"event_id": "m", "timestamp": 1, "added_devices": list(added),
               "removed_devices": list(removed)})
        .to_string()
    };
    let add = body(&["default/t2", "no-namespace"], &[]);
    let told = bodies(&membership(tx, add.as_bytes(), T).unwrap());
    assert_eq!(told.len(), 1, "18");
    assert_eq!(told[0].0, "node/edge-1/membership/updated");
    assert_eq!(
        told[0].1["added_devices"],
        json!([{"id": "default/t2", "name": "t2"}])
    );
    assert_eq!(told[0].1["removed_devices"], Value::Null);
    let again = membership(tx, add.as_bytes(), T).unwrap();
    assert_eq!(
        again,
        Outcome::default(),
        "no spurious 400, nothing to tell twice"
    );

    let get = "$hw/events/node/any/membership/get";
    let told = publish(tx, get, r#"{"event_id":"mg"}"#);
    assert_eq!(told[0].0, "node/edge-1/membership/get/result", "17");
    assert_eq!(told[0].1["event_id"], "mg");
    assert_eq!(told[0].1["devices"].as_array().unwrap().len(), 2);
    assert!(told[0].1["devices"][0].get("twin").is_none());
    assert_eq!(publish(tx, get, "[")[0].1["code"], 400);

    let remove = body(&[], &["default/t2"]);
    let told = bodies(&membership(tx, remove.as_bytes(), T).unwrap());
    assert_eq!(told[0].1["added_devices"], Value::Null, "18");
    assert_eq!(told[0].1["removed_devices"][0]["id"], "default/t2");

    update(tx, r#"{"twin":{"temp":{"actual":{"value":"1"}}}}"#);
    let full = json!({"event_id": "d", "devices": [{"id": "default/t1"}, {"id": "dev/t3"}]});
    let told = membership(tx, full.to_string().as_bytes(), T).unwrap();
    assert_eq!(told.publishes.len(), 1);
    let names: Vec<_> = devices(tx).unwrap().into_iter().map(|d| d.name).collect();
    assert_eq!(names, ["t1", "t3"]);
    let kept = document(tx, "default", "t1").unwrap().unwrap();
    assert_eq!(kept.properties.len(), 1, "a known device keeps its twin");
    let empty = membership(tx, br#"{"devices":[]}"#, T).unwrap();
    assert_eq!(empty.publishes.len(), 2);
    assert_eq!(
        publish(tx, get, "{}")[0].1["devices"],
        json!([]),
        "17: no devices"
    );
    assert_eq!(membership(tx, b"not json", T).unwrap(), Outcome::default());
}

#[test]
fn fault_13_vector_19_any_namespace_works() {
    for namespace in ["dev", "ev", "device", "events", "hw"] {
        let db = db_with(&[(namespace, "t1")]);
        let topic = format!("$hw/events/device/{namespace}/t1/twin/update");
        let told = publish(
            db.reader(),
            &topic,
            r#"{"event_id":"e","twin":{"t":{"actual":{"value":"1"}}}}"#,
        );
        assert_eq!(tails(&told), ["result", "document"], "{namespace}");
        assert_eq!(
            take_reports(db.reader())[0].1.route.resource,
            format!("device/{namespace}/t1/twin/edge_updated")
        );
    }
}
