//! 100 pods on one node: what the node's daemon costs, and how fast it knows them after a start.

use std::time::{Duration, Instant};

use anyhow::Result;
use http::Method;
use outpost_tests::world::World;
use outpost_tests::{api, containers, wait};

use crate::PATIENCE;
use crate::figures::{Figures, float, mib, millis, ms_round, say};
use crate::idle::idle_secs;
use crate::pods::{PODS_PATH, pod};

const HUNDRED: usize = 100;

pub(crate) async fn hundred(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("100 pods …");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut calls = api::connect(&kubeconfig).await?;
    // A restarted container leaves its last dead one for `logs --previous`: only what runs is a pod.
    let stand = containers::all(world)?.iter().filter(|c| c.running).count();
    let started = Instant::now();
    for n in stand..HUNDRED {
        calls
            .call(Method::POST, PODS_PATH, Some(&pod(&format!("h{n}"))))
            .await?;
    }
    running(world).await?;
    figures.insert("pods_to_100_all_running_ms", millis(started.elapsed()));
    let socket = world.place.containerd.display().to_string();
    figures.insert("shims_of_100_pods", float(shims(&socket)));
    // What the last pods caused settles first.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let secs = idle_secs();
    say(&format!("idle with 100 pods for {secs} s …"));
    let before = world.edge()?.usage()?;
    tokio::time::sleep(Duration::from_secs(secs)).await;
    let after = world.edge()?.usage()?;
    figures.insert("edgecore_rss_100_pods_mib", mib(after.rss_kib));
    figures.insert("edgecore_pss_100_pods_mib", mib(after.pss_kib));
    let minutes = float(secs) / 60.0;
    figures.insert(
        "edgecore_idle_cpu_100_pods_ms_per_minute",
        ms_round(float(after.cpu_ms - before.cpu_ms) / minutes),
    );
    say("offline start with 100 pods …");
    world.hub()?.kill9()?;
    world.edge()?.kill9()?;
    let started = Instant::now();
    world.edge_up()?;
    running(world).await?;
    figures.insert(
        "offline_start_to_100_pods_known_ms",
        millis(started.elapsed()),
    );
    world.hub_up().await
}

async fn running(world: &World) -> Result<()> {
    wait::until("100 pods known running", PATIENCE, async || {
        let Ok(status) = world.status() else {
            // Its socket is not there yet.
            return Ok(None);
        };
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let running = pods.iter().filter(|pod| pod["phase"] == "Running").count();
        Ok((running == HUNDRED).then_some(()))
    })
    .await
}

/// Shims of the daemon at `socket`.
fn shims(socket: &str) -> u64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let program = line.split('\0').next().unwrap_or_default();
        program.ends_with("containerd-shim-runc-v2") && line.split('\0').any(|word| word == socket)
    });
    u64::try_from(found.count()).unwrap_or(u64::MAX)
}
