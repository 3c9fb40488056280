//! What containers of a pod share with each other and with the node.

use std::collections::BTreeMap;

use crate::wait;
use crate::world::{PATIENCE, World};
use edgecore::edged::runtime::{ContainerSpec, ContainerState, Runtime, SandboxSpec};

fn running(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Running { .. })
}

/// Lines that a container printed.
async fn output(world: &World, spec: &ContainerSpec) -> Vec<String> {
    let id = world.runtime.start(spec).await.unwrap();
    let (code, _) = world.exited(&id).await;
    world.runtime.remove(&id).await.unwrap();
    let log = World::log(spec);
    assert_eq!(code, 0, "{log:?}");
    log.into_iter().map(|line| line.1).collect()
}

/// The holder's process id, by what it runs.
fn holder(world: &World) -> i32 {
    let text = world.ctr(&["tasks", "ls"]);
    let line = text.lines().find(|line| line.contains("-holder")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_share_their_processes_through_a_holder() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = SandboxSpec {
        share_pid: true,
        ..world.pod()
    };
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let shared = |name: &str, script: &str| ContainerSpec {
        share_pid: true,
        ..world.container(&pod, name, script)
    };
    let first = world
        .runtime
        .start(&shared("first", "exec sleep 1001"))
        .await
        .unwrap();
    let second = world
        .runtime
        .start(&shared("second", "exec sleep 1002"))
        .await
        .unwrap();
    let seen = output(&world, &shared("looker", "busybox ps -o pid,args")).await;
    let has = |text: &str| seen.iter().any(|line| line.contains(text));
    assert!(has("sleep 1001") && has("sleep 1002"), "{seen:?}");
    let init = seen
        .iter()
        .find(|line| line.trim().starts_with("1 "))
        .unwrap();
    assert!(init.ends_with("/hold"), "{seen:?}");

    // It is nobody's container, and one shim serves all.
    let listed = world.runtime.containers().await.unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(world.shims().len(), 1);

    // One container's end is not the other's, also when its processes have left children behind.
    let orphan = shared("orphan", "(sleep 1003 &) ; exit 3");
    let id = world.runtime.start(&orphan).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 3);
    world.runtime.remove(&id).await.unwrap();
    world.runtime.kill(&first).await.unwrap();
    assert_eq!(world.exited(&first).await.0, 137);
    world.until(&second, running).await;
    let left = output(&world, &shared("again", "busybox ps -o args")).await;
    assert!(
        !left.iter().any(|line| line.contains("sleep 1003")),
        "{left:?}"
    );
    assert!(
        left.iter().any(|line| line.contains("sleep 1002")),
        "{left:?}"
    );

    // The holder's end is everybody's; the next start makes another one.
    let pid = rustix::process::Pid::from_raw(holder(&world)).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(world.exited(&second).await.0, 137);
    // The daemon hears of the holder's end in its own time; a start before that fails and is tried
    // again by whoever asked.
    wait::until("the daemon to know", PATIENCE, async || {
        let tasks = world.ctr(&["tasks", "ls"]);
        let mut lines = tasks.lines().filter(|line| line.contains("-holder"));
        Ok((!lines.any(|line| line.contains("RUNNING"))).then_some(()))
    })
    .await
    .unwrap();
    let restarted = ContainerSpec {
        attempt: 1,
        ..shared("second", "exec sleep 1004")
    };
    let second = world.runtime.start(&restarted).await.unwrap();
    world.until(&second, running).await;
    assert_ne!(holder(&world), pid.as_raw_nonzero().get());

    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert_eq!(world.runtime.sandboxes().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_whose_pod_a_reboot_forgot_is_found_and_removed() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = SandboxSpec {
        share_pid: true,
        host_network: true,
        ..world.pod()
    };
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let spec = ContainerSpec {
        share_pid: true,
        ..world.container(&pod, "main", "true")
    };
    output(&world, &spec).await;
    let record = world.config.state_dir.join("sandboxes").join(&pod.pod_uid);
    std::fs::remove_file(record.join("sandbox.json")).unwrap();
    let found = world.runtime.sandboxes().await.unwrap();
    assert_eq!(found[0].pod_uid, pod.pod_uid);
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

const NAMES: &str =
    "for n in net uts ipc pid mnt; do echo $n=$(busybox readlink /proc/self/ns/$n); done";

async fn namespaces(world: &World, spec: &ContainerSpec) -> BTreeMap<String, String> {
    let lines = output(world, spec).await;
    let pairs = lines.iter().filter_map(|line| line.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_namespace_is_the_nodes_or_the_pods() {
    let Some(world) = World::new().await else {
        return;
    };
    let node = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        link.display().to_string()
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let one = namespaces(&world, &world.container(&pod, "one", NAMES)).await;
    let two = namespaces(&world, &world.container(&pod, "two", NAMES)).await;
    for kind in ["net", "uts", "ipc"] {
        assert_eq!(one[kind], two[kind], "{kind}");
        assert_ne!(one[kind], node(kind), "{kind}");
    }
    assert_ne!(one["pid"], node("pid"));
    // Not compared with each other: the first is gone, and the kernel gives its number again.
    assert_ne!(one["mnt"], node("mnt"));
    assert_ne!(two["mnt"], node("mnt"));
    world.clean(&pod).await;

    let pod = SandboxSpec {
        host_network: true,
        host_ipc: true,
        ..world.pod()
    };
    let sandbox = world.runtime.ensure_sandbox(&pod).await.unwrap();
    assert!(sandbox.ips.is_empty());
    let spec = ContainerSpec {
        host_network: true,
        host_ipc: true,
        host_pid: true,
        ..world.container(&pod, "host", NAMES)
    };
    let host = namespaces(&world, &spec).await;
    for kind in ["net", "uts", "ipc", "pid"] {
        assert_eq!(host[kind], node(kind), "{kind}");
    }
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kernel_settings_are_the_pods_alone() {
    let Some(world) = World::new().await else {
        return;
    };
    let settings = [
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("kernel.shm_rmid_forced", "1"),
    ];
    let pod = SandboxSpec {
        sysctls: settings.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..world.pod()
    };
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let script =
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    let found = output(&world, &world.container(&pod, "main", script)).await;
    assert_eq!(found, ["80", "1"]);
    let node = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert_ne!(node.trim(), "80");
    world.clean(&pod).await;

    let wrong = SandboxSpec {
        sysctls: [("net.ipv4.no_such_setting".to_owned(), "1".to_owned())].into(),
        ..world.pod()
    };
    let refused = world.runtime.ensure_sandbox(&wrong).await.unwrap_err();
    assert!(refused.to_string().contains("no_such_setting"), "{refused}");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
