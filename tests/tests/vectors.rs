//! The conformance vectors recorded from KubeEdge (device plane, Appendix B), by a real client on
//! a real socket, between a real node and a real hub: what local clients are told, to the byte, and
//! what comes to the cloud.
//!
//! `golden/appendix-b.jsonl` has a line for each publish; a `note` says where Outpost differs from
//! KubeEdge on purpose (Appendix A). Vectors 13 to 15 are the cloud's: over the network they are
//! refused, which is tested here; what they do is tested with the twin's functions. So is the topic
//! with one level of 19.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use outpost_tests::scenario::{PATIENCE, Run, scenario};
use outpost_tests::wait;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use serde::Deserialize;

const PREFIX: &str = "$hw/events/";
/// All that the runtime publishes about devices.
const TOLD: [&str; 6] = [
    "device/+/+/twin/update/+",
    "device/+/+/twin/get/result",
    "device/+/+/state/update/result",
    // Where KubeEdge answers malformed bodies.
    "device//twin/update/result",
    "node/+/membership/get/result",
    "node/+/membership/updated",
];

const SILENT: &str = "the broker is silent";

#[derive(Deserialize)]
struct Vector {
    number: String,
    /// Topic below [`PREFIX`], as in `told`.
    publish: String,
    payload: String,
    told: Vec<(String, String)>,
    /// Reports of twins that the hub gets.
    cloud: u64,
}

/// A client of MQTT 3.1.1.
struct Client {
    sender: AsyncClient,
    events: EventLoop,
    asked: u32,
}

impl Client {
    fn new(run: &Run, id: &str) -> Self {
        let broker = run.world.place.mqtt;
        let mut options = MqttOptions::new(id, broker.ip().to_string(), broker.port());
        options.set_keep_alive(Duration::from_secs(20));
        let (sender, events) = AsyncClient::new(options, 16);
        Self {
            sender,
            events,
            asked: 0,
        }
    }

    async fn next(&mut self) -> Result<Packet> {
        let event = async {
            loop {
                if let Event::Incoming(packet) = self.events.poll().await? {
                    return anyhow::Ok(packet);
                }
            }
        };
        tokio::time::timeout(PATIENCE, event)
            .await
            .context(SILENT)?
    }

    async fn subscribe(&mut self) -> Result<()> {
        for topic in TOLD {
            let topic = format!("{PREFIX}{topic}");
            self.sender.subscribe(topic, QoS::AtLeastOnce).await?;
            while !matches!(self.next().await?, Packet::SubAck(_)) {}
        }
        Ok(())
    }

    async fn publish(&self, topic: &str, payload: &str) -> Result<()> {
        let topic = format!("{PREFIX}{topic}");
        self.sender
            .publish(topic, QoS::AtLeastOnce, false, payload)
            .await?;
        Ok(())
    }

    /// What is told until the answer to a question that is asked now. The broker takes publishes of
    /// a client in their order: all that earlier ones caused is there by then.
    async fn told(&mut self) -> Result<Vec<(String, String)>> {
        self.asked += 1;
        let id = format!("asked-{}", self.asked);
        let question = format!("{{\"event_id\":\"{id}\"}}");
        self.publish("device/default/t1/twin/get", &question)
            .await?;
        let mut told = Vec::new();
        loop {
            let Packet::Publish(publish) = self.next().await? else {
                continue;
            };
            let text = String::from_utf8(publish.payload.to_vec())?;
            if text.contains(&id) {
                return Ok(told);
            }
            let topic = publish.topic.strip_prefix(PREFIX).context("whose topic?")?;
            told.push((topic.to_owned(), masked(&text)));
        }
    }
}

/// The payload with times and fresh ids replaced by words.
fn masked(text: &str) -> String {
    let is_id = |value: &str| value.len() == 38 && value.matches('-').count() == 4;
    let is_now = |value: &str| value.parse().is_ok_and(|at: u64| at > 1_700_000_000_000);
    let is_time = |value: &str| value.ends_with("Z\"");
    let text = mask(text, "\"event_id\":", "ID", is_id);
    let text = mask(&text, "\"timestamp\":", "T", is_now);
    let text = mask(&text, "\"lastOnlineTime\":", "TIME", is_time);
    mask(&text, "\"last_online\":", "TIME", is_time)
}

fn mask(text: &str, key: &str, by: &str, accept: impl Fn(&str) -> bool) -> String {
    let mut parts = text.split(key);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (value, after) = part.split_at(part.find([',', '}']).unwrap_or(part.len()));
        out.push_str(key);
        out.push_str(if accept(value) { by } else { value });
        out.push_str(after);
    }
    out
}

fn device(id: &str) -> String {
    let (namespace, name) = id.split_once('/').unwrap_or(("default", id));
    format!(
        "apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{namespace: {namespace}, name: {name}}}
spec:
  nodeName: edge-1
  protocol: {{protocolName: mqtt}}
  properties: [{{name: temp}}, {{name: \"n\"}}, {{name: b}}, {{name: t}}]
---
"
    )
}

/// Applies a device that is new to the node, and waits until local clients hear of it.
async fn add(run: &Run, client: &mut Client, id: &str) -> Result<()> {
    run.apply(&device(id)).await?;
    let name = id.rsplit('/').next().unwrap_or(id);
    let news = format!(
        "{{\"event_id\":ID,\"timestamp\":T,\"added_devices\":[{{\"id\":\"{id}\",\"name\":\"{name}\"}}],\
         \"removed_devices\":null}}"
    );
    news_of(client, &news).await
}

async fn news_of(client: &mut Client, news: &str) -> Result<()> {
    let topic = "node/edge-1/membership/updated";
    let mut seen = Vec::new();
    let is_told = wait::until(news, PATIENCE, async || {
        seen.extend(client.told().await?);
        let found = seen.iter().any(|(at, text)| at == topic && text == news);
        Ok(found.then_some(()))
    });
    let is_told = is_told.await;
    is_told.with_context(|| format!("told: {seen:?}"))
}

#[test]
fn the_vectors_of_kubeedge_over_real_mqtt() {
    scenario("vectors", async |run| {
        let mut client = Client::new(run, "vectors");
        client.subscribe().await?;
        for namespace in ["dev", "ev"] {
            run.world
                .kubectl()
                .run(&["create", "namespace", namespace])
                .await?;
        }
        for id in ["default/t1", "dev/t1", "ev/t1"] {
            add(run, &mut client, id).await?;
        }
        let mut reports = 0;
        for line in include_str!("golden/appendix-b.jsonl").lines() {
            let vector: Vector = serde_json::from_str(line)?;
            client.publish(&vector.publish, &vector.payload).await?;
            let told = client.told().await?;
            ensure!(
                told == vector.told,
                "vector {}: {}\n told: {told:#?}\n not: {:#?}",
                vector.number,
                vector.payload,
                vector.told
            );
            reports += vector.cloud;
        }
        // 18: a device comes and goes.
        add(run, &mut client, "default/t2").await?;
        let delete = ["delete", "device", "t2"];
        run.world.kubectl().run(&delete).await?;
        let news = "{\"event_id\":ID,\"timestamp\":T,\"added_devices\":null,\
                    \"removed_devices\":[{\"id\":\"default/t2\",\"name\":\"t2\"}]}";
        news_of(&mut client, news).await?;
        in_the_cloud(run, reports).await?;
        nobody_else_publishes(run, &mut client).await
    });
}

/// One report for each vector that has one, and none for the others.
async fn in_the_cloud(run: &Run, reports: u64) -> Result<()> {
    let status = ["get", "devicestatuses", "t1"];
    let kubectl = run.world.kubectl();
    let status = kubectl
        .until("the reports", PATIENCE, &status, |status| {
            let status = &status["status"];
            let received = status["extensions"]["outpost"]["received"].as_u64()?;
            let is_over = received >= reports && status["state"] == "offline";
            is_over.then(|| status.clone())
        })
        .await?;
    let received = &status["extensions"]["outpost"]["received"];
    ensure!(*received == reports, "{received} reports, not {reports}");
    for (name, value, kind) in [
        ("temp", "hot", "string"),
        ("n", "1", "string"),
        ("b", "true", "boolean"),
    ] {
        let twins = status["twins"].as_array().context("no twins")?;
        let twin = twins.iter().find(|twin| twin["propertyName"] == name);
        let reported = &twin.context("no such property")?["reported"];
        ensure!(
            reported["value"] == value && reported["metadata"]["type"] == kind,
            "{name}: {reported}"
        );
    }
    Ok(())
}

/// 13 to 15 come from the cloud, and 19's device of one level is none: whoever publishes there loses
/// its connection, and nothing happens.
async fn nobody_else_publishes(run: &Run, client: &mut Client) -> Result<()> {
    let payload = "{\"event_id\":\"c\",\"twin\":{\"b\":{\"expected\":{\"value\":\"false\"},\
                   \"metadata\":{\"type\":\"boolean\"},\"expected_version\":{\"cloud\":5,\"edge\":0}}}}";
    for topic in [
        "device/default/t1/twin/cloud_updated",
        "device/t1/twin/update",
    ] {
        let mut intruder = Client::new(run, "intruder");
        intruder.publish(topic, payload).await?;
        let end = loop {
            match intruder.next().await {
                Ok(Packet::PubAck(_)) => bail!("{topic}: taken"),
                Ok(_) => {}
                Err(error) => break error.to_string(),
            }
        };
        ensure!(end != SILENT, "{topic}: neither refused nor taken");
    }
    let told = client.told().await?;
    ensure!(told.is_empty(), "{told:?}");
    Ok(())
}
