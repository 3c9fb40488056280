//! A node on which nothing happens.

use std::time::Duration;

use anyhow::Result;
use outpost_tests::process::Usage;
use outpost_tests::world::World;

use crate::figures::{Figures, float, mib, ms_round, say};
use crate::pods::PODS;

pub(crate) async fn idle(world: &mut World, figures: &mut Figures) -> Result<()> {
    let secs = idle_secs();
    say(&format!("idle with {PODS} pods for {secs} s …"));
    // What the last pods caused settles first.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let sample = |world: &mut World| -> Result<(Usage, Usage, (u64, u64))> {
        Ok((
            world.edge()?.usage()?,
            world.hub()?.usage()?,
            world.link()?.carried(),
        ))
    };
    let (edge0, hub0, link0) = sample(world)?;
    tokio::time::sleep(Duration::from_secs(secs)).await;
    let (edge1, hub1, link1) = sample(world)?;
    let minutes = float(secs) / 60.0;
    let per_minute = |delta: u64| ms_round(float(delta) / minutes);
    figures.insert("edgecore_rss_11_pods_mib", mib(edge1.rss_kib));
    figures.insert("edgecore_pss_11_pods_mib", mib(edge1.pss_kib));
    figures.insert("cloudhub_rss_mib", mib(hub1.rss_kib));
    figures.insert("cloudhub_pss_mib", mib(hub1.pss_kib));
    figures.insert(
        "edgecore_idle_cpu_ms_per_minute",
        per_minute(edge1.cpu_ms - edge0.cpu_ms),
    );
    figures.insert(
        "cloudhub_idle_cpu_ms_per_minute",
        per_minute(hub1.cpu_ms - hub0.cpu_ms),
    );
    let written = |a: &Usage, b: &Usage| b.written_bytes - a.written_bytes;
    figures.insert(
        "edgecore_idle_disk_bytes_per_minute",
        per_minute(written(&edge0, &edge1)),
    );
    figures.insert(
        "cloudhub_idle_disk_bytes_per_minute",
        per_minute(written(&hub0, &hub1)),
    );
    figures.insert(
        "idle_link_up_bytes_per_minute",
        per_minute(link1.0 - link0.0),
    );
    figures.insert(
        "idle_link_down_bytes_per_minute",
        per_minute(link1.1 - link0.1),
    );
    Ok(())
}

/// How long an idle window is.
pub(crate) fn idle_secs() -> u64 {
    std::env::var("BENCH_IDLE_SECS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(300)
}
