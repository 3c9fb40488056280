//! Twenty devices publish at QoS 1 while edgecore is killed again and again. What was acknowledged
//! is in the hub once, in the order of each device, whatever the moment of the blow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use serde_json::Value;

use crate::device::Thermometer;
use crate::ground::Ground;
use crate::world::{NODE, Place, World, path};
use crate::{ledger, wait};

const DEVICES: u64 = 20;
/// Readings of one device in one round.
const READINGS: u64 = 20;
/// Readings a second of one device.
const RATE: u32 = 400;
const PATIENCE: Duration = Duration::from_secs(120);
/// Everything has to be in the hub after so many rounds. At most 800 readings wait: fewer than one
/// window of the session (`UPSTREAM_WINDOW`), so none becomes history, which comes later by design.
const ROUNDS_LOOKED_AT: u64 = 2;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub rounds: u64,
    pub seed: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub rounds: u64,
    /// Readings acknowledged by edgecore, all of them in the hub.
    pub readings: u64,
}

/// SplitMix64: the same schedule with every version of every crate.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn name(device: u64) -> String {
    format!("kills-{device}")
}

fn stream(device: u64) -> String {
    format!("twin/default/{}", name(device))
}

fn manifests() -> String {
    let model = "apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: kills, namespace: default}
spec:
  protocol: mqtt
  properties: [{name: temperature, type: DOUBLE, accessMode: ReadOnly}]
---
";
    let device = |n| {
        format!(
            "apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: {}, namespace: default}}
spec:
  deviceModelRef: {{name: kills}}
  nodeName: {NODE}
  protocol: {{protocolName: mqtt}}
  properties: [{{name: temperature, reportToCloud: true}}]
---
",
            name(n)
        )
    };
    model.to_owned() + &(0..DEVICES).map(device).collect::<String>()
}

/// Runs the rounds.
///
/// # Errors
/// The first reading that is lost, repeated or out of place, with the round.
pub async fn run(options: Options) -> Result<Report> {
    let dir = Ground::temporary("outpost-kills-")?;
    let mut world = World::start_hub(Place::new("kills", dir.path())?).await?;
    let token = world.token()?;
    world.join(&token).await?;
    world.edge_up()?;
    let file = dir.path().join("devices.yaml");
    std::fs::write(&file, manifests())?;
    world.kubectl().run(&["apply", "-f", path(&file)?]).await?;
    wait::until("the devices on the node", PATIENCE, async || {
        let status = world.status().unwrap_or_default();
        let known = status["devices"].as_array().map_or(0, Vec::len);
        Ok((u64::try_from(known)? == DEVICES).then_some(()))
    })
    .await?;
    let broker = world.place.mqtt;
    let mut devices: Vec<Thermometer> = (0..DEVICES)
        .map(|n| Thermometer::new(broker, &format!("default/{}", name(n))))
        .collect();
    let mut seed = options.seed;
    let mut report = Report::default();
    for round in 0..options.rounds {
        one_round(&mut world, &mut devices, round, &mut seed)
            .await
            .with_context(|| format!("round {round}, seed {}", options.seed))?;
        report.rounds += 1;
        report.readings += DEVICES * READINGS;
        if report.rounds % ROUNDS_LOOKED_AT == 0 || report.rounds == options.rounds {
            look(&world, report.rounds)
                .await
                .with_context(|| format!("after round {round}, seed {}", options.seed))?;
        }
    }
    for process in [&mut world.edge, &mut world.hub].into_iter().flatten() {
        process.stop().await?;
        ensure!(!process.log().contains("panicked"), "{}", process.log());
    }
    Ok(report)
}

/// Everybody publishes; at a random number of acknowledgements edgecore is killed and started.
async fn one_round(
    world: &mut World,
    devices: &mut [Thermometer],
    round: u64,
    seed: &mut u64,
) -> Result<()> {
    let range = 1 + round * READINGS..1 + (round + 1) * READINGS;
    let progress: Vec<Arc<AtomicU64>> = devices.iter().map(|d| Arc::clone(&d.progress)).collect();
    let total = || {
        progress
            .iter()
            .map(|p| p.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    let blow_at = round * DEVICES * READINGS + random(seed) % (DEVICES * READINGS);
    let publishing = join_all(
        devices
            .iter_mut()
            .map(|device| device.publish(range.clone(), RATE, PATIENCE)),
    );
    let blow = async {
        wait::until("the moment of the blow", PATIENCE, async || {
            Ok((total() >= blow_at).then_some(()))
        })
        .await?;
        world.edge()?.kill9()?;
        world.edge_up()
    };
    let (published, blow) = tokio::join!(publishing, blow);
    blow?;
    published.into_iter().collect()
}

/// The hub's ledger: every reading once, the last ones in order.
async fn look(world: &World, rounds: u64) -> Result<()> {
    let wanted = rounds * READINGS;
    let path = format!("/outpost/v1/ledger/{NODE}?limit=100000");
    let kubectl = world.kubectl();
    let what = format!("{wanted} readings of each device in the hub");
    let ledger: Value = wait::until(&what, PATIENCE, async || {
        let told = kubectl.run(&["get", "--raw", &path]).await?;
        let ledger: Value = serde_json::from_str(&told)?;
        let is_all = (0..DEVICES).all(|n| ledger::received(&ledger, &stream(n)) >= wanted);
        Ok(is_all.then_some(ledger))
    })
    .await?;
    for n in 0..DEVICES {
        let got = ledger::received(&ledger, &stream(n));
        ensure!(got == wanted, "{got} readings of {}, not {wanted}", name(n));
        let values = ledger::values(&ledger, &stream(n), "temperature");
        let looked_at = u64::try_from(values.len())?;
        let least = wanted.min(READINGS * ROUNDS_LOOKED_AT);
        ensure!(
            looked_at >= least,
            "the hub shows {looked_at} readings only"
        );
        let first = wanted + 1 - looked_at;
        for (number, value) in (first..).zip(&values) {
            ensure!(
                *value == number.to_string(),
                "reading {number} of {} is {value}",
                name(n)
            );
        }
    }
    Ok(())
}
