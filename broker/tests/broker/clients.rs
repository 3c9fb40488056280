//! Programs that others use: rumqttc in both versions, mosquitto's command line clients.

use std::process::Stdio;
use std::time::Duration;

use crate::support::{Harness, PATIENCE};
use broker::{MemoryStorage, Qos};
use rumqttc::v5::mqttbytes::QoS as QosV5;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

#[tokio::test]
async fn rumqttc_of_311_publishes_and_receives_with_every_qos() {
    let harness = Harness::start(MemoryStorage::default()).await;
    let mut options = MqttOptions::new("v4", "127.0.0.1", harness.addr.port());
    options
        .set_keep_alive(Duration::from_secs(5))
        .set_clean_session(false);
    let (client, mut events) = AsyncClient::new(options, 64);
    client.subscribe("t/#", QoS::ExactlyOnce).await.unwrap();
    for (n, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]
        .into_iter()
        .cycle()
        .take(30)
        .enumerate()
    {
        client
            .publish("t/x", qos, false, n.to_string())
            .await
            .unwrap();
    }
    let mut got = Vec::new();
    let receive = async {
        while got.len() < 30 {
            if let Event::Incoming(Packet::Publish(p)) = events.poll().await.unwrap() {
                got.push(
                    String::from_utf8(p.payload.to_vec())
                        .unwrap()
                        .parse::<usize>()
                        .unwrap(),
                );
            }
        }
    };
    timeout(PATIENCE, receive).await.unwrap();
    assert_eq!(got, (0..30).collect::<Vec<_>>());
    harness.stop().await;
}

#[tokio::test]
async fn rumqttc_of_5_publishes_and_receives_with_properties() {
    use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};

    let harness = Harness::start(MemoryStorage::default()).await;
    let options = MqttOptions::new("v5", "127.0.0.1", harness.addr.port());
    let (client, mut events) = AsyncClient::new(options, 64);
    client.subscribe("t/#", QosV5::ExactlyOnce).await.unwrap();
    let properties = PublishProperties {
        content_type: Some("text/plain".into()),
        response_topic: Some("answers".into()),
        message_expiry_interval: Some(60),
        user_properties: vec![("k".into(), "v".into())],
        ..PublishProperties::default()
    };
    client
        .publish_with_properties("t/x", QosV5::ExactlyOnce, false, "hi", properties)
        .await
        .unwrap();
    let receive = async {
        loop {
            if let Event::Incoming(Packet::Publish(p)) = events.poll().await.unwrap() {
                return p;
            }
        }
    };
    let publish = timeout(PATIENCE, receive).await.unwrap();
    let properties = publish.properties.unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
    assert_eq!(properties.response_topic.as_deref(), Some("answers"));
    assert_eq!(properties.user_properties, [("k".into(), "v".into())]);
    assert!(properties.message_expiry_interval.is_some_and(|s| s <= 60));
    harness.stop().await;
}

#[expect(clippy::print_stderr, reason = "a skipped test says so by name")]
fn has_mosquitto() -> bool {
    let found = std::process::Command::new("mosquitto_sub")
        .arg("--help")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    assert!(
        found || std::env::var_os("CI").is_none(),
        "CI needs mosquitto's clients"
    );
    if !found {
        eprintln!("skipped: mosquitto's clients are not installed");
    }
    found
}

#[tokio::test]
async fn mosquittos_clients_work_in_both_versions() {
    if !has_mosquitto() {
        return;
    }
    let harness = Harness::start(MemoryStorage::default()).await;
    let port = harness.addr.port().to_string();
    for version in ["mqttv311", "mqttv5"] {
        let mut reader = Command::new("mosquitto_sub")
            .args([
                "-p", &port, "-V", version, "-q", "2", "-t", "m/#", "-C", "3", "-v",
            ])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let sessions = harness.handle.clone();
        crate::support::wait_until("subscribed", || sessions.stats().sessions == 1).await;
        for qos in ["0", "1", "2"] {
            // Retained, so that the order of subscription and publish does not matter.
            let status = Command::new("mosquitto_pub")
                .args([
                    "-p",
                    &port,
                    "-V",
                    version,
                    "-q",
                    qos,
                    "-r",
                    "-t",
                    &format!("m/{qos}"),
                    "-m",
                    version,
                ])
                .status()
                .await
                .unwrap();
            assert!(status.success(), "{version} {qos}");
        }
        let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
        let mut got = Vec::new();
        while let Some(line) = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap() {
            got.push(line);
        }
        got.sort();
        assert!(
            timeout(PATIENCE, reader.wait())
                .await
                .unwrap()
                .unwrap()
                .success()
        );
        assert_eq!(got, ["0", "1", "2"].map(|q| format!("m/{q} {version}")));
        for qos in ["0", "1", "2"] {
            let topic = format!("m/{qos}");
            harness
                .handle
                .publish(&topic, "", Qos::AtMostOnce, true)
                .unwrap();
        }
        crate::support::wait_until("client gone", || harness.handle.stats().clients == 0).await;
    }
    harness.stop().await;
}
