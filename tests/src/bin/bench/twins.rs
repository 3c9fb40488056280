//! Readings of devices: latency, throughput, what they cost.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use http::Method;
use outpost_tests::api::{self, Watch};
use outpost_tests::device::Thermometer;
use outpost_tests::world::{NODE, World, reported};
use outpost_tests::{ledger, wait};

use crate::PATIENCE;
use crate::figures::{Figures, float, insert_quantiles, ms_round, say};

const STATUS_PATH: &str =
    "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devicestatuses/thermometer";

/// Uploads of each of the four connections in the throughput run.
const UPLOADS_EACH: u64 = 5_000;

fn manifests() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo")
}

/// One reading at a time: publish → PUBACK, and publish → the value in the API.
pub(crate) async fn twins(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("twins …");
    let kubectl = world.kubectl();
    for file in ["1-devicemodel.yaml", "2-device.yaml"] {
        let path = manifests().join(file);
        kubectl
            .run(&["apply", "-f", path.to_str().context("path")?])
            .await?;
    }
    wait::until("the device on the node", PATIENCE, async || {
        Ok((world.status()?["devices"]
            .as_array()
            .is_some_and(|d| !d.is_empty()))
        .then_some(()))
    })
    .await?;
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let collection = STATUS_PATH.trim_end_matches("/thermometer");
    let mut watch = Watch::start(&kubeconfig, collection).await?;
    let mut thermometer = Thermometer::new(world.place.mqtt, "default/thermometer");
    thermometer.subscribe(PATIENCE).await?;
    let mut visible = Vec::new();
    for n in 1..301_u64 {
        let value = n.to_string();
        let started = Instant::now();
        let (published, seen) = tokio::join!(
            thermometer.publish(n..n + 1, 1000, PATIENCE),
            watch.until(|object| (reported(object, "temperature")? == value).then_some(()))
        );
        published?;
        seen?;
        visible.push(started.elapsed());
    }
    insert_quantiles(
        figures,
        &mut visible,
        "publish_to_api_p50_ms",
        "publish_to_api_p99_ms",
    );
    let mut acknowledged = std::mem::take(&mut thermometer.latencies);
    insert_quantiles(
        figures,
        &mut acknowledged,
        "publish_to_puback_p50_ms",
        "publish_to_puback_p99_ms",
    );

    say("1,000 updates, as fast as they are acknowledged …");
    let before = world.edge()?.usage()?;
    let link = world.link()?.carried();
    thermometer.publish(301..1301, 100_000, PATIENCE).await?;
    received(world, 1300).await?;
    let after = world.edge()?.usage()?;
    let carried = world.link()?.carried();
    figures.insert(
        "disk_kib_per_1000_updates",
        ms_round(float(after.written_bytes - before.written_bytes) / 1024.0),
    );
    figures.insert(
        "edge_cpu_ms_per_1000_updates",
        float(after.cpu_ms - before.cpu_ms),
    );
    figures.insert(
        "link_up_kib_per_1000_updates",
        ms_round(float(carried.0 - link.0) / 1024.0),
    );
    Ok(())
}

async fn received(world: &World, count: u64) -> Result<()> {
    let path = format!("/outpost/v1/ledger/{NODE}?limit=1");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut calls = api::connect(&kubeconfig).await?;
    wait::until(
        &format!("{count} readings at the hub"),
        PATIENCE,
        async || {
            let ledger = calls.call(Method::GET, &path, None).await?;
            Ok((ledger::received(&ledger, "twin/default/thermometer") >= count).then_some(()))
        },
    )
    .await
}

/// Durable upstream messages per second: 20,000 uploads of 200 bytes at QoS 1 over four
/// connections, from the first publish until the hub has stored the last.
pub(crate) async fn throughput(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("20,000 uploads of 200 bytes …");
    let mqtt = world.place.mqtt;
    let started = Instant::now();
    let mut devices = tokio::task::JoinSet::new();
    for connection in 0..4 {
        devices.spawn(outpost_tests::device::flood(
            mqtt,
            connection,
            UPLOADS_EACH,
            PATIENCE,
        ));
    }
    while let Some(ended) = devices.join_next().await {
        ended??;
    }
    let acknowledged = started.elapsed();
    let path = format!("/outpost/v1/ledger/{NODE}?limit=1");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut calls = api::connect(&kubeconfig).await?;
    wait::until("20,000 uploads at the hub", PATIENCE, async || {
        let ledger = calls.call(Method::GET, &path, None).await?;
        let sum: u64 = (0..4)
            .map(|n| ledger::received(&ledger, &format!("upload/bench/user/{n}")))
            .sum();
        Ok((sum >= 4 * UPLOADS_EACH).then_some(()))
    })
    .await?;
    let stored = started.elapsed();
    let total = float(4 * UPLOADS_EACH);
    figures.insert(
        "puback_after_commit_per_second",
        (total / acknowledged.as_secs_f64()).round(),
    );
    figures.insert(
        "upstream_stored_at_hub_per_second",
        (total / stored.as_secs_f64()).round(),
    );
    Ok(())
}
