//! Limits: seen by the kernel, felt by the right container, gone with the pod.

use std::path::{Path, PathBuf};

use edgecore::edged::runtime::{
    Container, ContainerSpec, ContainerState, NodeLimits, Resources, Runtime, SandboxSpec,
};

use crate::wait;
use crate::world::{PATIENCE, World, note};

const MIB: i64 = 1 << 20;

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A file of a cgroup, wherever its controller is mounted.
fn file(controller: &str, cgroup: &str, v1: &str, v2: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let (root, name) = if is_v2() {
        (root.to_owned(), v2)
    } else {
        (root.join(controller), v1)
    };
    root.join(cgroup.trim_start_matches('/')).join(name)
}

fn read(controller: &str, cgroup: &str, v1: &str, v2: &str) -> String {
    let path = file(controller, cgroup, v1, v2);
    let text = std::fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

/// A world whose kernel can limit everything.
async fn limited() -> Option<World> {
    let world = World::new().await?;
    let missing = world.runtime.missing_controllers();
    if !missing.is_empty() {
        note(&format!("SKIPPED: no controllers {missing:?}"));
    }
    missing.is_empty().then_some(world)
}

fn was_oom_killed(ended: &Container) -> bool {
    matches!(
        ended.state,
        ContainerState::Exited {
            oom_killed: true,
            ..
        }
    )
}

fn own_cgroup(pod: &SandboxSpec, id: &str) -> String {
    format!("{}/{id}", pod.cgroup_parent)
}

/// Fills memory of its own until it is killed.
const GREEDY: &str = "a=x; while true; do a=$a$a; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_reach_the_kernel_and_cgroups_go_with_the_pod() {
    let Some(world) = limited().await else {
        return;
    };
    let node = NodeLimits {
        cgroup_root: world.config.cgroup_root.clone(),
        burstable_cpu_shares: 700,
        ..NodeLimits::default()
    };
    world.runtime.apply_node_limits(&node).await.unwrap();
    let plain = world.pod();
    let burstable = format!("{}/burstable", world.config.cgroup_root);
    let pod = SandboxSpec {
        cgroup_parent: format!("{burstable}/pod{}", plain.pod_uid),
        resources: Resources {
            cpu_shares: Some(204),
            memory_limit_bytes: Some(96 * MIB),
            pids_limit: Some(40),
            ..Resources::default()
        },
        ..plain
    };
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let spec = ContainerSpec {
        resources: Resources {
            cpu_shares: Some(102),
            cpu_quota_us: Some(10_000),
            memory_limit_bytes: Some(32 * MIB),
            oom_score_adj: Some(900),
            ..Resources::default()
        },
        ..world.container(
            &pod,
            "main",
            "cat /proc/self/oom_score_adj; while true; do :; done",
        )
    };
    let id = world.runtime.start(&spec).await.unwrap();
    let own = own_cgroup(&pod, &id);
    for (cgroup, bytes) in [(&own, 32 * MIB), (&pod.cgroup_parent, 96 * MIB)] {
        let limit = read("memory", cgroup, "memory.limit_in_bytes", "memory.max");
        assert_eq!(limit, bytes.to_string(), "{cgroup}");
    }
    assert_eq!(
        read("pids", &pod.cgroup_parent, "pids.max", "pids.max"),
        "40"
    );
    let shares = read("cpu", &pod.cgroup_parent, "cpu.shares", "cpu.weight");
    assert!(["204", "8"].contains(&shares.as_str()), "{shares}");
    let shares = read("cpu", &burstable, "cpu.shares", "cpu.weight");
    assert!(["700", "27"].contains(&shares.as_str()), "{shares}");
    wait::until("throttled", PATIENCE, async || {
        let text = read("cpu", &own, "cpu.stat", "cpu.stat");
        let count = text.lines().find_map(|l| l.strip_prefix("nr_throttled "));
        Ok(count.filter(|count| *count != "0").map(|_| ()))
    })
    .await
    .unwrap();
    wait::until("logged", PATIENCE, async || {
        let text = std::fs::read_to_string(&spec.log_path).unwrap_or_default();
        Ok(text.contains(" 900\n").then_some(()))
    })
    .await
    .unwrap();
    world.clean(&pod).await;
    for controller in ["memory", "cpu", "pids", "freezer"] {
        let gone = file(controller, &pod.cgroup_parent, "", "");
        assert!(!gone.exists(), "{}", gone.display());
    }
    assert!(
        file("memory", &burstable, "", "").exists(),
        "for the next pod"
    );
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_limit_kills_one_container_and_names_that_one() {
    let Some(world) = limited().await else {
        return;
    };
    let pod = SandboxSpec {
        resources: Resources {
            memory_limit_bytes: Some(24 * MIB),
            ..Resources::default()
        },
        ..world.pod()
    };
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let modest = world.container(&pod, "modest", "sleep 1000");
    let modest = world.runtime.start(&modest).await.unwrap();
    let greedy = world.container(&pod, "greedy", GREEDY);
    let greedy = world.runtime.start(&greedy).await.unwrap();
    let (code, ended) = world.exited(&greedy).await;
    assert_eq!(code, 137);
    assert!(was_oom_killed(&ended), "{:?}", ended.state);
    // The other one was told of the event too, runs on, and ends without that mark.
    let running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
    world.until(&modest, running).await;
    world.runtime.kill(&modest).await.unwrap();
    let (code, ended) = world.exited(&modest).await;
    assert_eq!(code, 137);
    assert!(!was_oom_killed(&ended), "{:?}", ended.state);
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_killed_for_memory_is_not_the_containers_end() {
    if is_v2() {
        // The container is one group: the kernel kills it whole, as kubelet asks.
        return;
    }
    let Some(world) = limited().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let spec = ContainerSpec {
        resources: Resources {
            memory_limit_bytes: Some(24 * MIB),
            ..Resources::default()
        },
        ..world.container(
            &pod,
            "main",
            &format!("( {GREEDY} ); echo ended $?; exit 3"),
        )
    };
    let id = world.runtime.start(&spec).await.unwrap();
    let (code, ended) = world.exited(&id).await;
    assert_eq!(code, 3);
    assert!(!was_oom_killed(&ended), "{:?}", ended.state);
    world.runtime.remove(&id).await.unwrap();
    assert!(World::log(&spec).iter().any(|line| line.1 == "ended 137"));
    world.clean(&pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_not_have_more_processes_than_its_limit() {
    let Some(world) = limited().await else {
        return;
    };
    let pod = SandboxSpec {
        resources: Resources {
            pids_limit: Some(20),
            ..Resources::default()
        },
        ..world.pod()
    };
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let script = "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done; sleep 1000";
    let spec = world.container(&pod, "main", script);
    let id = world.runtime.start(&spec).await.unwrap();
    let most = read("pids", &pod.cgroup_parent, "pids.max", "pids.max");
    assert_eq!(most, "20");
    // The shell gives up when it may not fork.
    let (code, _) = world.exited(&id).await;
    assert_ne!(code, 0);
    world.runtime.remove(&id).await.unwrap();
    let log = World::log(&spec);
    assert!(
        log.iter().any(|line| line.1.contains("can't fork")),
        "{log:?}"
    );
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
