//! What pods can leave behind on a machine, as an inventory before and after, compared by kind:
//! whatever is there after the last pod is gone and was not there before the first is a leak.
//!
//! Only things of one run are looked at (its directories, containerd namespace, cgroup root, bridge),
//! so that runs beside each other on one machine do not see each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha512};

/// Descriptors that may come and go without being a leak: connections, files being read.
const FDS_SLACK: usize = 8;
/// Network name of the built-in conflist, which CNI's chain names are made of.
const NETWORK: &str = "edgecore";

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// containerd's own client.
    pub ctr: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    pub namespace: String,
    /// Listed to the last file. The first is the node's run directory.
    pub dirs: Vec<PathBuf>,
    /// Where mounts are looked for.
    pub mounts: Vec<PathBuf>,
    /// As in `outpost.cgroupRoot`, e.g. `/edgepods`.
    pub cgroup_root: String,
    /// The node's daemon: its descriptors and children.
    pub edgecore: Option<u32>,
    /// Processes that are meant to run: the daemons.
    pub known: Vec<u32>,
    /// Uids of every pod of the run: firewall rules and chains are named after them.
    pub pods: BTreeSet<String>,
}

/// What was found: by kind, each thing and how many of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    kinds: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

impl Inventory {
    fn add(&mut self, kind: &'static str, things: impl IntoIterator<Item = String>) {
        let known = self.kinds.entry(kind).or_default();
        for thing in things {
            *known.entry(thing).or_default() += 1;
        }
    }

    fn of(&self, kind: &str) -> Option<&BTreeMap<String, usize>> {
        self.kinds.get(kind)
    }

    /// What is here and was not in `before`, a line each; empty: nothing leaked.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (kind, things) in &self.kinds {
            let old = before.of(kind);
            if *kind == "fd" {
                let count = |things: &BTreeMap<String, usize>| things.values().sum::<usize>();
                if count(things) <= old.map_or(0, count) + FDS_SLACK {
                    continue;
                }
            }
            for (thing, now) in things {
                let then = old.and_then(|old| old.get(thing)).copied().unwrap_or(0);
                if *now > then {
                    let mut line = format!("{kind}: {thing}");
                    if *now > 1 {
                        let _ = write!(line, " ({then} -> {now})");
                    }
                    leaks.push(line);
                }
            }
        }
        leaks
    }
}

impl Scope {
    /// Looks at everything now.
    pub fn take(&self) -> Inventory {
        let mut found = Inventory::default();
        self.daemon(&mut found);
        for dir in &self.dirs {
            let mut files = Vec::new();
            list_files(dir, &mut files);
            found.add("file", files);
        }
        found.add("mount", self.mounts());
        found.add("cgroup", cgroups(&self.cgroup_root));
        self.network(&mut found);
        self.processes(&mut found);
        found
    }

    fn daemon(&self, found: &mut Inventory) {
        let lines = |args: &[&str]| {
            let output = Command::new(&self.ctr)
                .arg("--address")
                .arg(&self.containerd)
                .args(["--namespace", &self.namespace])
                .args(args)
                .output();
            let text = output.map_or_else(
                |error| format!("ctr: {error}"),
                |output| {
                    let said = if output.status.success() {
                        output.stdout
                    } else {
                        Vec::new()
                    };
                    String::from_utf8_lossy(&said).into_owned()
                },
            );
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        found.add("container", lines(&["containers", "ls", "-q"]));
        found.add("task", lines(&["tasks", "ls", "-q"]));
        found.add("lease", lines(&["leases", "ls", "-q"]));
        found.add("image", lines(&["images", "ls", "-q"]));
        found.add("blob", lines(&["content", "ls", "-q"]));
        let table = |args: &[&str]| {
            let first = |line: &String| line.split_whitespace().next().map(str::to_owned);
            lines(args)
                .iter()
                .skip(1)
                .filter_map(first)
                .collect::<Vec<_>>()
        };
        found.add("snapshot", table(&["snapshots", "ls"]));
        // containerd 1.7 and later: where the exit code of each container is kept.
        found.add("exit record", table(&["sandboxes", "ls"]));
    }

    fn mounts(&self) -> Vec<String> {
        std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let point = line.split(' ').nth(4)?;
                let is_ours = self
                    .mounts
                    .iter()
                    .any(|dir| Path::new(point).starts_with(dir));
                let kind = line.split(" - ").nth(1)?.split(' ').next()?;
                is_ours.then(|| format!("{kind} on {point}"))
            })
            .collect()
    }

    /// Bridge and subnet of the built-in network, once a pod has been connected.
    fn bridge(&self) -> Option<(String, String)> {
        let path = self.dirs.first()?.join("cni/builtin.conflist");
        let list: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let bridge = &list["plugins"][0];
        let subnet = bridge["ipam"]["ranges"][0][0]["subnet"].as_str()?;
        let prefix = subnet.strip_suffix("0/24")?;
        Some((bridge["bridge"].as_str()?.to_owned(), prefix.to_owned()))
    }

    fn network(&self, found: &mut Inventory) {
        let bridge = self.bridge();
        if let Some((bridge, _)) = &bridge {
            let ports = format!("/sys/class/net/{bridge}/brif");
            found.add("veth", names(Path::new(&ports)));
        }
        let output = Command::new("iptables-save").output();
        let rules = output.map_or_else(|_| Vec::new(), |output| output.stdout);
        let rules = String::from_utf8_lossy(&rules);
        let chains: Vec<String> = self.pods.iter().flat_map(|uid| chains(uid)).collect();
        let ours = rules.lines().filter(|rule| {
            bridge
                .as_ref()
                .is_some_and(|(_, prefix)| rule.contains(prefix.as_str()))
                || self.pods.iter().any(|uid| rule.contains(uid.as_str()))
                || chains.iter().any(|chain| rule.contains(chain.as_str()))
        });
        // Counters of chains change: `:NAME - [12:3456]`.
        let plain = |rule: &str| rule.split(" [").next().unwrap_or(rule).to_owned();
        found.add("iptables", ours.map(plain).collect::<Vec<_>>());
    }

    fn processes(&self, found: &mut Inventory) {
        let run = self.dirs.first().map(|dir| dir.display().to_string());
        let own = std::process::id();
        let mut others = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            if pid == own || self.known.contains(&pid) {
                continue;
            }
            let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
            let text = |file: &str| String::from_utf8_lossy(&read(file)).replace('\0', " ");
            let (command, stat) = (text("cmdline"), text("stat"));
            let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
            let mut fields = after.split(' ');
            let state = fields.next().unwrap_or_default();
            let parent = fields
                .next()
                .and_then(|p| p.parse::<u32>().ok())
                .unwrap_or(0);
            let name = stat.split(['(', ')']).nth(1).unwrap_or_default().to_owned();
            let is_child = Some(parent) == self.edgecore || self.known.contains(&parent);
            if state == "Z" {
                if is_child {
                    others.push(format!("zombie {name} of {parent}"));
                }
                continue;
            }
            let is_ours = (!self.namespace.is_empty() && command.contains(&self.namespace))
                || run
                    .as_ref()
                    .is_some_and(|run| command.contains(run.as_str()))
                || text("cgroup").contains(&format!("{}/", self.cgroup_root))
                || Some(parent) == self.edgecore;
            if is_ours {
                others.push(format!("{pid} {name}: {}", command.trim()));
            }
        }
        found.add("process", others);
        let Some(edgecore) = self.edgecore else {
            return;
        };
        let fds = std::fs::read_dir(format!("/proc/{edgecore}/fd"));
        let targets = fds.into_iter().flatten().flatten().filter_map(|fd| {
            let target = std::fs::read_link(fd.path()).ok()?.display().to_string();
            // `socket:[1234]` and the like: the number says nothing.
            Some(target.split(":[").next().unwrap_or(&target).to_owned())
        });
        found.add("fd", targets.collect::<Vec<_>>());
    }
}

/// Names of the chains that bridge (masquerading) and portmap make for a pod
/// (containernetworking/plugins `pkg/utils/utils.go`, `FormatChainName`: 28 characters).
fn chains(uid: &str) -> [String; 2] {
    let hash = hex::encode(Sha512::digest(format!("{NETWORK}{uid}").as_bytes()));
    [
        format!("CNI-{}", &hash[..24]),
        format!("CNI-DN-{}", &hash[..21]),
    ]
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn list_files(dir: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // A bundle that containerd was killed while deleting: it renames them so, skips them when it
        // starts and never looks again. They are on tmpfs, and not ours.
        let is_bundle = path
            .to_string_lossy()
            .contains("io.containerd.runtime.v2.task");
        if is_bundle && entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        into.push(path.display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_files(&path, into);
        }
    }
}

/// Every cgroup below `root` in every hierarchy.
fn cgroups(root: &str) -> Vec<String> {
    let relative = root.trim_start_matches('/');
    if relative.is_empty() {
        return Vec::new();
    }
    let top = Path::new("/sys/fs/cgroup");
    let mut found = Vec::new();
    let hierarchies = names(top).into_iter().map(|name| top.join(name));
    for hierarchy in hierarchies.chain([top.to_owned()]) {
        let mut open = vec![hierarchy.join(relative)];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path().display().to_string());
                    open.push(entry.path());
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_a_leak() {
        let mut before = Inventory::default();
        before.add("file", ["/a".to_owned(), "/b".to_owned()]);
        before.add("fd", ["socket".to_owned()]);
        let mut after = Inventory::default();
        after.add("file", ["/b".to_owned(), "/c".to_owned()]);
        after.add(
            "process",
            ["zombie x of 7".to_owned(), "zombie x of 7".to_owned()],
        );
        after.add("fd", vec!["socket".to_owned(); FDS_SLACK + 1]);
        assert_eq!(
            after.since(&before),
            ["file: /c", "process: zombie x of 7 (0 -> 2)"]
        );
        after.add("fd", ["socket".to_owned()]);
        assert_eq!(after.since(&before)[0], "fd: socket (1 -> 10)");
        assert_eq!(before.since(&before), Vec::<String>::new());
    }

    #[test]
    fn chains_are_named_as_the_plugins_name_them() {
        for chain in chains("9b1e8a4e-0000-4000-8000-000000000000") {
            assert_eq!(chain.len(), 28, "{chain}");
        }
    }
}
