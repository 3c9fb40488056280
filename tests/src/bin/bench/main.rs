//! `make bench`: the figures of the design's table, on this machine, in one run. Prints a table
//! and writes `target/bench/bench.json`, one object, the unit in each key's name.
//!
//! Memory and CPU are read from `/proc`, link bytes are payload bytes counted by the forwarder
//! between node and hub, disk bytes are what reached the block layer (`/proc/PID/io`).
//! `BENCH_IDLE_SECS` shortens the idle windows (default 300).
//! `KEEP=1` leaves logs and databases. `BENCH_ONLY` names the sections to
//! run, separated by commas: `pods`, `burst`, `idle`, `twins`, `mqtt`, `ledger`, `away`, `hundred`.

mod away;
mod figures;
mod hundred;
mod idle;
mod ledger;
mod mqtt;
mod pods;
mod twins;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use figures::{Figures, memory, mib, print_table, say};
use outpost_tests::containerd::PrivateContainerd;
use outpost_tests::ground::Ground;
use outpost_tests::oci;
use outpost_tests::world::{Place, World};

const IMAGE: &str = "docker.io/library/busybox:bench";
/// What stays after the load, not its peak: the node gives memory back within ten seconds.
const SETTLED: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let outcome = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let out = std::env::current_dir()?.join("target/bench");
    let dir = out.join(std::process::id().to_string());
    let ground = Ground::at(&dir)?;
    let mut containerd = PrivateContainerd::start(&dir.join("containerd"))?;
    let place = Place::new("bench", &dir)?;
    let mut figures = Figures::new();
    let mut world = World::start_hub(place).await?;
    let outcome = Box::pin(measure(&mut world, &mut figures)).await;
    let kubectl = world.kubectl();
    let _ = kubectl
        .run(&["delete", "pods", "--all", "--grace-period=0", "--force"])
        .await;
    // Their networks too: rules and addresses of the machine outlive this run otherwise.
    let _ = pods::settled(&world, |_| false).await;
    for process in [&mut world.edge, &mut world.hub].into_iter().flatten() {
        let _ = process.stop().await;
    }
    containerd.kill()?;
    drop(ground);
    if outcome.is_ok() && std::env::var_os("KEEP").is_none() {
        let _ = std::fs::remove_dir_all(&dir);
    }
    outcome?;
    print_table(&figures);
    let file = out.join("bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(&figures)?)?;
    say(&format!("\nwritten to {}", file.display()));
    Ok(())
}

async fn measure(world: &mut World, figures: &mut Figures) -> Result<()> {
    sizes(world, figures)?;
    let token = world.token()?;
    world.join(&token).await?;
    world.edge_up()?;
    world.node_is("True", PATIENCE).await?;
    say("idle, no pods …");
    memory(
        world,
        figures,
        "edgecore_rss_0_pods_mib",
        "edgecore_pss_0_pods_mib",
    )?;
    let archive = world.place.dir.join("busybox.tar");
    oci::write_archive(&oci::ImageSpec::busybox(IMAGE), &archive)?;
    world.import(&archive)?;
    if wanted("pods") {
        pods::reference(world, figures).await?;
        pods::pods(world, figures).await?;
    }
    if wanted("burst") {
        pods::burst(world, figures).await?;
    }
    if wanted("idle") {
        idle::idle(world, figures).await?;
    }
    if wanted("twins") {
        twins::twins(world, figures).await?;
        twins::throughput(world, figures).await?;
    }
    if wanted("mqtt") {
        mqtt::mqtt(world, figures).await?;
    }
    if wanted("ledger") {
        ledger::ledger(world, figures).await?;
    }
    if wanted("away") {
        away::reconnect(world, figures).await?;
        away::offline_start(world, figures).await?;
    }
    if wanted("hundred") {
        hundred::hundred(world, figures).await?;
    }
    tokio::time::sleep(SETTLED).await;
    memory(
        world,
        figures,
        "edgecore_rss_after_load_mib",
        "edgecore_pss_after_load_mib",
    )?;
    let hub = world.hub()?.usage()?;
    figures.insert("cloudhub_rss_after_load_mib", mib(hub.rss_kib));
    Ok(())
}

fn sizes(world: &World, figures: &mut Figures) -> Result<()> {
    for (name, key) in [
        ("edgecore", "edgecore_binary_mib"),
        ("cloudhub", "cloudhub_binary_mib"),
        ("edged-logger", "edged_logger_binary_mib"),
    ] {
        let bytes = std::fs::metadata(world.place.bins.join(name))?.len();
        figures.insert(key, mib(bytes / 1024));
    }
    Ok(())
}

/// Whether a section is to be run.
fn wanted(section: &str) -> bool {
    std::env::var("BENCH_ONLY").map_or(true, |only| only.split(',').any(|name| name == section))
}
