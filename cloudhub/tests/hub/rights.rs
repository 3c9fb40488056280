//! What a node may not do.

use serde_json::{Value, json};
use wire::message::{Content, Operation};

use crate::harness::{self, TestHub};
use crate::node::{PODS, pod, settings};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_touches_only_its_own() {
    let hub = TestHub::start().await;
    let mut node = hub.joined("e1", None).await;
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
    let mut node = hub.joined("e1", None).await;
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
    let mut node = hub.joined("e1", None).await;
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
