//! What containers may do, asked from inside.

use std::collections::BTreeMap;

use crate::oci::{ImageSpec, write_archive};
use crate::world::World;
use edgecore::edged::runtime::{
    ContainerSpec, GroupsPolicy, Runtime, RuntimeError, SandboxSpec, SeccompChoice,
};

/// Tells everything by `key=value`, and what each attempt came to.
const PROBE: &str = r#"
b=busybox
for key in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp; do
  $b echo "$key=$($b grep "^$key:" /proc/self/status | $b cut -f2)"
done
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name=yes"; else echo "$name=no"; fi; }
echo "uid=$($b id -u)"; echo "gid=$($b id -g)"; echo "groups=$($b id -G)"; echo "home=$HOME"
try unshare $b unshare -m $b true
try userns $b unshare -U $b true
try chroot $b chroot / /bin/true
try rootfs $b touch /bin/x
try kcore $b head -c 1 /proc/kcore
try sysrq $b sh -c 'echo h > /proc/sysrq-trigger'
try sysctl $b sh -c 'cat /proc/sys/kernel/hostname > /proc/sys/kernel/hostname'
try sys $b mkdir /sys/fs/cgroup/pids/intruder
try mkdir $b mkdir /tmp/made
try mknod $b mknod /tmp/null c 1 3
try block $b sh -c 'mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk'
echo "devices=$($b ls /dev | $b wc -l)"
"#;

async fn tell(world: &World, spec: &ContainerSpec) -> BTreeMap<String, String> {
    let id = world.runtime.start(spec).await.unwrap();
    let (code, _) = world.exited(&id).await;
    world.runtime.remove(&id).await.unwrap();
    let log = World::log(spec);
    assert_eq!(code, 0, "{log:?}");
    log.into_iter()
        .filter_map(|(_, line)| {
            let (key, value) = line.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        })
        .collect()
}

const IMAGE: &str = "docker.io/library/users:test";

/// A world whose image has users, and a pod in it.
async fn world_with_users() -> Option<(World, SandboxSpec)> {
    let world = World::new().await?;
    let file = |name: &str, text: &str| {
        let path = world.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let passwd = "root:x:0:0:root:/root:/bin/sh\nguest:x:405:100:guest:/home/guest:/bin/sh\n";
    let group = "root:x:0:\nwheel:x:10:admin,guest\ndisk:x:6:root\nusers:x:100:\n";
    let image = ImageSpec {
        user: "guest".to_owned(),
        files: vec![
            ("etc/passwd".to_owned(), file("passwd", passwd), 0o644),
            ("etc/group".to_owned(), file("group", group), 0o644),
        ],
        ..ImageSpec::busybox(IMAGE)
    };
    let archive = world.directory.path().join("users.tar");
    write_archive(&image, &archive).unwrap();
    world.runtime.import_archive(&archive, None).await.unwrap();
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    Some((world, pod))
}

fn assert_told(told: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(
            told.get(*key).map(String::as_str),
            Some(*value),
            "{key}: {told:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confinement_is_the_default_and_each_part_can_be_changed() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let plain = tell(&world, &world.container(&pod, "plain", PROBE)).await;
    let default = [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "0"),
        ("Seccomp", "2"),
        ("uid", "0"),
        ("unshare", "no"),
        ("userns", "no"),
        ("chroot", "yes"),
        ("rootfs", "yes"),
        ("kcore", "no"),
        ("sysrq", "no"),
        ("sysctl", "no"),
        ("sys", "no"),
        ("mkdir", "yes"),
        ("mknod", "yes"),
        ("block", "no"),
    ];
    assert_told(&plain, &default);

    let narrow = ContainerSpec {
        drop_capabilities: vec!["ALL".to_owned()],
        add_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
        no_new_privileges: true,
        read_only_rootfs: true,
        ..world.container(&pod, "narrow", PROBE)
    };
    let narrow = tell(&world, &narrow).await;
    let expected = [
        ("CapEff", "0000000000000400"),
        ("CapBnd", "0000000000000400"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("chroot", "no"),
        ("rootfs", "no"),
        ("mkdir", "no"),
    ];
    assert_told(&narrow, &expected);

    let open = ContainerSpec {
        seccomp: SeccompChoice::Unconfined,
        unmasked_proc: true,
        ..world.container(&pod, "open", PROBE)
    };
    let open = tell(&world, &open).await;
    // Without CAP_SYS_ADMIN there is no mount namespace, but a user namespace can be made.
    let expected = [
        ("Seccomp", "0"),
        ("unshare", "no"),
        ("userns", "yes"),
        ("sysctl", "yes"),
        ("CapEff", "00000000a80425fb"),
    ];
    assert_told(&open, &expected);

    let privileged = ContainerSpec {
        privileged: true,
        ..world.container(&pod, "privileged", PROBE)
    };
    let privileged = tell(&world, &privileged).await;
    assert_told(
        &privileged,
        &[("Seccomp", "0"), ("unshare", "yes"), ("sysctl", "yes")],
    );
    let count = |told: &BTreeMap<String, String>| told["devices"].parse::<u32>().unwrap();
    assert!(count(&privileged) > count(&plain), "{privileged:?}");
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_groups_are_the_images_and_the_pods() {
    let Some((world, pod)) = world_with_users().await else {
        return;
    };
    let base = |name: &str| ContainerSpec {
        image: IMAGE.to_owned(),
        supplemental_groups: vec![2000],
        ..world.container(&pod, name, PROBE)
    };
    let cases = [
        (base("image"), "405", "100", "100 10 2000", "/home/guest"),
        (
            ContainerSpec {
                groups_policy: GroupsPolicy::Strict,
                ..base("strict")
            },
            "405",
            "100",
            "100 2000",
            "/home/guest",
        ),
        (
            ContainerSpec {
                run_as_user: Some(0),
                ..base("root")
            },
            "0",
            "0",
            "0 6 2000",
            "/root",
        ),
        (
            ContainerSpec {
                run_as_user: Some(7777),
                run_as_group: Some(8888),
                ..base("stranger")
            },
            "7777",
            "8888",
            "8888 2000",
            "/",
        ),
    ];
    // What a daemon that was killed while it read an image's users leaves.
    let listed = world.ctr(&["snapshots", "ls"]);
    for layer in listed.lines().filter(|line| line.contains("Committed")) {
        let layer = layer.split_whitespace().next().unwrap();
        let view = format!("view-{layer}");
        world.ctr(&["snapshots", "view", &view, layer]);
        // Not collected before it is met.
        world.ctr(&["snapshots", "label", &view, "containerd.io/gc.root=now"]);
    }
    for (spec, uid, gid, groups, home) in cases {
        let told = tell(&world, &spec).await;
        assert_told(&told, &[("uid", uid), ("gid", gid), ("home", home)]);
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(sorted(&told["groups"]), sorted(groups), "{}", spec.name);
        if uid != "0" {
            assert_told(&told, &[("CapEff", "0000000000000000"), ("mknod", "no")]);
        }
    }
    let listed = world.ctr(&["snapshots", "ls"]);
    let image = listed.lines().filter(|line| line.contains("Committed"));
    let views = listed.lines().filter(|line| line.contains("View"));
    assert_eq!(views.count(), image.count() - 1, "the image's own is gone");
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_of_the_node_is_obeyed_and_a_missing_one_refused() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
    std::fs::create_dir_all(&world.config.seccomp_root).unwrap();
    std::fs::write(world.config.seccomp_root.join("no-mkdir.json"), profile).unwrap();
    let local = |name: &str, profile: &str| ContainerSpec {
        seccomp: SeccompChoice::Localhost(profile.to_owned()),
        ..world.container(&pod, name, PROBE)
    };
    let told = tell(&world, &local("local", "no-mkdir.json")).await;
    assert_told(
        &told,
        &[("Seccomp", "2"), ("mkdir", "no"), ("rootfs", "yes")],
    );
    for (name, profile) in [("absent", "absent.json"), ("out", "../no-mkdir.json")] {
        let refused = world.runtime.start(&local(name, profile)).await;
        assert!(
            matches!(&refused, Err(RuntimeError::Create { reason }) if reason.contains(profile)),
            "{refused:?}"
        );
    }
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// Our profile beside the daemon's own: it allows what that one allows, but for what has been
/// found dangerous since, and adds only calls that are younger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_profile_is_containerds() {
    let Some(world) = World::empty() else {
        return;
    };
    let rootfs = world.directory.path().join("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    let rootfs = rootfs.display().to_string();
    world.ctr(&[
        "containers",
        "create",
        "--seccomp",
        "--rootfs",
        &rootfs,
        "peer",
        "true",
    ]);
    let told: serde_json::Value =
        serde_json::from_str(&world.ctr(&["containers", "info", "peer"])).unwrap();
    world.ctr(&["containers", "rm", "peer"]);
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/spec/seccomp-default.json"
    );
    let ours: serde_json::Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let names = |profile: &serde_json::Value| -> std::collections::BTreeSet<String> {
        let rules = profile["syscalls"].as_array().unwrap().iter();
        rules
            .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
            .flat_map(|rule| rule["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    let theirs = &told["Spec"]["linux"]["seccomp"];
    let missing: Vec<String> = names(theirs).difference(&names(&ours)).cloned().collect();
    let dropped = ["io_uring_enter", "io_uring_register", "io_uring_setup"];
    assert!(
        missing.iter().all(|name| dropped.contains(&name.as_str())),
        "not allowed by us: {missing:?}"
    );
    for refused in ["unshare", "mount", "setns", "keyctl", "bpf", "kexec_load"] {
        assert!(!names(&ours).contains(refused), "{refused}");
    }
    assert_eq!(theirs["architectures"], ours["architectures"]);
}
