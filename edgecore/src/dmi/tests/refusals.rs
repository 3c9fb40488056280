//! What a mapper does not take is told to whoever desired it: at the node and at the hub.

use serde_json::Value;

use super::world::{Node, Served, device, model, reading};
use crate::twin::{self, DeviceDetail};

/// What the node shows of the property `level`.
async fn level(node: &Node, device: &str) -> (String, String) {
    let id = device_twin::DeviceId::new("dev", device).unwrap();
    let read = node.store.read(move |tx| twin::detail(tx, &id)).await;
    let detail: DeviceDetail = read.unwrap().unwrap();
    let found = detail
        .properties
        .into_iter()
        .find(|one| one.name == "level");
    found.map(|one| (one.sync, one.reason)).unwrap_or_default()
}

/// What the hub was told of the property `level` of a device, in order; repeats once.
async fn told(node: &Node, device: &str) -> Vec<(String, String)> {
    let rows = node.reports_of(device).await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut told: Vec<_> = rows
        .iter()
        .map(|row| &row["twin"]["level"]["sync"])
        .filter(|sync| sync.is_object())
        .map(|sync| (text(&sync["state"]), text(&sync["reason"])))
        .collect();
    told.dedup();
    told
}

fn states(of: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(state, reason): &(&str, &str)| ((*state).to_owned(), (*reason).to_owned());
    of.iter().map(owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_told_once_and_is_over_when_the_mapper_takes_the_value() {
    let Served { dir, node, mapper } = Served::start(&["a", "b"]).await;
    mapper.script.refuse("update a");
    node.put_device(device("a", "2")).await;
    node.put_device(device("b", "2")).await;
    mapper.script.called_times("refused update a=2", 3).await;
    mapper.script.called("update b=2").await;
    let refused = ("refused".to_owned(), "the device is busy".to_owned());
    assert_eq!(level(&node, "a").await, refused);
    let pending = ("pending", "");
    let busy = ("refused", "the device is busy");
    assert_eq!(told(&node, "a").await, states(&[pending, busy]));
    assert_eq!(told(&node, "b").await, states(&[pending]), "its own");
    // Another reason is news; a value that was taken is on its way.
    mapper.script.refuse_with("update a", "the valve is stuck");
    node.until("another reason", async |node| {
        level(node, "a").await.1 == "the valve is stuck"
    })
    .await;
    mapper.script.refuse("");
    node.until("taken", async |node| level(node, "a").await.0 == "pending")
        .await;
    node.report("a", vec![reading("level", "2")]).await.unwrap();
    let stuck = ("refused", "the valve is stuck");
    let there = ("acknowledged", "");
    let all = states(&[pending, busy, stuck, pending, there]);
    assert_eq!(told(&node, "a").await, all);
    node.stop().await;
    drop(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_over_when_another_mapper_takes_the_device() {
    let Served { dir, node, mapper } = Served::start(&["a"]).await;
    mapper.script.refuse("update a");
    node.put_device(device("a", "2")).await;
    node.until("refused", async |node| {
        level(node, "a").await.0 == "refused"
    })
    .await;
    // What the device says itself is not taken back by a mapper.
    let own = br#"{"event_id":"e","twin":{"own":{"expected":{"value":"1"}}}}"#;
    node.publish("$hw/events/device/dev/a/twin/update", own)
        .await;
    let no = br#"{"event_id":"f","twin":{"own":{"sync":{"state":"refused","reason":"no"}}}}"#;
    node.publish("$hw/events/device/dev/a/twin/update", no)
        .await;
    mapper.script.refuse("remove a");
    let second = super::world::Mapper::start(&dir.path().join("second.sock"));
    node.register("two", &second.socket).await.unwrap();
    assert_eq!(level(&node, "a").await.0, "pending");
    // That the first one does not let go of the device is no refusal of a value.
    mapper.script.called_times("refused remove a", 2).await;
    assert_eq!(level(&node, "a").await.0, "pending");
    let read = node.store.read(|tx| twin::document(tx, "dev", "a")).await;
    let refused = read.unwrap().unwrap().properties["own"].refused.clone();
    assert_eq!(refused.unwrap().reason, "no");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_was_refused_at_the_node_is_not_handed_to_the_mapper() {
    let Served { dir, node, mapper } = Served::start(&["a"]).await;
    let mut typed = reading("level", "1");
    let metadata = &mut typed.reported.as_mut().unwrap().metadata;
    metadata.insert("type".to_owned(), "int".to_owned());
    node.report("a", vec![typed]).await.unwrap();
    node.put_device(device("a", "warm")).await;
    assert_eq!(level(&node, "a").await.1, "the value is not int or integer");
    // The model's change is called after it.
    node.put_model(model("degC")).await;
    mapper.script.called("update model m").await;
    assert_eq!(mapper.script.calls(), ["update model m"]);
    node.stop().await;
    drop(dir);
}
