//! What the node has, what is kept back for the system, and what is left for pods
//! (`cm/node_container_manager_linux.go`). Pure but for [`hugepages`].

use std::collections::BTreeMap;

use quantity::binary;
use serde_json::{Value, json};

use super::eviction::threshold::{Signal, Threshold};
use super::node::Machine;

/// Kept back for the system and for this daemon (`kubeReserved` and `systemReserved` together).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    pub pids: i64,
}

/// Amounts of every resource that a pod can ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    pub pods: i64,
    /// By resource name, e.g. `hugepages-2Mi`, in bytes.
    pub hugepages: BTreeMap<String, i64>,
}

impl Amounts {
    /// One resource, in the unit of requests; `None` for what this node knows nothing of.
    pub fn get(&self, name: &str) -> Option<i64> {
        match name {
            "cpu" => Some(self.cpu_milli),
            "memory" => Some(self.memory_bytes),
            "ephemeral-storage" => Some(self.storage_bytes),
            "pods" => Some(self.pods),
            // Huge pages that a node has not are known to be none.
            name if name.starts_with("hugepages-") => {
                Some(self.hugepages.get(name).copied().unwrap_or(0))
            }
            _ => None,
        }
    }

    /// As `capacity` or `allocatable` of a node's status.
    pub fn to_json(&self) -> Value {
        let mut map = json!({
            "cpu": if self.cpu_milli % 1000 == 0 {
                (self.cpu_milli / 1000).to_string()
            } else {
                format!("{}m", self.cpu_milli)
            },
            "memory": kibibytes(self.memory_bytes),
            "ephemeral-storage": kibibytes(self.storage_bytes),
            "pods": self.pods.to_string(),
        });
        for (name, bytes) in &self.hugepages {
            map[name] = json!(binary(*bytes));
        }
        map
    }
}

fn kibibytes(bytes: i64) -> String {
    if bytes % 1024 == 0 {
        format!("{}Ki", bytes / 1024)
    } else {
        bytes.to_string()
    }
}

/// Everything the machine has.
pub fn capacity(
    machine: &Machine,
    storage_bytes: u64,
    pods_max: u32,
    hugepages: BTreeMap<String, i64>,
) -> Amounts {
    Amounts {
        cpu_milli: machine.cpus.saturating_mul(1000),
        memory_bytes: machine.memory_bytes / 1024 * 1024,
        storage_bytes: i64::try_from(storage_bytes / 1024 * 1024).unwrap_or(i64::MAX),
        pods: i64::from(pods_max),
        hugepages,
    }
}

/// What pods may ask for in sum: without what is reserved, and without what must stay free lest
/// pods be evicted.
pub fn allocatable(capacity: &Amounts, reserved: Reserved, thresholds: &[Threshold]) -> Amounts {
    let kept_free = |signal: Signal, of: i64| {
        let hard = thresholds
            .iter()
            .find(|t| t.signal == signal && t.is_hard());
        hard.map_or(0, |t| t.amount.of(of))
    };
    let pages: i64 = capacity.hugepages.values().sum();
    let memory = capacity.memory_bytes
        - reserved.memory_bytes
        - kept_free(Signal::MemoryAvailable, capacity.memory_bytes)
        - pages;
    let storage = capacity.storage_bytes
        - reserved.storage_bytes
        - kept_free(Signal::NodefsAvailable, capacity.storage_bytes);
    Amounts {
        cpu_milli: (capacity.cpu_milli - reserved.cpu_milli).max(0),
        memory_bytes: memory.max(0),
        storage_bytes: storage.max(0),
        pods: capacity.pods,
        hugepages: capacity.hugepages.clone(),
    }
}

/// Huge pages that the kernel has set aside, by resource name.
pub fn hugepages() -> BTreeMap<String, i64> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages");
    let entries = entries.into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let name = entry.file_name();
        let kib = name.to_str()?.strip_prefix("hugepages-")?;
        let bytes = kib
            .strip_suffix("kB")?
            .parse::<i64>()
            .ok()?
            .checked_mul(1024)?;
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        let count: i64 = count.trim().parse().ok().filter(|count| *count > 0)?;
        Some((
            format!("hugepages-{}", binary(bytes)),
            bytes.checked_mul(count)?,
        ))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::eviction::threshold::Config;

    #[test]
    fn what_is_left_for_pods() {
        let machine = Machine {
            cpus: 4,
            memory_bytes: 4 << 30,
            ..Machine::default()
        };
        let pages = BTreeMap::from([("hugepages-2Mi".to_owned(), 8 << 20)]);
        let all = capacity(&machine, 100 << 30, 110, pages);
        let reserved = Reserved {
            cpu_milli: 250,
            memory_bytes: 256 << 20,
            storage_bytes: 1 << 30,
            pids: 0,
        };
        let left = allocatable(&all, reserved, &Config::default().thresholds);
        assert_eq!(
            left.to_json(),
            json!({
                "cpu": "3750m",
                "memory": format!("{}Ki", (4096 - 256 - 100 - 8) * 1024),
                "ephemeral-storage": format!("{}Ki", (100 - 1 - 10) << 20),
                "pods": "110",
                "hugepages-2Mi": "8Mi",
            })
        );
        assert_eq!(left.get("hugepages-1Gi"), Some(0), "none is an answer");
        assert_eq!(left.get("example.com/card"), None, "not ours to say");
        let greedy = Reserved {
            memory_bytes: i64::MAX / 2,
            ..reserved
        };
        assert_eq!(allocatable(&all, greedy, &[]).memory_bytes, 0);
    }
}
