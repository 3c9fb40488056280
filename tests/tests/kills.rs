//! The short version of `make kills`: a fixed seed, so that what fails here fails again.

use std::time::Duration;

use anyhow::{Result, ensure};
use outpost_tests::device::flood;
use outpost_tests::ground::Ground;
use outpost_tests::kills::{self, Broker, Options, Report};
use outpost_tests::world::{NODE, Place, World};
use outpost_tests::{ledger, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn rounds(broker: Broker) -> Report {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = Options {
        rounds: 10,
        seed: 20,
        broker,
        victims: Vec::new(),
        is_verbose: false,
    };
    runtime
        .block_on(kills::run(options))
        .unwrap_or_else(|error| panic!("{error:#}"))
}

/// KubeEdge hands each message over by a goroutine of its own, so readings swap (fault 6), keeps
/// uploads in memory (fault 3), and acknowledges before it stores (fault 4).
#[test]
fn fault_06_readings_arrive_once_and_in_order_while_edgecore_and_hub_are_killed() {
    let report = rounds(Broker::Inside);
    assert!(report.hits.len() > 1, "{report:?}");
    assert!(report.history > 0, "{report:?}");
}

#[test]
fn readings_by_mosquitto_arrive_once_and_in_order_while_everybody_is_killed() {
    let report = rounds(Broker::Mosquitto);
    assert!(report.hits.len() > 2, "{report:?}");
}

/// KubeEdge keeps uploads in memory, 1,024 of them: a restart loses all.
#[test]
fn fault_03_uploads_outlive_kill_9_and_a_hub_that_is_away() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(uploads())
        .unwrap_or_else(|error| panic!("{error:#}"));
}

async fn uploads() -> Result<()> {
    const COUNT: u64 = 2_000;
    let dir = Ground::temporary("outpost-uploads-")?;
    let mut world = World::start_hub(Place::new("uploads", dir.path())?).await?;
    let token = world.token()?;
    world.join(&token).await?;
    world.link()?.cut();
    world.edge_up()?;
    let broker = world.place.mqtt;
    wait::until("the broker", PATIENCE, async || {
        Ok(tokio::net::TcpStream::connect(broker).await.ok().map(drop))
    })
    .await?;
    flood(broker, 1, COUNT, PATIENCE).await?;
    world.edge()?.kill9()?;
    world.edge_up()?;
    world.link()?.restore();
    let path = format!("/outpost/v1/ledger/{NODE}");
    let received = async |world: &World| -> Result<u64> {
        let told = world.kubectl().run(&["get", "--raw", &path]).await;
        let ledger: Value = serde_json::from_str(&told.unwrap_or_default()).unwrap_or_default();
        Ok(ledger::received(&ledger, "upload/bench/user/1"))
    };
    wait::until("the uploads in the hub", PATIENCE, async || {
        Ok((received(&world).await? >= COUNT).then_some(()))
    })
    .await?;
    let got = received(&world).await?;
    ensure!(got == COUNT, "{got} uploads in the hub, not {COUNT}");
    for process in [&mut world.edge, &mut world.hub].into_iter().flatten() {
        process.stop().await?;
    }
    Ok(())
}
