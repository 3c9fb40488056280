//! Long outages, quick updates, and what a thousand devices cost.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::Method;
use outpost_tests::api::{self, Watch};
use outpost_tests::device::{Thermometer, flood};
use outpost_tests::world::{NODE, World, reported};
use outpost_tests::{ledger, wait};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::json;

use crate::PATIENCE;
use crate::figures::{Figures, float, mib, millis, say};

const STATUSES: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devicestatuses";
const DEVICES: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices";
const DEVICE: &str = "away";
const STREAM: &str = "twin/default/away";
/// Connections that fill the backlog, and what each publishes.
const FLOODS: u32 = 4;
const UPLOADS_EACH: u64 = 24_750;
/// Twin updates in the backlog: with the uploads 100,000 readings.
const UPDATES: u64 = 1_000;
const ROUNDS: u64 = 200;
const THOUSAND: usize = 1_000;
const CLIENTS: usize = 100;

/// Makes the device whose readings are followed.
async fn device(world: &World) -> Result<Thermometer> {
    let kubectl = world.kubectl();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo/1-devicemodel.yaml");
    kubectl
        .run(&["apply", "-f", model.to_str().context("path")?])
        .await?;
    let mut calls = api::connect(&world.hub_dir().join("admin.kubeconfig")).await?;
    calls
        .call(Method::POST, DEVICES, Some(&object(DEVICE)))
        .await?;
    devices_known(world, DEVICE, 1).await?;
    Ok(Thermometer::new(
        world.place.mqtt,
        &format!("default/{DEVICE}"),
    ))
}

fn object(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "deviceModelRef": {"name": "thermometer"}, "nodeName": NODE,
            "protocol": {"protocolName": "mqtt"},
            "properties": [{"name": "temperature", "reportToCloud": true}],
        },
    })
}

async fn devices_known(world: &World, prefix: &str, count: usize) -> Result<()> {
    wait::until("the devices on the node", PATIENCE, async || {
        let status = world.status()?;
        let devices = status["devices"].as_array().cloned().unwrap_or_default();
        let known = devices.iter().filter(|d| {
            d["name"]
                .as_str()
                .is_some_and(|name| name.starts_with(prefix))
        });
        Ok((known.count() >= count).then_some(()))
    })
    .await
}

/// How much of each stream the hub has, summed.
async fn received(world: &World, streams: &[String]) -> Result<u64> {
    let path = format!("/outpost/v1/ledger/{NODE}?limit=1");
    let mut calls = api::connect(&world.hub_dir().join("admin.kubeconfig")).await?;
    let ledger = calls.call(Method::GET, &path, None).await?;
    Ok(streams.iter().map(|s| ledger::received(&ledger, s)).sum())
}

async fn arrived(world: &World, streams: &[String], count: u64) -> Result<()> {
    wait::until(
        &format!("{count} readings at the hub"),
        PATIENCE,
        async || Ok((received(world, streams).await? >= count).then_some(())),
    )
    .await
}

async fn connected(world: &World) -> Result<()> {
    wait::until("the session", PATIENCE, async || {
        Ok((world.status()?["link"]["state"] == "connected").then_some(()))
    })
    .await
}

pub(crate) async fn ledger(world: &mut World, figures: &mut Figures) -> Result<()> {
    let mut thermometer = device(world).await?;
    quick(world, figures, &mut thermometer).await?;
    hundred_offline(world, figures, &mut thermometer).await?;
    backlog(world, figures, &mut thermometer).await?;
    balanced(world, figures)?;
    thousand(world, figures).await
}

/// Rounds of three quick updates: the last one published is the one that stands.
async fn quick(world: &World, figures: &mut Figures, device: &mut Thermometer) -> Result<()> {
    say("200 rounds of three quick updates …");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut watch = Watch::start(&kubeconfig, STATUSES).await?;
    let mut right: u64 = 0;
    for round in 0..ROUNDS {
        let last = round * 3 + 2;
        let value = last.to_string();
        device
            .publish(round * 3..last + 1, 100_000, PATIENCE)
            .await?;
        let seen = watch.until(|object| (reported(object, "temperature")? == value).then_some(()));
        if tokio::time::timeout(Duration::from_secs(5), seen)
            .await
            .is_ok()
        {
            right += 1;
        }
    }
    figures.insert("final_value_right_of_200", float(right));
    Ok(())
}

async fn hundred_offline(
    world: &World,
    figures: &mut Figures,
    device: &mut Thermometer,
) -> Result<()> {
    say("100 updates without a link …");
    let streams = [STREAM.to_owned()];
    arrived(world, &streams, ROUNDS * 3).await?;
    let before = received(world, &streams).await?;
    world.link()?.cut();
    device.publish(1_000..1_100, 100_000, PATIENCE).await?;
    world.link()?.restore();
    arrived(world, &streams, before + 100).await?;
    let after = received(world, &streams).await?;
    figures.insert("updates_of_100_offline_at_hub", float(after - before));
    Ok(())
}

/// 100,000 readings without a link; then how long until the newest value stands in the API, and
/// until the hub has all.
async fn backlog(world: &World, figures: &mut Figures, device: &mut Thermometer) -> Result<()> {
    say("a backlog of 100,000 readings …");
    let streams: Vec<String> = (0..FLOODS)
        .map(|n| format!("upload/bench/user/{n}"))
        .chain([STREAM.to_owned()])
        .collect();
    let before = received(world, &streams).await?;
    world.link()?.cut();
    device
        .publish(2_000..2_000 + UPDATES, 100_000, PATIENCE)
        .await?;
    let mut floods = tokio::task::JoinSet::new();
    for connection in 0..FLOODS {
        floods.spawn(flood(world.place.mqtt, connection, UPLOADS_EACH, PATIENCE));
    }
    while let Some(ended) = floods.join_next().await {
        ended??;
    }
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut watch = Watch::start(&kubeconfig, STATUSES).await?;
    world.link()?.restore();
    connected(world).await?;
    let started = Instant::now();
    let newest = (2_000 + UPDATES - 1).to_string();
    watch
        .until(|object| (reported(object, "temperature")? == newest).then_some(()))
        .await?;
    figures.insert("backlog_newest_value_visible_ms", millis(started.elapsed()));
    let total = before + UPDATES + u64::from(FLOODS) * UPLOADS_EACH;
    arrived(world, &streams, total).await?;
    figures.insert("backlog_of_100000_drained_ms", millis(started.elapsed()));
    Ok(())
}

/// `edgecore ledger` itself is the judge.
fn balanced(world: &World, figures: &mut Figures) -> Result<()> {
    let balanced = world.on_node("ledger")?.output()?.status.success();
    figures.insert("ledger_balanced", float(u64::from(balanced)));
    Ok(())
}

/// A thousand devices, a hundred clients that speak for ten each.
async fn thousand(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("1,000 devices and 100 MQTT clients …");
    let mut calls = api::connect(&world.hub_dir().join("admin.kubeconfig")).await?;
    for n in 0..THOUSAND {
        let device = object(&format!("many-{n}"));
        calls.call(Method::POST, DEVICES, Some(&device)).await?;
    }
    devices_known(world, "many-", THOUSAND).await?;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(ten(world.place.mqtt, client));
    }
    let mut connected = Vec::new();
    while let Some(client) = clients.join_next().await {
        connected.push(client??);
    }
    tokio::time::sleep(crate::SETTLED).await;
    let usage = world.edge()?.usage()?;
    figures.insert("edgecore_rss_1000_devices_mib", mib(usage.rss_kib));
    figures.insert("edgecore_pss_1000_devices_mib", mib(usage.pss_kib));
    drop(connected);
    Ok(())
}

/// Reports for ten devices and stays.
async fn ten(
    broker: std::net::SocketAddr,
    client: usize,
) -> Result<(AsyncClient, rumqttc::EventLoop)> {
    let mut options = MqttOptions::new(
        format!("many-{client}"),
        broker.ip().to_string(),
        broker.port(),
    );
    options.set_keep_alive(Duration::from_secs(60));
    let (publisher, mut events) = AsyncClient::new(options, 20);
    for n in 0..10 {
        let device = client * 10 + n;
        let body = json!({"event_id": "", "twin": {"temperature": {"actual": {"value": "21"}}}});
        let topic = format!("$hw/events/device/default/many-{device}/twin/update");
        publisher
            .publish(topic, QoS::AtLeastOnce, false, body.to_string())
            .await?;
    }
    let mut acknowledged = 0;
    let all = async {
        while acknowledged < 10 {
            if let Event::Incoming(Packet::PubAck(_)) = events.poll().await? {
                acknowledged += 1;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, all).await??;
    Ok((publisher, events))
}
