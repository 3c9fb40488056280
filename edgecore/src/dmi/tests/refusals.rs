//! What a mapper does not take is told to whoever desired it: at the node and at the hub.

use ::dmi::v1beta1 as pb;
use serde_json::{Value, json};

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

/// What the device's events say.
async fn complaints(node: &Node) -> Vec<String> {
    let events = node.reports().await.into_iter();
    let text = |event: Value| event["message"].as_str().unwrap_or_default().to_owned();
    events
        .filter(|event| event["reason"] == "NotServed")
        .map(text)
        .collect()
}

/// KubeEdge's mapper-framework ends the mapper's process at such a property, for all devices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_property_that_the_model_lacks_reaches_no_mapper_and_its_owner_is_told_once() {
    let Served { dir, node, mapper } = Served::start(&["a"]).await;
    let names = |device: &pb::Device| -> Vec<String> {
        let spec = device.spec.as_ref().unwrap();
        spec.properties.iter().map(|one| one.name.clone()).collect()
    };
    let of = |version: &str, odd: &str| {
        let mut given = device("a", "2");
        given["metadata"]["resourceVersion"] = json!(version);
        let odd = json!({"name": "odd", "desired": {"value": odd}});
        given["spec"]["properties"]
            .as_array_mut()
            .unwrap()
            .push(odd);
        given
    };
    node.put_device(of("1", "7")).await;
    mapper.script.called("update a=2").await;
    let odd = async |node: &Node| {
        let id = device_twin::DeviceId::new("dev", "a").unwrap();
        let read = node.store.read(move |tx| twin::detail(tx, &id)).await;
        let properties = read.unwrap().unwrap().properties;
        let found = properties.into_iter().find(|one| one.name == "odd");
        let found = found.unwrap();
        (found.sync, found.refused, found.reason)
    };
    let refused = |value: &str| {
        let reason = "model m has no property odd".to_owned();
        ("refused".to_owned(), value.to_owned(), reason)
    };
    node.until("told", async |node| odd(node).await == refused("7"))
        .await;
    assert_eq!(
        level(&node, "a").await.0,
        "pending",
        "the others are served"
    );
    // Another value of it, a registration, a restart: the same answer, and one complaint.
    node.put_device(of("2", "8")).await;
    node.until("told again", async |node| odd(node).await == refused("8"))
        .await;
    let answer = node.register("one", &mapper.socket).await.unwrap();
    assert_eq!(names(&answer.device_list[0]), ["level"]);
    node.stop().await;
    let node = Node::start(dir.path()).await;
    node.register("one", &mapper.socket).await.unwrap();
    node.mapper("one", |one| one.pending == 0).await;
    assert_eq!(complaints(&node).await, ["model m has no property odd"]);
    assert_eq!(odd(&node).await, refused("8"));
    // The model gets it: the mapper hears of the model first, then of the property.
    let mut wider = model("");
    let new = json!({"name": "odd", "type": "INT", "accessMode": "ReadWrite"});
    wider["spec"]["properties"]
        .as_array_mut()
        .unwrap()
        .push(new);
    mapper.script.refuse("update model");
    node.put_model(wider).await;
    mapper
        .script
        .called_times("refused update model m", 2)
        .await;
    let before = mapper.script.calls();
    assert_eq!(
        before
            .iter()
            .filter(|call| call.starts_with("update a"))
            .count(),
        1
    );
    mapper.script.refuse("");
    mapper.script.called_times("update a=2", 2).await;
    node.until("taken", async |node| odd(node).await.0 == "pending")
        .await;
    // It is gone again: that is a complaint of its own.
    node.put_model(model("")).await;
    node.until("complained", async |node| complaints(node).await.len() == 2)
        .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_model_is_missing_says_so_until_the_model_is_there() {
    let Served { dir, node, mapper } = Served::start(&[]).await;
    let mut early = device("e", "2");
    early["spec"]["deviceModelRef"]["name"] = json!("later");
    node.put_device(early).await;
    let missing = "model later is not on the node";
    node.until("told", async |node| level(node, "e").await.1 == missing)
        .await;
    assert_eq!(complaints(&node).await, [missing]);
    let mut late = model("");
    late["metadata"]["name"] = json!("later");
    node.put_model(late).await;
    mapper.script.called("register e=2").await;
    node.until("taken", async |node| level(node, "e").await.0 == "pending")
        .await;
    assert_eq!(complaints(&node).await.len(), 1);
    node.stop().await;
    drop(dir);
}

/// A stock mapper answers the second registration of a device with success and changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mapper_may_know_already_is_updated_and_what_it_does_not_know_is_registered() {
    let Served { dir, node, mapper } = Served::start(&[]).await;
    mapper.script.lose("register a");
    node.put_device(device("a", "1")).await;
    mapper.script.called("register a=1").await;
    mapper.script.lose("");
    node.put_device(device("a", "2")).await;
    mapper.script.called("update a=2").await;
    // Somebody else's mapper has forgotten it.
    mapper
        .script
        .refuse_with("update a", "device dev/a not found");
    node.put_device(device("a", "3")).await;
    mapper.script.called("register a=3").await;
    node.mapper("one", |one| one.pending == 0).await;
    node.stop().await;
    drop(dir);
}
