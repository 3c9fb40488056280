//! What the node refuses and ends, on a real containerd.

use std::time::Duration;

use edgecore::edged::eviction::threshold::{Amount, Signal, Threshold};
use serde_json::{Value, json};

use super::{IMAGE, World, skipped};

fn pod(name: &str, script: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": uuid::Uuid::new_v4().to_string()},
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
            }]
        }
    })
}

impl World {
    fn apply(&self, pod: Value) {
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        let pod = serde_json::from_value(pod).unwrap();
        self.store.pods.lock().unwrap().insert(uid, pod);
        self.bump();
    }

    async fn until_phase(&self, name: &str, phase: &str) -> Value {
        self.until(&format!("{name} {phase}"), |news| {
            let status = news.statuses.get(name);
            status.is_some_and(|status| status["phase"] == phase)
        })
        .await;
        self.sink.0.borrow().statuses[name].clone()
    }

    async fn end(&mut self) {
        self.store.pods.lock().unwrap().clear();
        self.bump();
        let count = self.sink.0.borrow().statuses.len();
        self.until("all gone", |news| news.gone_count == count)
            .await;
        self.edged.take().unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_do_not_fit_are_refused_and_the_others_run() {
    if skipped("pods_that_do_not_fit_are_refused_and_the_others_run") {
        return;
    }
    let mut world = World::new().await;
    let port = |name: &str| {
        let mut pod = pod(name, "exec sleep 1000");
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 38_777}]);
        pod
    };
    world.apply(port("first"));
    world.until_phase("first", "Running").await;
    world.apply(port("second"));
    let status = world.until_phase("second", "Failed").await;
    assert_eq!(status["reason"], "NodePorts");
    let mut greedy = pod("greedy", "exec sleep 1000");
    greedy["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "1Ei"}});
    world.apply(greedy);
    let status = world.until_phase("greedy", "Failed").await;
    assert_eq!(status["reason"], "OutOfmemory");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.starts_with("Pod was rejected: Node didn't have enough resource: memory, "),
        "{message}"
    );
    assert_eq!(world.sink.0.borrow().statuses["first"]["phase"], "Running");
    // A restart of the daemon changes none of it.
    world.edged.take().unwrap().stop().await;
    world.sink.0.send_modify(|news| news.statuses.clear());
    world.start();
    world.until_phase("first", "Running").await;
    let status = world.until_phase("second", "Failed").await;
    assert_eq!(status["reason"], "NodePorts");
    world.until_phase("greedy", "Failed").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_or_a_layer_that_grows_too_large_evicts_its_pod() {
    if skipped("a_volume_or_a_layer_that_grows_too_large_evicts_its_pod") {
        return;
    }
    let mut world = World::new().await;
    world.edged.take().unwrap().stop().await;
    world.start_with(|settings| settings.eviction.interval = Duration::from_millis(500));
    let fill = |path: &str| {
        format!("dd if=/dev/zero of={path} bs=64k count=64 2>/dev/null; exec sleep 1000")
    };
    let mut volume = pod("volume", &fill("/scratch/file"));
    volume["spec"]["volumes"] = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]);
    volume["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "scratch", "mountPath": "/scratch"}]);
    world.apply(volume);
    let mut layer = pod("layer", &fill("/file"));
    layer["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    world.apply(layer);
    let modest = json!({"limits": {"ephemeral-storage": "64Mi"}});
    let mut small = pod("small", &fill("/file"));
    small["spec"]["containers"][0]["resources"] = modest;
    world.apply(small);
    let status = world.until_phase("volume", "Failed").await;
    assert_eq!(status["reason"], "Evicted");
    assert_eq!(
        status["message"],
        "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". "
    );
    let status = world.until_phase("layer", "Failed").await;
    assert_eq!(status["reason"], "Evicted");
    assert_eq!(
        status["message"],
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "
    );
    let events = world.sink.0.borrow().events.clone();
    assert!(
        events.iter().any(|e| e.starts_with("\"Evicted\"")),
        "{events:?}"
    );
    assert_eq!(world.sink.0.borrow().statuses["small"]["phase"], "Running");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shortage_of_memory_ends_the_one_above_its_request_and_says_so() {
    let test = "a_shortage_of_memory_ends_the_one_above_its_request_and_says_so";
    if skipped(test) {
        return;
    }
    let mut world = World::new().await;
    let asks = |pod: &mut Value, memory: &str| {
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": memory}});
    };
    let mut modest = pod("modest", "exec sleep 1000");
    asks(&mut modest, "256Mi");
    world.apply(modest);
    // A variable of 32 MiB, held for good.
    let mut above = pod(
        "above",
        "a=$(dd if=/dev/zero bs=1M count=32 2>/dev/null | tr '\\0' x); while true; do sleep 1000; done",
    );
    asks(&mut above, "4Mi");
    let uid = above["metadata"]["uid"].as_str().unwrap().to_owned();
    world.apply(above);
    world.until_phase("modest", "Running").await;
    world.until_phase("above", "Running").await;
    let cgroup = format!("/sys/fs/cgroup/memory/edgepods-test/burstable/pod{uid}");
    let v2 = format!("/sys/fs/cgroup/edgepods-test/burstable/pod{uid}");
    let usage = || {
        let v1 = std::fs::read_to_string(format!("{cgroup}/memory.usage_in_bytes"));
        let text = v1.or_else(|_| std::fs::read_to_string(format!("{v2}/memory.current")));
        text.ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    if usage().is_none() {
        eprintln!("SKIPPED {test}: no memory controller");
        return;
    }
    let begun = std::time::Instant::now();
    while usage().is_some_and(|bytes| bytes < 32 << 20) {
        assert!(
            begun.elapsed() < super::PATIENCE,
            "never used: {:?}",
            usage()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The daemon comes back and finds that no amount of memory is enough.
    world.edged.take().unwrap().stop().await;
    world.start_with(|settings| {
        settings.eviction.interval = Duration::from_millis(500);
        settings.eviction.thresholds = vec![Threshold {
            signal: Signal::MemoryAvailable,
            amount: Amount::Share(9999),
            grace: None,
            reclaim: None,
        }];
    });
    let status = world.until_phase("above", "Failed").await;
    assert_eq!(status["reason"], "Evicted");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: ")
            && message.contains("Container main was using ")
            && message.ends_with(", request is 4Mi, has larger consumption of memory. "),
        "{message}"
    );
    let conditions = world.sink.0.borrow().node["status"]["conditions"].clone();
    let pressure = conditions.as_array().unwrap().iter();
    let pressure = pressure.filter(|c| c["type"] == "MemoryPressure");
    assert!(
        pressure.into_iter().all(|c| c["status"] == "True"),
        "{conditions}"
    );
    // Nothing else gives memory back, so the other one follows; both leave no cgroup.
    world.until_phase("modest", "Failed").await;
    world.end().await;
    assert!(usage().is_none(), "{cgroup}");
}
