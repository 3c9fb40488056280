//! The ledger over an outage longer than a window: live values first, history after it, nothing
//! twice, and what gave way is told.

use anyhow::{Context, Result, ensure};
use outpost_tests::device::{Thermometer, flood};
use outpost_tests::scenario::{PATIENCE, Run, scenario_with};
use outpost_tests::world::{NODE, reported};
use outpost_tests::{ledger, wait};
use serde_json::Value;

const MANIFEST: &str = "apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: thermometer, namespace: default}
spec:
  protocol: mqtt
  properties:
    - {name: temperature, type: DOUBLE, accessMode: ReadOnly}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: t1, namespace: default, annotations: {outpost.dev/stream-policy: 'priority=9'}}
spec:
  deviceModelRef: {name: thermometer}
  nodeName: NODE
  protocol: {protocolName: mqtt}
  properties:
    - {name: temperature, reportToCloud: true}
";
const READINGS: u64 = 1_500;
const UPLOADS: u64 = 1_000;
const UPLOAD: &str = "upload/bench/user/0";

/// `edgecore ledger -o json` and whether it exits with success.
fn judged(run: &Run) -> Result<(Value, bool)> {
    let output = run.world.on_node("ledger")?.args(["-o", "json"]).output()?;
    Ok((
        serde_json::from_slice(&output.stdout)?,
        output.status.success(),
    ))
}

fn stream(ledger: &Value, name: &str) -> Result<Value> {
    let streams = ledger["streams"].as_array().context("no streams")?;
    let found = streams.iter().find(|s| s["stream"] == name);
    found.cloned().with_context(|| format!("no stream {name}"))
}

async fn at_hub(run: &Run) -> Result<Value> {
    let path = format!("/outpost/v1/ledger/{NODE}");
    run.world.kubectl().json(&["get", "--raw", &path]).await
}

async fn temperature(run: &Run) -> Result<String> {
    let kubectl = run.world.kubectl();
    let status = kubectl
        .json(&["get", "devicestatus", "t1", "-o", "json"])
        .await?;
    Ok(reported(&status, "temperature")
        .unwrap_or_default()
        .to_owned())
}

#[test]
fn after_a_long_outage_the_newest_value_stands_and_history_never_replaces_it() {
    let streams = "[{match: upload/#, bytes: 200Ki, priority: 2}]".to_owned();
    scenario_with("ledger", vec![("outpost.streams", streams)], async |run| {
        run.apply(&MANIFEST.replace("NODE", NODE)).await?;
        wait::until("the device on the node", PATIENCE, async || {
            let devices = run.world.status()?["devices"].clone();
            Ok(devices
                .as_array()
                .is_some_and(|d| !d.is_empty())
                .then_some(()))
        })
        .await?;
        run.world.link()?.cut();
        let mut device = Thermometer::new(run.world.place.mqtt, "default/t1");
        device.publish(0..READINGS, 100_000, PATIENCE).await?;
        flood(run.world.place.mqtt, 0, UPLOADS, PATIENCE).await?;
        // Without the daemon too.
        run.world.edge()?.kill9()?;
        let (offline, is_balanced) = judged(run)?;
        ensure!(is_balanced && offline["balanced"] == true, "{offline}");
        let twin = stream(&offline, "twin/default/t1")?;
        ensure!(twin["pending"] == READINGS, "{twin}");
        let upload = stream(&offline, UPLOAD)?;
        ensure!(upload["accepted"] == UPLOADS, "{upload}");
        let evicted = upload["evicted"].as_u64().unwrap_or(0);
        ensure!(evicted > 0, "{upload}");
        ensure!(offline["gaps"][0]["rows"] == evicted, "{offline}");
        run.world.edge_up()?;
        run.world.link()?.restore();
        let last = (READINGS - 1).to_string();
        wait::until("the newest value in the API", PATIENCE, async || {
            Ok((temperature(run).await.unwrap_or_default() == last).then_some(()))
        })
        .await?;
        wait::until("everything at the hub", PATIENCE, async || {
            let (now, _) = judged(run)?;
            let streams = now["streams"].as_array().cloned().unwrap_or_default();
            Ok(streams.iter().all(|s| s["pending"] == 0).then_some(()))
        })
        .await?;
        ensure!(temperature(run).await? == last, "history replaced it");
        let hub = at_hub(run).await?;
        ensure!(ledger::received(&hub, "twin/default/t1") == READINGS);
        ensure!(ledger::received(&hub, UPLOAD) == UPLOADS - evicted);
        ensure!(
            hub["history"].as_u64().unwrap_or(0) > READINGS,
            "{}",
            hub["history"]
        );
        ensure!(hub["gaps"][0]["rows"] == evicted, "{}", hub["gaps"]);
        ensure!(hub["repeated"] == 0, "{}", hub["repeated"]);
        let (now, is_balanced) = judged(run)?;
        ensure!(is_balanced, "{now}");
        let events = run.world.kubectl();
        wait::until("the event about the loss", PATIENCE, async || {
            let found = events.json(&["get", "events", "-o", "json"]).await?;
            let items = found["items"].as_array().cloned().unwrap_or_default();
            Ok(items
                .iter()
                .any(|e| e["reason"] == "MessagesLost")
                .then_some(()))
        })
        .await
    });
}
