//! Traps of containerd that no other test would notice (`docs/traps.md`).

use std::time::Duration;

use anyhow::ensure;
use edgecore::edged::runtime::{ContainerState, Runtime, SandboxSpec};

use crate::wait;
use crate::world::{PATIENCE, World};

/// Less than the time after which everything is compared anyway.
const SOON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_daemon_is_heard_at_once_and_so_is_an_exit() {
    let Some(quiet) = World::empty() else {
        return;
    };
    let heard = |mut changes: tokio::sync::watch::Receiver<u64>, known: u64| async move {
        let heard = changes.wait_for(|count| *count > known);
        let heard = tokio::time::timeout(SOON, heard).await;
        heard.expect("nothing was heard").map(|_| ()).unwrap();
    };
    // Nothing happens there.
    heard(quiet.runtime.changes(), 0).await;

    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    // Past the second look that is taken after a start.
    let spec = world.container(&pod, "main", "sleep 2; echo up; exec sleep 1000");
    let id = world.runtime.start(&spec).await.unwrap();
    wait::until("the container to be up", PATIENCE, async || {
        ensure!(!World::log(&spec).is_empty());
        Ok(Some(()))
    })
    .await
    .unwrap();
    let changes = world.runtime.changes();
    let known = *changes.borrow();
    World::kill_pod_processes(&pod);
    heard(changes, known).await;
    assert_eq!(world.exited(&id).await.0, 137);
    world.runtime.remove(&id).await.unwrap();
    world.clean(&pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_with_one_namespace_do_not_touch_each_others_containers() {
    let Some(first) = World::new().await else {
        return;
    };
    let namespace = first.config.namespace.clone();
    let Some(second) = World::with(|config| config.namespace = namespace) else {
        return;
    };
    let archive = first.directory.path().join("busybox.tar");
    second.runtime.import_archive(&archive, None).await.unwrap();
    let pod = first.pod();
    let twin = SandboxSpec {
        cgroup_parent: format!("{}/pod{}", second.config.cgroup_root, pod.pod_uid),
        ..pod.clone()
    };
    first.runtime.ensure_sandbox(&pod).await.unwrap();
    second.runtime.ensure_sandbox(&twin).await.unwrap();
    let script = "trap 'exit 3' TERM; sleep 1000 & wait";
    let own = first.container(&pod, "main", script);
    let id = first.runtime.start(&own).await.unwrap();
    let spec = second.container(&twin, "main", script);
    let same = second.runtime.start(&spec).await.unwrap();
    assert_eq!(same, id);
    second.runtime.kill(&id).await.unwrap();
    second.exited(&id).await;
    second.runtime.remove(&id).await.unwrap();
    second.clean(&twin).await;
    let listed = first.runtime.containers().await.unwrap();
    let runs = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
    assert!(listed.len() == 1 && runs(&listed[0].state), "{listed:?}");
    let command = ["true".to_owned()];
    let answer = first.runtime.exec_sync(&id, &command, PATIENCE).await;
    assert_eq!(answer.unwrap().exit_code, 0, "runc knows it still");
    first.runtime.kill(&id).await.unwrap();
    first.exited(&id).await;
    first.runtime.remove(&id).await.unwrap();
    first.clean(&pod).await;
}
