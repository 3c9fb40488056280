//! The host's cgroups, v1 (also hybrid) or v2: what they can do, a pod's own directory, and a
//! container's counter of OOM kills. Reads and writes the tree directly; runc does the rest.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::edged::runtime::{CgroupUsage, NodeLimits, Resources};

/// One way in which the tree is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroups {
    is_v2: bool,
    /// v1: one directory per mounted hierarchy. v2: the one root.
    roots: Vec<PathBuf>,
    /// Where each usable controller is mounted; on v2 always the root.
    controllers: BTreeMap<String, PathBuf>,
}

/// A killed container's processes leave the cgroup a moment after the task is deleted.
const REMOVE_ATTEMPTS: u32 = 10;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// Controller, file, text, and whether it is written only where the file exists.
type Value = (&'static str, &'static str, String, bool);

/// CPU quota period, as Kubernetes uses it.
const CPU_PERIOD_US: i64 = 100_000;

/// The controllers that limits of ours need.
pub(super) const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

impl Cgroups {
    /// Looks at this host.
    pub(super) fn detect() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let table = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
        let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
        Self::from_text(&mounts, &table, unified.as_deref())
    }

    /// A v2 tree at `root` with the controllers of its `cgroup.controllers`.
    fn unified(root: &Path, controllers: &str) -> Self {
        let names = controllers.split_whitespace();
        Self {
            is_v2: true,
            roots: vec![root.to_owned()],
            controllers: names
                .map(|name| (name.to_owned(), root.to_owned()))
                .collect(),
        }
    }

    /// `mountinfo` and `cgroups` as in proc(5); `unified` is the root's `cgroup.controllers` if
    /// the whole tree is v2.
    fn from_text(mountinfo: &str, table: &str, unified: Option<&str>) -> Self {
        if let Some(controllers) = unified {
            return Self::unified(Path::new("/sys/fs/cgroup"), controllers);
        }
        let enabled: Vec<&str> = table
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let mut columns = line.split_whitespace();
                let name = columns.next()?;
                (columns.nth(2)? == "1").then_some(name)
            })
            .collect();
        let mut found = Self {
            is_v2: false,
            roots: Vec::new(),
            controllers: BTreeMap::new(),
        };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let mut right = right.split_whitespace();
            // Hybrid hosts mount v2 beside v1, without controllers; runc makes cgroups there too.
            if !matches!(right.next(), Some("cgroup" | "cgroup2")) {
                continue;
            }
            let Some(point) = left.split_whitespace().nth(4) else {
                continue;
            };
            let point = PathBuf::from(point);
            if found.roots.contains(&point) {
                continue;
            }
            for option in right.nth(1).unwrap_or_default().split(',') {
                if enabled.contains(&option) {
                    found.controllers.insert(option.to_owned(), point.clone());
                }
            }
            found.roots.push(point);
        }
        found
    }

    pub(super) fn is_v2(&self) -> bool {
        self.is_v2
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.contains_key(controller)
    }

    /// Controllers that limits need and that this host lacks.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        NEEDED.into_iter().filter(|name| !self.has(name)).collect()
    }

    fn inside(root: &Path, cgroup: &str) -> Option<PathBuf> {
        let relative = Path::new(cgroup.trim_start_matches('/'));
        let plain = relative
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        (plain && relative.components().next().is_some()).then(|| root.join(relative))
    }

    /// A file of a controller in a cgroup, whether it exists or not.
    fn file(&self, controller: &str, cgroup: &str, name: &str) -> Option<PathBuf> {
        let root = self.controllers.get(controller)?;
        Some(Self::inside(root, cgroup)?.join(name))
    }

    /// Makes a cgroup in every hierarchy. On v2 the controllers are switched on along the
    /// way down, as far as the kernel allows.
    pub(super) fn create(&self, cgroup: &str) -> io::Result<()> {
        for root in &self.roots {
            let Some(path) = Self::inside(root, cgroup) else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "cgroup path"));
            };
            std::fs::create_dir_all(&path)?;
            if self.is_v2 {
                self.delegate(root, &path);
            }
        }
        self.account_children(cgroup);
        Ok(())
    }

    fn delegate(&self, root: &Path, path: &Path) {
        let mut at = root.to_owned();
        let below = path.strip_prefix(root).unwrap_or(path);
        for part in below.components() {
            for controller in self.controllers.keys() {
                let control = at.join("cgroup.subtree_control");
                if let Err(error) = std::fs::write(control, format!("+{controller}")) {
                    tracing::debug!(%error, controller, "controller not delegated");
                }
            }
            at.push(part);
        }
    }

    /// Kernels before 5.11 leave a v1 memory cgroup's children out of its limit unless asked
    /// before the first child is made. Newer ones know no other way.
    fn account_children(&self, cgroup: &str) {
        if let Some(file) = self.file("memory", cgroup, "memory.use_hierarchy")
            && !self.is_v2
            && std::fs::read_to_string(&file).is_ok_and(|text| text.trim() == "0")
            && let Err(error) = std::fs::write(&file, "1")
        {
            tracing::debug!(%error, cgroup, "limits of this memory cgroup do not bind its children");
        }
    }

    /// Writes limits into a cgroup of ours. What has no controller is left out; what the kernel
    /// refuses is named.
    pub(super) fn limit(&self, cgroup: &str, limits: &Resources) -> Vec<(String, io::Error)> {
        let values = self.values(limits);
        let write = |(controller, name, value, optional): &Value| {
            let file = self.file(controller, cgroup, name)?;
            if *optional && !file.exists() {
                return None;
            }
            let error = std::fs::write(file, value).err()?;
            Some((format!("{name}={value}"), error))
        };
        // Memory may never be more than memory and swap together, so that raising both works in
        // one order and lowering both in the other: what was refused is tried again at the end.
        let again: Vec<&Value> = values
            .iter()
            .filter(|value| write(value).is_some())
            .collect();
        again.into_iter().filter_map(write).collect()
    }

    fn values(&self, limits: &Resources) -> Vec<Value> {
        let mut values: Vec<Value> = Vec::new();
        if let Some(bytes) = limits.memory_limit_bytes {
            if self.is_v2 {
                values.push(("memory", "memory.max", bytes.to_string(), false));
                values.push(("memory", "memory.swap.max", "0".to_owned(), true));
            } else {
                let text = bytes.to_string();
                values.push(("memory", "memory.limit_in_bytes", text.clone(), false));
                values.push(("memory", "memory.memsw.limit_in_bytes", text, true));
            }
        }
        if let Some(shares) = limits.cpu_shares {
            values.push(if self.is_v2 {
                ("cpu", "cpu.weight", weight(shares).to_string(), false)
            } else {
                ("cpu", "cpu.shares", shares.to_string(), false)
            });
        }
        if let Some(quota) = limits.cpu_quota_us {
            if self.is_v2 {
                values.push(("cpu", "cpu.max", format!("{quota} {CPU_PERIOD_US}"), false));
            } else {
                // Absent where the kernel has no CFS bandwidth control.
                let period = CPU_PERIOD_US.to_string();
                values.push(("cpu", "cpu.cfs_period_us", period, true));
                values.push(("cpu", "cpu.cfs_quota_us", quota.to_string(), true));
            }
        }
        if let Some(pids) = limits.pids_limit {
            values.push(("pids", "pids.max", pids.to_string(), false));
        }
        values
    }

    /// Makes the cgroup of all pods and those of the classes, with their shares of the CPU
    /// (`cm/qos_container_manager_linux.go`: besteffort least, burstable what its pods ask for).
    pub(super) fn arrange(&self, limits: &NodeLimits) -> io::Result<Vec<(String, io::Error)>> {
        let root = &limits.cgroup_root;
        self.create(root)?;
        let mut refused = self.limit(root, &limits.all_pods);
        for (class, shares) in [
            ("burstable", limits.burstable_cpu_shares),
            ("besteffort", SHARES_MIN),
        ] {
            let path = format!("{root}/{class}");
            self.create(&path)?;
            let shares = Resources {
                cpu_shares: Some(shares),
                ..Resources::default()
            };
            refused.extend(self.limit(&path, &shares));
        }
        Ok(refused)
    }

    /// Whether a memory limit in this cgroup can also bound swap.
    pub(super) fn has_swap(&self, cgroup: &str) -> bool {
        let name = if self.is_v2 {
            "memory.swap.max"
        } else {
            "memory.memsw.limit_in_bytes"
        };
        self.file("memory", cgroup, name)
            .is_some_and(|file| file.exists())
    }

    /// Whether the kernel can kill a container as a whole (v2 only).
    pub(super) fn has_oom_group(&self, cgroup: &str) -> bool {
        self.is_v2
            && self
                .file("memory", cgroup, "memory.oom.group")
                .is_some_and(|file| file.exists())
    }

    /// What the cgroup uses now, its children included.
    pub(super) fn usage(&self, cgroup: &str) -> Option<CgroupUsage> {
        let (current, inactive) = if self.is_v2 {
            ("memory.current", "inactive_file ")
        } else {
            ("memory.usage_in_bytes", "total_inactive_file ")
        };
        let text = |controller: &str, name: &str| {
            let file = self.file(controller, cgroup, name)?;
            std::fs::read_to_string(file).ok()
        };
        let number = |text: String| text.trim().parse::<u64>().ok();
        let used = text("memory", current).and_then(number)?;
        let droppable = text("memory", "memory.stat").and_then(|stat| {
            let line = stat.lines().find_map(|line| line.strip_prefix(inactive))?;
            number(line.to_owned())
        });
        Some(CgroupUsage {
            memory_bytes: used.saturating_sub(droppable.unwrap_or(0)),
            pids: text("pids", "pids.current").and_then(number).unwrap_or(0),
        })
    }

    /// Removes a pod's cgroup (runc never does). Blocks for a moment while processes leave it.
    pub(super) fn remove(&self, cgroup: &str) -> io::Result<()> {
        let mut failed = Ok(());
        for root in &self.roots {
            if let Some(path) = Self::inside(root, cgroup) {
                failed = failed.and(remove_tree(&path));
            }
        }
        failed
    }

    /// How often the kernel killed for memory inside this container's own cgroup. TaskOOM events
    /// also go to siblings under a pod limit on v1; this counter does not.
    pub(super) fn oom_kills(&self, cgroup: &str) -> u64 {
        let name = if self.is_v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = self
            .file("memory", cgroup, name)
            .and_then(|file| std::fs::read_to_string(file).ok())
            .unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }
}

const SHARES_MIN: u64 = 2;

/// CPU shares of v1 as a weight of v2 (`runc: ConvertCPUSharesToCgroupV2Value`).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(SHARES_MIN, 262_144) - SHARES_MIN) * 9999 / 262_142
}

/// rmdir, children first (a container's cgroup may be left when its shim was killed).
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let mut attempt = 0;
    loop {
        match std::fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(EBUSY) && attempt < REMOVE_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(REMOVE_PAUSE);
            }
            other => return other,
        }
    }
}

const EBUSY: i32 = 16;

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
