//! Device objects: what the cloud makes, wishes and annotates, and what it is told of that.

use super::*;

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
