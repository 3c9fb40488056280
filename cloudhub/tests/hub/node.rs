//! What nodes may expect.

use serde_json::{Value, json};
use wire::{
    extension::{Batch, BatchAck, EVENTS_STREAM, Entry, Held, Inventory},
    message::{Content, Message, Operation, Route},
};

use crate::harness::TestHub;

const ALL: &str = "batch, inventory, ping";
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i",
                                 "envFrom": [{"configMapRef": {"name": "settings"}}]}]},
    })
}

pub(crate) fn settings(value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
           "data": {"k": value}})
}

fn object(message: &Message) -> Value {
    serde_json::from_str(&message.content.document()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_to_a_plain_node_runs_and_goes() {
    let hub = TestHub::start().await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, None).await;
    assert_eq!(node.extensions, None, "a plain peer sees nothing of ours");
    node.register(true).await;
    hub.wait("/api/v1/nodes/e1", |n| n.pointer("/spec/taints").is_none())
        .await;

    hub.post("/api/v1/namespaces/default/configmaps", &settings("1"))
        .await;
    hub.post(PODS, &pod("p1")).await;
    let map = node.push("update", "default/configmap/settings").await;
    assert!(
        node.passed
            .iter()
            .all(|m| m.route.resource != "default/pod/p1"),
        "map before pod"
    );
    assert_eq!(object(&map)["kind"], "ConfigMap");
    let pushed = node.push("insert", "default/pod/p1").await;
    assert_eq!(pushed.route.source, "edgecontroller");
    let uid = object(&pushed)["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        pushed.header.resource_version,
        object(&pushed)["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
    );

    // Content is a string that holds a strategic merge patch.
    let patch = json!({"metadata": {"uid": uid}, "status": {"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True"}]}});
    let patch = Content::string(&patch.to_string());
    let reply = node
        .request(Operation::Patch, "default/podpatch/p1", patch.clone())
        .await;
    assert!(
        reply.content.raw().contains("\"Err\":null"),
        "{}",
        reply.content.raw()
    );
    let stored = hub.get(&format!("{PODS}/p1")).await.unwrap();
    assert_eq!(stored["status"]["phase"], "Running");
    assert_eq!(
        stored["status"]["conditions"].as_array().unwrap().len(),
        2,
        "PodScheduled stays"
    );

    let reply = node
        .request(
            Operation::Query,
            "default/configmap/settings",
            Content::null(),
        )
        .await;
    assert_eq!(object(&reply)["data"]["k"], "1");

    // Gracefully: an update with a deletionTimestamp, the node's own delete, the last delete. The
    // status patch before it was not echoed.
    hub.delete(&format!("{PODS}/p1")).await;
    let update = node.push("update", "default/pod/p1").await;
    assert!(object(&update)["metadata"]["deletionTimestamp"].is_string());
    let body = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    let body = Content::json(&body).unwrap();
    let reply = node
        .request(Operation::Delete, "default/pod/p1", body)
        .await;
    assert_eq!(reply.content.text().as_deref(), Some("OK"));
    let gone = node.push("delete", "default/pod/p1").await;
    assert_eq!(object(&gone)["metadata"]["uid"], uid.as_str());
    node.push("delete", "default/configmap/settings").await;
    assert!(hub.get(&format!("{PODS}/p1")).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_sends_only_differences() {
    let hub = TestHub::start().await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    assert_eq!(node.extensions.as_deref(), Some(ALL));
    node.send(&Inventory::default().into_message("i1".into(), 1))
        .await;
    node.register(true).await;
    hub.post("/api/v1/namespaces/default/configmaps", &settings("1"))
        .await;
    for name in ["p1", "p2"] {
        hub.post(PODS, &pod(name)).await;
    }
    let mut held = Vec::new();
    for path in [
        "default/configmap/settings",
        "default/pod/p1",
        "default/pod/p2",
    ] {
        let message = node.until(|m| m.route.resource == path).await;
        let object = object(&message);
        held.push(Held {
            path: path.to_owned(),
            uid: object["metadata"]["uid"].as_str().unwrap().to_owned(),
            version: message.header.resource_version.clone(),
        });
    }
    drop(node);
    hub.delete(&format!("{PODS}/p1?gracePeriodSeconds=0")).await;
    hub.post(PODS, &pod("p3")).await;
    let object = settings("2");
    let path = "/api/v1/namespaces/default/configmaps/settings";
    hub.admin
        .call(http::Method::PUT, path, Some(&object))
        .await
        .unwrap();

    let mut node = hub.connect(&identity, Some(ALL)).await;
    node.send(
        &Inventory {
            objects: held.clone(),
        }
        .into_message("i2".into(), 1),
    )
    .await;
    let gone = node.push("delete", "default/pod/p1").await;
    assert_eq!(self::object(&gone)["metadata"]["uid"], held[1].uid.as_str());
    let map = node.push("update", "default/configmap/settings").await;
    assert_eq!(self::object(&map)["data"]["k"], "2");
    hub.wait(&format!("{PODS}/p3"), |p| p["spec"]["nodeName"] == "e1")
        .await;
    node.until(|m| m.route.resource == "default/pod/p3").await;
    assert!(
        node.passed
            .iter()
            .all(|m| m.route.resource != "default/pod/p2"),
        "what the node holds is not sent again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_lost_its_store_stops_nothing() {
    let hub = TestHub::start().await;
    let identity = hub.join("e1").await;
    let held = |path: &str| Held {
        path: path.to_owned(),
        uid: "u".to_owned(),
        version: "7".to_owned(),
    };
    let runs = Inventory {
        objects: vec![held("default/configmap/settings"), held("default/pod/runs")],
    };
    let hub = hub.restart_without_store().await;
    // Neither at once nor after a renewal, which is no join.
    let renewed = hub.enroll("e1", None, Some(&identity)).await.unwrap();
    for (identity, next) in [(&identity, "p1"), (&renewed, "p2")] {
        let mut node = hub.connect(identity, Some(ALL)).await;
        node.send(&runs.clone().into_message("i1".into(), 1)).await;
        if next == "p1" {
            node.register(true).await;
        }
        let mut new = pod(next);
        new["spec"]["nodeName"] = "e1".into();
        hub.post(PODS, &new).await;
        node.until(|m| m.route.resource == format!("default/pod/{next}"))
            .await;
        let deleted: Vec<_> = node
            .passed
            .iter()
            .filter(|m| m.route.operation == "delete")
            .collect();
        assert!(deleted.is_empty(), "{deleted:?}");
    }
    // Joined again, the node holds what this hub says.
    let token = cloudhub::cli::token::create(&hub.admin, "e1", 60, true)
        .await
        .unwrap()
        .token;
    let bearer = token.split_once('.').unwrap().1;
    let again = hub.enroll("e1", Some(bearer), None).await.unwrap();
    let mut node = hub.connect(&again, Some(ALL)).await;
    node.send(&runs.into_message("i2".into(), 1)).await;
    node.push("delete", "default/pod/runs").await;
}

fn report(seq: u64, value: &str) -> Entry {
    let route = Route::new(
        "twin",
        "resource",
        &Operation::Update,
        "device/default/t1/twin/edge_updated",
    );
    let body = json!({"event_id": format!("ev-{seq}"), "timestamp": 5, "twin": {"celsius": {
        "actual": {"value": value, "metadata": {"timestamp": 7}}, "metadata": {"type": "float"}}}});
    Entry {
        seq,
        stream: "twin/default/t1".to_owned(),
        message: Message::new(format!("m-{seq}"), 5, route, Content::json(&body).unwrap()),
        history: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_arrive_once_across_a_lost_acknowledgement_and_a_restart_of_the_hub() {
    let hub = TestHub::start().await;
    let device = json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": {"name": "t1"},
        "spec": {"nodeName": "e1", "properties": [{"name": "celsius"}]},
    });
    let devices = "/apis/devices.kubeedge.io/v1beta1/namespaces/default";
    hub.post(&format!("{devices}/devices"), &device).await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    assert_eq!(node.acked.as_deref(), Some("0"));
    let batch = |after: u64, range: std::ops::RangeInclusive<u64>| Batch {
        epoch: "epoch-1".to_owned(),
        after,
        entries: range.map(|seq| report(seq, &seq.to_string())).collect(),
    };
    node.send(&batch(0, 1..=200).into_message("b1".into(), 1))
        .await;
    let ack = node.until(|m| m.route.resource == "outbox").await;
    assert_eq!(ack.content.decode::<BatchAck>().unwrap().acked, 200);
    let status = hub
        .get(&format!("{devices}/devicestatuses/t1"))
        .await
        .unwrap();
    assert_eq!(status["status"]["twins"][0]["reported"]["value"], "200");
    assert_eq!(status["status"]["extensions"]["outpost"]["received"], 200);
    drop(node);

    let hub = hub.restart().await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    assert_eq!(
        node.acked.as_deref(),
        Some("200"),
        "the hub says what it has"
    );
    // The node's memory of the acknowledgement was lost: everything comes again, and more.
    node.send(&batch(0, 150..=250).into_message("b2".into(), 1))
        .await;
    let ack = node.until(|m| m.route.resource == "outbox").await;
    assert_eq!(ack.content.decode::<BatchAck>().unwrap().acked, 250);
    let ledger = hub.get("/outpost/v1/ledger/e1").await.unwrap();
    assert_eq!(ledger["received"], 250);
    let seen: Vec<u64> = ledger["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(
        seen,
        (1..=250).collect::<Vec<_>>(),
        "none lost, none twice, in order"
    );
    assert_eq!(ledger["entries"][41]["value"]["celsius"], "42");
}

/// An event in a batch, about `about`.
pub(crate) fn told(seq: u64, about: &str) -> Entry {
    let resource = format!("default/event/{about}.{seq}");
    let route = Route::new("edged", "resource", &Operation::Insert, resource);
    let body = json!({
        "metadata": {"name": format!("{about}.{seq}"), "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": about}, "reason": "Told", "type": "Normal",
        "message": seq.to_string(), "count": 1,
    });
    Entry {
        seq,
        stream: EVENTS_STREAM.to_owned(),
        message: Message::new(format!("m-{seq}"), 5, route, Content::json(&body).unwrap()),
        history: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_event_survives_a_hub_that_is_killed() {
    let hub = TestHub::start_process().await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    // What is refused is no reason to hear of all the others again.
    let mut entries: Vec<Entry> = (1..=200).map(|seq| told(seq, "e1")).collect();
    entries.push(told(201, "e2"));
    let batch = Batch {
        epoch: "epoch-1".to_owned(),
        after: 0,
        entries,
    };
    node.send(&batch.into_message("b1".into(), 1)).await;
    let ack = node.until(|m| m.route.resource == "outbox").await;
    let dir = hub.kill();
    assert_eq!(ack.content.decode::<BatchAck>().unwrap().acked, 201);

    let hub = TestHub::start_in(dir).await;
    let events = hub.get("/api/v1/namespaces/default/events").await.unwrap();
    let mut told: Vec<u64> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["reason"] == "Told")
        .map(|event| event["message"].as_str().unwrap().parse().unwrap())
        .collect();
    told.sort_unstable();
    assert_eq!(told, (1..=200).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_becomes_unknown_and_keeps_its_pods() {
    let hub = TestHub::start().await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    node.register(true).await;
    hub.post("/api/v1/namespaces/default/configmaps", &settings("1"))
        .await;
    hub.post(PODS, &pod("p1")).await;
    hub.wait(&format!("{PODS}/p1"), |p| p["spec"]["nodeName"] == "e1")
        .await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/e1";
    hub.wait(lease, |l| l["spec"]["holderIdentity"] == "e1")
        .await;
    drop(node);
    let ready = |status: &'static str| {
        move |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().unwrap();
            conditions
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == status)
        }
    };
    let object = hub.wait("/api/v1/nodes/e1", ready("Unknown")).await;
    assert_eq!(
        object["spec"]["taints"][0]["key"],
        "node.kubernetes.io/unreachable"
    );
    assert!(hub.get(&format!("{PODS}/p1")).await.is_some());
    // It comes back and says that it is well.
    let mut node = hub.connect(&identity, Some(ALL)).await;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let body = Content::string(&status.to_string());
    node.request(Operation::Patch, "null/nodepatch/e1", body)
        .await;
    let well = |n: &Value| ready("True")(n) && n.pointer("/spec/taints").is_none();
    hub.wait("/api/v1/nodes/e1", well).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_told_when_it_holds_everything() {
    let hub = TestHub::start().await;
    let identity = hub.join("e1").await;
    let mut node = hub
        .connect(&identity, Some("batch, inventory, ping, synced"))
        .await;
    assert_eq!(
        node.extensions.as_deref(),
        Some("batch, inventory, ping, synced")
    );
    node.send(&Inventory::default().into_message("i1".to_owned(), 1))
        .await;
    node.push("outpost-synced", "inventory").await;
    node.register(true).await;
    hub.post("/api/v1/namespaces/default/configmaps", &settings("1"))
        .await;
    hub.post(PODS, &pod("p1")).await;
    node.push("insert", "default/pod/p1").await;
    drop(node);

    let mut node = hub
        .connect(&identity, Some("batch, inventory, ping, synced"))
        .await;
    node.send(&Inventory::default().into_message("i2".to_owned(), 1))
        .await;
    node.push("outpost-synced", "inventory").await;
    assert!(
        node.passed
            .iter()
            .any(|m| m.route.resource == "default/pod/p1"),
        "after the pod: {:?}",
        node.passed
    );
    drop(node);

    // A hub that lost its store does not know what is everything.
    let hub = hub.restart_without_store().await;
    let mut node = hub
        .connect(&identity, Some("batch, inventory, ping, synced"))
        .await;
    node.send(&Inventory::default().into_message("i3".to_owned(), 1))
        .await;
    node.register(true).await;
    assert!(
        node.passed
            .iter()
            .all(|m| m.route.operation != "outpost-synced"),
        "{:?}",
        node.passed
    );

    let mut older = hub.connect(&identity, Some(ALL)).await;
    assert_eq!(older.extensions.as_deref(), Some(ALL));
    older
        .send(&Inventory::default().into_message("i4".to_owned(), 1))
        .await;
    older
        .request(Operation::Query, "null/node/e1", Content::null())
        .await;
    assert!(
        older
            .passed
            .iter()
            .all(|m| m.route.operation != "outpost-synced")
    );
}
