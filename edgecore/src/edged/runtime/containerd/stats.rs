//! What containers use, read from the host's cgroup files: a tenth of the cost of asking the
//! daemon, which asks every shim. Works on cgroup v1 and v2; a controller that is missing leaves
//! its figures at 0.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::ListContainersRequest;
use tokio::time::Instant;

use super::channel::{CALL, CallError, Daemon};
use super::layer;
use super::record::label;
use super::task;
use crate::edged::runtime::{ContainerStats, PodStats};

/// How long the size of a container's own layer is believed: the daemon walks all of it.
const USAGE_AGE_MAX: Duration = Duration::from_secs(30);
/// cgroup v1 says "no limit" with a number near 2^63.
const UNLIMITED: u64 = 1 << 60;

/// Where each controller's tree is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Roots {
    is_v2: bool,
    cpu: Option<PathBuf>,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
}

impl Roots {
    fn detect() -> Self {
        let unified = PathBuf::from("/sys/fs/cgroup");
        if unified.join("cgroup.controllers").exists() {
            return Self {
                is_v2: true,
                cpu: Some(unified.clone()),
                memory: Some(unified.clone()),
                pids: Some(unified),
            };
        }
        Self::v1(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// `mountinfo` as in proc(5).
    fn v1(mountinfo: &str) -> Self {
        let mut roots = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - cgroup ") else {
                continue;
            };
            let Some(point) = left.split_whitespace().nth(4).map(PathBuf::from) else {
                continue;
            };
            let options = right.split_whitespace().nth(1).unwrap_or_default();
            for option in options.split(',') {
                match option {
                    "cpuacct" => roots.cpu = Some(point.clone()),
                    "memory" => roots.memory = Some(point.clone()),
                    "pids" => roots.pids = Some(point.clone()),
                    _ => {}
                }
            }
        }
        roots
    }

    /// One container's figures.
    fn read(&self, cgroup: &str) -> ContainerStats {
        let at = |root: &Option<PathBuf>, file: &str| -> String {
            let path = root
                .as_ref()
                .map(|root| root.join(cgroup.trim_start_matches('/')).join(file));
            path.and_then(|path| std::fs::read_to_string(path).ok())
                .unwrap_or_default()
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let (usage, limit) = if self.is_v2 {
            ("memory.current", "memory.max")
        } else {
            ("memory.usage_in_bytes", "memory.limit_in_bytes")
        };
        let (inactive, rss) = if self.is_v2 {
            ("inactive_file", "anon")
        } else {
            ("total_inactive_file", "total_rss")
        };
        let details = at(&self.memory, "memory.stat");
        let usage = number(at(&self.memory, usage));
        let limit = number(at(&self.memory, limit));
        ContainerStats {
            cpu_ns: if self.is_v2 {
                field(&at(&self.cpu, "cpu.stat"), "usage_usec").saturating_mul(1000)
            } else {
                number(at(&self.cpu, "cpuacct.usage"))
            },
            memory_working_set_bytes: usage.saturating_sub(field(&details, inactive)),
            memory_rss_bytes: field(&details, rss),
            memory_limit_bytes: if limit < UNLIMITED { limit } else { 0 },
            processes: match number(at(&self.pids, "pids.current")) {
                0 => u64::try_from(at(&self.memory, "cgroup.procs").lines().count()).unwrap_or(0),
                count => count,
            },
            ..ContainerStats::default()
        }
    }
}

/// The number behind a word at the beginning of a line.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// Received and sent bytes of every interface but the loopback, from `net/dev` of proc(5).
fn network(text: &str) -> (u64, u64) {
    let mut sum = (0_u64, 0_u64);
    for line in text.lines() {
        let Some((name, figures)) = line.split_once(':') else {
            continue;
        };
        if name.trim() == "lo" {
            continue;
        }
        let figures: Vec<u64> = figures
            .split_whitespace()
            .map_while(|figure| figure.parse().ok())
            .collect();
        sum.0 = sum.0.saturating_add(figures.first().copied().unwrap_or(0));
        sum.1 = sum.1.saturating_add(figures.get(8).copied().unwrap_or(0));
    }
    sum
}

/// The network of a process' pod; nothing for the host's own.
fn network_of(pid: u32) -> (u64, u64) {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
    if namespace(&pid.to_string()) == namespace("self") {
        return (0, 0);
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev"));
    network(&text.unwrap_or_default())
}

/// Bytes of all files in a container's log directory.
fn log_bytes(log: &Path) -> u64 {
    log.parent()
        .and_then(|directory| std::fs::read_dir(directory).ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// A running container, as far as its figures need.
struct Found {
    pod: (String, String, String),
    name: String,
    id: String,
    pid: u32,
    cgroup: String,
    log: PathBuf,
    rootfs_bytes: u64,
}

/// Takes statistics; remembers what is dear to find out.
pub(super) struct Stats {
    roots: Roots,
    usage: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Stats {
    pub(super) fn detect() -> Self {
        Self {
            roots: Roots::detect(),
            usage: Mutex::new(HashMap::new()),
        }
    }

    /// Every pod with a running container.
    pub(super) async fn look(
        &self,
        daemon: &Daemon,
        snapshotter: &str,
    ) -> Result<Vec<PodStats>, CallError> {
        let filters = vec![format!("labels.\"{}\"==true", label::MANAGED)];
        let listed = daemon
            .call(
                "container list",
                CALL,
                daemon.containers().list(ListContainersRequest { filters }),
            )
            .await?;
        let tasks = task::tasks(daemon).await?;
        let mut found = Vec::new();
        for record in listed.containers {
            let Some(process) = tasks.get(&record.id).filter(|p| p.status == task::RUNNING) else {
                continue;
            };
            let text = |key: &str| record.labels.get(key).cloned().unwrap_or_default();
            found.push(Found {
                pod: (
                    text(label::POD_UID),
                    text(label::POD_NAMESPACE),
                    text(label::POD_NAME),
                ),
                name: text(label::NAME),
                pid: process.pid,
                cgroup: text(label::CGROUP),
                log: PathBuf::from(text(label::LOG_PATH)),
                rootfs_bytes: self.rootfs(daemon, snapshotter, &record.id).await,
                id: record.id,
            });
        }
        self.forget_all_but(&found);
        let roots = self.roots.clone();
        let read = tokio::task::spawn_blocking(move || read(&roots, found)).await;
        Ok(read.unwrap_or_default())
    }

    /// Size of a container's own layer.
    async fn rootfs(&self, daemon: &Daemon, snapshotter: &str, id: &str) -> u64 {
        let known = self.known().get(id).copied();
        if let Some((at, bytes)) = known
            && at.elapsed() < USAGE_AGE_MAX
        {
            return bytes;
        }
        let bytes = match layer::usage(daemon, snapshotter, id, CALL).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(%error, id, "size of a container's layer not known");
                0
            }
        };
        self.known().insert(id.to_owned(), (Instant::now(), bytes));
        bytes
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, u64)>> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_all_but(&self, found: &[Found]) {
        self.known()
            .retain(|id, _| found.iter().any(|container| container.id == *id));
    }
}

fn read(roots: &Roots, found: Vec<Found>) -> Vec<PodStats> {
    let mut pods: BTreeMap<(String, String, String), PodStats> = BTreeMap::new();
    for container in found {
        let pod = pods.entry(container.pod.clone()).or_insert_with(|| {
            let (received_bytes, sent_bytes) = network_of(container.pid);
            let (uid, namespace, name) = container.pod.clone();
            PodStats {
                uid,
                namespace,
                name,
                received_bytes,
                sent_bytes,
                containers: Vec::new(),
            }
        });
        pod.containers.push(ContainerStats {
            name: container.name,
            id: container.id,
            rootfs_bytes: container.rootfs_bytes,
            log_bytes: log_bytes(&container.log),
            ..roots.read(&container.cgroup)
        });
    }
    pods.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join("edgepods/pod1/c");
        std::fs::create_dir_all(&container).unwrap();
        for (name, text) in files {
            std::fs::write(container.join(name), text).unwrap();
        }
        dir
    }

    fn roots(dir: &tempfile::TempDir, is_v2: bool) -> Roots {
        let root = Some(dir.path().to_owned());
        Roots {
            is_v2,
            cpu: root.clone(),
            memory: root.clone(),
            pids: root,
        }
    }

    #[test]
    fn both_versions_give_the_same_figures() {
        let v1 = tree(&[
            ("cpuacct.usage", "7000\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory.stat",
                "rss 1\ntotal_inactive_file 300\ntotal_rss 500\n",
            ),
            ("pids.current", "3\n"),
        ]);
        let v2 = tree(&[
            ("cpu.stat", "usage_usec 7\nuser_usec 1\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 500\ninactive_file 300\n"),
            ("pids.current", "3\n"),
        ]);
        for (dir, is_v2) in [(&v1, false), (&v2, true)] {
            assert_eq!(
                roots(dir, is_v2).read("/edgepods/pod1/c"),
                ContainerStats {
                    cpu_ns: 7000,
                    memory_working_set_bytes: 700,
                    memory_rss_bytes: 500,
                    processes: 3,
                    ..ContainerStats::default()
                }
            );
        }
        let none = Roots::default().read("/edgepods/pod1/c");
        assert_eq!(none, ContainerStats::default());
    }

    #[test]
    fn controllers_are_found_where_they_are_mounted() {
        let found = Roots::v1(
            "30 29 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
             33 29 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(found.cpu, Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.memory, Some(PathBuf::from("/sys/fs/cgroup/memory")));
        assert_eq!(found.pids, None);
    }

    #[test]
    fn the_loopback_is_no_network() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 9 0 0 0 0 0 0 0 9 0\n  eth0: 100 1 0 0 0 0 0 0 200 1 0 0\n net1:1 0 0 0 0 0 0 0 2 0\n";
        assert_eq!(network(text), (101, 202));
        assert_eq!(network(""), (0, 0));
    }
}
