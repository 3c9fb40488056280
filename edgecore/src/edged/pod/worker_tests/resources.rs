//! Pods that the node does not take, and those that it ends to live on itself.

use super::*;
use crate::edged::eviction::threshold::{Amount, Config, Signal, Threshold};

fn with(name: &str, requests: &Value, ports: Value) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": requests});
    pod["spec"]["containers"][0]["ports"] = ports;
    pod
}

impl World {
    fn start_with(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings();
        change(&mut settings);
        self.start_on(settings);
    }

    async fn until_ended(&self, pod: &str, reason: &str) -> String {
        self.until(reason, |news| {
            let status = news.statuses.get(pod);
            status.is_some_and(|s| s["phase"] == "Failed" && s["reason"] == reason)
        })
        .await;
        self.status(pod)["message"].as_str().unwrap().to_owned()
    }
}

/// Always short, whatever the machine has.
fn always(signal: Signal) -> Config {
    Config {
        thresholds: vec![Threshold {
            signal,
            amount: Amount::Value(i64::MAX),
            grace: None,
            reclaim: None,
        }],
        ..Config::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_fails_with_the_reason_and_others_run() {
    let mut world = World::new();
    world.start_with(|settings| settings.pods_max = 3);
    let port = json!([{"containerPort": 80, "hostPort": 8080}]);
    world.apply(with("first", &json!({}), port.clone()));
    world.until_running("first", 0).await;
    world.apply(with("greedy", &json!({"memory": "1Ei"}), json!([])));
    let message = world.until_ended("greedy", "OutOfmemory").await;
    assert!(
        message.starts_with(
            "Pod was rejected: Node didn't have enough resource: memory, requested: 1152921504606846976, used: 0, capacity: "
        ),
        "{message}"
    );
    world.apply(with("second", &json!({}), port));
    let message = world.until_ended("second", "NodePorts").await;
    assert!(message.starts_with("Pod was rejected: Predicate NodePorts failed: "));
    // Who was refused uses nothing.
    world.apply(pod("third"));
    world.apply(pod("fourth"));
    world.until_running("third", 0).await;
    world.until_running("fourth", 0).await;
    world.apply(pod("fifth"));
    world.until_ended("fifth", "OutOfpods").await;
    assert_eq!(world.calls("start"), 3);
    let reasons = world.reasons();
    assert!(reasons.contains(&"OutOfmemory".to_owned()), "{reasons:?}");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_is_never_looked_at_again() {
    let mut world = World::new();
    world.start();
    world.apply(with("one", &json!({"cpu": "1m"}), json!([])));
    world.apply(with("two", &json!({"cpu": "1m"}), json!([])));
    world.until_running("one", 0).await;
    world.until_running("two", 0).await;
    world.stop().await;
    // The daemon comes back with less room, under pressure, and after a reboot.
    world.runtime.reboot();
    world.start_with(|settings| {
        settings.pods_max = 1;
        // Soft: it is told, and ends nobody in the time of this test.
        let mut short = always(Signal::NodefsAvailable);
        for threshold in &mut short.thresholds {
            threshold.grace = Some(Duration::from_secs(86_400_000));
        }
        settings.eviction = short;
    });
    world.until_running("one", 1).await;
    world.until_running("two", 1).await;
    world.apply(pod("three"));
    world.until_ended("three", "Evicted").await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_being_left_is_waited_for() {
    let mut world = World::new();
    world.runtime.make_deaf("c");
    world.start_with(|settings| settings.pods_max = 1);
    world.apply(pod("old"));
    world.until_running("old", 0).await;
    let begun = tokio::time::Instant::now();
    world.edit("uid-old", delete);
    world.apply(pod("new"));
    world.until("old gone", |news| news.gone == ["old"]).await;
    assert_eq!(begun.elapsed().as_secs(), 30, "its grace");
    world.store.pods.lock().unwrap().remove("uid-old");
    world.bump();
    world.until_running("new", 0).await;
    assert!(begun.elapsed().as_secs() < 33, "{:?}", begun.elapsed());
    // How soon after is the scheduler's; not beside the old one.
    assert!(world.position("sandbox new") > world.position("remove-sandbox uid-old"));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_critical_pod_ends_the_least_important() {
    let mut world = World::new();
    world.start_with(|settings| settings.pods_max = 2);
    world.apply(pod("best"));
    world.apply(with("burstable", &json!({"cpu": "1m"}), json!([])));
    world.until_running("best", 0).await;
    world.until_running("burstable", 0).await;
    let mut critical = pod("critical");
    critical["spec"]["priority"] = json!(2_000_001_000);
    world.apply(critical);
    let message = world.until_ended("best", "Preempting").await;
    assert_eq!(message, "Preempted in order to admit critical pod");
    world.until_running("critical", 0).await;
    world.until_running("burstable", 0).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_shortage_ends_one_pod_after_the_other_and_never_a_critical_one() {
    let mut world = World::new();
    world.start_with(|settings| settings.eviction = always(Signal::MemoryAvailable));
    world
        .until("pressure told", |news| {
            let node = news.nodes.last();
            let conditions = node.map(|node| node["status"]["conditions"].clone());
            conditions.is_some_and(|c| {
                c.as_array()
                    .unwrap()
                    .iter()
                    .any(|one| one["type"] == "MemoryPressure" && one["status"] == "True")
            })
        })
        .await;
    let mut critical = pod("critical");
    critical["spec"]["priority"] = json!(2_000_001_000);
    world.apply(critical);
    let mut patient = with("important", &json!({"cpu": "1m"}), json!([]));
    patient["spec"]["priority"] = json!(1000);
    world.apply(patient);
    world.apply(with("plain", &json!({"cpu": "1m"}), json!([])));
    world.apply(pod("best"));
    let message = world.until_ended("best", "Evicted").await;
    assert_eq!(
        message,
        "Pod was rejected: The node had condition: [MemoryPressure]. "
    );
    let message = world.until_ended("plain", "Evicted").await;
    assert!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: "),
        "{message}"
    );
    assert_eq!(
        world.status("important")["phase"],
        "Running",
        "one at a time"
    );
    world.until_ended("important", "Evicted").await;
    world.pass(120).await;
    assert_eq!(world.status("critical")["phase"], "Running");
    let reasons = world.reasons();
    let met = reasons
        .iter()
        .filter(|r| *r == "EvictionThresholdMet")
        .count();
    assert_eq!(met, 1, "{reasons:?}");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_grows_too_large_ends_its_pod_alone() {
    let mut world = World::new();
    world.start();
    for name in ["small", "large"] {
        let mut pod = pod(name);
        pod["spec"]["volumes"] = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "scratch", "mountPath": "/scratch"}]);
        world.apply(pod);
        world.until_running(name, 0).await;
    }
    let volume = "disk/uid-large/volumes/kubernetes.io~empty-dir/scratch/file";
    std::fs::write(world.dir.path().join(volume), vec![7; 2 << 20]).unwrap();
    let message = world.until_ended("large", "Evicted").await;
    assert_eq!(
        message,
        "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". "
    );
    assert_eq!(world.status("small")["phase"], "Running");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_ends_nothing_and_takes_no_room_unasked() {
    let mut world = World::new();
    let record = world.dir.path().join("disk/uid-web/exits/.pod.json");
    let aside = record.with_file_name(".pod.json.unreadable");
    let mut wanted = pod("web");
    wanted["spec"]["activeDeadlineSeconds"] = json!(600);
    world.start();
    world.apply(wanted);
    world.until_running("web", 0).await;
    world.stop().await;
    std::fs::write(&record, "{").unwrap();
    world.sink.forget();
    world.start_with(|settings| settings.pods_max = 0);
    world.until_running("web", 0).await;
    world.settle().await;
    assert_eq!((world.calls("start"), world.calls("stop")), (1, 0));
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), "{");
    // Its time is over, and then nobody can read that any more.
    world.until_ended("web", "DeadlineExceeded").await;
    world.stop().await;
    std::fs::write(&record, "[").unwrap();
    world.sink.forget();
    world.start_with(|settings| settings.pods_max = 0);
    world.until_ended("web", "OutOfpods").await;
    assert_eq!(world.calls("start"), 1);
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), "[");
    world.stop().await;
}
