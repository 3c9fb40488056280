//! Bytes on topics in, bytes on topics and rows for the cloud out.

mod cloud;
mod reports;
mod vectors;

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
