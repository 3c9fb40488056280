use std::fs;

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
    assert_eq!(found.missing(), ["memory", "pids"]);
    assert_eq!(found.roots.len(), 4, "runc makes cgroups in each");
}

#[test]
fn unified_reads_the_controllers() {
    let found = Cgroups::from_text("", "", Some("cpu memory pids\n"));
    assert!(found.is_v2() && found.has("memory") && found.has("pids"));
    assert!(!found.has("io"));
    assert!(found.missing().is_empty());
}

/// A v1 tree of directories: one hierarchy a controller.
fn v1(root: &Path) -> Cgroups {
    let controllers: BTreeMap<String, PathBuf> = ["cpu", "memory", "pids"]
        .into_iter()
        .map(|name| (name.to_owned(), root.join(name)))
        .collect();
    Cgroups {
        is_v2: false,
        roots: controllers.values().cloned().collect(),
        controllers,
    }
}

fn limits() -> Resources {
    Resources {
        cpu_shares: Some(512),
        cpu_quota_us: Some(20_000),
        memory_limit_bytes: Some(64 << 20),
        pids_limit: Some(100),
        oom_score_adj: None,
    }
}

#[test]
fn pod_directory_is_made_and_removed_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let cgroups = v1(dir.path());
    cgroups.create("/edgepods/pod1").unwrap();
    let container = dir.path().join("memory/edgepods/pod1/c");
    fs::create_dir(&container).unwrap();
    let control = container.join("memory.oom_control");
    fs::write(&control, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
    assert_eq!(cgroups.oom_kills("/edgepods/pod1/c"), 2);
    assert_eq!(cgroups.oom_kills("/edgepods/pod1/none"), 0);
    fs::remove_file(control).unwrap();
    cgroups.remove("/edgepods/pod1").unwrap();
    for controller in ["cpu", "memory", "pids"] {
        let root = dir.path().join(controller).join("edgepods");
        assert!(root.exists() && !root.join("pod1").exists(), "{controller}");
    }
    assert!(cgroups.create("/edgepods/../../etc").is_err());
}

#[test]
fn v1_limits_go_where_each_controller_is_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let cgroups = v1(dir.path());
    cgroups.create("/edgepods/pod1").unwrap();
    let at = |file: &str| dir.path().join(file);
    for optional in [
        "memory/edgepods/pod1/memory.memsw.limit_in_bytes",
        "cpu/edgepods/pod1/cpu.cfs_period_us",
        "cpu/edgepods/pod1/cpu.cfs_quota_us",
    ] {
        fs::write(at(optional), "").unwrap();
    }
    assert!(cgroups.has_swap("/edgepods/pod1"));
    assert!(cgroups.limit("/edgepods/pod1", &limits()).is_empty());
    for (file, text) in [
        ("memory/edgepods/pod1/memory.limit_in_bytes", "67108864"),
        (
            "memory/edgepods/pod1/memory.memsw.limit_in_bytes",
            "67108864",
        ),
        ("cpu/edgepods/pod1/cpu.shares", "512"),
        ("cpu/edgepods/pod1/cpu.cfs_period_us", "100000"),
        ("cpu/edgepods/pod1/cpu.cfs_quota_us", "20000"),
        ("pids/edgepods/pod1/pids.max", "100"),
    ] {
        assert_eq!(fs::read_to_string(at(file)).unwrap(), text, "{file}");
    }
}

#[test]
fn v2_delegates_on_the_way_down_and_writes_its_own_names() {
    let dir = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::unified(dir.path(), "cpu memory pids");
    let pod = "/edgepods/burstable/pod1";
    cgroups.create(pod).unwrap();
    for above in ["", "edgepods", "edgepods/burstable"] {
        let control = dir.path().join(above).join("cgroup.subtree_control");
        assert_eq!(
            fs::read_to_string(control).unwrap(),
            "+pids",
            "the last written"
        );
    }
    let at = |file: &str| dir.path().join("edgepods/burstable/pod1").join(file);
    assert!(
        !at("cgroup.subtree_control").exists(),
        "runc's own business"
    );
    assert!(cgroups.limit(pod, &limits()).is_empty());
    assert!(
        !at("memory.swap.max").exists(),
        "no swap accounting, no file"
    );
    fs::write(at("memory.swap.max"), "max").unwrap();
    fs::write(at("memory.oom.group"), "0").unwrap();
    assert!(cgroups.has_swap(pod) && cgroups.has_oom_group(pod));
    assert!(cgroups.limit(pod, &limits()).is_empty());
    for (file, text) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("cpu.weight", "20"),
        ("cpu.max", "20000 100000"),
        ("pids.max", "100"),
    ] {
        assert_eq!(fs::read_to_string(at(file)).unwrap(), text, "{file}");
    }
    fs::write(
        at("memory.events"),
        "low 0\noom 3\noom_kill 1\noom_group_kill 0\n",
    )
    .unwrap();
    assert_eq!(cgroups.oom_kills(pod), 1);
}

#[test]
fn a_missing_controller_drops_its_limit_and_a_refused_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::unified(dir.path(), "cpu");
    cgroups.create("/edgepods/pod1").unwrap();
    assert!(cgroups.limit("/edgepods/pod1", &limits()).is_empty());
    assert!(!dir.path().join("edgepods/pod1/memory.max").exists());
    let refused = cgroups.limit("/edgepods/absent", &limits());
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert_eq!(refused[0].0, "cpu.weight=20");
}

#[test]
fn classes_get_their_shares_and_survive_their_pods() {
    let dir = tempfile::tempdir().unwrap();
    let cgroups = v1(dir.path());
    let node = NodeLimits {
        cgroup_root: "/edgepods".to_owned(),
        all_pods: Resources {
            memory_limit_bytes: Some(1 << 30),
            ..Resources::default()
        },
        burstable_cpu_shares: 300,
    };
    assert!(cgroups.arrange(&node).unwrap().is_empty());
    assert!(cgroups.arrange(&node).unwrap().is_empty(), "again");
    let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
    assert_eq!(read("memory/edgepods/memory.limit_in_bytes"), "1073741824");
    assert_eq!(read("cpu/edgepods/burstable/cpu.shares"), "300");
    assert_eq!(read("cpu/edgepods/besteffort/cpu.shares"), "2");
    cgroups.create("/edgepods/burstable/pod1").unwrap();
    cgroups.remove("/edgepods/burstable/pod1").unwrap();
    assert_eq!(read("cpu/edgepods/burstable/cpu.shares"), "300");
}

#[test]
fn v2_classes_have_weights_and_the_node_its_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::unified(dir.path(), "cpu memory pids");
    let node = NodeLimits {
        cgroup_root: "/edgepods".to_owned(),
        all_pods: Resources {
            memory_limit_bytes: Some(1 << 30),
            pids_limit: Some(4000),
            ..Resources::default()
        },
        burstable_cpu_shares: 2048,
    };
    assert!(cgroups.arrange(&node).unwrap().is_empty());
    assert!(cgroups.arrange(&node).unwrap().is_empty(), "again");
    let read = |file: &str| fs::read_to_string(dir.path().join("edgepods").join(file)).unwrap();
    assert_eq!(read("memory.max"), "1073741824");
    assert_eq!(read("pids.max"), "4000");
    assert_eq!(read("burstable/cpu.weight"), "79");
    assert_eq!(read("besteffort/cpu.weight"), "1");
    // A pod of its own: what it does not limit is not written.
    let pod = "/edgepods/besteffort/pod1";
    cgroups.create(pod).unwrap();
    let only_cpu = Resources {
        cpu_quota_us: Some(150_000),
        ..Resources::default()
    };
    assert!(cgroups.limit(pod, &only_cpu).is_empty());
    assert_eq!(read("besteffort/pod1/cpu.max"), "150000 100000");
    for absent in ["memory.max", "pids.max", "cpu.weight"] {
        let file = dir.path().join("edgepods/besteffort/pod1").join(absent);
        assert!(!file.exists(), "{absent}");
    }
    // Killed in a container: its own count, not that of its pod or its neighbour.
    for (container, kills) in [("a", 1), ("b", 0)] {
        let cgroup = format!("{pod}/{container}");
        cgroups.create(&cgroup).unwrap();
        let events = format!("oom 2\noom_kill {kills}\noom_group_kill 0\n");
        let file = dir.path().join(cgroup.trim_start_matches('/'));
        fs::write(file.join("memory.events"), events).unwrap();
        assert_eq!(cgroups.oom_kills(&cgroup), kills, "{container}");
        fs::remove_file(file.join("memory.events")).unwrap();
    }
    // Files of the kernel's go with their cgroup; here they would be in the way.
    for at in [
        dir.path().join("edgepods/besteffort/pod1"),
        dir.path().join("edgepods/besteffort"),
    ] {
        for file in ["cpu.max", "cgroup.subtree_control"] {
            let _ = fs::remove_file(at.join(file));
        }
    }
    cgroups.remove(pod).unwrap();
    assert!(!dir.path().join("edgepods/besteffort/pod1").exists());
    assert!(
        dir.path().join("edgepods/besteffort").exists(),
        "the class stays"
    );
}

#[test]
fn usage_is_without_what_can_be_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let v1 = v1(dir.path());
    v1.create("/p").unwrap();
    assert_eq!(v1.usage("/p"), None, "no files, no answer");
    let at = |file: &str| dir.path().join(file);
    fs::write(at("memory/p/memory.usage_in_bytes"), "1000\n").unwrap();
    fs::write(
        at("memory/p/memory.stat"),
        "inactive_file 5\ntotal_inactive_file 300\n",
    )
    .unwrap();
    fs::write(at("pids/p/pids.current"), "7\n").unwrap();
    let seen = v1.usage("/p").unwrap();
    assert_eq!((seen.memory_bytes, seen.pids), (700, 7));
    let v2 = Cgroups::unified(&at("two"), "memory pids");
    v2.create("/p").unwrap();
    fs::write(at("two/p/memory.current"), "1000\n").unwrap();
    fs::write(at("two/p/memory.stat"), "anon 1\ninactive_file 5\n").unwrap();
    assert_eq!(v2.usage("/p").unwrap().memory_bytes, 995);
}

#[test]
fn weights_are_runcs() {
    for (shares, want) in [
        (0, 1),
        (2, 1),
        (1024, 39),
        (262_144, 10_000),
        (u64::MAX, 10_000),
    ] {
        assert_eq!(weight(shares), want, "{shares}");
    }
}

/// On the kernel's own v2 tree, which hybrid hosts mount with few controllers or none.
#[test]
fn a_real_v2_tree_is_made_and_given_back() {
    let root = Path::new("/sys/fs/cgroup/unified");
    let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else {
        return; // Not such a host.
    };
    let cgroups = Cgroups::unified(root, &controllers);
    let top = format!("/edgepods-unit-{}", std::process::id());
    let pod = format!("{top}/burstable/pod1");
    if cgroups.create(&pod).is_err() {
        return; // Not allowed to.
    }
    let at = |cgroup: &str| root.join(cgroup.trim_start_matches('/'));
    for controller in controllers.split_whitespace() {
        let given = fs::read_to_string(at(&pod).join("cgroup.controllers")).unwrap();
        assert!(given.contains(controller), "{controller}: {given}");
    }
    let refused = cgroups.limit(&pod, &limits());
    assert!(refused.is_empty(), "{refused:?}");
    cgroups.remove(&pod).unwrap();
    assert!(!at(&pod).exists() && at(&top).join("burstable").exists());
    cgroups.remove(&top).unwrap();
    assert!(!at(&top).exists());
}
