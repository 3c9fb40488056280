//! The conformance vectors as bytes on topics (device plane, Appendix B), and the cloud's side.

use rusqlite::Connection;
use serde_json::{Value, json};
use wire::message::Message;
use wire::topic;

use super::*;
use crate::outbox::{Balance, ledger, pending};
use crate::store::Db;

const T: UnixMillis = 1_785_585_600_000; // 2026-08-01T12:00:00Z

fn db_with(devices: &[(&str, &str)]) -> Db {
    let db = Db::open_in_memory().unwrap();
    let tx = db.reader();
    set_node(tx, "edge-1").unwrap();
    for (namespace, name) in devices {
        let object = json!({"metadata": {"namespace": namespace, "name": name}});
        device_upserted(tx, &object, T).unwrap();
    }
    db
}

/// Publishes and returns what local clients see: the topic's tail and the body.
fn publish(tx: &Connection, topic: &str, payload: &str) -> Vec<(String, Value)> {
    let inbound = topic::parse(topic).expect("a topic of ours");
    let outcome = handle_publish(tx, &inbound, payload.as_bytes(), T).unwrap();
    bodies(&outcome)
}

fn bodies(outcome: &Outcome) -> Vec<(String, Value)> {
    let body = |p: &LocalPublish| {
        let tail = p.topic.trim_start_matches("$hw/events/").to_owned();
        (tail, serde_json::from_slice(&p.payload).unwrap())
    };
    outcome.publishes.iter().map(body).collect()
}

fn update(tx: &Connection, payload: &str) -> Vec<(String, Value)> {
    publish(tx, "$hw/events/device/default/t1/twin/update", payload)
}

/// What the cloud will be told, oldest first, and nothing else is left behind.
fn take_reports(tx: &Connection) -> Vec<(String, Message)> {
    let rows = pending(tx, 0, 100).unwrap();
    if let Some(last) = rows.last() {
        outbox::delivered_up_to(tx, last.seq).unwrap();
    }
    assert!(ledger(tx).unwrap().iter().all(Balance::is_balanced));
    rows.into_iter()
        .map(|row| (row.stream, Message::decode(&row.message).unwrap()))
        .collect()
}

fn last_twin(tx: &Connection) -> Value {
    let reports = take_reports(tx);
    let (stream, message) = reports.last().expect("a report");
    assert_eq!(stream, "twin/default/t1");
    message.content.decode::<Value>().unwrap()["twin"].clone()
}

fn tails(published: &[(String, Value)]) -> Vec<&str> {
    let tail = |(topic, _): &'_ (String, Value)| topic.rsplit('/').next().map(str::len);
    published
        .iter()
        .map(|published| {
            let len = tail(published).unwrap_or(0);
            &published.0[published.0.len() - len..]
        })
        .collect()
}

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

#[test]
fn fault_12_a_device_object_reaches_the_device_as_a_delta() {
    let db = db_with(&[]);
    let tx = db.reader();
    let object = |version: &str, value: &str| {
        json!({"metadata": {"namespace": "dev", "name": "lamp", "uid": "u", "resourceVersion": version,
                            "labels": {"description": "hall"}},
               "spec": {"properties": [
                   {"name": "level", "desired": {"value": value, "metadata": {"type": "INT"}}},
                   {"name": "seen", "desired": {"value": ""}},
                   {"name": "bare"}]}})
    };
    let outcome = device_upserted(tx, &object("7", "30"), T).unwrap();
    let told = bodies(&outcome);
    assert_eq!(tails(&told), ["updated", "document", "delta"]);
    assert_eq!(told[0].1["added_devices"][0]["description"], "hall");
    assert_eq!(told[2].0, "device/dev/lamp/twin/update/delta");
    assert_eq!(told[2].1["delta"], json!({"level": "30"}));
    assert!(outcome.queued, "the cloud sees that the wish arrived");
    let reports = take_reports(tx);
    let twin = &reports[0].1.content.decode::<Value>().unwrap()["twin"];
    assert_eq!(
        twin["level"]["expected_version"],
        json!({"cloud": 7, "edge": 0})
    );
    let same = device_upserted(tx, &object("7", "30"), T).unwrap();
    assert_eq!(same, Outcome::default(), "delivered again");
    assert_eq!(devices(tx).unwrap()[0].pending, 1);
    let done = r#"{"event_id":"e","twin":{"level":{"actual":{"value":"30"}}}}"#;
    let told = publish(tx, "$hw/events/device/dev/lamp/twin/update", done);
    assert_eq!(tails(&told), ["result", "document"], "converged: no delta");
    let told = bodies(&device_upserted(tx, &object("8", "31"), T).unwrap());
    assert_eq!(tails(&told), ["document", "delta"]);
    let told = bodies(&device_removed(tx, "dev", "lamp", T).unwrap());
    assert_eq!(told[0].1["removed_devices"][0]["id"], "dev/lamp");
    assert!(devices(tx).unwrap().is_empty());
    assert_eq!(
        device_removed(tx, "dev", "lamp", T).unwrap(),
        Outcome::default()
    );
    assert_eq!(take_reports(tx).len(), 2, "what was reported still goes up");
    for useless in [json!(null), json!({"metadata": {"name": "a/b"}})] {
        assert_eq!(
            device_upserted(tx, &useless, T).unwrap(),
            Outcome::default()
        );
    }
}

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
fn attributes_of_the_cloud_are_published() {
    let db = db_with(&[]);
    let body = json!({"added_devices": [{"id": "default/t1", "name": "t1", "description": "d",
        "attributes": {"serial": {"value": "7"}}}]});
    let told = bodies(&membership(db.reader(), body.to_string().as_bytes(), T).unwrap());
    assert_eq!(told[1].0, "device/default/t1/updated");
    assert_eq!(
        told[1].1["attributes"],
        json!({"serial": {"value": "7", "optional": true, "metadata": {"type": "string"}}})
    );
    let request = membership_detail_request("edge-1", T);
    let body: Value = request.content.decode().unwrap();
    assert_eq!(body["group_id"], "edge-1");
    assert_eq!(request.route.resource, "membership/detail");
}

/// A device with one wish of the cloud.
fn wished(
    tx: &Connection,
    version: &str,
    value: &str,
    annotations: &Value,
) -> Vec<(String, Value)> {
    let object = json!({"metadata": {"namespace": "default", "name": "t1", "uid": "u",
        "resourceVersion": version, "annotations": annotations},
        "spec": {"properties": [{"name": "level", "desired": {"value": value}}]}});
    bodies(&device_upserted(tx, &object, T).unwrap())
}

fn told_sync(tx: &Connection) -> Value {
    last_twin(tx)["level"]["sync"].clone()
}

#[test]
fn the_cloud_learns_how_far_a_desired_value_has_come() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    wished(tx, "7", "30", &json!({}));
    assert_eq!(told_sync(tx), json!({"state": "pending"}));
    update(
        tx,
        r#"{"twin":{"level":{"sync":{"state":"refused","reason":"valve stuck"}}}}"#,
    );
    let refused = json!({"state": "refused", "reason": "valve stuck", "value": "30"});
    assert_eq!(told_sync(tx), refused);
    let local = update(tx, r#"{"twin":{"level":{"actual":{"value":"30"}}}}"#);
    assert!(
        local[0].1["twin"]["level"].get("sync").is_none(),
        "as KubeEdge"
    );
    assert_eq!(told_sync(tx), json!({"state": "acknowledged"}));
}

#[test]
fn the_conflict_rule_is_the_devices_or_the_nodes() {
    let own = r#"{"twin":{"level":{"expected":{"value":"20"}}}}"#;
    for (node, annotation, stands) in [
        ("cloud", "", "30"),
        ("edge", "", "20"),
        ("cloud", "edge", "20"),
        ("edge", "edge,level=cloud", "30"),
        ("newest", "", "20"),
        ("cloud", "level=newest", "20"),
        ("edge", "nonsense", "20"),
    ] {
        let db = db_with(&[("default", "t1")]);
        let tx = db.reader();
        set_conflict(tx, node).unwrap();
        // The hub says that its second value was written before the edge's.
        let notes = |at: i64| {
            let at = json!({ "level": at }).to_string();
            json!({"outpost.dev/conflict": annotation, "outpost.dev/desired-at": at})
        };
        wished(tx, "7", "10", &notes(T - 9));
        update(tx, own);
        wished(tx, "8", "30", &notes(T - 5));
        let desired = desired_values(tx, "default", "t1").unwrap().unwrap();
        assert_eq!(desired["level"], stands, "{node} {annotation}");
        let state = if stands == "20" { "refused" } else { "pending" };
        assert_eq!(told_sync(tx)["state"], state, "{node} {annotation}");
    }
}

#[test]
fn an_annotation_that_cannot_be_used_is_told_the_cloud_once() {
    let db = db_with(&[("default", "t1")]);
    let tx = db.reader();
    let events = || -> Vec<String> {
        let rows = pending(tx, 0, 1000).unwrap();
        let rows = rows.into_iter().filter(|row| row.stream == "events");
        let bodies = rows.map(|row| {
            let message = Message::decode(&row.message).unwrap();
            assert!(message.route.resource.starts_with("default/event/t1."));
            let event: Value = message.content.decode().unwrap();
            assert_eq!(event["involvedObject"]["kind"], "Device");
            event["message"].as_str().unwrap().to_owned()
        });
        bodies.collect()
    };
    let apply = |version: &str, annotations: &Value| {
        let object = json!({"metadata": {"namespace": "default", "name": "t1", "uid": "u1",
            "resourceVersion": version, "annotations": annotations}, "spec": {}});
        device_upserted(tx, &object, T).unwrap().queued
    };
    let wrong = json!({"outpost.dev/stream-policy": "bytes=lots", "outpost.dev/conflict": "moon"});
    assert!(apply("2", &wrong));
    apply("3", &wrong);
    let told = events();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("annotation outpost.dev/stream-policy: "),
        "{told:?}"
    );
    assert!(told[0].contains("outpost.dev/conflict knows cloud, edge, newest, not \"moon\""));
    apply("4", &json!({"outpost.dev/conflict": ""}));
    assert_eq!(events().len(), 1);
    apply("5", &wrong);
    assert_eq!(events().len(), 2, "wrong again");
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
fn fault_10_a_device_made_or_deleted_while_the_node_was_away_is_known_at_once() {
    let db = db_with(&[("default", "gone"), ("default", "t1")]);
    let tx = db.reader();
    // What a hub sends on connect: objects of what is there, and the whole list.
    let object = json!({"metadata": {"namespace": "dev", "name": "new", "resourceVersion": "9"}});
    device_upserted(tx, &object, T).unwrap();
    let list = json!({"devices": [{"id": "default/t1"}, {"id": "dev/new"}]});
    let told = bodies(&membership(tx, list.to_string().as_bytes(), T).unwrap());
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1["removed_devices"][0]["id"], "default/gone");
    let report = r#"{"event_id":"e","twin":{"t":{"actual":{"value":"1"}}}}"#;
    let of = |device: &str| format!("$hw/events/device/{device}/twin/update");
    let told = publish(tx, &of("dev/new"), report);
    assert_eq!(tails(&told), ["result", "document"]);
    assert_eq!(publish(tx, &of("default/gone"), report)[0].1["code"], 404);
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
