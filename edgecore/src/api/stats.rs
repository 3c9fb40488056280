//! What the node and its pods use, for `edgecore top`.

use serde::{Deserialize, Serialize};

use crate::edged::runtime::{PodStats, Runtime, RuntimeError};

/// One look at everything. CPU times only grow: two looks make a rate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStats {
    /// When this was, on the machine's monotonic clock.
    pub at_ms: u64,
    pub cpus: u32,
    /// Busy time of all CPUs since the machine's start.
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    /// Memory that cannot be taken back without harm.
    pub memory_working_set_bytes: u64,
    pub pods: Vec<PodStats>,
}

impl NodeStats {
    /// Takes a look.
    pub(crate) async fn look(runtime: &dyn Runtime) -> Result<Self, RuntimeError> {
        let pods = runtime.stats().await?;
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Ok(Self {
            pods,
            ..node(
                &read("/proc/stat"),
                &read("/proc/meminfo"),
                &read("/proc/uptime"),
            )
        })
    }
}

/// Length of a tick in proc(5): 100 a second on every Linux that we run on.
const TICK_NS: u64 = 10_000_000;

/// The node's own figures, from files of proc(5).
fn node(stat: &str, meminfo: &str, uptime: &str) -> NodeStats {
    let ticks: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .into_iter()
        .flat_map(str::split_whitespace)
        .map_while(|number| number.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guest is in user already.
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|&at: &usize| ticks.get(at))
        .sum();
    let cpus = stat
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .count();
    let kib = |name: &str| {
        meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let total = kib("MemTotal:");
    NodeStats {
        at_ms: seconds_to_ms(uptime),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        cpu_ns: busy.saturating_mul(TICK_NS),
        memory_bytes: total << 10,
        memory_working_set_bytes: total.saturating_sub(kib("MemAvailable:")) << 10,
        pods: Vec::new(),
    }
}

/// `12.34 …` as milliseconds.
fn seconds_to_ms(uptime: &str) -> u64 {
    let first = uptime.split_whitespace().next().unwrap_or_default();
    let (whole, part) = first.split_once('.').unwrap_or((first, ""));
    let whole: u64 = whole.parse().unwrap_or(0);
    let part: u64 = format!("{part:0<3}")
        .get(..3)
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0);
    whole.saturating_mul(1000).saturating_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_figures_are_read() {
        let stat = "cpu  100 10 50 1000 20 5 5 0 7 0\ncpu0 50 5 25 500 10 0 0 0 0 0\ncpu1 50 5 25 500 10 0 0 0 0 0\nintr 1\n";
        let meminfo = "MemTotal:        1000 kB\nMemFree:  10 kB\nMemAvailable:     400 kB\n";
        let found = node(stat, meminfo, "12.5 40.00\n");
        assert_eq!(
            found,
            NodeStats {
                at_ms: 12_500,
                cpus: 2,
                cpu_ns: 170 * TICK_NS,
                memory_bytes: 1000 << 10,
                memory_working_set_bytes: 600 << 10,
                pods: Vec::new(),
            }
        );
        assert_eq!(node("", "", ""), NodeStats::default());
    }
}
