//! What goes wrong on a real machine: shims and loggers that are killed, reboots, networks that
//! are gone before their time, many pods at once.

use std::fs::File;
use std::time::{Duration, SystemTime};

use edgecore::edged::runtime::{ContainerSpec, ContainerState, Runtime};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::World;

/// Where the private containerd has them.
const SNAPSHOTS: &str = "root/io.containerd.snapshotter.v1.overlayfs/snapshots";
const NOTHING: Vec<String> = Vec::new();

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_takes_its_pod_along_and_the_pod_comes_back() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let spec = world.container(&pod, "main", "sleep 1000");
    let id = world.runtime.start(&spec).await.unwrap();
    for pid in world.shims() {
        kill(pid);
    }
    let gone = world
        .until(&id, |state| {
            !matches!(state, ContainerState::Running { .. })
        })
        .await;
    assert!(
        matches!(
            gone.state,
            ContainerState::Unknown | ContainerState::Exited { exit_code: 137, .. }
        ),
        "{gone:?}"
    );
    world.runtime.remove(&id).await.unwrap();
    let again = ContainerSpec { attempt: 1, ..spec };
    let second = world.runtime.start(&again).await.unwrap();
    world
        .until(&second, |state| {
            matches!(state, ContainerState::Running { .. })
        })
        .await;
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), NOTHING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_records_remain_and_pods_start_again() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let spec = world.container(&pod, "main", "sleep 1000");
    let id = world.runtime.start(&spec).await.unwrap();

    // The power fails: processes, mounts and everything on tmpfs are gone.
    world.daemon.kill().unwrap();
    for pid in world.shims() {
        kill(pid);
    }
    World::kill_pod_processes(&pod);
    for point in World::mounts(world.directory.path()).iter().rev() {
        unmount(point.as_str(), UnmountFlags::DETACH).unwrap();
    }
    let bridge = world.bridge();
    std::fs::remove_dir_all(&world.config.state_dir).unwrap();
    std::fs::remove_dir_all(world.directory.path().join("state")).unwrap();
    world.daemon.restart().unwrap();

    let found = world
        .until(&id, |state| {
            !matches!(state, ContainerState::Running { .. })
        })
        .await;
    assert_eq!(found.state, ContainerState::Unknown);
    assert!(world.runtime.sandboxes().await.unwrap().is_empty());
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    assert_eq!(world.bridge(), bridge, "the same network as before");
    let again = ContainerSpec { attempt: 1, ..spec };
    world.runtime.start(&again).await.unwrap();
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), NOTHING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_broke_off_is_taken_up() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let spec = world.container(&pod, "main", "exit 3");
    // What a crash after the first step leaves: the record alone.
    let id = world.runtime.start(&spec).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 3);
    world.ctr(&["tasks", "rm", &id]);
    world.ctr(&["snapshots", "rm", &id]);
    assert_eq!(world.runtime.start(&spec).await.unwrap(), id);
    assert_eq!(world.exited(&id).await.0, 3);
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), NOTHING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_namespace_gone_early_is_still_cleaned_up() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    let first = world.runtime.ensure_sandbox(&pod).await.unwrap();
    let pin = world
        .config
        .state_dir
        .join("sandboxes")
        .join(&pod.pod_uid)
        .join("ns/net");
    unmount(&pin, UnmountFlags::DETACH).unwrap();
    let second = world.runtime.ensure_sandbox(&pod).await.unwrap();
    assert_eq!(second.ips.len(), 1);
    assert_eq!(first.pod_uid, second.pod_uid);
    unmount(&pin, UnmountFlags::DETACH).unwrap();
    std::fs::remove_file(&pin).unwrap();
    world.runtime.remove_sandbox(&pod.pod_uid).await.unwrap();
    world.runtime.remove_sandbox(&pod.pod_uid).await.unwrap();
    assert_eq!(world.leftovers(), NOTHING);
}

/// Containers each of the pods goes through.
const ROUNDS: u32 = 4;

/// Deleting any container sets garbage collection off, which takes what nothing refers to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starting_and_removing_at_once_loses_nothing() {
    let Some(world) = World::new().await else {
        return;
    };
    let one_pod = |world: &World| {
        let pod = world.pod();
        let spec = world.container(&pod, "main", "exit 5");
        (pod, spec)
    };
    let work = [one_pod(&world), one_pod(&world), one_pod(&world)].map(|(pod, spec)| {
        let world = &world;
        async move {
            world.runtime.ensure_sandbox(&pod).await.unwrap();
            for attempt in 0..ROUNDS {
                let spec = ContainerSpec {
                    attempt,
                    ..spec.clone()
                };
                let id = world.runtime.start(&spec).await.unwrap();
                assert_eq!(world.exited(&id).await.0, 5);
                world.runtime.remove(&id).await.unwrap();
            }
            world.runtime.remove_sandbox(&pod.pod_uid).await.unwrap();
        }
    });
    futures_util::future::join_all(work).await;
    assert_eq!(world.leftovers(), NOTHING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_snapshot_is_cleared_out_of_the_way() {
    let Some(world) = World::new().await else {
        return;
    };
    // A daemon that is killed while it makes a snapshot leaves its directory, and its number is
    // given again.
    let snapshots = world.directory.path().join(SNAPSHOTS);
    let entries = std::fs::read_dir(&snapshots).unwrap();
    let last = entries
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
        .max()
        .unwrap();
    for next in last + 1..last + 20 {
        let left = snapshots.join(next.to_string());
        std::fs::create_dir(&left).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        File::open(&left).unwrap().set_modified(long_ago).unwrap();
    }
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let spec = world.container(&pod, "main", "exit 5");
    let id = world.runtime.start(&spec).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 5);
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), NOTHING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_images_take_their_content_along() {
    let Some(world) = World::new().await else {
        return;
    };
    let images = world.runtime.images().await.unwrap();
    assert_eq!(images.len(), 1);
    world.runtime.remove_image("busybox:test").await.unwrap();
    assert!(world.runtime.images().await.unwrap().is_empty());
    assert_eq!(world.ctr(&["content", "ls", "-q"]), "");
    assert_eq!(
        world.ctr(&["snapshots", "ls"]).lines().count(),
        1,
        "the heading"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_and_privileged_containers_run() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let tty = ContainerSpec {
        tty: true,
        ..world.container(&pod, "tty", "test -t 1 && echo terminal")
    };
    let id = world.runtime.start(&tty).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 0);
    world.runtime.remove(&id).await.unwrap();
    assert!(World::log(&tty)[0].1.starts_with("terminal"));

    let privileged = ContainerSpec {
        privileged: true,
        ..world.container(
            &pod,
            "root",
            "ls /dev/null && mount -t tmpfs x /tmp && exit 9",
        )
    };
    let id = world.runtime.start(&privileged).await.unwrap();
    let (code, _) = world.exited(&id).await;
    assert_eq!(code, 9, "{:?}", World::log(&privileged));
    let named = ContainerSpec {
        run_as_user: Some(405),
        no_new_privileges: true,
        read_only_rootfs: true,
        drop_capabilities: vec!["ALL".to_owned()],
        ..world.container(
            &pod,
            "guest",
            "id; touch /etc/x 2>/dev/null && exit 1; exit 0",
        )
    };
    let id = world.runtime.start(&named).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 0);
    world.runtime.remove(&id).await.unwrap();
    let said = &World::log(&named)[0].1;
    assert!(
        said.contains("uid=405") && said.contains("gid=100"),
        "{said}"
    );
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), NOTHING);
}
