//! Rules between the cloud's HTTP and a node's MQTT.

use http::Method;
use serde_json::{Value, json};
use wire::{
    extension::{Batch, Entry},
    message::{Content, Message, Operation, Route},
};

use crate::{
    harness::{TestHub, TestNode},
    neighbours::Endpoint,
    telemetry::kubectl,
};

const ALL: &str = "batch, inventory, ping";
pub(crate) const RULES: &str = "/apis/rules.kubeedge.io/v1/namespaces/default";

pub(crate) fn endpoint(name: &str) -> Value {
    json!({"apiVersion": "rules.kubeedge.io/v1", "kind": "RuleEndpoint",
           "metadata": {"name": name}, "spec": {"ruleEndpointType": name, "properties": {}}})
}

pub(crate) fn rule(name: &str, from: (&str, Value), to: (&str, Value)) -> Value {
    json!({"apiVersion": "rules.kubeedge.io/v1", "kind": "Rule", "metadata": {"name": name},
           "spec": {"source": from.0, "sourceResource": from.1,
                    "target": to.0, "targetResource": to.1}})
}

async fn upload(node: &mut TestNode, seq: u64, topic: &str, body: &str) {
    let route = Route::new("bus", "user", &Operation::Upload, topic);
    let message = Message::new(format!("u-{seq}"), 5, route, Content::string(body));
    let batch = Batch {
        epoch: "epoch-1".to_owned(),
        after: seq - 1,
        entries: vec![Entry {
            seq,
            stream: format!("upload/{topic}"),
            message,
            history: false,
        }],
    };
    node.send(&batch.into_message(format!("b-{seq}"), 1)).await;
    node.until(|m| m.route.resource == "outbox").await;
}

/// A hub with both endpoints.
async fn hub() -> TestHub {
    let hub = TestHub::start().await;
    for name in ["rest", "eventbus"] {
        hub.post(&format!("{RULES}/ruleendpoints"), &endpoint(name))
            .await;
    }
    hub
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_28_uploads_reach_an_endpoint_that_fails_once_each_and_the_rule_tells() {
    let hub = hub().await;
    // Unavailable twice, then refuses one message for good.
    let endpoint = Endpoint::start(&[500, 503, 200, 400]).await;
    let target = json!({"resource": format!("http://{}/in", endpoint.address)});
    let source = json!({"topic": "user/+", "node_name": "e1"});
    let made = rule("up", ("eventbus", source), ("rest", target));
    hub.post(&format!("{RULES}/rules"), &made).await;
    // A rule that cannot work says so.
    let lost = rule(
        "lost",
        ("rest", json!({"path": "x"})),
        ("rest", json!({"resource": "http://x"})),
    );
    hub.post(&format!("{RULES}/rules"), &lost).await;
    let shows = |text: &'static str| move |rule: &Value| rule["status"]["errors"][0] == text;
    hub.wait(
        &format!("{RULES}/rules/lost"),
        shows("not usable: rest to rest is not supported"),
    )
    .await;

    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    // The rule is at work as soon as its forwarder is known.
    let forwards = "/apis/telemetry.outpost.dev/v1/forwards";
    hub.wait(forwards, |list| {
        list["items"].as_array().is_some_and(|l| l.len() == 1)
    })
    .await;
    upload(&mut node, 1, "default/user/a", "one").await;
    upload(&mut node, 2, "other/user/a", "not ours").await;
    upload(&mut node, 3, "default/user/a/b", "too deep").await;
    upload(&mut node, 4, "default/user/b", "two").await;
    upload(&mut node, 5, "default/user/c", "three").await;
    let status = hub
        .wait(&format!("{RULES}/rules/up"), |rule| {
            rule["status"]["successMessages"] == 2 && rule["status"]["failMessages"] == 1
        })
        .await;
    assert_eq!(status["status"]["errors"][0], "endpoint answered 400");
    let bodies = endpoint.bodies.lock().unwrap().clone();
    assert_eq!(
        bodies,
        ["one", "one", "one", "two", "three"],
        "two is refused, once"
    );
    let shown = kubectl(&hub, &["get", "rules"]).await;
    let row = ["up", "eventbus", "rest", "2", "1"];
    let is_row = |line: &str| line.split_whitespace().take(5).eq(row);
    assert!(shown.lines().any(is_row), "{shown}");
    let described = kubectl(&hub, &["describe", "rule", "up"]).await;
    assert!(described.contains("RuleFailed"), "{described}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_25_a_request_needs_rights_and_fault_28_is_sent_once() {
    let hub = hub().await;
    for (name, path, topic) in [("all", "/a", "cmd"), ("one", "/a/{id}/b", "deep")] {
        let made = rule(
            name,
            ("rest", json!({"path": path})),
            ("eventbus", json!({"topic": topic})),
        );
        hub.post(&format!("{RULES}/rules"), &made).await;
    }
    let identity = hub.join("e1").await;
    let base = "/apis/rules.outpost.dev/v1/rest/e1/default";
    let call = async |path: String| {
        let body = json!({"speed": 5});
        hub.admin.call(Method::POST, &path, Some(&body)).await
    };
    let away = call(format!("{base}/a")).await.unwrap_err().to_string();
    assert!(
        away.contains("503") || away.contains("not connected"),
        "{away}"
    );

    let mut node = hub.connect(&identity, Some(ALL)).await;
    for (path, topic) in [("a", "cmd"), ("a/more", "cmd/more"), ("a/7/b/x", "deep/x")] {
        let answer = async {
            let message = node.until(|m| m.route.source == "router_eventbus").await;
            assert_eq!(message.route.group, "user");
            assert_eq!(message.route.operation, "publish");
            assert_eq!(message.route.resource, topic);
            assert_eq!(message.content.text().as_deref(), Some("{\"speed\":5}"));
            node.send(&message.acknowledgement("ack", 1)).await;
        };
        let (called, ()) = tokio::join!(call(format!("{base}/{path}")), answer);
        assert_eq!(called.unwrap()["delivered"], true);
    }
    // Not anchored in KubeEdge: these are nobody's.
    for path in ["ab", "x/a", ""] {
        assert!(call(format!("{base}/{path}")).await.is_err(), "{path}");
    }
    assert!(
        !node
            .passed
            .iter()
            .any(|m| m.route.source == "router_eventbus"),
        "each request was sent once"
    );
    // Without credentials, and with those of a node.
    let trust = std::fs::read_to_string(hub.dir.path().join("ca.crt")).unwrap();
    let stranger = cloudhub::outward::client(Some(&trust)).unwrap();
    let url = format!("https://127.0.0.1:{}{base}/a", hub.ports.api);
    assert_eq!(
        stranger.post(&url).body("x").send().await.unwrap().status(),
        403
    );
    // A certificate that nobody vouches for is not talked to.
    let blind = cloudhub::outward::client(None).unwrap();
    assert!(blind.post(&url).body("x").send().await.is_err());
}
