//! Rules with a ServiceBus, and what rules want from nodes: a node that is nothing but a WebSocket.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use cloudhub::config::Config;
use serde_json::{Value, json};
use wire::{
    extension::Inventory,
    message::{Content, Message, Operation, Route},
    rules::{Base64, Failure, HttpReply, HttpRequest, Routes},
};

use crate::{
    harness::{TestHub, TestNode},
    neighbours::Endpoint,
    rules::{RULES, endpoint, rule},
};

const ALL: &str = "batch, inventory, ping, routes";

/// A hub with all endpoints and KubeEdge's port.
async fn hub(change: impl FnOnce(&mut Config)) -> TestHub {
    let hub = TestHub::start_with(tempfile::tempdir().unwrap(), |config| {
        config.router.listen = Some("127.0.0.1:0".parse().unwrap());
        config.router.anonymous = true;
        change(config);
    })
    .await;
    for name in ["rest", "eventbus", "servicebus"] {
        let mut made = endpoint(name);
        made["spec"]["properties"] = json!({"service_port": "8080"});
        hub.post(&format!("{RULES}/ruleendpoints"), &made).await;
    }
    hub
}

async fn make(hub: &TestHub, name: &str, from: (&str, Value), to: (&str, Value)) {
    hub.post(&format!("{RULES}/rules"), &rule(name, from, to))
        .await;
}

fn url(hub: &TestHub, path: &str) -> String {
    format!("http://127.0.0.1:{}/{path}", hub.ports.router.unwrap())
}

async fn call_rule(hub: &TestHub) {
    let from = ("rest", json!({"path": "/app"}));
    make(hub, "call", from, ("servicebus", json!({"path": "/v1"}))).await;
}

async fn next_call(node: &mut TestNode) -> (Message, HttpRequest) {
    let message = node
        .until(|m| m.route.source == "router_servicebus" && m.route.group == "user")
        .await;
    let request = message.content.decode().unwrap();
    (message, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_28_a_call_is_made_once_and_its_answer_is_the_answer() {
    let hub = hub(|_| {}).await;
    call_rule(&hub).await;
    let mut node = hub.joined("e1", None).await;
    let http = cloudhub::outward::client(None).unwrap();
    let send = || {
        let path = url(&hub, "e1/default/app/x/7?a=b");
        http.patch(path).header("x-y", "z").body("hello").send()
    };
    // (what the node answers, with which operation, what the caller gets)
    for (code, operation) in [
        (201, Operation::Upload),
        (404, Operation::Upload),
        (502, Operation::parse("")),
    ] {
        let answer = async {
            let (message, request) = next_call(&mut node).await;
            assert_eq!(message.route.operation, "PATCH");
            assert_eq!(message.route.resource, "8080:/v1/x/7?a=b");
            assert_eq!(
                (request.method.as_str(), &request.body.0[..]),
                ("PATCH", &b"hello"[..])
            );
            assert_eq!(request.header["x-y"], ["z"]);
            assert!(!request.header.contains_key("host"));
            let reply = HttpReply {
                header: [("x-from".to_owned(), vec!["app".to_owned()])].into(),
                status_code: code,
                body: Base64(format!("said {code}").into_bytes()),
            };
            let mut reply = reply.into_message(&message, format!("r-{code}"), 1);
            operation.as_str().clone_into(&mut reply.route.operation);
            node.send(&reply).await;
        };
        let (called, ()) = tokio::join!(send(), answer);
        let called = called.unwrap();
        assert_eq!(called.status(), code);
        assert_eq!(called.headers()["x-from"], "app");
        assert_eq!(called.text().await.unwrap(), format!("said {code}"));
    }
    assert!(
        !node
            .passed
            .iter()
            .any(|m| m.route.source == "router_servicebus"),
        "each call was made once"
    );
    hub.wait(&format!("{RULES}/rules/call"), |rule| {
        let status = &rule["status"];
        status["successMessages"] == 1
            && status["failMessages"] == 2
            && status["errors"][0] == "the service answered 502"
    })
    .await;
    // A node that goes away ends the wait.
    let gone = async {
        next_call(&mut node).await;
        drop(node);
    };
    let (called, ()) = tokio::join!(send(), gone);
    assert_eq!(called.unwrap().status(), 502);
    assert_eq!(send().await.unwrap().status(), 503);
    let nowhere = http.get(url(&hub, "e1/default/apps")).send().await;
    assert_eq!(nowhere.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_25_the_rules_port_asks_who_it_is_and_a_silent_node_ends_in_504() {
    let hub = hub(|config| {
        config.router.anonymous = false;
        config.router.answer_secs_max = 1;
    })
    .await;
    call_rule(&hub).await;
    let mut node = hub.joined("e1", Some(ALL)).await;
    let http = cloudhub::outward::client(None).unwrap();
    let token = std::fs::read_to_string(hub.dir.path().join("admin.token")).unwrap();
    let token = token.trim();
    for (token, code) in [(None, 403), (Some("nobody's"), 401), (Some(token), 504)] {
        let mut request = http.get(url(&hub, "e1/default/app"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        assert_eq!(request.send().await.unwrap().status(), code);
    }
    let (_, request) = next_call(&mut node).await;
    assert!(
        !request.header.contains_key("authorization"),
        "the token is the hub's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_on_a_node_reaches_the_url_of_its_rule() {
    let hub = hub(|_| {}).await;
    let endpoint = Endpoint::start(&[200, 500, 500]).await;
    let from = json!({"target_url": "http://cloud/app", "node_name": "e1"});
    let to = json!({"resource": format!("http://{}/in", endpoint.address)});
    make(&hub, "ask", ("servicebus", from), ("rest", to)).await;
    let ask = |id: &str, url: &str| {
        let route = Route::new("servicebus", "user", &Operation::Upload, url);
        Message::new(
            id,
            1,
            route,
            Content::string(&STANDARD.encode(b"{\"payload\":1}")),
        )
    };
    let mut node = hub.joined("e1", Some(ALL)).await;
    for (id, url, code) in [
        ("a1", "http://cloud/app", 200),
        ("a2", "http://cloud/app", 500),
        ("a3", "http://elsewhere", 404),
    ] {
        node.send(&ask(id, url)).await;
        let answer = node.until(|m| m.header.parent_id == id).await;
        assert_eq!(answer.route.group, "user");
        if code == 200 {
            assert_eq!(answer.route.operation(), Operation::Response);
            assert_eq!(answer.content.text().as_deref(), Some("thanks"));
        } else {
            assert_eq!(answer.route.operation(), Operation::Error);
            assert_eq!(answer.content.decode::<Failure>().unwrap().code, code);
        }
    }
    assert_eq!(*endpoint.bodies.lock().unwrap(), ["{\"payload\":1}"; 2]);
    hub.wait(&format!("{RULES}/rules/ask"), |rule| {
        let status = &rule["status"];
        status["successMessages"] == 1
            && status["failMessages"] == 1
            && status["errors"][0] == "endpoint answered 500"
    })
    .await;
    // Another node's rule is not ours.
    let mut other = hub.joined("e2", Some(ALL)).await;
    other.send(&ask("b1", "http://cloud/app")).await;
    let answer = other.until(|m| m.header.parent_id == "b1").await;
    assert_eq!(answer.content.decode::<Failure>().unwrap().code, 404);
}

fn routes_in(message: &Message) -> Option<Routes> {
    (message.route.resource == "routes").then(|| message.content.decode().unwrap())
}

async fn until_routes(node: &mut TestNode, topics: &[&str]) {
    let message = node
        .until(|m| {
            routes_in(m).is_some_and(|routes| routes.topics.iter().eq(topics.iter().copied()))
        })
        .await;
    node.send(&message.acknowledgement("ack", 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rules_want_is_told_on_every_connect_and_taken_back_also_from_who_was_away() {
    let hub = hub(|_| {}).await;
    let up = async |name: &str, topic: &str| {
        let from = json!({"topic": topic, "node_name": "e1"});
        let to = ("rest", json!({"resource": "http://127.0.0.1:1/"}));
        make(&hub, name, ("eventbus", from), to).await;
    };
    // Made while the node is away: KubeEdge's is lost.
    up("one", "temp/+").await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    node.send(&Inventory::default().into_message("held".into(), 1))
        .await;
    until_routes(&mut node, &["default/temp/+"]).await;
    up("two", "other").await;
    until_routes(&mut node, &["default/other", "default/temp/+"]).await;
    drop(node);
    hub.delete(&format!("{RULES}/rules/one")).await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    node.send(&Inventory::default().into_message("held".into(), 1))
        .await;
    until_routes(&mut node, &["default/other"]).await;
    drop(node);

    // A plain node, in KubeEdge's words; again on every connect.
    let step = |operation: &'static str, topic: &'static str| {
        move |m: &Message| {
            m.route.source == "router_eventbus"
                && m.route.group == "user"
                && m.route.operation == operation
                && m.route.resource == topic
        }
    };
    let mut node = hub.connect(&identity, None).await;
    node.until(step("subscribe", "default/other")).await;
    drop(node);
    let mut node = hub.connect(&identity, None).await;
    node.until(step("subscribe", "default/other")).await;
    up("three", "third").await;
    node.until(step("subscribe", "default/third")).await;
    drop(node);
    hub.delete(&format!("{RULES}/rules/two")).await;
    let mut node = hub.connect(&identity, None).await;
    node.until(step("unsubscribe", "default/other")).await;
    node.until(step("subscribe", "default/third")).await;
    hub.delete(&format!("{RULES}/rules/three")).await;
    node.until(step("unsubscribe", "default/third")).await;

    // It keeps what it was told; a hub that was started anew still knows what that is.
    up("four", "fourth").await;
    node.until(step("subscribe", "default/fourth")).await;
    drop(node);
    let hub = hub.restart().await;
    hub.delete(&format!("{RULES}/rules/four")).await;
    let mut node = hub.connect(&identity, None).await;
    node.until(step("unsubscribe", "default/fourth")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rules_with_one_source_do_not_both_count() {
    let hub = hub(|_| {}).await;
    for name in ["a", "b"] {
        let to = ("eventbus", json!({"topic": name}));
        make(&hub, name, ("rest", json!({"path": "/same/"})), to).await;
    }
    let error = "not usable: spec.sourceResource: path /same is of rule \"a\" already";
    let is = move |rule: &Value| rule["status"]["errors"][0] == error;
    hub.wait(&format!("{RULES}/rules/b"), is).await;
    hub.delete(&format!("{RULES}/rules/a")).await;
    // What is mended is not complained about any more.
    let is_well = |rule: &Value| rule["status"]["errors"] == json!([]);
    hub.wait(&format!("{RULES}/rules/b"), is_well).await;
    let patience = Duration::from_secs(5);
    let http = cloudhub::outward::client(None).unwrap();
    let answer = http
        .post(url(&hub, "e9/default/same"))
        .timeout(patience)
        .send();
    assert_eq!(
        answer.await.unwrap().status(),
        503,
        "the rule is there, the node is not"
    );
}
