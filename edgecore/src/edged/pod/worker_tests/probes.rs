//! Probes: what they do to containers and to the status.

use super::*;

fn exec(period: u64, failures: u64) -> Value {
    json!({"exec": {"command": ["probe"]}, "periodSeconds": period, "failureThreshold": failures})
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_restarts_the_container() {
    let mut world = World::new();
    world.start();
    world.apply(web_with("livenessProbe", exec(5, 2)));
    world.until_running("web", 0).await;
    world.pass(30).await;
    let told = world.sink.0.borrow().told;
    assert!(world.calls("exec") >= 5, "asked every period");
    world.runtime.on_exec("probe", 1, "on fire", Duration::ZERO);
    world.until_restarted("web", 1).await;
    let status = world.status("web");
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 0, "it heeded TERM: {last}");
    assert_eq!(
        world.messages("Unhealthy"),
        ["Liveness probe failed: on fire"; 2]
    );
    assert_eq!(
        world.messages("Killing"),
        ["Container c failed liveness probe, will be restarted"]
    );
    // It fails on, and comes into the usual back-off.
    world.until_waiting("web", "CrashLoopBackOff").await;
    assert!(world.sink.0.borrow().told > told);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn results_that_change_nothing_write_nothing() {
    let mut world = World::new();
    world.start();
    world.apply(web_with("readinessProbe", exec(1, 3)));
    world.until_ready("web", true).await;
    let told = world.sink.0.borrow().told;
    world.pass(600).await;
    assert!(world.calls("exec") > 500);
    assert_eq!(world.sink.0.borrow().told, told);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn readiness_is_shown_and_restarts_nothing() {
    let mut world = World::new();
    world.runtime.on_exec("probe", 1, "", Duration::ZERO);
    world.start();
    world.apply(web_with("readinessProbe", exec(5, 1)));
    world.until_restarted("web", 0).await;
    let status = world.status("web");
    assert_eq!(status["containerStatuses"][0]["ready"], false);
    assert_eq!(status["containerStatuses"][0]["started"], true);
    assert_eq!(
        status["conditions"][2]["message"],
        "containers with unready status: [c]"
    );
    world.pass(60).await;
    world.runtime.on_exec("probe", 0, "", Duration::ZERO);
    world.until_ready("web", true).await;
    world
        .runtime
        .on_exec("probe", 0, "", Duration::from_secs(60));
    world.until_ready("web", false).await;
    let last = world.messages("Unhealthy").pop();
    assert_eq!(
        last.as_deref(),
        Some("Readiness probe failed: command timed out: \"probe\" timed out after 1s")
    );
    assert_eq!(world.calls("start"), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn startup_holds_the_others_and_ends_what_never_comes_up() {
    let mut world = World::new();
    world.runtime.on_exec("up", 1, "", Duration::ZERO);
    world.start();
    let mut wanted = web_with("livenessProbe", exec(1, 1));
    wanted["spec"]["containers"][0]["startupProbe"] = json!({"exec": {"command": ["up"]},
        "periodSeconds": 2, "failureThreshold": 5, "terminationGracePeriodSeconds": 4});
    world.runtime.make_deaf("c");
    let begun = tokio::time::Instant::now();
    world.apply(wanted);
    world.until_restarted("web", 1).await;
    // One second, four periods, then the probe's own grace.
    assert_eq!(begun.elapsed().as_secs(), 1 + 4 * 2 + 4);
    assert_eq!(world.calls("exec uid-web-c-0 probe"), 0);
    assert_eq!(
        world.messages("Killing"),
        ["Container c failed startup probe, will be restarted"]
    );
    let last = world.status("web")["containerStatuses"][0]["lastState"].clone();
    assert_eq!(last["terminated"]["exitCode"], 137);
    world.runtime.on_exec("up", 0, "", Duration::ZERO);
    world.until_running("web", 1).await;
    world.pass(10).await;
    assert!(world.calls("exec uid-web-c-1 probe") > 5);
    let ups = world.calls("exec uid-web-c-1 up");
    world.pass(10).await;
    assert_eq!(world.calls("exec uid-web-c-1 up"), ups, "started up once");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_daemon_makes_nothing_unready() {
    let mut world = World::new();
    world.start();
    world.apply(web_with("readinessProbe", exec(10, 1)));
    world.until_ready("web", true).await;
    let status = world.status("web");
    world.stop().await;
    world.edit("uid-web", |pod| {
        pod.status = Some(serde_json::from_value(status).unwrap());
    });
    world.sink.forget();
    world.start();
    world.until_ready("web", true).await;
    assert_eq!(world.sink.0.borrow().told, 1, "never told as unready");
    let asked = world.calls("exec");
    world.pass(11).await;
    assert!(world.calls("exec") > asked);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_holds_up_nothing() {
    let mut world = World::new();
    world
        .runtime
        .on_exec("probe", 0, "", Duration::from_secs(100_000));
    world.start();
    let mut wanted = web_with("readinessProbe", exec(10, 1));
    wanted["spec"]["containers"][0]["readinessProbe"]["timeoutSeconds"] = json!(1000);
    world.apply(wanted);
    world.until_restarted("web", 0).await;
    world.pass(5).await;
    assert_eq!(world.calls("exec"), 1);
    assert_eq!(world.delete("web").await.as_secs(), 0);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_alive_is_asked_of_a_pod_that_ends() {
    let mut world = World::new();
    world.runtime.make_deaf("c");
    world.start();
    let mut wanted = web_with("livenessProbe", exec(1, 1));
    wanted["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["ready"]}, "periodSeconds": 1});
    world.apply(wanted);
    world.until_ready("web", true).await;
    world.edit("uid-web", delete);
    world
        .until("stopping", |news| {
            news.events.iter().any(|e| e["reason"] == "Killing")
        })
        .await;
    let asked = (
        world.calls("exec uid-web-c-0 probe"),
        world.calls("exec uid-web-c-0 ready"),
    );
    world.pass(10).await;
    assert_eq!(world.calls("exec uid-web-c-0 probe"), asked.0);
    assert!(world.calls("exec uid-web-c-0 ready") > asked.1 + 5);
    world.until_gone("web").await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_address_stays_while_another_container_cannot_be_started() {
    let mut world = World::new();
    for _ in 0..50 {
        let reason = "no".to_owned();
        world
            .runtime
            .fail_start("d", RuntimeError::Create { reason });
    }
    world.start();
    let mut wanted = pod("web");
    let second = json!({"name": "d", "image": IMAGE, "imagePullPolicy": "IfNotPresent"});
    wanted["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(second);
    world.apply(wanted);
    world
        .until("refused", |news| {
            let second = &news.status("web")["containerStatuses"][1];
            second["state"]["waiting"]["reason"] == "CreateContainerError"
        })
        .await;
    world.pass(5).await;
    assert_eq!(world.status("web")["podIP"], "10.88.0.7");
    world.stop().await;
}
