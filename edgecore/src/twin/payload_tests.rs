//! Payloads of devices, of the hub and in annotations, mutated and at random: nothing panics,
//! whoever sent one is answered, a refusal changes nothing, and what is valid counts.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use rusqlite::Connection;
use serde_json::{Value, json};
use wire::topic;
use wire::twin::{TwinMessage, decode};

use super::{Outcome, device_upserted, document, handle_publish, membership, rows, set_node};
use crate::clock::UnixMillis;
use crate::outbox;
use crate::store::Db;

const T: UnixMillis = 1_785_585_600_000;

/// A change of a document at one of its values.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Replace(Value),
    Remove,
    Rename(String),
}

/// Changes of a document, each at a value of it.
pub(crate) fn mutations() -> impl Strategy<Value = Vec<(Index, Mutation)>> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "[a-z0-9]{500,530}".prop_map(Value::from),
        select(vec![
            json!({}),
            json!([]),
            json!([{}]),
            json!([null]),
            json!({"value": ""})
        ]),
    ];
    let name = select(vec![
        "twin", "VALUE", "name", "a b", "", "actual", "type", "~1",
    ]);
    let mutation = prop_oneof![
        4 => value.prop_map(Mutation::Replace),
        1 => Just(Mutation::Remove),
        1 => name.prop_map(|name| Mutation::Rename(name.to_owned())),
    ];
    prop::collection::vec((any::<Index>(), mutation), 0..4)
}

/// The document with the changes made.
pub(crate) fn mutated(mut document: Value, mutations: &[(Index, Mutation)]) -> Value {
    fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        let members: Vec<(String, &Value)> = match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), value))
                .collect(),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .map(|(n, v)| (n.to_string(), v))
                .collect(),
            _ => Vec::new(),
        };
        for (key, value) in members {
            let key = key.replace('~', "~0").replace('/', "~1");
            pointers(value, &format!("{at}/{key}"), all);
        }
    }
    for (index, mutation) in mutations {
        let mut all = Vec::new();
        pointers(&document, "", &mut all);
        let pointer = index.get(&all);
        if let Mutation::Replace(value) = mutation {
            *document.pointer_mut(pointer).unwrap() = value.clone();
            continue;
        }
        let Some((parent, key)) = pointer.rsplit_once('/') else {
            continue;
        };
        let key = key.replace("~1", "/").replace("~0", "~");
        if let Some(Value::Object(map)) = document.pointer_mut(parent) {
            let removed = map.remove(&key);
            if let (Mutation::Rename(name), Some(value)) = (mutation, removed) {
                map.insert(name.clone(), value);
            }
        }
    }
    document
}

/// Bytes with some of them changed, cut off or put in.
pub(crate) fn damaged(mut bytes: Vec<u8>, damage: &[(Index, u8, u8)]) -> Vec<u8> {
    for (index, kind, byte) in damage {
        let at = index.index(bytes.len() + 1);
        match kind {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, *byte),
            _ if at < bytes.len() => bytes[at] = *byte,
            _ => {}
        }
    }
    bytes
}

pub(crate) fn damage() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::vec((any::<Index>(), 0..4_u8, any::<u8>()), 1..4),
    ]
}

fn device(annotations: &Value) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": {"namespace": "dev", "name": "t1", "uid": "u", "resourceVersion": "7",
                     "labels": {"description": "boiler"}, "annotations": annotations},
        "spec": {"deviceModelRef": {"name": "m"}, "properties": [
            {"name": "temp", "desired": {"value": "20", "metadata": {"type": "INT"}}},
            {"name": "mode", "desired": {"value": "eco"}},
        ]},
    })
}

/// A node with the device `dev/t1`.
fn node() -> Db {
    let db = Db::open_in_memory().unwrap();
    set_node(db.reader(), "n1").unwrap();
    device_upserted(db.reader(), &device(&json!({})), T).unwrap();
    db
}

/// Bodies that are understood, with the topic below the device's or node's.
fn goldens() -> Vec<(&'static str, Value)> {
    let parts = json!({
        "expected": {"value": "30", "metadata": {"timestamp": 5}}, "actual": {"value": "23"},
        "optional": true, "metadata": {"type": "int"},
        "expected_version": {"cloud": 9, "edge": 0}, "actual_version": {"cloud": 0, "edge": 9},
        "sync": {"state": "refused", "reason": "stuck"},
    });
    let twin = json!({"event_id": "e", "timestamp": 1, "twin": {"temp": parts, "gone": null,
                      "mode": {"actual": {"value": "eco"}}, "new": {"actual": {"value": "x"}}}});
    let mut plain = twin.clone();
    plain["twin"].as_object_mut().unwrap().remove("gone");
    vec![
        ("device/dev/t1/twin/update", plain),
        ("device/dev/t1/twin/update", twin.clone()),
        ("device/dev/t1/twin/cloud_updated", twin),
        ("device/dev/t1/twin/get", json!({"event_id": "g"})),
        (
            "device/dev/t1/state/update",
            json!({"event_id": "s", "state": "Online"}),
        ),
        ("node/n1/membership/get", json!({"event_id": "m"})),
    ]
}

fn publish(tx: &Connection, tail: &str, payload: &[u8]) -> Outcome {
    let inbound = topic::parse(&format!("$hw/events/{tail}")).unwrap();
    handle_publish(tx, &inbound, payload, T).unwrap()
}

/// What a local client is told of a publish on a topic that is always answered.
fn answered(tail: &str, outcome: &Outcome) -> Value {
    let first = outcome.publishes.first().expect("an answer");
    assert_eq!(first.topic, format!("$hw/events/{tail}/result"));
    let body: Value = serde_json::from_slice(&first.payload).unwrap();
    if let Some(code) = body.get("code") {
        assert!(code == 400 || code == 404, "{body}");
        assert_ne!(body["reason"], Value::Null, "{body}");
        assert!(
            !outcome.queued && outcome.publishes.len() == 1,
            "{outcome:?}"
        );
    }
    body
}

proptest! {
    // Each opens a database.
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_publish_is_answered_and_a_refusal_changes_nothing(
        golden in select(goldens()),
        mutations in mutations(),
        damage in damage(),
    ) {
        let (tail, body) = golden;
        let db = node();
        let tx = db.reader();
        let before = document(tx, "dev", "t1").unwrap().unwrap();
        let pending = outbox::pending(tx, 0, 100).unwrap().len();
        let payload = damaged(mutated(body, &mutations).to_string().into_bytes(), &damage);
        let outcome = publish(tx, tail, &payload);
        let after = document(tx, "dev", "t1").unwrap().unwrap();
        if tail.ends_with("cloud_updated") {
            return Ok(());
        }
        let answer = answered(tail, &outcome);
        if answer.get("code").is_some() {
            prop_assert_eq!(after, before);
            prop_assert_eq!(outbox::pending(tx, 0, 100).unwrap().len(), pending);
        } else if tail.ends_with("twin/update") {
            let sent: TwinMessage = decode(&payload).unwrap();
            for (name, part) in sent.twin.unwrap() {
                let Some(value) = part.and_then(|part| part.actual?.value) else { continue };
                prop_assert_eq!(&answer["twin"][&name]["actual"]["value"], &json!(value));
                let stored = after.properties[&name].reported.clone();
                prop_assert_eq!(stored.unwrap().value, value);
                prop_assert!(outcome.queued);
            }
        }
    }

    #[test]
    fn any_bytes_on_any_topic_are_answered(
        golden in select(goldens()),
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let outcome = publish(node().reader(), golden.0, &payload);
        if !golden.0.ends_with("cloud_updated") {
            answered(golden.0, &outcome);
        }
    }

    #[test]
    fn what_is_valid_is_taken(
        values in prop::collection::btree_map(
            "[a-zA-Z0-9_.,:/@#-]{1,128}", "[a-zA-Z0-9_.,:/@#-]{0,512}", 1..6,
        ),
        spaces in "[ \n\t]{0,4}",
    ) {
        let twin: BTreeMap<_, _> = values.iter().filter(|(name, _)| *name != "temp")
            .map(|(name, value)| (name, json!({"actual": {"value": value}}))).collect();
        let payload = format!("{spaces}{}{spaces}", json!({"event_id": "e", "twin": twin}));
        let db = node();
        let answer = answered(UPDATE, &publish(db.reader(), UPDATE, payload.as_bytes()));
        prop_assert_eq!(answer.get("code"), None, "{}", answer);
        let stored = document(db.reader(), "dev", "t1").unwrap().unwrap();
        for name in twin.keys() {
            let reported = stored.properties[*name].reported.clone();
            prop_assert_eq!(&reported.unwrap().value, &values[*name]);
        }
    }

    #[test]
    fn an_object_of_the_hub_gives_what_is_valid_of_it_and_twice_is_once(mutations in mutations()) {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let annotations = json!({"outpost.dev/conflict": "newest,temp=edge",
            "outpost.dev/desired-at": "{\"temp\":5}", "outpost.dev/stream-policy": "priority=8"});
        let object = mutated(device(&annotations), &mutations);
        device_upserted(tx, &object, T).unwrap();
        let known = rows::ids(tx).unwrap();
        let again = device_upserted(tx, &object, T + 1).unwrap();
        prop_assert_eq!(again, Outcome::default());
        prop_assert_eq!(rows::ids(tx).unwrap(), known.clone());
        let of = |value: &Value| value.as_str().map(str::to_owned);
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let Some(stored) = document(tx, namespace, name).unwrap() else {
            prop_assert!(known.is_empty(), "{known:?}");
            return Ok(());
        };
        for property in object["spec"]["properties"].as_array().into_iter().flatten() {
            // The golden ones, as far as they are whole.
            let wished = (of(&property["name"]), of(&property["desired"]["value"]));
            let (Some(name), Some(value)) = wished else { continue };
            if name == "mode" && value == "eco" {
                let desired = stored.properties[&name].desired.clone();
                prop_assert_eq!(desired.unwrap().value, value);
            }
        }
    }

    #[test]
    fn a_membership_that_cannot_be_read_removes_nobody(mutations in mutations(), damage in damage()) {
        let db = node();
        let tx = db.reader();
        let body = json!({"event_id": "m", "devices": [{"id": "dev/t1"}, {"id": "dev/t2",
            "attributes": {"a": {"value": "1"}}, "twin": {"x": {"expected": {"value": "1"},
            "expected_version": {"cloud": 1, "edge": 0}}}}], "added_devices": null});
        let bytes = damaged(mutated(body, &mutations).to_string().into_bytes(), &damage);
        membership(tx, &bytes, T).unwrap();
        let read = serde_json::from_slice::<Value>(&bytes).ok();
        let is_listed = |device: &Value| {
            let id = device["id"].as_str();
            id.is_some_and(|id| device_twin::DeviceId::parse(id).is_some())
        };
        let unusable = |read: &Value| {
            let listed = read["devices"].as_array();
            listed.is_some_and(|listed| !listed.iter().all(is_listed))
        };
        if read.as_ref().is_some_and(unusable) {
            prop_assert!(document(tx, "dev", "t1").unwrap().is_some());
        }
        if read.is_none() {
            let known: Vec<String> = rows::ids(tx).unwrap().iter().map(ToString::to_string).collect();
            prop_assert_eq!(known, ["dev/t1"]);
        }
        membership(tx, &bytes, T).unwrap();
    }

    #[test]
    fn an_annotation_is_used_or_complained_of(
        conflict in "(cloud|edge|newest|temp=edge|moon|=|[a-z=, ]{0,6}){0,3}(,newest)?",
        policy in "((priority|ttl|bytes|whenFull)=[0-9a-zA-Z]{0,5},? ?){0,3}|\\PC{0,8}",
        at in "\\PC{0,12}|\\{\"temp\":-?[0-9]{1,20}\\}",
    ) {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let annotations = json!({"outpost.dev/conflict": conflict,
            "outpost.dev/desired-at": at, "outpost.dev/stream-policy": policy});
        device_upserted(tx, &device(&annotations), T).unwrap();
        let rows = outbox::pending(tx, 0, 100).unwrap();
        let text: String = rows.iter().map(|row| String::from_utf8_lossy(&row.message)).collect();
        let is_rule = |part: &str| {
            let rule = part.rsplit_once('=').map_or(part, |(_, rule)| rule).trim();
            ["cloud", "edge", "newest"].contains(&rule) && part.matches('=').count() < 2
        };
        let is_wrong = !conflict.is_empty() && !conflict.split(',').all(is_rule);
        prop_assert_eq!(text.contains("outpost.dev/conflict knows"), is_wrong, "{}", conflict);
        let is_wrong = outbox::Policy::parse(&policy).is_err();
        prop_assert_eq!(text.contains("annotation outpost.dev/stream-policy"), is_wrong, "{}", policy);
        // Whatever they say, the wishes stand.
        let stored = document(tx, "dev", "t1").unwrap().unwrap();
        prop_assert_eq!(&stored.properties["temp"].desired.as_ref().unwrap().value, "20");
    }
}

const UPDATE: &str = "device/dev/t1/twin/update";

#[test]
fn a_wrong_name_is_told_before_an_unknown_device() {
    let db = node();
    let of = |name: &str| {
        let payload = json!({"event_id": "e", "twin": {name: {"actual": {"value": "1"}}}});
        let tail = "device/dev/nobody/twin/update";
        answered(
            tail,
            &publish(db.reader(), tail, payload.to_string().as_bytes()),
        )
    };
    assert_eq!(of("two words")["code"], 400);
    assert_eq!(of("fine")["code"], 404);
}
