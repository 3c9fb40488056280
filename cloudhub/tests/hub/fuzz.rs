//! What nodes may send, mutated: golden messages of KubeEdge and everything that goes in batches.
//! No panic, and nobody else notices.

use std::sync::Mutex;

use futures_util::{SinkExt, StreamExt};
use http::Method;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message as WsMessage;
use wire::{
    extension::{EVENTS_STREAM, GAPS_STREAM, Gap, Gaps, Inventory},
    message::{Content, Message, Operation, Route},
};

use crate::{
    harness::{PATIENCE, TestHub, TestNode},
    mangle,
    node::{PODS, pod, told},
    telemetry::{DEVICES, READINGS, device, report, state},
};

const ALL: &str = "batch, inventory, ping";
const ROUNDS: u64 = 150;
const MESSAGES: usize = 10;

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn watch_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        PANICS.lock().unwrap().push(panic.to_string());
    }));
}

fn no_panics() {
    assert_eq!(*PANICS.lock().unwrap(), Vec::<String>::new());
}

/// Valid messages of a node `edge-1` with a device `t1` and a pod `p1`.
fn corpus() -> Vec<Value> {
    let golden = include_str!("../../../wire/tests/golden/vectors.jsonl");
    let golden = golden.lines().filter_map(|line| {
        let vector: Value = serde_json::from_str(line).unwrap();
        serde_json::from_str(vector["text"].as_str()?).ok()
    });
    let gap = |stream: &str| Gap {
        stream: stream.to_owned(),
        fate: "evicted".to_owned(),
        rows: 3,
        first_seq: 1,
        last_seq: 9,
        first_ms: 1,
        last_ms: 2,
    };
    let gaps = Gaps {
        gaps: vec![gap("twin/default/t1"), gap("upload/x")],
    };
    let route = |source: &str, operation: Operation, resource: &str| {
        Route::new(source, "user", &operation, resource)
    };
    let ours = [
        report(1, "t1", 7).message,
        state(1, "online").message,
        told(1, "edge-1").message,
        gaps.into_message("g".into(), 1),
        Inventory::default().into_message("i".into(), 1),
        Message::new(
            "u",
            5,
            route("bus", Operation::Upload, "default/user/a"),
            Content::string("x"),
        ),
        Message::new(
            "s",
            5,
            route("servicebus", Operation::Upload, "http://127.0.0.1/y"),
            Content::json(&json!({"header": {"a": ["b"]}, "body": "eA=="})).unwrap(),
        ),
    ];
    let ours = ours
        .iter()
        .map(|message| serde_json::from_slice(&message.encode()).unwrap());
    golden.chain(ours).filter(Value::is_object).collect()
}

/// One to four messages as a batch, mostly mutated where their handlers look, so that the batch is
/// taken.
fn batch(corpus: &[Value], seq: &mut u64, rng: &mut StdRng) -> Vec<u8> {
    let streams = [
        EVENTS_STREAM,
        GAPS_STREAM,
        "twin/default/t1",
        "state/default/t1",
        "upload/x",
    ];
    let after = *seq;
    let mut choose = |n: usize| rng.random_range(0..n);
    let entries: Vec<Value> = (0..=choose(4))
        .map(|_| {
            *seq += 1;
            let mut message = corpus[choose(corpus.len())].clone();
            match choose(8) {
                0 => mangle::change(&mut message, &mut choose),
                _ => mangle::change(&mut message["content"], &mut choose),
            }
            let stream = streams[choose(streams.len())];
            json!({"seq": *seq, "stream": stream, "message": message, "history": choose(2) == 0})
        })
        .collect();
    let batch = json!({"epoch": "epoch-1", "after": after, "entries": entries});
    let message = json!({"header": {"msg_id": format!("b{after}"), "timestamp": 1},
        "route": {"source": "edgehub", "group": "outpost", "operation": "outpost-batch", "resource": "outbox"},
        "content": batch});
    message.to_string().into_bytes()
}

/// Whether the session still stands; who is asked answers or is gone.
async fn stands(node: &mut TestNode, id: &str) -> bool {
    let route = Route::new("edged", "meta", &Operation::Query, "null/node/edge-1");
    let query = Message::new(id.to_owned(), 1, route, Content::null()).encode();
    let asked = async {
        let query = WsMessage::text(String::from_utf8(query).unwrap());
        if node.ws.send(query).await.is_err() {
            return false;
        }
        while let Some(Ok(received)) = node.ws.next().await {
            match received {
                WsMessage::Text(text) => {
                    let message = Message::decode(text.as_bytes()).unwrap();
                    if message.header.parent_id == id {
                        return true;
                    }
                }
                WsMessage::Close(_) => return false,
                _ => {}
            }
        }
        false
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .expect("the hub hangs")
}

#[tokio::test(flavor = "multi_thread")]
async fn mangled_messages_of_a_node_harm_nobody_else() {
    watch_panics();
    let hub = TestHub::start().await;
    let mut thermometer = device("t1");
    thermometer["spec"]["nodeName"] = "edge-1".into();
    hub.post(DEVICES, &thermometer).await;
    let mut p1 = pod("p1");
    p1["spec"]["nodeName"] = "edge-1".into();
    hub.post(PODS, &p1).await;
    let (good, bad) = (hub.join("good").await, hub.join("edge-1").await);
    let mut neighbour = hub.connect(&good, None).await;
    neighbour.register(true).await;
    let corpus = corpus();
    assert!(corpus.len() > 80, "{}", corpus.len());
    let mut node = hub.connect(&bad, Some(ALL)).await;
    let (mut seq, mut lost, mut kept) = (0, 0, 0);
    for seed in 0..ROUNDS {
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..MESSAGES {
            let bytes = if rng.random_range(0..2) == 0 {
                batch(&corpus, &mut seq, &mut rng)
            } else {
                let mut document = corpus[rng.random_range(0..corpus.len())].clone();
                let mut choose = |n: usize| rng.random_range(0..n);
                if choose(4) > 0 {
                    mangle::change(&mut document["content"], &mut choose);
                    document.to_string().into_bytes()
                } else {
                    mangle::mangled(&document, &mut choose)
                }
            };
            let message = match String::from_utf8(bytes) {
                Ok(text) => WsMessage::text(text),
                Err(error) => WsMessage::binary(error.into_bytes()),
            };
            if node.ws.send(message).await.is_err() {
                break;
            }
        }
        if stands(&mut node, &format!("q{seed}")).await {
            kept += 1;
        } else {
            lost += 1;
            node = hub.connect(&bad, Some(ALL)).await;
            seq = node.acked.as_deref().unwrap().parse().unwrap();
        }
        assert!(
            stands(&mut neighbour, &format!("n{seed}")).await,
            "seed {seed}"
        );
    }
    assert!(
        lost > 0 && kept > 0,
        "{lost} sessions ended, {kept} rounds did not"
    );
    // What was stored of all this can be shown.
    for path in [
        DEVICES,
        PODS,
        READINGS,
        "/outpost/v1/ledger/edge-1",
        "/api/v1/events",
        "/api/v1/nodes",
    ] {
        assert!(hub.get(path).await.is_some(), "{path}");
    }
    let ledger = hub.get("/outpost/v1/ledger/edge-1").await.unwrap();
    assert!(
        ledger["received"].as_u64().unwrap() > 100,
        "{}",
        ledger["received"]
    );
    no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_queries_are_answered_with_what_is_wrong() {
    watch_panics();
    let hub = TestHub::start().await;
    let paths = [
        format!("{READINGS}?property=a&node=b&since=1&until=2&last=3&limit=4&continue=1.2"),
        "/apis/telemetry.outpost.dev/v1/uploads?topic=a%2Fb&last=3".to_owned(),
        "/apis/rules.outpost.dev/v1/rest/e1/default/a/b".to_owned(),
        "/outpost/v1/ledger/e1?limit=1".to_owned(),
        "/outpost/v1/tokens".to_owned(),
        format!("{DEVICES}?labelSelector=a%3Db&fieldSelector=spec.nodeName%3De1&limit=5"),
    ];
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..600 {
        let mut path = paths[rng.random_range(0..paths.len())].clone().into_bytes();
        mangle::spoil(&mut path, &mut |n| rng.random_range(0..n));
        let path = String::from_utf8_lossy(&path).into_owned();
        if !path.starts_with('/') || path.parse::<http::Uri>().is_err() {
            continue;
        }
        let method = if round % 3 == 0 {
            Method::POST
        } else {
            Method::GET
        };
        let body = (method == Method::POST).then(|| json!({"node": path, "ttl": -1}));
        let mut connection = hub.admin.connect().await.unwrap();
        let answer = connection.send(method, &path, body.as_ref()).await.unwrap();
        assert_ne!(answer.status(), 500, "{path}");
    }
    assert!(hub.get("/api/v1/namespaces").await.is_some());
    no_panics();
}
