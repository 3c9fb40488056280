//! Pods that the node ends although they are wanted.

use super::*;
use crate::edged::pod::verdict::Verdict;

fn evicted(grace_secs: u64) -> Verdict {
    Verdict {
        reason: "Evicted".to_owned(),
        message: "The node was low on resource: memory.".to_owned(),
        grace: Duration::from_secs(grace_secs),
        disruption: None,
    }
}

impl World {
    fn judge(&self, uid: &str, verdict: Verdict) {
        self.edged.as_ref().unwrap().context.judge(uid, verdict);
    }

    async fn until_failed(&self, pod: &str, reason: &str) {
        self.until(reason, |news| {
            let status = news.status(pod);
            status["phase"] == "Failed" && status["reason"] == reason
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_ends_the_pod_for_good_and_the_object_stays() {
    let mut world = World::new();
    world.runtime.make_deaf("c");
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    wanted["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    world.apply(wanted);
    world.until_running("web", 0).await;
    let volume = world.mounted("/v");
    assert!(volume.exists());
    let begun = tokio::time::Instant::now();
    world.judge("uid-web", evicted(5));
    world.judge("uid-web", evicted(50));
    world.until_failed("web", "Evicted").await;
    assert_eq!(begun.elapsed().as_secs(), 5, "the first verdict's grace");
    let status = world.status("web");
    assert_eq!(status["message"], "The node was low on resource: memory.");
    let state = &status["containerStatuses"][0]["state"];
    assert_eq!(state["terminated"]["exitCode"], 137);
    world.settle_disk(|| !volume.exists()).await;
    assert!(world.reasons().contains(&"Evicted".to_owned()));
    assert!(!volume.exists(), "its volumes are given back");
    // Neither time, nor a restart, nor a reboot without the hub brings it back.
    world.pass(3600).await;
    world.stop().await;
    world.runtime.reboot();
    world.sink.forget();
    world.start();
    world.until_failed("web", "Evicted").await;
    world.settle().await;
    assert_eq!(
        (world.calls("start"), world.calls("remove uid-web")),
        (1, 0)
    );
    let state = world.status("web")["containerStatuses"][0]["state"].clone();
    assert_eq!(state["terminated"]["exitCode"], 137);
    assert!(!world.reasons().contains(&"Evicted".to_owned()));
    world.delete("web").await;
    assert!(!world.dir.path().join("disk/uid-web").exists());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_refused_before_it_started_never_starts() {
    let mut world = World::new();
    world.runtime.set_pull_time(Duration::from_secs(600));
    world.start();
    world.apply(web_with("image", json!("slow:1")));
    world.until("pulling", |news| !news.events.is_empty()).await;
    world.judge("uid-web", evicted(0));
    world.until_failed("web", "Evicted").await;
    world.pass(3600).await;
    assert_eq!(world.calls("start"), 0);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_measured_from_the_start_time_and_outlives_the_daemon() {
    let mut world = World::new();
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["activeDeadlineSeconds"] = json!(100);
    world.apply(wanted);
    world.until_running("web", 0).await;
    let started = world.status("web")["startTime"].clone();
    world.pass(60).await;
    world.stop().await;
    let begun = tokio::time::Instant::now();
    world.start();
    world.until_failed("web", "DeadlineExceeded").await;
    assert_eq!(begun.elapsed().as_secs(), 40);
    let status = world.status("web");
    let message = "Pod was active on the node longer than the specified deadline";
    assert_eq!(status["message"], message);
    assert_eq!(status["startTime"], started);
    assert_eq!(world.calls("start"), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn work_that_is_done_is_not_undone_by_a_verdict_or_a_deadline() {
    let mut world = World::new();
    world.runtime.exit_at_once("c", 0);
    world.start();
    let mut wanted = pod("job");
    wanted["spec"]["restartPolicy"] = json!("Never");
    wanted["spec"]["activeDeadlineSeconds"] = json!(10);
    world.apply(wanted);
    world.until_phase("job", "Succeeded").await;
    world.judge("uid-job", evicted(0));
    world.pass(60).await;
    world.settle().await;
    assert_eq!(world.status("job")["phase"], "Succeeded");
    assert_eq!(world.status("job")["reason"], Value::Null);
    world.stop().await;
}
