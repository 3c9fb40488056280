//! The host's cgroups, v1 (also hybrid) or v2: what they can do, a pod's own directory, and a
//! container's counter of OOM kills. Reads and writes the tree directly; runc does the rest.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One way in which the tree is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroups {
    is_v2: bool,
    /// v1: one directory per mounted hierarchy. v2: the one root.
    roots: Vec<PathBuf>,
    /// v1: where the memory controller is mounted. v2: the root.
    memory_root: Option<PathBuf>,
    controllers: BTreeSet<String>,
}

/// A killed container's processes leave the cgroup a moment after the task is deleted.
const REMOVE_ATTEMPTS: u32 = 10;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

impl Cgroups {
    /// Looks at this host.
    pub(super) fn detect() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let table = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
        let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
        Self::from_text(&mounts, &table, unified.as_deref())
    }

    /// `mountinfo` and `cgroups` as in proc(5); `unified` is the root's `cgroup.controllers` if
    /// the whole tree is v2.
    fn from_text(mountinfo: &str, table: &str, unified: Option<&str>) -> Self {
        if let Some(controllers) = unified {
            let root = PathBuf::from("/sys/fs/cgroup");
            return Self {
                is_v2: true,
                roots: vec![root.clone()],
                memory_root: Some(root),
                controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            };
        }
        let enabled: BTreeSet<&str> = table
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
            memory_root: None,
            controllers: BTreeSet::new(),
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
                if enabled.contains(option) {
                    found.controllers.insert(option.to_owned());
                    if option == "memory" {
                        found.memory_root = Some(point.clone());
                    }
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
        self.controllers.contains(controller)
    }

    fn inside(root: &Path, cgroup: &str) -> Option<PathBuf> {
        let relative = Path::new(cgroup.trim_start_matches('/'));
        let plain = relative
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        (plain && relative.components().next().is_some()).then(|| root.join(relative))
    }

    /// Makes a pod's cgroup in every hierarchy. On v2 the controllers are switched on along the
    /// way down, as far as the kernel allows.
    pub(super) fn create(&self, cgroup: &str) -> io::Result<()> {
        for root in &self.roots {
            let Some(path) = Self::inside(root, cgroup) else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "cgroup path"));
            };
            std::fs::create_dir_all(&path)?;
            if self.is_v2 {
                let mut at = root.clone();
                let below = path.strip_prefix(root).unwrap_or(&path);
                for part in below.components() {
                    for controller in &self.controllers {
                        let switched = std::fs::write(
                            at.join("cgroup.subtree_control"),
                            format!("+{controller}"),
                        );
                        if let Err(error) = switched {
                            tracing::debug!(%error, controller, "controller not delegated");
                        }
                    }
                    at.push(part);
                }
            }
        }
        Ok(())
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
        let Some(path) = self
            .memory_root
            .as_ref()
            .and_then(|root| Self::inside(root, cgroup))
        else {
            return 0;
        };
        let file = if self.is_v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        std::fs::read_to_string(path.join(file))
            .ok()
            .and_then(|text| {
                text.lines()
                    .find_map(|line| line.strip_prefix("oom_kill "))
                    .and_then(|count| count.trim().parse().ok())
            })
            .unwrap_or(0)
    }
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
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 29 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
33 29 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const TABLE: &str = "\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpu\t1\t1\t1
memory\t2\t1\t0
cpuacct\t1\t1\t1
";

    #[test]
    fn hybrid_counts_only_enabled_controllers() {
        let found = Cgroups::from_text(HYBRID, TABLE, None);
        assert!(!found.is_v2());
        assert!(found.has("cpu"));
        assert!(!found.has("memory"), "disabled at boot, as on many boards");
        assert_eq!(found.roots.len(), 4, "runc makes cgroups in each");
    }

    #[test]
    fn unified_reads_the_controllers() {
        let found = Cgroups::from_text("", "", Some("cpu memory pids\n"));
        assert!(found.is_v2() && found.has("memory") && found.has("pids"));
        assert!(!found.has("io"));
    }

    #[test]
    fn pod_directory_is_made_and_removed_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = Cgroups {
            is_v2: false,
            roots: vec![dir.path().to_owned()],
            memory_root: Some(dir.path().to_owned()),
            controllers: BTreeSet::new(),
        };
        cgroups.create("/edgepods/pod1").unwrap();
        let container = dir.path().join("edgepods/pod1/c");
        std::fs::create_dir(&container).unwrap();
        let control = container.join("memory.oom_control");
        std::fs::write(&control, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
        assert_eq!(cgroups.oom_kills("/edgepods/pod1/c"), 2);
        assert_eq!(cgroups.oom_kills("/edgepods/pod1/none"), 0);
        std::fs::remove_file(control).unwrap();
        cgroups.remove("/edgepods/pod1").unwrap();
        assert!(!dir.path().join("edgepods/pod1").exists());
        assert!(cgroups.create("/edgepods/../../etc").is_err());
    }
}
