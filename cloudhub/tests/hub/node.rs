//! What nodes may expect.

use serde_json::{Value, json};
use wire::{
    extension::{Batch, BatchAck, Entry, Held, Inventory},
    message::{Content, Message, Operation, Route},
};

use crate::harness::{self, TestHub};

const ALL: &str = "batch, inventory, ping";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i",
                                 "envFrom": [{"configMapRef": {"name": "settings"}}]}]},
    })
}

fn settings(value: &str) -> Value {
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
async fn a_node_touches_only_its_own() {
    let hub = TestHub::start().await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, None).await;
    node.register(true).await;
    let mut foreign = pod("foreign");
    foreign["spec"]["nodeName"] = "e2".into();
    hub.post("/api/v1/namespaces/default/configmaps", &settings("1"))
        .await;
    let created = hub.post(PODS, &foreign).await;
    let uid = created["metadata"]["uid"].as_str().unwrap();
    let patch = Content::string(&json!({"status": {"phase": "Failed"}}).to_string());
    let delete = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    let delete = Content::json(&delete).unwrap();
    let node_object = Content::json(&json!({"metadata": {"name": "e2"}})).unwrap();
    for (operation, resource, body) in [
        (Operation::Patch, "default/podpatch/foreign", patch.clone()),
        (Operation::Delete, "default/pod/foreign", delete),
        (
            Operation::Query,
            "default/configmap/settings",
            Content::null(),
        ),
        (Operation::Query, "default/secret/any", Content::null()),
        (Operation::Insert, "null/node/e2", node_object),
        (Operation::Patch, "null/nodepatch/e2", patch),
        (
            Operation::Query,
            "kube-node-lease/lease/e2",
            Content::null(),
        ),
    ] {
        let reply = node.request(operation, resource, body).await;
        assert!(
            reply.content.raw().contains("\"reason\":\"Forbidden\""),
            "{resource}: {reply:?}"
        );
    }
    let stored = hub.get(&format!("{PODS}/foreign")).await.unwrap();
    assert_eq!(stored["status"]["phase"], "Pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_pod_is_no_key_to_secrets() {
    let hub = TestHub::start().await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, None).await;
    node.register(true).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
                        "stringData": {"k": "v"}});
    hub.post("/api/v1/namespaces/default/secrets", &secret)
        .await;
    let mirror = |name: &str, from: Value| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "e1", "containers": [{"name": "c", "image": "i", "envFrom": from}]},
        });
        Content::json(&pod).unwrap()
    };
    let thief = mirror("thief", json!([{"secretRef": {"name": "s"}}]));
    let reply = node
        .request(Operation::Insert, "default/pod/thief", thief)
        .await;
    assert!(reply.content.raw().contains("Forbidden"), "{reply:?}");
    let asked = node
        .request(Operation::Query, "default/secret/s", Content::null())
        .await;
    assert!(asked.content.raw().contains("Forbidden"), "{asked:?}");
    for (member, value) in [
        ("serviceAccountName", json!("admin")),
        (
            "volumes",
            json!([{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]),
        ),
        (
            "volumes",
            json!([{"name": "t", "persistentVolumeClaim": {"claimName": "c"}}]),
        ),
    ] {
        let mut pod: Value = mirror("thief", json!([])).decode().unwrap();
        pod["spec"][member] = value;
        let reply = node
            .request(
                Operation::Insert,
                "default/pod/thief",
                Content::json(&pod).unwrap(),
            )
            .await;
        assert!(reply.content.raw().contains("Forbidden"), "{reply:?}");
    }
    let honest = mirror("honest", json!([]));
    let reply = node
        .request(Operation::Insert, "default/pod/honest", honest)
        .await;
    assert!(reply.content.raw().contains("\"Err\":null"), "{reply:?}");
    // It is the node's, so that the API shows to whom it belongs.
    assert!(
        reply.content.raw().contains("\"kind\":\"Node\""),
        "{reply:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_node_are_about_its_own() {
    let hub = TestHub::start().await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, None).await;
    node.register(true).await;
    let mut foreign = pod("foreign");
    foreign["spec"]["nodeName"] = "e2".into();
    hub.post(PODS, &foreign).await;
    let event = |name: &str, kind: &str, about: &str, reason: &str| {
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": "default"},
            "involvedObject": {"kind": kind, "name": about, "namespace": "default"},
            "reason": reason, "message": "m", "type": "Normal",
        })
    };
    let events = "/api/v1/namespaces/default/events";
    hub.post(events, &event("theirs", "Pod", "foreign", "Original"))
        .await;
    for (operation, body) in [
        (Operation::Insert, event("made", "Pod", "foreign", "Forged")),
        (Operation::Insert, event("made", "Node", "e2", "Forged")),
        (Operation::Insert, event("made", "Secret", "s", "Forged")),
        // An event that others made is not overwritten, whatever it is said to be about.
        (Operation::Update, event("theirs", "Node", "e1", "Forged")),
        (
            Operation::Patch,
            json!({"patchData": "{\"reason\":\"Forged\"}"}),
        ),
    ] {
        let name = body["metadata"]["name"].as_str().unwrap_or("theirs");
        let content = Content::json(&body).unwrap();
        node.tell(operation, &format!("default/event/{name}"), content)
            .await;
    }
    // Nor by another name in the path than in the event.
    let hidden = Content::json(&event("theirs", "Node", "e1", "Forged")).unwrap();
    node.tell(Operation::Insert, "default/event/hidden", hidden)
        .await;
    // Events are not answered; what comes after them is stored after them.
    let own = Content::json(&event("own", "Node", "e1", "Fine")).unwrap();
    node.tell(Operation::Insert, "default/event/own", own).await;
    hub.wait(&format!("{events}/own"), |e| e["reason"] == "Fine")
        .await;
    assert!(hub.get(&format!("{events}/made")).await.is_none());
    let theirs = hub.get(&format!("{events}/theirs")).await.unwrap();
    assert_eq!(theirs["reason"], "Original");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_node_is_out_at_once() {
    let hub = TestHub::start().await;
    let old = hub.join("e1").await;
    let mut stolen = hub.connect(&old, None).await;
    stolen.register(true).await;
    let token = cloudhub::cli::token::create(&hub.admin, "e1", 60, true)
        .await
        .unwrap()
        .token;
    let bearer = token.split_once('.').unwrap().1;
    hub.enroll("e1", Some(bearer), None).await.unwrap();
    let (code, why) = stolen.closed().await;
    assert_eq!(code, 1008);
    assert!(why.contains("replaced by a later join"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why() {
    let hub = TestHub::start().await;
    let token = hub.token("e1").await;
    let refused = |result: Result<harness::Identity, (http::StatusCode, String)>, why: &str| {
        let (status, text) = result.err().expect("refused");
        assert!(text.contains(why), "{status} {text}");
    };
    refused(hub.enroll("e1", None, None).await, "token is empty");
    refused(
        hub.enroll("e1", Some("rubbish"), None).await,
        "token malformed",
    );
    refused(
        hub.enroll("e2", Some(&token), None).await,
        "token is for another node",
    );
    let old = hub.enroll("e1", Some(&token), None).await.unwrap();
    refused(
        hub.enroll("e1", Some(&token), None).await,
        "token already used",
    );
    let again = cloudhub::cli::token::create(&hub.admin, "e1", 60, false).await;
    assert!(again.err().unwrap().to_string().contains("--replace"));
    // Another node takes the name; the old certificate stops working.
    let token = cloudhub::cli::token::create(&hub.admin, "e1", 60, true)
        .await
        .unwrap()
        .token;
    let bearer = token.split_once('.').unwrap().1;
    let new = hub.enroll("e1", Some(bearer), None).await.unwrap();
    let (code, why) = hub.connect(&old, None).await.closed().await;
    assert_eq!(
        (code, why.contains("replaced by a later join")),
        (1008, true),
        "{why}"
    );
    let renewed = hub.enroll("e1", None, Some(&new)).await.unwrap();
    let (code, why) = hub.connect_as(&renewed, "e9", None).await.closed().await;
    assert_eq!(code, 1008);
    assert_eq!(why, "node_id `e9` is not the certificate's node `e1`");

    // A certificate of another authority does not get past the handshake.
    let stranger = TestHub::start().await.join("e1").await;
    assert!(!hub.is_let_in(&stranger).await && hub.is_let_in(&renewed).await);

    let mut first = hub.connect(&renewed, None).await;
    let mut second = hub.connect(&renewed, None).await;
    let (_, why) = first.closed().await;
    assert_eq!(why, "replaced by a newer connection of this node");
    second.register(false).await;
    let bomb = format!("{{\"content\":{}", "[".repeat(100_000));
    second.send_raw(&bomb).await;
    assert_eq!(second.closed().await.0, 1007);
    let mut third = hub.connect(&renewed, None).await;
    let _ = futures_util::SinkExt::send(
        &mut third.ws,
        tokio_tungstenite::tungstenite::Message::text("x".repeat(5 << 20)),
    )
    .await;
    assert_eq!(third.closed().await.0, 1009);
    // None of it hurt the hub.
    let mut last = hub.connect(&renewed, None).await;
    last.request(Operation::Query, "null/node/e1", Content::null())
        .await;
}
