//! Twenty devices publish at QoS 1 while edgecore, the hub and a broker that is not ours are killed
//! again and again. What was acknowledged is in the hub once, in the order of each device, whatever
//! the moment of the blow.
//!
//! What counts as acknowledged: with the broker inside, its PUBACK. With mosquitto, the runtime's
//! result, which follows the commit; a PUBACK of mosquitto's is mosquitto's promise. A result that
//! dies with edgecore is asked for again, and its reading counts once all the same.
//!
//! What order means: after an outage the newest values go first, as live ones, and what came before
//! them follows as history, marked so. Live readings of a device are in order among each other, and
//! so is its history; the last live one is what the device's status shows.

mod seen;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use futures_util::future::join_all;
use serde_json::Value;

use crate::device::Thermometer;
use crate::ground::Ground;
use crate::mosquitto::Mosquitto;
use crate::rounds::{Dice, say};
use crate::wait;
use crate::world::{NODE, Place, World, free_port, path, reported};
use seen::Seen;

const DEVICES: u64 = 20;
/// Readings of one device in one round.
const READINGS: u64 = 20;
/// Readings a second of one device.
const RATE: u32 = 400;
const PATIENCE: Duration = Duration::from_secs(120);
/// Rounds after which everything has to be in the hub, outages apart.
const ROUNDS_SETTLED: u64 = 4;
/// Rounds in a hundred that begin an outage.
const OUTAGES: u64 = 10;
/// Rounds of an outage: more rows wait than fit a window of the session (`UPSTREAM_WINDOW`).
const OUTAGE_ROUNDS: [u64; 3] = [3, 4, 5];
/// Slow enough for blows to fall into the telling of a backlog.
const HISTORY_RATE: &str = "1000";
/// Readings asked of the hub at once: more than come between two looks.
const LOOK: u64 = 6_000;

/// Where the devices publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Broker {
    /// edgecore's own broker
    Inside,
    /// A mosquitto with persistence, and edgecore as a client of it
    Mosquitto,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Victim {
    /// The node's daemon
    Edgecore,
    /// The hub
    Hub,
    /// mosquitto, where there is one
    Broker,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub rounds: u64,
    pub seed: u64,
    pub broker: Broker,
    /// Empty: everybody there is.
    pub victims: Vec<Victim>,
    /// A line now and then.
    pub is_verbose: bool,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub rounds: u64,
    pub hits: BTreeMap<Victim, u64>,
    /// Times that the link to the hub was cut.
    pub outages: u64,
    /// Readings acknowledged, all of them in the hub.
    pub readings: u64,
    /// Of them, those that came as history.
    pub history: u64,
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
    let outcome = rounds(&options, &dir).await;
    if outcome.is_err() && options.is_verbose {
        say(&format!(
            "logs and databases are kept in {}",
            dir.path().display()
        ));
        dir.keep()?;
    }
    outcome
}

async fn rounds(options: &Options, dir: &Ground) -> Result<Report> {
    let mut fleet = Fleet::start(options, dir).await?;
    let mut report = Report::default();
    let mut outage_left = 0;
    let mut unsettled = 0;
    for round in 0..options.rounds {
        if outage_left > 0 {
            outage_left -= 1;
            if outage_left == 0 {
                fleet.world.link()?.restore();
            }
        } else if fleet.dice.chance(OUTAGES) {
            fleet.world.link()?.cut();
            outage_left = fleet.dice.pick(&OUTAGE_ROUNDS);
            report.outages += 1;
        }
        let at = || format!("round {round}, seed {}", options.seed);
        fleet.round(round, &mut report).await.with_context(at)?;
        unsettled += 1;
        if round + 1 == options.rounds {
            fleet.world.link()?.restore();
            fleet.settle(round + 1).await.with_context(at)?;
        } else if outage_left == 0 && unsettled >= ROUNDS_SETTLED {
            fleet.settle(round + 1).await.with_context(at)?;
            unsettled = 0;
        } else {
            fleet.look().await.with_context(at)?;
        }
        report.rounds += 1;
        report.readings = fleet.seen.readings();
        report.history = fleet.seen.history();
        if options.is_verbose && report.rounds % 10 == 0 {
            say(&format!("{report:?}"));
        }
    }
    fleet.end().await?;
    Ok(report)
}

/// Everybody who takes part.
struct Fleet {
    world: World,
    mosquitto: Option<Mosquitto>,
    devices: Vec<Thermometer>,
    victims: Vec<Victim>,
    dice: Dice,
    seen: Seen,
}

impl Fleet {
    async fn start(options: &Options, dir: &Ground) -> Result<Self> {
        let mut world = World::start_hub(Place::new("kills", dir.path())?).await?;
        let mut victims = vec![Victim::Edgecore, Victim::Hub];
        world.more = vec![("outpost.historyRowsPerSecond", HISTORY_RATE.to_owned())];
        let mut broker = world.place.mqtt;
        let mosquitto = if options.broker == Broker::Mosquitto {
            broker = free_port()?;
            victims.push(Victim::Broker);
            let server = format!("tcp://{broker}");
            world.more.extend([
                ("modules.eventBus.mqttMode", "2".to_owned()),
                ("modules.eventBus.mqttServerExternal", server),
            ]);
            Some(Mosquitto::start(broker, &dir.path().join("mosquitto"))?)
        } else {
            None
        };
        if !options.victims.is_empty() {
            let is_there = |victim| victims.contains(victim);
            ensure!(
                options.victims.iter().all(is_there),
                "the victim `broker` needs --broker mosquitto"
            );
            victims.clone_from(&options.victims);
        }
        let token = world.token()?;
        world.join(&token).await?;
        world.edge_up()?;
        let file = dir.path().join("devices.yaml");
        std::fs::write(&file, manifests())?;
        world.kubectl().run(&["apply", "-f", path(&file)?]).await?;
        wait::until("the devices on the node", PATIENCE, async || {
            let status = world.status().unwrap_or_default();
            let known = status["devices"].as_array().map_or(0, Vec::len);
            let has_broker =
                mosquitto.is_none() || status["mqtt"]["externalConnected"] == Value::Bool(true);
            Ok((u64::try_from(known)? == DEVICES && has_broker).then_some(()))
        })
        .await?;
        let thermometer = |n| {
            let device = Thermometer::new(broker, &format!("default/{}", name(n)));
            if mosquitto.is_some() {
                device.answered_by_results()
            } else {
                device
            }
        };
        Ok(Self {
            devices: (0..DEVICES).map(thermometer).collect(),
            world,
            mosquitto,
            victims,
            dice: Dice::new(options.seed),
            seen: Seen::new((0..DEVICES).map(stream)),
        })
    }

    /// Everybody publishes; at random numbers of acknowledgements somebody is killed and started.
    async fn round(&mut self, round: u64, report: &mut Report) -> Result<()> {
        let each = DEVICES * READINGS;
        let mut blows = Vec::new();
        for _ in 0..=self.dice.below(2) {
            let moment = round * each + self.dice.below(each);
            blows.push((moment, self.dice.pick(&self.victims)));
        }
        blows.sort_unstable();
        for (_, victim) in &blows {
            *report.hits.entry(*victim).or_default() += 1;
        }
        let progress: Vec<Arc<AtomicU64>> = self
            .devices
            .iter()
            .map(|device| Arc::clone(&device.progress))
            .collect();
        let range = 1 + round * READINGS..1 + (round + 1) * READINGS;
        let publishing = join_all(
            self.devices
                .iter_mut()
                .map(|device| device.publish(range.clone(), RATE, PATIENCE)),
        );
        let (world, mosquitto) = (&mut self.world, &mut self.mosquitto);
        let striking = async {
            for (moment, victim) in &blows {
                wait::until("the moment of the blow", PATIENCE, async || {
                    let all: u64 = progress.iter().map(|p| p.load(Ordering::Relaxed)).sum();
                    Ok((all >= *moment).then_some(()))
                })
                .await?;
                strike(world, mosquitto.as_mut(), *victim).await?;
            }
            anyhow::Ok(())
        };
        let (published, struck) = tokio::join!(publishing, striking);
        published
            .into_iter()
            .collect::<Result<()>>()
            .and(struck)
            .with_context(|| format!("{blows:?}"))
    }

    /// Whatever the hub has, it has once and in order.
    async fn look(&mut self) -> Result<Value> {
        let path = format!("/outpost/v1/ledger/{NODE}?limit={LOOK}");
        let told = self.world.kubectl().run(&["get", "--raw", &path]).await;
        let ledger: Value = match told {
            Ok(told) => serde_json::from_str(&told)?,
            // An outage in the first round.
            Err(error) if error.to_string().contains("NotFound") => Value::Null,
            Err(error) => return Err(error),
        };
        self.seen.take(&ledger)?;
        Ok(ledger)
    }

    /// Everything that was acknowledged is in the hub, both ledgers agree, and each device's status
    /// shows its last reading.
    async fn settle(&mut self, rounds: u64) -> Result<()> {
        let wanted = rounds * READINGS;
        let arrived = wait::until("everything at the hub", PATIENCE, async || {
            Ok(match self.look().await {
                Ok(ledger) => self.seen.has_all_up_to(wanted).then_some(Ok(ledger)),
                // Waiting mends no order.
                Err(error) => Some(Err(error)),
            })
        });
        let arrived = arrived.await;
        let ledger = arrived.with_context(|| self.seen.missing_up_to(wanted))??;
        self.seen.agrees_with(&ledger)?;
        let kubectl = self.world.kubectl();
        let last = wanted.to_string();
        for n in 0..DEVICES {
            let device = name(n);
            let status = kubectl
                .json(&["get", "devicestatus", &device, "-o", "json"])
                .await?;
            let shown = reported(&status, "temperature").unwrap_or_default();
            ensure!(
                shown == last,
                "the status of {device} shows {shown}, not {last}"
            );
        }
        let output = self
            .world
            .on_node("ledger")?
            .args(["-o", "json"])
            .output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "the node's ledger: {told}");
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        for process in [&mut self.world.edge, &mut self.world.hub]
            .into_iter()
            .flatten()
        {
            process.stop().await?;
            ensure!(!process.log().contains("panicked"), "{}", process.log());
        }
        self.world.no_complaints()
    }
}

async fn strike(
    world: &mut World,
    mosquitto: Option<&mut Mosquitto>,
    victim: Victim,
) -> Result<()> {
    match victim {
        Victim::Edgecore => {
            world.edge()?.kill9()?;
            world.edge_up()
        }
        Victim::Hub => {
            world.hub()?.kill9()?;
            world.hub_up().await
        }
        Victim::Broker => {
            let mosquitto = mosquitto.context("no mosquitto")?;
            mosquitto.kill9()?;
            mosquitto.start_again()
        }
    }
}
