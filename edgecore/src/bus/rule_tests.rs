//! Topics that rules of the cloud want, by the broker inside and by an external one.

use tokio::time::timeout;

use super::tests::{Device, Node, PATIENCE, config, other_broker};
use super::*;

fn topics(filters: &[&str]) -> Arc<Routes> {
    Arc::new(Routes {
        topics: filters.iter().map(|&filter| filter.to_owned()).collect(),
        ..Routes::default()
    })
}

#[test]
fn a_rule_opens_its_topics_and_nothing_of_the_runtime() {
    let wanted = topics(&["default/temp/+", "#", "$hw/#"]);
    for (topic, is_uploaded) in [
        ("default/temp/a", true),
        ("anything", true),
        ("$hw/events/device/d/t/twin/update/result", false),
        ("$hw/events/device/d/t/twin/cloud_updated", false),
        ("$hw/events/node/n/membership/updated", false),
        ("$SYS/broker/clients", false),
    ] {
        let found = inbound(topic, &wanted);
        let upload = matches!(found, Some(Inbound::Upload { .. }));
        assert_eq!(upload, is_uploaded, "{topic}");
    }
    assert!(inbound("default/temp/a", &Routes::default()).is_none());
    assert!(inbound("default/user/a", &Routes::default()).is_some());
}

/// Publishes until one of it is in the outbox: when a subscription stands shows only in that.
async fn until_uploaded(node: &Node, device: &mut Device, topic: &str) {
    let uploaded = async {
        loop {
            device.publish(topic, "21").await;
            device.puback().await;
            let rows = node.outbox().await;
            if rows
                .iter()
                .any(|row| row.stream == format!("upload/{topic}"))
            {
                return;
            }
        }
    };
    timeout(PATIENCE, uploaded).await.expect("never uploaded");
}

#[tokio::test]
async fn the_broker_inside_takes_a_rules_topic_while_the_rule_is_there() {
    let node = Node::start(&config(BusMode::Internal, "")).await;
    let mut device = Device::connect(node.port(), "t1").await;
    let topic = "default/temp/a";
    device.publish(topic, "20").await;
    device.puback().await;
    assert!(node.outbox().await.is_empty());
    node.routes.send_replace(topics(&["default/temp/+"]));
    device.publish(topic, "21").await;
    device.puback().await;
    assert_eq!(node.outbox().await.len(), 1);
    node.routes.send_replace(topics(&[]));
    device.publish(topic, "22").await;
    device.puback().await;
    assert_eq!(node.outbox().await.len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn an_external_broker_is_asked_for_a_rules_topic_while_the_rule_is_there() {
    let (port, stop_other, _) = other_broker().await;
    let external = format!("tcp://127.0.0.1:{port}");
    let node = Node::start(&config(BusMode::External, &external)).await;
    let mut device = Device::connect(port, "t1").await;
    node.routes
        .send_replace(topics(&["default/temp/+", "default/x"]));
    until_uploaded(&node, &mut device, "default/temp/a").await;
    node.routes.send_replace(topics(&["default/x"]));
    until_uploaded(&node, &mut device, "default/x").await;
    // The broker has been told to leave the topic out before it was asked for this one.
    for topic in ["default/temp/a", "default/y/user", "default/user/z"] {
        device.publish(topic, "late").await;
        device.puback().await;
    }
    let last = async {
        let is_last = |row: &outbox::Pending| row.stream == "upload/default/user/z";
        while !node.outbox().await.iter().any(is_last) {}
    };
    timeout(PATIENCE, last).await.unwrap();
    let late = node.outbox().await.into_iter().filter(|row| {
        let message = Message::decode(&row.message).unwrap();
        message.content.text().as_deref() == Some("late")
    });
    assert_eq!(late.count(), 1);
    node.stop().await;
    stop_other.cancel();
}

#[tokio::test]
async fn an_external_broker_keeps_nothing_for_a_rule_that_went_while_the_node_was_away() {
    let (port, stop_other, kept) = other_broker().await;
    let holds = async |filter: &str| {
        let loaded = broker::Storage::load(&kept).await.unwrap();
        let mut states = loaded.sessions.iter().map(|(_, state)| state);
        states.any(|state| state.windows(filter.len()).any(|w| w == filter.as_bytes()))
    };
    let external = format!("tcp://127.0.0.1:{port}");
    let node = Node::start(&config(BusMode::External, &external)).await;
    let mut device = Device::connect(port, "t1").await;
    node.routes
        .send_replace(topics(&["default/old", "default/x"]));
    until_uploaded(&node, &mut device, "default/old").await;
    until_uploaded(&node, &mut device, "default/x").await;
    let disk = node.stop().await;
    assert!(holds("default/old").await && holds("default/x").await);

    let node = Node::on(disk, &config(BusMode::External, &external)).await;
    let left = async {
        let is_of_rule = |filter: &String| filter.starts_with("default/");
        while node.external_filters().await.iter().any(is_of_rule) {}
    };
    timeout(PATIENCE, left).await.expect("never left");
    assert!(!holds("default/old").await && !holds("default/x").await);
    assert!(holds("+/user/#").await);
    // What is wanted again is asked for again.
    node.routes.send_replace(topics(&["default/x"]));
    until_uploaded(&node, &mut device, "default/x").await;
    assert!(holds("default/x").await);
    node.stop().await;
    stop_other.cancel();
}
