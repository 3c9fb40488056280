//! The directory a run lives in, and all that the run leaves on the machine: processes, mounts,
//! cgroups, a bridge, firewall rules. Cleared when dropped, so also after a failed test. A run that
//! was killed cannot clear up; the next one does it. A lock on a file in the directory tells the
//! two apart: the kernel lets go of it with the process that held it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Held as long as the run lives.
const LOCK: &str = "run.lock";
/// What a run starts, or has started for it. Nobody else who has a file of a dead run open (a pager
/// on its log, say) is ended.
const PROGRAMS: [&str; 8] = [
    "cloudhub",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "docker-registry",
    "edgecore",
    "edged-logger",
    "runc",
];
/// How long processes that were killed may take to be gone, and cgroups to notice.
const GONE_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How deep below the directory networks are described: `edge/run/cni/results/<uid>.json`.
const NETWORK_DEPTH: usize = 5;

/// A run's own directory, held.
#[derive(Debug)]
pub struct Ground {
    dir: PathBuf,
    lock: Option<File>,
    is_temporary: bool,
}

impl Ground {
    /// A new directory for temporary files that goes with all in it.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn temporary(prefix: &str) -> io::Result<Self> {
        Self::temporary_in(&std::env::temp_dir(), prefix)
    }

    /// As [`Self::temporary`], below `parent`.
    ///
    /// # Errors
    /// As [`Self::temporary`].
    pub fn temporary_in(parent: &Path, prefix: &str) -> io::Result<Self> {
        sweep(parent, true);
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        Self::hold(dir.keep(), true)
    }

    /// `dir`, whose files stay when the run is over.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn at(dir: &Path) -> io::Result<Self> {
        if let Some(parent) = dir.parent() {
            sweep(parent, false);
        }
        std::fs::create_dir_all(dir)?;
        Self::hold(dir.to_owned(), false)
    }

    fn hold(dir: PathBuf, is_temporary: bool) -> io::Result<Self> {
        // Locked before it has its name, so that nobody takes this run for a dead one.
        let early = dir.join("run.lock.new");
        let lock = File::create(&early)?;
        lock.lock()?;
        std::fs::rename(early, dir.join(LOCK))?;
        Ok(Self {
            dir,
            lock: Some(lock),
            is_temporary,
        })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Root of the run's cgroups.
    pub fn cgroup_root(&self) -> String {
        cgroup_root(&self.dir)
    }

    /// Leaves everything as it is, for a person who wants to go on with it.
    ///
    /// # Errors
    /// The lock file cannot be removed: the next run would clear this one away.
    pub fn keep(mut self) -> io::Result<()> {
        self.lock = None;
        std::fs::remove_file(self.dir.join(LOCK))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        clear(&self.dir);
        forget(&self.dir, self.is_temporary);
    }
}

/// Root of the cgroups of a run in `dir`.
pub fn cgroup_root(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default();
    format!("/run-{}", name.to_string_lossy())
}

/// Clears what runs below `parent` left that did not live to do it; with the files if they are
/// temporary.
fn sweep(parent: &Path, are_temporary: bool) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let dir = entry.path();
        let Ok(lock) = File::open(dir.join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            clear(&dir);
            forget(&dir, are_temporary);
        }
    }
}

fn forget(dir: &Path, is_temporary: bool) {
    // Nothing to report to: what could not be removed is the next run's to sweep.
    let _ = if is_temporary {
        std::fs::remove_dir_all(dir)
    } else {
        std::fs::remove_file(dir.join(LOCK))
    };
}

/// Takes away what a run in `dir` has on the machine outside its files.
fn clear(dir: &Path) {
    let root = cgroup_root(dir);
    until_gone(|| {
        let left = processes(dir, &root);
        run("kill", "-KILL", &left);
        left.is_empty()
    });
    // Read before what lies over it goes.
    let network = Network::of(dir);
    let mut mounts = mounts(dir);
    mounts.reverse();
    run("umount", "--lazy", &mounts);
    network.remove();
    until_gone(|| remove_cgroups(&root));
}

fn until_gone(mut is_gone: impl FnMut() -> bool) {
    let end = Instant::now() + GONE_WITHIN;
    while !is_gone() && Instant::now() < end {
        // The kernel tells nobody when a process that is not ours, or a cgroup, is gone.
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What a program says; nothing if it fails, for the next step tries on.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

fn run(program: &str, flag: &str, things: &[String]) {
    if !things.is_empty() {
        let things = things.iter().map(String::as_str);
        said(
            program,
            &std::iter::once(flag).chain(things).collect::<Vec<_>>(),
        );
    }
}

/// Ids of our programs that were told of `dir`, and of all in the cgroups below `root`.
fn processes(dir: &Path, root: &str) -> Vec<String> {
    let (dir, group) = (format!("{}/", dir.display()), format!(":{root}/"));
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    ids.filter(|id| id.bytes().all(|byte| byte.is_ascii_digit()) && *id != own)
        .filter(|id| {
            let read = |file: &str| {
                let bytes = std::fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            // Empty for one that is dead but not waited for.
            let command = read("cmdline");
            let program = command.split('\0').next().unwrap_or_default();
            let program = program.rsplit('/').next().unwrap_or_default();
            let is_told = PROGRAMS.contains(&program) && command.contains(&dir);
            is_told || (!command.is_empty() && read("cgroup").contains(&group))
        })
        .collect()
}

/// What is mounted below `dir`, in the order it was mounted.
fn mounts(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| Path::new(point).starts_with(dir))
        .map(str::to_owned)
        .collect()
}

/// Removes the cgroups from `root` down in every hierarchy; whether none is left.
fn remove_cgroups(root: &str) -> bool {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(top).into_iter().flatten().flatten();
    let tops = hierarchies
        .map(|entry| entry.path())
        .chain([top.to_owned()]);
    let roots = tops.map(|top| top.join(root.trim_start_matches('/')));
    roots.filter(|root| !remove_tree(root)).count() == 0
}

fn remove_tree(cgroup: &Path) -> bool {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    match std::fs::remove_dir(cgroup) {
        Ok(()) => true,
        // A file in place of a hierarchy, or none of ours in it.
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        ),
    }
}

/// The bridges and firewall rules of a run.
#[derive(Default)]
struct Network {
    bridges: BTreeSet<String>,
    /// What rules of this run mention: bridges, and pods that are still connected.
    marks: BTreeSet<String>,
}

impl Network {
    fn of(dir: &Path) -> Self {
        let mut network = Self::default();
        network.read(dir, NETWORK_DEPTH);
        network
    }

    fn read(&mut self, dir: &Path, depth: usize) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            match extension {
                Some("conflist") => self.read_list(&path),
                Some("json") if dir.ends_with("cni/results") => {
                    let uid = path.file_stem().unwrap_or_default();
                    self.marks.insert(uid.to_string_lossy().into_owned());
                }
                _ if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                    self.read(&path, depth - 1);
                }
                _ => {}
            }
        }
    }

    fn read_list(&mut self, path: &Path) {
        let list: Value =
            serde_json::from_slice(&std::fs::read(path).unwrap_or_default()).unwrap_or_default();
        let plugins = list["plugins"].as_array();
        for plugin in plugins.into_iter().flatten() {
            if let Some(bridge) = plugin["bridge"].as_str() {
                self.bridges.insert(bridge.to_owned());
                self.marks.insert(bridge.to_owned());
            }
        }
    }

    fn remove(&self) {
        for bridge in &self.bridges {
            said("ip", &["link", "del", bridge]);
        }
        if self.marks.is_empty() {
            return;
        }
        let mut chains = BTreeSet::new();
        for rule in said("iptables-save", &["-t", "nat"]).lines() {
            let is_ours = self.marks.iter().any(|mark| rule.contains(mark.as_str()));
            let Some(rule) = rule.strip_prefix("-A ").filter(|_| is_ours) else {
                continue;
            };
            // The rule's own words, quotes and all, are a shell's words.
            said("sh", &["-c", &format!("iptables -w -t nat -D {rule}")]);
            let target = rule.split_once(" -j ").map_or("", |(_, target)| target);
            let target = target.split(' ').next().unwrap_or_default();
            // The pod's own chain; those that all pods share stay.
            if target.starts_with("CNI-") && !target.starts_with("CNI-HOSTPORT") {
                chains.insert(target.to_owned());
            }
        }
        for chain in chains {
            said("iptables", &["-w", "-t", "nat", "-F", &chain]);
            said("iptables", &["-w", "-t", "nat", "-X", &chain]);
        }
    }
}
