//! postStart and preStop.

use super::*;

fn hooked(hooks: Value) -> Value {
    web_with("lifecycle", hooks)
}

fn exec(command: &str) -> Value {
    json!({"exec": {"command": [command]}})
}

#[tokio::test(start_paused = true)]
async fn a_container_runs_when_its_post_start_hook_is_over() {
    let mut world = World::new();
    world.runtime.on_exec("up", 0, "", Duration::from_secs(7));
    world.start();
    let mut wanted = hooked(json!({"postStart": exec("up")}));
    let second = json!({"name": "d", "image": IMAGE});
    wanted["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(second);
    let begun = tokio::time::Instant::now();
    world.apply(wanted);
    world
        .until("told", |news| news.statuses.contains_key("web"))
        .await;
    world.pass(5).await;
    assert_eq!(world.calls("start"), 1, "the next one waits");
    let state = world.status("web")["containerStatuses"][0]["state"].clone();
    assert_eq!(state["waiting"]["reason"], "ContainerCreating");
    world.until_running("web", 0).await;
    assert_eq!(begun.elapsed().as_secs(), 7);
    assert_eq!(world.calls("start d"), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_ends_the_container() {
    let mut world = World::new();
    world.runtime.on_exec("up", 3, "secret", Duration::ZERO);
    world.start();
    world.apply(hooked(json!({"postStart": exec("up")})));
    world.until_waiting("web", "CrashLoopBackOff").await;
    assert_eq!(
        world.messages("FailedPostStartHook")[0],
        "PostStartHook failed"
    );
    assert_eq!(world.messages("Killing")[0], "FailedPostStartHook");
    let state = world.status("web")["containerStatuses"][0].clone();
    assert_eq!(state["restartCount"], 1);
    world.runtime.on_exec("up", 0, "", Duration::ZERO);
    world.until_running("web", 2).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_comes_before_the_signal_and_within_the_grace() {
    for (takes, until_gone) in [(12, 12), (45, 30)] {
        let mut world = World::new();
        world
            .runtime
            .on_exec("bye", 0, "", Duration::from_secs(takes));
        world.start();
        world.apply(hooked(json!({"preStop": exec("bye")})));
        world.until_running("web", 0).await;
        assert_eq!(world.delete("web").await.as_secs(), until_gone);
        assert!(world.position("exec uid-web-c-0 bye") < world.position("stop uid-web-c-0"));
        assert_eq!(world.calls("kill"), 0);
        let failed = world.messages("FailedPreStopHook").len();
        assert_eq!(failed, usize::from(takes > 30));
        world.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_hook_left_of_the_grace_is_the_containers_but_never_less_than_two_seconds() {
    for (takes, until_gone) in [(10, 30), (30, 32)] {
        let mut world = World::new();
        world.runtime.make_deaf("c");
        world.start();
        world.apply(hooked(json!({"preStop": {"sleep": {"seconds": takes}}})));
        world.until_running("web", 0).await;
        assert_eq!(world.delete("web").await.as_secs(), until_gone);
        assert_eq!((world.calls("stop"), world.calls("kill")), (1, 1));
        world.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_grace_means_no_hook_and_two_seconds() {
    let mut world = World::new();
    world.runtime.make_deaf("c");
    world.start();
    world.apply(hooked(json!({"preStop": exec("bye")})));
    world.until_running("web", 0).await;
    let begun = tokio::time::Instant::now();
    world.edit("uid-web", |pod| {
        delete(pod);
        pod.metadata.deletion_grace_period_seconds = Some(0);
    });
    world.until_gone("web").await;
    assert_eq!((begun.elapsed().as_secs(), world.calls("exec")), (2, 0));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_liveness_failure_runs_the_hook_too() {
    let mut world = World::new();
    world.runtime.on_exec("probe", 1, "", Duration::ZERO);
    world.start();
    let mut wanted = hooked(json!({"preStop": exec("bye")}));
    wanted["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["probe"]}, "failureThreshold": 1});
    world.apply(wanted);
    world.until_restarted("web", 1).await;
    assert_eq!(world.calls("exec uid-web-c-0 bye"), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn last_words_are_told_from_the_file_that_was_mounted() {
    let mut world = World::new();
    world.start();
    world.apply(web_with("terminationMessagePath", json!("/bye")));
    world.until_running("web", 0).await;
    let file = world.mounted("/bye");
    std::fs::write(&file, "the paper is out").unwrap();
    world.runtime.exit("c", 4);
    world.until_running("web", 1).await;
    let last = world.status("web")["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!(last["message"], "the paper is out");
    world.delete("web").await;
    assert!(!file.exists());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_not_there_is_a_start_error() {
    let mut world = World::new();
    for _ in 0..3 {
        let reason = "exec: \"nosuch\": executable file not found in $PATH".to_owned();
        world
            .runtime
            .fail_start("c", RuntimeError::Start { reason });
    }
    world.start();
    world.apply(pod("web"));
    world.until_waiting("web", "RunContainerError").await;
    world.until_waiting("web", "CrashLoopBackOff").await;
    let container = world.status("web")["containerStatuses"][0].clone();
    assert_eq!(container["restartCount"], 1);
    let last = &container["lastState"]["terminated"];
    assert_eq!(
        (&last["reason"], &last["exitCode"]),
        (&json!("StartError"), &json!(128))
    );
    assert!(last["message"].as_str().unwrap().contains("nosuch"));
    world.until_running("web", 3).await;
    world.settle().await;
    let calls = world.runtime.calls();
    let removed = calls.iter().any(|call| call.starts_with("remove uid-web/"));
    assert!(!removed, "what never was is not removed: {calls:?}");
    // But what was made for it is: a command that is wrong for a year would fill the disk.
    let words = world.dir.path().join("disk/uid-web/exits/messages");
    let left = || {
        let mut names: Vec<_> = std::fs::read_dir(&words)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    world.settle_disk(|| left() == ["c.2", "c.3"]).await;
    assert_eq!(left(), ["c.2", "c.3"]);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_waits_for_a_daemon_that_is_away() {
    let mut world = World::new();
    world.runtime.on_exec("up", 0, "", Duration::from_secs(5));
    world.start();
    world.apply(hooked(json!({"postStart": exec("up")})));
    world
        .until("told", |news| news.statuses.contains_key("web"))
        .await;
    world.pass(1).await;
    world.runtime.set_down(true);
    world.pass(60).await;
    world.runtime.set_down(false);
    world.until_running("web", 0).await;
    assert_eq!(world.calls("stop") + world.calls("kill"), 0);
    world.stop().await;
}
