//! What the hub promises in numbers. Ignored by default: `make bench` and
//! `cargo test -p cloudhub --test hub load -- --ignored --nocapture`.

use std::time::Instant;

use serde_json::json;
use wire::{
    extension::{Batch, BatchAck, Entry, Inventory},
    limits::BATCH_ENTRIES_MAX,
    message::{Content, Message, Operation, Route},
};

use crate::harness::TestHub;

const ALL: &str = "batch, inventory, ping";

fn report(seq: u64) -> Entry {
    let device = seq % 10;
    let resource = format!("device/default/t{device}/twin/edge_updated");
    let route = Route::new("twin", "resource", &Operation::Update, resource);
    let body = json!({"event_id": format!("ev-{seq}"), "timestamp": 5, "twin": {"celsius": {
        "actual": {"value": seq.to_string(), "metadata": {"timestamp": 7}},
        "metadata": {"type": "float"}}}});
    Entry {
        seq,
        stream: format!("twin/default/t{device}"),
        message: Message::new(format!("m-{seq}"), 5, route, Content::json(&body).unwrap()),
        history: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn one_node_reports_ten_thousand_readings_a_second() {
    let hub = TestHub::start_process().await;
    for device in 0..10 {
        let device = json!({
            "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
            "metadata": {"name": format!("t{device}")}, "spec": {"nodeName": "e1"},
        });
        hub.post(
            "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices",
            &device,
        )
        .await;
    }
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    let total: u64 = 20_000;
    let per_batch = u64::try_from(BATCH_ENTRIES_MAX).unwrap();
    let started = Instant::now();
    let mut sent = 0;
    let mut acked = 0;
    while acked < total {
        while sent < total && sent - acked < 4 * per_batch {
            let end = (sent + per_batch).min(total);
            let entries = (sent + 1..=end).map(report).collect();
            let batch = Batch {
                epoch: "epoch-1".to_owned(),
                after: sent,
                entries,
            };
            node.send(&batch.into_message(format!("b{sent}"), 1)).await;
            sent = end;
        }
        let ack = node.until(|m| m.route.resource == "outbox").await;
        acked = ack.content.decode::<BatchAck>().unwrap().acked;
    }
    let took = started.elapsed();
    let rate = f64::from(u32::try_from(total).unwrap()) / took.as_secs_f64();
    println!(
        "{total} readings in {took:?}: {rate:.0} per second; hub {} KiB",
        hub.memory_kib()
    );
    let ledger = hub.get("/outpost/v1/ledger/e1?limit=1").await.unwrap();
    assert_eq!(ledger["received"], total);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn an_idle_node_costs_little_memory() {
    let hub = TestHub::start_process().await;
    let total: u64 = 400;
    let mut nodes = Vec::new();
    let mut before = 0;
    for n in 0..total + 20 {
        if n == 20 {
            before = hub.memory_kib();
        }
        let identity = hub.join(&format!("e{n}")).await;
        let mut node = hub.connect(&identity, Some(ALL)).await;
        node.send(&Inventory::default().into_message("i".into(), 1))
            .await;
        let path = format!("null/node/e{n}");
        node.request(Operation::Query, &path, Content::null()).await;
        nodes.push(node);
    }
    let after = hub.memory_kib();
    println!(
        "{total} nodes: {} KiB each ({before} to {after})",
        (after - before) / total
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_pod_reaches_its_node_and_its_status_the_api() {
    let hub = TestHub::start_process().await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    node.send(&Inventory::default().into_message("i".into(), 1))
        .await;
    node.register(true).await;
    let ready = |n: &serde_json::Value| n.pointer("/spec/taints").is_none();
    hub.wait("/api/v1/nodes/e1", ready).await;
    let pods = "/api/v1/namespaces/default/pods";
    let (mut down, mut up, mut call) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..50 {
        let name = format!("p{n}");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                         "spec": {"containers": [{"name": "c", "image": "i"}]}});
        // Each call opens a connection of its own, which is no part of the pod's way.
        let started = Instant::now();
        hub.get("/version").await.unwrap();
        call.push(started.elapsed());
        let started = Instant::now();
        hub.post(pods, &pod).await;
        node.push("insert", &format!("default/pod/{name}")).await;
        down.push(started.elapsed());
        let patch = Content::string(&json!({"status": {"phase": "Running"}}).to_string());
        let started = Instant::now();
        node.request(Operation::Patch, &format!("default/podpatch/{name}"), patch)
            .await;
        up.push(started.elapsed());
    }
    call.sort();
    down.sort();
    up.sort();
    println!("a call alone: p50 {:?} p98 {:?}", call[25], call[48]);
    println!("create to node: p50 {:?} p98 {:?}", down[25], down[48]);
    println!("status to API: p50 {:?} p98 {:?}", up[25], up[48]);
}
