//! What a run leaves on the machine goes with it, or with the next run.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use outpost_tests::containerd;
use outpost_tests::ground::{Ground, cgroup_root};

fn parent() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Something that looks at a file, named as a program of ours or not.
fn looks_at(file: &Path, name: &str) -> Child {
    Command::new("tail")
        .arg0(name)
        .arg("-f")
        .arg(file)
        .spawn()
        .unwrap()
}

/// What a node leaves that is not taken down.
struct Remains {
    dir: PathBuf,
    bridge: String,
    cgroup: PathBuf,
}

impl Remains {
    fn of(dir: &Path) -> Self {
        let unique = format!("{:x}", std::process::id());
        let bridge = format!("edget{unique}");
        let cni = dir.join("edge/run/cni");
        std::fs::create_dir_all(cni.join("results")).unwrap();
        std::fs::write(cni.join("results/uid-1.json"), "{}").unwrap();
        let list = format!(r#"{{"plugins": [{{"type": "bridge", "bridge": "{bridge}"}}]}}"#);
        std::fs::write(cni.join("builtin.conflist"), list).unwrap();
        ok("ip", &["link", "add", &bridge, "type", "bridge"]);
        let comment = ["-m", "comment", "--comment", "outpost pods", "-j", "RETURN"];
        let rule = ["-w", "-t", "nat", "-A", "POSTROUTING", "!", "-o", &bridge];
        ok("iptables", &[rule.as_slice(), &comment].concat());
        let mount = dir.join("edge/run/shm");
        std::fs::create_dir(&mount).unwrap();
        ok("mount", &["-t", "tmpfs", "shm", mount.to_str().unwrap()]);
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let hierarchy = if v2 { "" } else { "memory" };
        let root = cgroup_root(dir);
        let cgroup = Path::new("/sys/fs/cgroup").join(hierarchy);
        let cgroup = cgroup.join(root.trim_start_matches('/'));
        std::fs::create_dir_all(cgroup.join("burstable/pod1")).unwrap();
        Self {
            dir: dir.to_owned(),
            bridge,
            cgroup,
        }
    }

    fn left(&self) -> Vec<String> {
        let rules = said("iptables-save", &["-t", "nat"]);
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let links = said("ip", &["-brief", "link"]);
        let found = [
            ("rule", rules.contains(&self.bridge)),
            ("mount", mounts.contains(self.dir.to_str().unwrap())),
            ("bridge", links.contains(&self.bridge)),
            ("cgroup", self.cgroup.exists()),
        ];
        let there = found.iter().filter(|(_, is_there)| *is_there);
        there.map(|(what, _)| (*what).to_owned()).collect()
    }
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn ok(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

#[test]
fn what_a_run_made_goes_with_it() {
    if containerd::skipped() {
        return;
    }
    let parent = parent();
    let ground = Ground::temporary_in(parent.path(), "run-").unwrap();
    let remains = Remains::of(ground.path());
    assert_eq!(remains.left(), ["rule", "mount", "bridge", "cgroup"]);
    drop(ground);
    assert_eq!(remains.left(), Vec::<String>::new());
    assert!(!remains.dir.exists());
}

#[test]
fn a_dead_run_is_swept_and_a_living_one_is_not() {
    let parent = parent();
    let alive = Ground::temporary_in(parent.path(), "run-").unwrap();
    let (dead, other) = (parent.path().join("dead"), parent.path().join("other"));
    for dir in [&dead, &other] {
        std::fs::create_dir(dir).unwrap();
    }
    // As one that was killed leaves it: nobody holds the lock.
    std::fs::write(dead.join("run.lock"), "").unwrap();
    let log = dead.join("edgecore.log");
    std::fs::write(&log, "").unwrap();
    let mut daemon = looks_at(&log, "/usr/bin/edgecore");
    let mut pager = looks_at(&log, "tail");
    let next = Ground::temporary_in(parent.path(), "run-").unwrap();
    assert!(!daemon.wait().unwrap().success());
    assert_eq!(pager.try_wait().unwrap(), None, "somebody else's");
    pager.kill().unwrap();
    pager.wait().unwrap();
    assert!(!dead.exists());
    assert!(alive.path().exists() && next.path().exists() && other.exists());
}

#[test]
fn a_run_that_is_kept_is_left_alone() {
    let parent = parent();
    let dir = parent.path().join("run");
    Ground::at(&dir).unwrap().keep().unwrap();
    drop(Ground::temporary_in(parent.path(), "run-").unwrap());
    assert!(dir.exists());
}
