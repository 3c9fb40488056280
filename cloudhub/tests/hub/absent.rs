//! What changes while a plain KubeEdge node is away, seen by a node that is nothing but a
//! WebSocket.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wire::message::{Content, Message, Operation};

use crate::harness::{TestHub, TestNode};

const DEVICES: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices";

fn device(name: &str, rate: &str) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": {"name": name},
        "spec": {"nodeName": "e1", "deviceModelRef": {"name": "thermo"},
                 "properties": [{"name": "rate", "desired": {"value": rate}}]},
    })
}

/// Names under a member of a message about membership.
fn names(body: &Value, member: &str) -> BTreeSet<String> {
    let devices = body[member].as_array().cloned().unwrap_or_default();
    let names = devices.iter().filter_map(|device| device["name"].as_str());
    names.map(str::to_owned).collect()
}

/// Takes the full list, and what follows it, as KubeEdge's edge does, until it has these devices;
/// the list.
async fn until_devices(node: &mut TestNode, wanted: &[&str]) -> Message {
    let is_list = |m: &Message| m.route.resource == "membership/detail";
    let list = node.until(is_list).await;
    let body: Value = list.content.decode().unwrap();
    let mut known = names(&body, "devices");
    while !known.iter().eq(wanted.iter().copied()) {
        let change = node.until(|m| m.route.resource == "membership").await;
        let body: Value = change.content.decode().unwrap();
        known.extend(names(&body, "added_devices"));
        known.retain(|name| !names(&body, "removed_devices").contains(name));
    }
    list
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_10_devices_made_and_deleted_while_a_plain_node_was_away_are_told_at_connect() {
    let hub = TestHub::start().await;
    hub.post(DEVICES, &device("goes", "1")).await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, None).await;
    node.register(true).await;
    until_devices(&mut node, &["goes"]).await;
    drop(node);

    hub.delete(&format!("{DEVICES}/goes")).await;
    hub.post(DEVICES, &device("comes", "1")).await;
    let mut node = hub.connect(&identity, None).await;
    // Who is not listed is deleted there.
    let list = until_devices(&mut node, &["comes"]).await;
    assert_eq!(
        (list.route.source.as_str(), list.route.group.as_str()),
        ("devicecontroller", "twin")
    );
    assert_eq!(
        list.header.parent_id, "",
        "a list that answers is not looked at by KubeEdge's edge"
    );
    node.until(|m| m.route.resource == "default/device/comes")
        .await;
    // KubeEdge's cloud never answers the question either.
    let asked = json!({"event_type": "group_membership_event", "event_id": "1"});
    let asked = Content::string(&asked.to_string());
    let confirmed = node
        .request(Operation::Get, "membership/detail", asked)
        .await;
    assert_eq!(confirmed.content.text().as_deref(), Some("OK"));
    until_devices(&mut node, &["comes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_11_a_device_changed_while_a_plain_node_was_away_comes_from_who_the_node_believes() {
    let hub = TestHub::start().await;
    hub.post(DEVICES, &device("t1", "1")).await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, None).await;
    node.register(true).await;
    node.until(|m| m.route.resource == "default/device/t1")
        .await;
    drop(node);

    let patch = json!({"spec": {"properties": [{"name": "rate", "desired": {"value": "2"}}]}});
    let change = [patch.to_string()];
    let args = [
        "patch",
        "device",
        "t1",
        "--type",
        "merge",
        "-p",
        change[0].as_str(),
    ];
    crate::telemetry::kubectl(&hub, &args).await;
    let mut node = hub.connect(&identity, None).await;
    let push = node
        .until(|m| m.route.resource == "default/device/t1")
        .await;
    // From `edgecontroller`, as KubeEdge's sends it, it would not reach the mappers.
    assert_eq!(push.route.source, "devicecontroller");
    assert_eq!(push.route.group, "resource");
    let sent: Value = push.content.decode().unwrap();
    assert_eq!(sent["spec"]["properties"][0]["desired"]["value"], "2");
}
