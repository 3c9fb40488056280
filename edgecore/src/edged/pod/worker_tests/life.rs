//! Starts, ends, restarts, adoption.

use super::*;

/// The API takes any `int64`; the node must not fall over one.
#[tokio::test(start_paused = true)]
async fn a_grace_beyond_all_clocks_is_for_ever() {
    let mut world = World::new();
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["terminationGracePeriodSeconds"] = json!(i64::MAX);
    let container = &mut wanted["spec"]["containers"][0];
    container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": i64::MAX}}});
    container["livenessProbe"] = json!({"exec": {"command": ["up"]}, "failureThreshold": 1,
        "terminationGracePeriodSeconds": i64::MAX});
    world.runtime.on_exec("up", 1, "", Duration::ZERO);
    world.apply(wanted);
    world.until_running("web", 0).await;
    world
        .until("ending", |news| {
            news.events.iter().any(|event| event["reason"] == "Killing")
        })
        .await;
    world.edit("uid-web", |pod| {
        delete(pod);
        pod.metadata.deletion_grace_period_seconds = Some(i64::MAX);
    });
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    assert_eq!(
        world.calls("stop") + world.calls("kill"),
        0,
        "the hook has time"
    );
    world.edit("uid-web", |pod| {
        pod.metadata.deletion_grace_period_seconds = Some(1);
    });
    world.until("gone", |news| news.gone == ["web"]).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_is_deleted_and_leaves_nothing() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    let status = world.status("web");
    assert_eq!(status["podIP"], "10.88.0.7");
    assert_eq!(status["hostIP"], "192.0.2.9");
    assert_eq!(
        status["containerStatuses"][0]["containerID"],
        "containerd://uid-web-c-0"
    );
    assert!(world.dir.path().join("run/uid-web/etc/hosts").exists());
    world.delete("web").await;
    assert!(world.runtime.sandbox_uids().is_empty());
    assert!(!world.dir.path().join("run/uid-web").exists());
    assert_eq!(world.reasons(), ["Pulled", "Created", "Started", "Killing"]);
    assert_eq!(
        world.runtime.calls(),
        [
            "sandbox web",
            "start c 0",
            "stop uid-web-c-0",
            "remove uid-web-c-0",
            "remove-sandbox uid-web"
        ]
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_deaf_to_term_is_killed_after_its_grace() {
    let mut world = World::new();
    world.runtime.make_deaf("c");
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    assert_eq!(world.delete("web").await.as_secs(), 30);
    assert_eq!((world.calls("stop"), world.calls("kill")), (1, 1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn crashes_back_off_and_are_told() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    world.runtime.exit("c", 1);
    world.until_running("web", 1).await;
    let begun = tokio::time::Instant::now();
    world.runtime.exit("c", 1);
    world.until_waiting("web", "CrashLoopBackOff").await;
    let status = world.status("web");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(container["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(status["phase"], "Running");
    world.until_running("web", 2).await;
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert!(world.reasons().contains(&"BackOff".to_owned()));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn running_containers_are_adopted_and_not_restarted() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    world.pass(1).await;
    let before = world.status("web");
    world.stop().await;
    world.pass(3600).await;
    world.sink.forget();
    world.start();
    world.until_running("web", 0).await;
    world.settle().await;
    assert_eq!(world.status("web"), before, "times included");
    assert_eq!(world.calls("start"), 1);
    assert_eq!(world.calls("stop"), 0);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_store_ends_nothing_that_ran_before_it() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    world.stop().await;
    let known = std::mem::take(&mut *world.store.pods.lock().unwrap());
    for dir in ["disk", "run"] {
        std::fs::remove_dir_all(world.dir.path().join(dir)).unwrap();
    }
    // All of the node's data is lost, and nobody can tell it what it should run.
    world.store.is_new.store(true, Ordering::Relaxed);
    world.store.is_broken.store(true, Ordering::Relaxed);
    world.sink.forget();
    world.start();
    world.pass(600).await;
    world.store.is_broken.store(false, Ordering::Relaxed);
    world.bump();
    world.apply(pod("other"));
    world.until_running("other", 0).await;
    world.pass(600).await;
    assert_eq!(world.calls("stop"), 0);
    // The hub has spoken: one is wanted again, and adopted; the other one is not.
    world.store.is_incomplete.store(false, Ordering::Relaxed);
    world.store.set(known.into_values());
    world
        .until("other gone", |news| news.gone == ["other"])
        .await;
    world.until_running("web", 0).await;
    assert_eq!(world.calls("stop uid-web"), 0);
    assert_eq!(world.calls("start"), 2);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_exit_while_away_is_found_and_an_unknown_pod_ended() {
    let mut world = World::new();
    world.runtime.add_container(Container {
        id: "old".to_owned(),
        pod_uid: "uid-stray".to_owned(),
        pod_namespace: "default".to_owned(),
        pod_name: "stray".to_owned(),
        name: "c".to_owned(),
        attempt: 3,
        spec_hash: "x".to_owned(),
        image: IMAGE.to_owned(),
        image_id: String::new(),
        log_path: "/nowhere".into(),
        state: ContainerState::Running {
            started_at_ms: EPOCH_MS,
        },
    });
    world.apply(pod("web"));
    world.start();
    world.until_running("web", 0).await;
    world
        .until("stray gone", |news| news.gone == ["stray"])
        .await;
    world.stop().await;
    world.runtime.exit("c", 3);
    world.start();
    world.until_running("web", 1).await;
    let last = world.status("web")["containerStatuses"][0]["lastState"].clone();
    assert_eq!(last["terminated"]["exitCode"], 3);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_store_stops_nothing() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    world.store.is_broken.store(true, Ordering::Relaxed);
    world.bump();
    world.settle().await;
    world.runtime.exit("c", 1);
    world.until_running("web", 1).await;
    assert_eq!(world.calls("stop") + world.calls("remove"), 0);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_containerd_and_the_node_says_so() {
    let mut world = World::new();
    world.runtime.set_down(true);
    world.start();
    world.apply(pod("web"));
    world
        .until("not ready", |news| {
            let last = news.nodes.last().map(|n| &n["status"]["conditions"][3]);
            last.is_some_and(|c| c["type"] == "Ready" && c["status"] == "False")
        })
        .await;
    world.runtime.set_down(false);
    world.until_running("web", 0).await;
    world
        .until("ready", |news| {
            let last = news.nodes.last().map(|n| &n["status"]["conditions"][3]);
            last.is_some_and(|c| c["status"] == "True" && c["reason"] == "EdgeReady")
        })
        .await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn containerd_lost_while_a_container_ends_is_made_up_for() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    world.runtime.set_down(true);
    world.runtime.exit("c", 1);
    world.until("not ready", |news| news.nodes.len() >= 2).await;
    world.runtime.set_down(false);
    world.until_running("web", 1).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_may_not_restart_ends_and_stays_so() {
    let mut world = World::new();
    world.runtime.exit_at_once("c", 0);
    world.start();
    let mut wanted = pod("job");
    wanted["spec"]["restartPolicy"] = json!("Never");
    world.apply(wanted);
    world.until_phase("job", "Succeeded").await;
    world.edit("uid-job", |pod| {
        let status = pod.status.get_or_insert_default();
        status.phase = Some("Succeeded".to_owned());
    });
    world.settle().await;
    world.stop().await;
    world.runtime.reboot();
    world.start();
    world.settle().await;
    assert_eq!(world.calls("start"), 1);
    assert_eq!(world.status("job")["phase"], "Succeeded");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_come_first_and_in_order() {
    let mut world = World::new();
    world.runtime.exit_at_once("one", 0);
    world.runtime.exit_at_once("two", 0);
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["initContainers"] =
        json!([{"name": "one", "image": IMAGE}, {"name": "two", "image": IMAGE}]);
    world.apply(wanted);
    world.until_running("web", 0).await;
    let starts: Vec<String> = world
        .runtime
        .calls()
        .into_iter()
        .filter(|c| c.starts_with("start"))
        .collect();
    assert_eq!(starts, ["start one 0", "start two 0", "start c 0"]);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_image_restarts_the_container() {
    let mut world = World::new();
    world.runtime.add_image("busybox:2");
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    world.edit("uid-web", |pod| {
        pod.spec.as_mut().unwrap().containers[0].image = Some("busybox:2".to_owned());
    });
    world.until_running("web", 1).await;
    assert_eq!(
        world.status("web")["containerStatuses"][0]["image"],
        "busybox:2"
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_twice_and_everything_again_on_request() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    // The listing that confirms the start comes a moment later.
    world.pass(1).await;
    let (told, nodes) = (
        world.sink.0.borrow().told,
        world.sink.0.borrow().nodes.len(),
    );
    world.bump();
    world.settle().await;
    world.pass(86_400).await;
    assert_eq!(world.sink.0.borrow().told, told);
    assert_eq!(world.sink.0.borrow().nodes.len(), nodes);
    world.edged.as_ref().unwrap().resend();
    world
        .until("told again", |news| {
            news.told == told + 1 && news.nodes.len() == nodes + 1
        })
        .await;
    assert_eq!(world.edged.as_ref().unwrap().pods()[0].phase, "Running");
    world.stop().await;
}
