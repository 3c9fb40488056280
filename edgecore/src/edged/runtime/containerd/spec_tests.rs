use super::capabilities::{DEFAULT_CAPABILITIES, capabilities};
use super::identity::identity;
use super::process::arguments;
use super::*;
use crate::edged::runtime::{AppArmorChoice, GroupsPolicy, Mount, Resources};

fn container() -> ContainerSpec {
    ContainerSpec {
        pod_uid: "0f1e2d3c-0000-4000-8000-0123456789ab".to_owned(),
        name: "main".to_owned(),
        cgroup_parent: "/edgepods/burstable/pod0f1e2d3c".to_owned(),
        args: vec!["--port".to_owned(), "80".to_owned()],
        env: vec![("MODE".to_owned(), "edge".to_owned())],
        mounts: vec![Mount {
            source: "/var/lib/edgecore/pods/x/volumes/data".into(),
            target: "/data".into(),
            read_only: true,
            recursive_read_only: false,
            propagation: "rslave".to_owned(),
        }],
        resources: Resources {
            cpu_shares: Some(102),
            cpu_quota_us: Some(20_000),
            memory_limit_bytes: Some(64 << 20),
            pids_limit: Some(100),
            oom_score_adj: Some(-997),
        },
        add_capabilities: vec!["NET_ADMIN".to_owned()],
        drop_capabilities: vec!["mknod".to_owned()],
        supplemental_groups: vec![2000],
        ..ContainerSpec::default()
    }
}

fn image() -> ImageDefaults {
    ImageDefaults {
        user: "guest".to_owned(),
        env: vec![
            "PATH=/bin".to_owned(),
            "MODE=image".to_owned(),
            "LANG=C".to_owned(),
        ],
        entrypoint: vec!["/bin/httpd".to_owned()],
        cmd: vec!["-f".to_owned()],
        working_dir: "/srv".to_owned(),
        stop_signal: String::new(),
    }
}

fn users() -> UserDatabase {
    UserDatabase {
        passwd: "root:x:0:0:root:/root:/bin/sh\nguest:x:405:100:guest:/home/guest:/bin/sh\n"
            .to_owned(),
        group: "root:x:0:\nwheel:x:10:admin,guest\nusers:x:100:\n".to_owned(),
    }
}

fn paths() -> PodPaths {
    let pod = PathBuf::from("/run/edgecore/pods/u");
    PodPaths {
        net_ns: Some(pod.join("ns/net")),
        uts_ns: Some(pod.join("ns/uts")),
        ipc_ns: Some(pod.join("ns/ipc")),
        shm: Some(pod.join("shm")),
        hostname: "web-0".to_owned(),
        pid_ns: None,
    }
}

/// A machine with all that the tests ask for.
pub(super) fn host() -> HostFacts {
    HostFacts {
        cgroup_v2: false,
        has_memory: true,
        has_cpu: true,
        has_pids: true,
        arch: "x86_64",
        kernel: (6, 1),
        has_seccomp: true,
        ..HostFacts::default()
    }
}

fn built(container: &ContainerSpec, image: &ImageDefaults, host: &HostFacts) -> Value {
    let spec = build(
        container,
        image,
        &users(),
        &paths(),
        host,
        Path::new("/none"),
    )
    .unwrap();
    typed(&spec);
    spec
}

/// As the specification's own types write it: an unknown key is lost on the way.
pub(super) fn typed(spec: &Value) -> Value {
    let typed: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).unwrap();
    serde_json::to_value(typed).unwrap()
}

#[test]
fn command_and_args_over_entrypoint_and_cmd() {
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for (command, args, expected) in [
        ("", "", Ok("/bin/httpd -f")),
        ("", "a b", Ok("/bin/httpd a b")),
        ("c", "", Ok("c")),
        ("c", "a", Ok("c a")),
    ] {
        let asked = ContainerSpec {
            command: words(command),
            args: words(args),
            ..ContainerSpec::default()
        };
        assert_eq!(
            arguments(&asked, &image()),
            expected.map(words),
            "{command}|{args}"
        );
    }
    let nothing = arguments(&ContainerSpec::default(), &ImageDefaults::default());
    assert_eq!(nothing, Err(SpecError::NoCommand));
}

#[test]
fn users_and_groups() {
    let who = |user: &str, uid: Option<i64>, gid: Option<i64>| {
        let asked = ContainerSpec {
            run_as_user: uid,
            run_as_group: gid,
            ..ContainerSpec::default()
        };
        let image = ImageDefaults {
            user: user.to_owned(),
            ..ImageDefaults::default()
        };
        identity(&asked, &image, &users()).map(|i| (i.uid, i.gid, i.groups, i.home))
    };
    let ok =
        |uid, gid, groups: &[u32], home: &str| Ok((uid, gid, groups.to_vec(), home.to_owned()));
    for (user, uid, gid, expected) in [
        ("", None, None, ok(0, 0, &[0], "/root")),
        ("guest", None, None, ok(405, 100, &[10, 100], "/home/guest")),
        ("405", None, None, ok(405, 100, &[10, 100], "/home/guest")),
        ("guest:wheel", None, None, ok(405, 10, &[10], "/home/guest")),
        ("1234", None, None, ok(1234, 0, &[0], "/")),
        ("1234:5678", None, None, ok(1234, 5678, &[5678], "/")),
        ("guest", Some(0), None, ok(0, 0, &[0], "/root")),
        ("guest", Some(77), Some(88), ok(77, 88, &[88], "/")),
        (
            "nobody",
            None,
            None,
            Err(SpecError::NoUser("nobody".to_owned())),
        ),
        (
            "0:nogroup",
            None,
            None,
            Err(SpecError::NoGroup("nogroup".to_owned())),
        ),
        ("", Some(-1), None, Err(SpecError::BadId(-1))),
    ] {
        assert_eq!(who(user, uid, gid), expected, "{user} {uid:?} {gid:?}");
    }
}

#[test]
fn capability_rules() {
    let set = |privileged: bool, add: &[&str], drop: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        capabilities(&ContainerSpec {
            privileged,
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            ..ContainerSpec::default()
        })
    };
    assert_eq!(set(false, &[], &[]).unwrap(), DEFAULT_CAPABILITIES);
    assert_eq!(set(true, &[], &["ALL"]).unwrap().len(), 41);
    assert_eq!(set(false, &["ALL"], &["CAP_BPF"]).unwrap().len(), 40);
    assert_eq!(
        set(false, &["NET_ADMIN"], &["ALL"]).unwrap(),
        ["CAP_NET_ADMIN"]
    );
    assert!(
        !set(false, &[], &["cap_kill"])
            .unwrap()
            .contains(&"CAP_KILL")
    );
    assert_eq!(
        set(false, &["FLY"], &[]),
        Err(SpecError::BadCapability("FLY".to_owned()))
    );
}

#[test]
fn a_host_without_rights_or_controllers_gives_less_but_runs() {
    let poor = HostFacts {
        oom_score_adj_min: Some(0),
        capability_bounds: Some(1),
        ..HostFacts::default()
    };
    let spec = built(&container(), &image(), &poor);
    assert_eq!(spec["process"]["oomScoreAdj"], json!(0));
    assert_eq!(
        spec["process"]["capabilities"]["bounding"],
        json!(["CAP_CHOWN"])
    );
    assert!(spec["process"].get("rlimits").is_none());
    let resources = &spec["linux"]["resources"];
    for limit in ["memory", "cpu", "pids"] {
        assert!(resources.get(limit).is_none(), "{limit}");
    }
    assert_eq!(
        container().resources.controllers(),
        ["cpu", "memory", "pids"]
    );
    let swapping = HostFacts {
        has_swap: true,
        has_oom_group: true,
        ..host()
    };
    let spec = built(&container(), &image(), &swapping);
    let memory = &spec["linux"]["resources"]["memory"];
    assert_eq!(memory["swap"], memory["limit"], "no swap beyond the limit");
    let unified = &spec["linux"]["resources"]["unified"];
    assert_eq!(unified["memory.oom.group"], "1");
    let rich = built(&container(), &image(), &host());
    assert_eq!(rich["process"]["oomScoreAdj"], json!(-997));
}

#[test]
fn the_pods_own_mounts_win_and_deeper_ones_come_later() {
    let bind = |target: &str| Mount {
        source: "/src".into(),
        target: target.into(),
        ..Mount::default()
    };
    let asked = ContainerSpec {
        mounts: vec![
            bind("/a/b"),
            bind("/a"),
            bind("/etc/hosts"),
            bind("/dev/shm"),
        ],
        ..container()
    };
    let spec = built(&asked, &image(), &host());
    let all = spec["mounts"].as_array().unwrap();
    let place = |target: &str| {
        let at: Vec<usize> = (0..all.len())
            .filter(|i| all[*i]["destination"] == json!(target))
            .collect();
        assert_eq!(at.len(), 1, "{target}");
        at[0]
    };
    assert!(place("/a") < place("/a/b"));
    for target in ["/etc/hosts", "/dev/shm"] {
        assert_eq!(all[place(target)]["source"], json!("/src"));
    }
    let relative = ContainerSpec {
        mounts: vec![bind("data")],
        ..container()
    };
    assert_eq!(
        build(
            &relative,
            &image(),
            &users(),
            &paths(),
            &host(),
            Path::new("/none")
        ),
        Err(SpecError::RelativePath("data".to_owned()))
    );
}

#[test]
fn privileged_sees_the_hosts_devices_and_nothing_masked() {
    let asked = ContainerSpec {
        privileged: true,
        ..container()
    };
    let with_device = HostFacts {
        devices: vec![HostDevice {
            path: "/dev/ttyS0".into(),
            is_block: false,
            major: 4,
            minor: 64,
            mode: 0o020_660,
            uid: 0,
            gid: 20,
        }],
        ..host()
    };
    let spec = built(&asked, &image(), &with_device);
    assert_eq!(spec["linux"]["devices"][0]["path"], json!("/dev/ttyS0"));
    assert_eq!(
        spec["linux"]["resources"]["devices"][0]["allow"],
        json!(true)
    );
    let masked = spec["linux"].get("maskedPaths");
    assert!(masked.is_none_or(|paths| paths.as_array().unwrap().is_empty()));
}

#[test]
fn a_shared_pid_namespace_is_joined() {
    let shared = PodPaths {
        pid_ns: Some("/proc/7/ns/pid".into()),
        ..paths()
    };
    let of = |container: &ContainerSpec| {
        let built = build(
            container,
            &image(),
            &users(),
            &shared,
            &host(),
            Path::new("/none"),
        );
        let spec = built.unwrap();
        let all = spec["linux"]["namespaces"].as_array().unwrap().clone();
        all.into_iter().find(|namespace| namespace["type"] == "pid")
    };
    let joined = json!({ "type": "pid", "path": "/proc/7/ns/pid" });
    assert_eq!(of(&container()), Some(joined));
    let on_host = ContainerSpec {
        host_pid: true,
        ..container()
    };
    assert_eq!(of(&on_host), None);
}

#[test]
fn host_namespaces_are_left_out() {
    let asked = ContainerSpec {
        host_pid: true,
        ..container()
    };
    let spec = build(
        &asked,
        &image(),
        &users(),
        &PodPaths::default(),
        &host(),
        Path::new("/none"),
    )
    .unwrap();
    assert_eq!(spec["linux"]["namespaces"], json!([{ "type": "mount" }]));
}

#[test]
fn the_policy_decides_whose_groups_count() {
    let groups = |policy: GroupsPolicy, uid: Option<i64>| {
        let asked = ContainerSpec {
            run_as_user: uid,
            supplemental_groups: vec![2000],
            groups_policy: policy,
            ..ContainerSpec::default()
        };
        identity(&asked, &image(), &users()).unwrap().groups
    };
    assert_eq!(groups(GroupsPolicy::Merge, None), [10, 100, 2000]);
    assert_eq!(groups(GroupsPolicy::Strict, None), [100, 2000]);
    // The pod's number has a name in the image: that name's memberships count.
    assert_eq!(groups(GroupsPolicy::Merge, Some(405)), [10, 100, 2000]);
    assert_eq!(groups(GroupsPolicy::Merge, Some(9)), [0, 2000]);
}

#[test]
fn who_gets_a_filter_of_system_calls() {
    let with = |privileged: bool, seccomp: SeccompChoice, has_seccomp: bool| {
        let asked = ContainerSpec {
            privileged,
            seccomp,
            ..container()
        };
        let host = HostFacts {
            has_seccomp,
            ..host()
        };
        seccomp_of(&asked, &DEFAULT_CAPABILITIES, &host, Path::new("/none")).map(|s| s.is_some())
    };
    let local = || SeccompChoice::Localhost("x.json".to_owned());
    assert_eq!(with(false, SeccompChoice::default(), true), Ok(true));
    assert_eq!(with(false, SeccompChoice::default(), false), Ok(false));
    assert_eq!(with(false, SeccompChoice::Unconfined, true), Ok(false));
    assert_eq!(with(true, SeccompChoice::default(), true), Ok(false));
    assert!(with(false, local(), true).is_err(), "there is no such file");
    assert!(
        with(false, local(), false).is_err(),
        "never less than was asked for"
    );
}

#[test]
fn apparmor_by_what_the_host_has() {
    let profile = |choice: AppArmorChoice, loaded: Option<&[&str]>| {
        let asked = ContainerSpec {
            apparmor: choice,
            ..container()
        };
        let host = HostFacts {
            apparmor_profiles: loaded.map(|names| names.iter().map(|n| (*n).to_owned()).collect()),
            ..host()
        };
        build(
            &asked,
            &image(),
            &users(),
            &paths(),
            &host,
            Path::new("/none"),
        )
        .map(|spec| {
            spec["process"]["apparmorProfile"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
    };
    let mine = || AppArmorChoice::Localhost("mine".to_owned());
    assert_eq!(profile(AppArmorChoice::default(), None).unwrap(), "");
    assert_eq!(
        profile(AppArmorChoice::default(), Some(&["docker-default"])).unwrap(),
        "docker-default"
    );
    assert_eq!(
        profile(AppArmorChoice::Unconfined, Some(&["docker-default"])).unwrap(),
        ""
    );
    assert_eq!(profile(mine(), Some(&["mine"])).unwrap(), "mine");
    for loaded in [None, Some(&["other"][..])] {
        let refused = profile(mine(), loaded);
        assert!(
            matches!(refused, Err(SpecError::AppArmor { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn unmasked_proc_hides_nothing_but_keeps_the_filter() {
    let asked = ContainerSpec {
        unmasked_proc: true,
        ..container()
    };
    let spec = built(&asked, &image(), &host());
    assert_eq!(spec["linux"]["maskedPaths"], json!([]));
    assert_eq!(spec["linux"]["readonlyPaths"], json!([]));
    assert!(spec["linux"]["seccomp"].is_object());
}
