use serde_json::{Value, json};
use wire::message::{Content, Message, Operation, Route};
use wire::resource::Kind;

use super::objects::{self, Key};
use super::*;
use crate::store::{Db, StoreError};

fn push(operation: &Operation, path: &str, version: &str, body: &Value) -> Message {
    let route = Route::new("edgecontroller", "resource", operation, path);
    Message::new("1", 1, route, Content::json(body).unwrap()).with_resource_version(version)
}

fn pod(uid: &str, version: &str, node: &str) -> Value {
    json!({"metadata": {"name": "p", "namespace": "default", "uid": uid, "resourceVersion": version},
           "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}})
}

struct Node {
    db: Db,
    sealer: Sealer,
}

impl Node {
    fn new() -> Self {
        Self {
            db: Db::open_in_memory().unwrap(),
            sealer: Sealer::new(&[7; 32]).unwrap(),
        }
    }

    fn apply(&self, message: &Message) -> Result<Applied, StoreError> {
        apply(self.db.reader(), &self.sealer, "n1", message, 1)
    }

    fn version(&self) -> Option<String> {
        let key = Key::new(&Kind::Pod, "default", "p");
        objects::version(self.db.reader(), &key)
            .unwrap()
            .map(|(_, version)| version)
    }
}

#[test]
fn a_push_is_an_upsert_older_versions_and_other_uids_change_nothing() {
    let node = Node::new();
    let path = "default/pod/p";
    for (name, operation, uid, version, changed, stored) in [
        (
            "update before insert",
            Operation::Update,
            "u1",
            "10",
            true,
            Some("10"),
        ),
        (
            "the same again",
            Operation::Insert,
            "u1",
            "10",
            false,
            Some("10"),
        ),
        ("older", Operation::Update, "u1", "9", false, Some("10")),
        ("newer", Operation::Update, "u1", "100", true, Some("100")),
        (
            "delete of another uid",
            Operation::Delete,
            "u0",
            "101",
            false,
            Some("100"),
        ),
        ("recreated", Operation::Insert, "u2", "50", true, Some("50")),
        ("delete", Operation::Delete, "u2", "", true, None),
        ("delete again", Operation::Delete, "u2", "", false, None),
    ] {
        let message = push(&operation, path, version, &pod(uid, version, "n1"));
        assert_eq!(node.apply(&message).unwrap().changed, changed, "{name}");
        assert_eq!(node.version().as_deref(), stored, "{name}");
    }
}

#[test]
fn a_hub_restored_from_a_backup_is_heard_though_its_versions_fell() {
    let node = Node::new();
    let path = "default/pod/p";
    let push = |version: &str| push(&Operation::Update, path, version, &pod("u1", version, "n1"));
    let in_order =
        |message: &Message| apply_in_order(node.db.reader(), &node.sealer, "n1", message, 1);
    for (version, changed) in [("100", true), ("100", false), ("60", true), ("61", true)] {
        assert_eq!(in_order(&push(version)).unwrap().changed, changed);
        assert_eq!(node.version().as_deref(), Some(version));
    }
    assert_eq!(node.version().as_deref(), Some("61"));
    // An answer to a query may have been overtaken by a push.
    assert!(!node.apply(&push("60")).unwrap().changed);
}

#[test]
fn a_pod_that_is_not_ours_or_not_readable_is_never_stored() {
    let node = Node::new();
    let foreign = push(
        &Operation::Insert,
        "default/pod/p",
        "1",
        &pod("u", "1", "n2"),
    );
    assert!(!node.apply(&foreign).unwrap().changed);
    let broken = push(
        &Operation::Insert,
        "default/pod/p",
        "1",
        &json!({"metadata": {"uid": "u"}, "spec": {"containers": 5}}),
    );
    assert!(matches!(node.apply(&broken), Err(StoreError::Refused(_))));
    let text = push(
        &Operation::Insert,
        "default/pod/p",
        "1",
        &json!("no object"),
    );
    assert!(node.apply(&text).is_err());
    assert_eq!(node.version(), None);
}

#[test]
fn a_body_may_be_a_string_of_json() {
    let node = Node::new();
    let text = pod("u", "3", "n1").to_string();
    let message = push(&Operation::Insert, "default/pod/p", "", &json!(text));
    assert!(node.apply(&message).unwrap().changed);
    assert_eq!(node.version().as_deref(), Some("3"));
}

#[test]
fn secrets_are_sealed_and_a_lost_key_forgets_them() {
    let node = Node::new();
    let body = json!({"metadata": {"uid": "s"}, "data": {"password": "aHVudGVyMg=="}});
    let message = push(&Operation::Update, "default/secret/s", "5", &body);
    assert!(node.apply(&message).unwrap().changed);
    let tx = node.db.reader();
    let raw: Vec<u8> = tx
        .query_row("SELECT value FROM objects", [], |row| row.get(0))
        .unwrap();
    assert!(!raw.windows(12).any(|window| window == b"aHVudGVyMg=="));
    let key = Key::new(&Kind::Secret, "default", "s");
    let opened = objects::get(tx, &node.sealer, &key).unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&opened.json).unwrap(), body);

    let held = inventory(tx).unwrap();
    assert_eq!(held.objects.len(), 1);
    assert_eq!(held.objects[0].path, "default/secret/s");
    assert_eq!(held.objects[0].version, "5");

    let other = Sealer::new(&[8; 32]).unwrap();
    assert_eq!(objects::get(tx, &other, &key).unwrap(), None);
    assert_eq!(objects::forget_unreadable(tx, &other).unwrap(), 1);
    assert!(inventory(tx).unwrap().objects.is_empty());
}

#[test]
fn the_router_publishes_to_local_clients() {
    let node = Node::new();
    let route = Route::new(
        "router_eventbus",
        "user",
        &Operation::Other("publish".into()),
        "a/b/c",
    );
    let message = Message::new("1", 1, route, Content::string("hello"));
    let applied = node.apply(&message).unwrap();
    assert_eq!(applied.publishes[0].topic, "a/b/c");
    assert_eq!(applied.publishes[0].payload, b"hello");
}

#[test]
fn only_a_database_that_replaces_a_lost_one_is_incomplete() {
    for (name, ran_before, known, found, expected) in [
        ("first start", false, false, false, true),
        ("all of the node's data is lost", false, false, true, false),
        ("lost", true, false, true, false),
        (
            "lost, and the machine began anew",
            true,
            false,
            false,
            false,
        ),
        ("as ever", true, true, true, true),
    ] {
        let node = Node::new();
        let tx = node.db.reader();
        if known {
            crate::twin::set_node(tx, "n1").unwrap();
        }
        mark_if_rebuilt(tx, ran_before).unwrap();
        let is_complete = || objects::is_complete(tx).unwrap();
        assert_eq!(is_complete(), known, "{name}: nobody has looked yet");
        // A node that ends here asks again.
        crate::twin::set_node(tx, "n1").unwrap();
        mark_if_rebuilt(tx, true).unwrap();
        objects::found_containers(tx, found).unwrap();
        assert_eq!(is_complete(), expected, "{name}");
        // What the next process finds is this one's doing.
        objects::found_containers(tx, true).unwrap();
        assert_eq!(is_complete(), expected, "{name}");
        objects::set_complete(tx).unwrap();
        assert!(is_complete(), "{name}");
    }
}

#[test]
fn fault_11_a_device_sent_again_after_an_outage_reaches_the_device_whoever_sent_it() {
    let node = Node::new();
    let device = |version: &str, value: &str| {
        let body = json!({"metadata": {"namespace": "dev", "name": "lamp", "uid": "u",
            "resourceVersion": version},
            "spec": {"properties": [{"name": "level", "desired": {"value": value}}]}});
        push(&Operation::Update, "dev/device/lamp", version, &body)
    };
    node.apply(&device("7", "10")).unwrap();
    let mut again = device("9", "30");
    again.route.source = "edgecontroller".to_owned();
    let applied = node.apply(&again).unwrap();
    let delta = applied
        .publishes
        .iter()
        .find(|p| p.topic.ends_with("/delta"));
    let delta: Value = serde_json::from_slice(&delta.unwrap().payload).unwrap();
    assert_eq!(delta["delta"]["level"], "30");
}

#[test]
fn what_rules_want_from_the_node_is_kept_and_bounded() {
    use wire::rules::{EVENT_BUS, Routes, TO_SERVICE_BUS};
    let node = Node::new();
    let told = |message: &Message| node.apply(message).unwrap().routes.unwrap();
    let step = |source: &str, operation: &str, resource: &str| {
        let operation = Operation::Other(operation.into());
        let route = Route::new(source, "user", &operation, resource);
        told(&Message::new("1", 1, route, Content::null()))
    };
    // KubeEdge's, one at a time; a URL looks like a path of an object and is none.
    step(EVENT_BUS, "subscribe", "default/a/#");
    step(TO_SERVICE_BUS, "start", "http://h/pod/x");
    let both = step(EVENT_BUS, "subscribe", "default/b");
    assert_eq!((both.topics.len(), both.urls.len()), (2, 1));
    assert_eq!(routes::load(node.db.reader()).unwrap(), both);
    let fewer = step(TO_SERVICE_BUS, "stop", "http://h/pod/x");
    assert!(fewer.urls.is_empty());
    // Ours, all at once: what is not in it is gone. What is no topic is left out, not refused.
    let mut wanted = Routes::default();
    wanted
        .topics
        .extend((0..300).map(|n| format!("default/{n:03}")));
    wanted
        .topics
        .extend(["$SYS/#".into(), "a#".into(), "x".repeat(3000)]);
    let whole = told(&wanted.into_message("1".into(), 1));
    assert_eq!(whole.topics.len(), 256);
    assert!(
        whole
            .topics
            .iter()
            .all(|topic| topic.starts_with("default/"))
    );
    assert_eq!(routes::load(node.db.reader()).unwrap(), whole);
}
