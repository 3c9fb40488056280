//! `edgecore top`: what uses how much now. CPU is a rate over a short while.

use std::collections::BTreeMap;
use std::time::Duration;

use super::table::{bytes, mebibytes, table};
use super::{ConsoleError, Source};
use crate::api::NodeStats;
use crate::api::target::{Target, TargetError};
use crate::edged::runtime::{ContainerStats, PodStats};

/// Time between the two looks that a rate is made of.
const WINDOW: Duration = Duration::from_secs(1);

async fn twice(source: &Source) -> Result<(NodeStats, NodeStats), ConsoleError> {
    let before = source.stats().await?;
    tokio::time::sleep(WINDOW).await;
    Ok((before, source.stats().await?))
}

/// Pods, or their containers one by one; of one namespace, or one pod.
pub async fn top_pods(
    source: &Source,
    only: &Target,
    by_container: bool,
) -> Result<String, ConsoleError> {
    let (before, after) = twice(source).await?;
    let is_wanted = |pod: &&PodStats| {
        only.namespace.as_ref().is_none_or(|n| *n == pod.namespace)
            && (only.pod.is_empty() || only.pod == pod.name)
    };
    let pods: Vec<&PodStats> = after.pods.iter().filter(is_wanted).collect();
    if pods.is_empty() && !only.pod.is_empty() {
        return Err(TargetError::NoPod(only.pod.clone()).into());
    }
    Ok(render_pods(&before, &after, &pods, by_container))
}

/// The node as a whole.
pub async fn top_node(source: &Source, name: &str) -> Result<String, ConsoleError> {
    let (before, after) = twice(source).await?;
    Ok(render_node(&before, &after, name))
}

/// Thousandths of a core.
fn milli_cores(before_ns: u64, after_ns: u64, window_ms: u64) -> u64 {
    // ns / ms = millionths of a core; rounded up so that what runs does not seem to stand.
    after_ns
        .saturating_sub(before_ns)
        .checked_div(window_ms)
        .unwrap_or(0)
        .div_ceil(1000)
}

fn render_node(before: &NodeStats, after: &NodeStats, name: &str) -> String {
    let window = after.at_ms.saturating_sub(before.at_ms);
    let cpu = milli_cores(before.cpu_ns, after.cpu_ns, window);
    let percent = |part: u64, whole: u64| {
        let percent = part.saturating_mul(100).checked_div(whole).unwrap_or(0);
        format!("{percent}%")
    };
    let row = vec![
        name.to_owned(),
        format!("{cpu}m"),
        percent(cpu, u64::from(after.cpus) * 1000),
        mebibytes(after.memory_working_set_bytes),
        percent(after.memory_working_set_bytes, after.memory_bytes),
    ];
    let heads = ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"];
    table(&heads, &[row])
}

fn render_pods(
    before: &NodeStats,
    after: &NodeStats,
    pods: &[&PodStats],
    by_container: bool,
) -> String {
    if pods.is_empty() {
        return "No pods on this node.\n".to_owned();
    }
    let window = after.at_ms.saturating_sub(before.at_ms);
    let earlier: BTreeMap<&str, u64> = before
        .pods
        .iter()
        .flat_map(|pod| &pod.containers)
        .map(|container| (container.id.as_str(), container.cpu_ns))
        .collect();
    let cpu = |container: &ContainerStats| {
        // One that came in between has used all of it in between.
        let from = earlier.get(container.id.as_str()).copied().unwrap_or(0);
        milli_cores(from, container.cpu_ns, window)
    };
    let figures = |cpu: u64, of: &[&ContainerStats]| {
        let sum = |what: fn(&ContainerStats) -> u64| of.iter().map(|c| what(c)).sum::<u64>();
        vec![
            format!("{cpu}m"),
            mebibytes(sum(|c| c.memory_working_set_bytes)),
            mebibytes(sum(|c| c.memory_rss_bytes)),
            sum(|c| c.processes).to_string(),
            bytes(sum(|c| c.rootfs_bytes + c.log_bytes)),
        ]
    };
    let mut sorted = pods.to_vec();
    sorted.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut rows = Vec::new();
    for pod in sorted {
        let all: Vec<&ContainerStats> = pod.containers.iter().collect();
        let name = vec![pod.namespace.clone(), pod.name.clone()];
        if by_container {
            for one in all {
                let mut row = name.clone();
                row.push(one.name.clone());
                row.extend(figures(cpu(one), &[one]));
                rows.push(row);
            }
        } else {
            let mut row = name;
            row.extend(figures(all.iter().map(|c| cpu(c)).sum(), &all));
            row.extend([bytes(pod.received_bytes), bytes(pod.sent_bytes)]);
            rows.push(row);
        }
    }
    let mut heads = vec!["NAMESPACE", "NAME"];
    if by_container {
        heads.push("CONTAINER");
    }
    heads.extend(["CPU(cores)", "MEMORY(bytes)", "RSS", "PIDS", "DISK"]);
    if !by_container {
        heads.extend(["RECEIVED", "SENT"]);
    }
    table(&heads, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at_ms: u64, cpu_ns: u64) -> NodeStats {
        NodeStats {
            at_ms,
            cpus: 2,
            cpu_ns: cpu_ns * 2,
            memory_bytes: 100 << 20,
            memory_working_set_bytes: 25 << 20,
            pods: vec![PodStats {
                uid: "u".to_owned(),
                namespace: "default".to_owned(),
                name: "web".to_owned(),
                received_bytes: 5,
                sent_bytes: 20_480,
                containers: vec![
                    ContainerStats {
                        name: "a".to_owned(),
                        id: "ia".to_owned(),
                        cpu_ns,
                        memory_working_set_bytes: 3 << 20,
                        memory_rss_bytes: 2 << 20,
                        processes: 4,
                        rootfs_bytes: 100,
                        log_bytes: 50,
                        ..ContainerStats::default()
                    },
                    ContainerStats {
                        name: "b".to_owned(),
                        id: "ib".to_owned(),
                        ..ContainerStats::default()
                    },
                ],
            }],
        }
    }

    #[test]
    fn rates_and_sums() {
        let (before, after) = (look(1000, 1_000_000_000), look(2000, 1_250_000_000));
        let pods: Vec<&PodStats> = after.pods.iter().collect();
        assert_eq!(
            render_pods(&before, &after, &pods, false),
            "NAMESPACE   NAME   CPU(cores)   MEMORY(bytes)   RSS   PIDS   DISK   RECEIVED   SENT\n\
             default     web    250m         3Mi             2Mi   4      150    5          20Ki\n"
        );
        let rows = render_pods(&before, &after, &pods, true);
        assert!(rows.contains("web    b           0m"), "{rows}");
        assert_eq!(
            render_node(&before, &after, "n1"),
            "NAME   CPU(cores)   CPU(%)   MEMORY(bytes)   MEMORY(%)\n\
             n1     500m         25%      25Mi            25%\n"
        );
        assert_eq!(milli_cores(5, 0, 0), 0);
    }
}
