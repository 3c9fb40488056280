//! What was measured, what was promised, and the table of both.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use outpost_tests::world::World;

pub(crate) type Figures = BTreeMap<&'static str, f64>;

pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

pub(crate) fn mib(kib: u64) -> f64 {
    ms_round(float(kib) / 1024.0)
}

#[expect(clippy::cast_precision_loss, reason = "figures are far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

pub(crate) fn ms_round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

pub(crate) fn millis(duration: Duration) -> f64 {
    ms_round(duration.as_secs_f64() * 1000.0)
}

pub(crate) fn insert_quantiles(
    figures: &mut Figures,
    samples: &mut [Duration],
    p50: &'static str,
    p99: &'static str,
) {
    samples.sort_unstable();
    if let (Some(half), Some(most)) = (
        samples.get(samples.len() / 2),
        samples.get((samples.len() * 99 / 100).min(samples.len().saturating_sub(1))),
    ) {
        figures.insert(p50, millis(*half));
        figures.insert(p99, millis(*most));
    }
}

pub(crate) fn memory(
    world: &mut World,
    figures: &mut Figures,
    rss: &'static str,
    pss: &'static str,
) -> Result<()> {
    let usage = world.edge()?.usage()?;
    figures.insert(rss, mib(usage.rss_kib));
    figures.insert(pss, mib(usage.pss_kib));
    Ok(())
}

/// What a figure is held against.
#[derive(Clone, Copy)]
enum Budget {
    None,
    AtMost(f64),
    AtLeast(f64),
}

impl Budget {
    fn verdict(self, measured: f64) -> (String, &'static str) {
        let (text, holds) = match self {
            Self::None => return (String::new(), ""),
            Self::AtMost(most) => (format!("≤ {most}"), measured <= most),
            Self::AtLeast(least) => (format!("≥ {least}"), measured >= least),
        };
        (text, if holds { "ok" } else { "MISSED" })
    }
}

use Budget::{AtLeast, AtMost};

/// What it is, KubeEdge's figure (measured on the same machine), ours to reach, its key.
const ROWS: &[(&str, &str, Budget, &str)] = &[
    (
        "edgecore memory, 11 pods (RSS MiB)",
        "96",
        AtMost(20.0),
        "edgecore_rss_11_pods_mib",
    ),
    (
        "the same, PSS",
        "94",
        Budget::None,
        "edgecore_pss_11_pods_mib",
    ),
    (
        "edgecore memory after load (RSS MiB)",
        "166",
        AtMost(20.0),
        "edgecore_rss_after_load_mib",
    ),
    (
        "edgecore CPU idle (ms per minute)",
        "480-740",
        AtMost(50.0),
        "edgecore_idle_cpu_ms_per_minute",
    ),
    (
        "disk written idle (bytes per minute)",
        "222-475 K",
        AtMost(0.0),
        "edgecore_idle_disk_bytes_per_minute",
    ),
    (
        "link idle, up (bytes per minute)",
        "9.1 K",
        AtMost(1000.0),
        "idle_link_up_bytes_per_minute",
    ),
    (
        "link idle, down (bytes per minute)",
        "8.0 K",
        AtMost(1000.0),
        "idle_link_down_bytes_per_minute",
    ),
    (
        "edgecore binary (MiB)",
        "99",
        AtMost(16.0),
        "edgecore_binary_mib",
    ),
    (
        "pod create → Running p50 (ms)",
        "1000",
        AtMost(200.0),
        "pod_create_to_running_p50_ms",
    ),
    (
        "ctr run of the image p50 (ms)",
        "",
        Budget::None,
        "ctr_run_p50_ms",
    ),
    (
        "runtime part of a pod, per ctr run",
        "",
        AtMost(1.5),
        "runtime_part_per_ctr_run",
    ),
    (
        "30 × ctr run at once (ms)",
        "",
        Budget::None,
        "ctr_run_30_at_once_ms",
    ),
    (
        "burst of 30 pods, half Running (ms)",
        "3700",
        Budget::None,
        "pod_burst_of_30_p50_ms",
    ),
    (
        "burst of 30 pods, all Running (ms)",
        "4600",
        AtMost(2000.0),
        "pod_burst_of_30_all_running_ms",
    ),
    (
        "edgecore memory, 100 pods (RSS MiB)",
        "",
        AtMost(30.0),
        "edgecore_rss_100_pods_mib",
    ),
    (
        "the same, PSS",
        "",
        Budget::None,
        "edgecore_pss_100_pods_mib",
    ),
    (
        "edgecore CPU idle, 100 pods (ms per minute)",
        "",
        AtMost(100.0),
        "edgecore_idle_cpu_100_pods_ms_per_minute",
    ),
    ("shims of 100 pods", "", AtMost(100.0), "shims_of_100_pods"),
    (
        "offline start → 100 pods known (ms)",
        "",
        AtMost(1000.0),
        "offline_start_to_100_pods_known_ms",
    ),
    (
        "upstream stored at the hub (per second)",
        "30",
        AtLeast(10_000.0),
        "upstream_stored_at_hub_per_second",
    ),
    (
        "broker alone, QoS 1 fan-in (per second)",
        "",
        Budget::None,
        "broker_fan_in_per_s",
    ),
    (
        "mosquitto, persistence on, the same",
        "",
        Budget::None,
        "mosquitto_fan_in_per_s",
    ),
    (
        "broker alone, per mosquitto",
        "",
        AtLeast(1.0),
        "broker_fan_in_per_mosquitto",
    ),
    (
        "publish → PUBACK p50 (ms)",
        "1.5 (not durable)",
        Budget::None,
        "publish_to_puback_p50_ms",
    ),
    (
        "publish → value in the API p50 (ms)",
        "5.9",
        AtMost(4.0),
        "publish_to_api_p50_ms",
    ),
    (
        "publish → value in the API p99 (ms)",
        "11",
        AtMost(10.0),
        "publish_to_api_p99_ms",
    ),
    (
        "disk per 1,000 twin updates (KiB)",
        "22800",
        AtMost(2000.0),
        "disk_kib_per_1000_updates",
    ),
    (
        "edge CPU per 1,000 twin updates (ms)",
        "2900",
        AtMost(300.0),
        "edge_cpu_ms_per_1000_updates",
    ),
    (
        "last of three quick updates right (of 200)",
        "35",
        AtLeast(200.0),
        "final_value_right_of_200",
    ),
    (
        "100 updates offline, at the hub",
        "",
        AtLeast(100.0),
        "updates_of_100_offline_at_hub",
    ),
    (
        "backlog of 100,000: newest visible (ms)",
        "",
        Budget::None,
        "backlog_newest_value_visible_ms",
    ),
    (
        "backlog of 100,000: all at the hub (ms)",
        "",
        AtMost(15_000.0),
        "backlog_of_100000_drained_ms",
    ),
    (
        "ledger balanced at the end",
        "",
        AtLeast(1.0),
        "ledger_balanced",
    ),
    (
        "edgecore, 1,000 devices, 100 clients (RSS MiB)",
        "",
        AtMost(24.0),
        "edgecore_rss_1000_devices_mib",
    ),
    (
        "hub back → session (ms)",
        "30300",
        AtMost(2000.0),
        "hub_back_to_session_ms",
    ),
    (
        "offline start → pods known (ms)",
        "810",
        AtMost(500.0),
        "offline_start_to_pods_known_ms",
    ),
];

pub(crate) fn print_table(figures: &Figures) {
    say(&format!(
        "\n{:<44} {:>18} {:>9} {:>10}",
        "", "KubeEdge 1.23", "budget", "measured"
    ));
    for (name, theirs, budget, key) in ROWS {
        let Some(value) = figures.get(key).copied() else {
            continue;
        };
        let (budget, verdict) = budget.verdict(value);
        say(&format!(
            "{name:<44} {theirs:>18} {budget:>9} {value:>10} {verdict}"
        ));
    }
    say("\nall figures:");
    for (key, value) in figures {
        say(&format!("  {key} = {value}"));
    }
}
