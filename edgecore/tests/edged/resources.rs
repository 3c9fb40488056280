//! What the node refuses and ends, on a real containerd.

use std::time::Duration;

use edgecore::edged::eviction::threshold::{Amount, Signal, Threshold};
use serde_json::{Value, json};

use super::{IMAGE, PATIENCE, World, wait};

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
    async fn until_phase(&self, name: &str, phase: &str) -> Value {
        self.until(&format!("{name} {phase}"), |news| {
            news.status(name)["phase"] == phase
        })
        .await;
        self.status(name)
    }

    async fn end(&mut self) {
        self.store.set([]);
        let count = self.sink.0.borrow().statuses.len();
        self.until("all gone", |news| news.gone.len() == count)
            .await;
        self.edged.take().unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_do_not_fit_are_refused_and_the_others_run() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let port = |name: &str| {
        let mut pod = pod(name, "exec sleep 1000");
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 38_777}]);
        pod
    };
    world.store.apply(port("first"));
    world.until_phase("first", "Running").await;
    world.store.apply(port("second"));
    let status = world.until_phase("second", "Failed").await;
    assert_eq!(status["reason"], "NodePorts");
    let mut greedy = pod("greedy", "exec sleep 1000");
    greedy["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "1Ei"}});
    world.store.apply(greedy);
    let status = world.until_phase("greedy", "Failed").await;
    assert_eq!(status["reason"], "OutOfmemory");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.starts_with("Pod was rejected: Node didn't have enough resource: memory, "),
        "{message}"
    );
    assert_eq!(world.status("first")["phase"], "Running");
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
    let Some(mut world) = World::new().await else {
        return;
    };
    world.edged.take().unwrap().stop().await;
    world.start_with(|settings| settings.eviction.interval = Duration::from_millis(500));
    let fill = |path: &str| {
        format!("dd if=/dev/zero of={path} bs=64k count=64 2>/dev/null; exec sleep 1000")
    };
    let mut volume = pod("volume", &fill("/scratch/file"));
    volume["spec"]["volumes"] = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]);
    volume["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "scratch", "mountPath": "/scratch"}]);
    world.store.apply(volume);
    let mut layer = pod("layer", &fill("/file"));
    layer["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    world.store.apply(layer);
    let modest = json!({"limits": {"ephemeral-storage": "64Mi"}});
    let mut small = pod("small", &fill("/file"));
    small["spec"]["containers"][0]["resources"] = modest;
    world.store.apply(small);
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
    let told = world.sink.0.borrow().messages("Evicted");
    assert!(!told.is_empty());
    assert_eq!(world.status("small")["phase"], "Running");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shortage_of_memory_ends_the_one_above_its_request_and_says_so() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let asks = |pod: &mut Value, memory: &str| {
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": memory}});
    };
    let mut modest = pod("modest", "exec sleep 1000");
    asks(&mut modest, "256Mi");
    world.store.apply(modest);
    // A variable of 32 MiB, held for good.
    let mut above = pod(
        "above",
        "a=$(dd if=/dev/zero bs=1M count=32 2>/dev/null | tr '\\0' x); while true; do sleep 1000; done",
    );
    asks(&mut above, "4Mi");
    let uid = above["metadata"]["uid"].as_str().unwrap().to_owned();
    world.store.apply(above);
    world.until_phase("modest", "Running").await;
    world.until_phase("above", "Running").await;
    let below = format!("{}/burstable/pod{uid}", world.config.cgroup_root);
    let cgroup = format!("/sys/fs/cgroup/memory{below}");
    let v2 = format!("/sys/fs/cgroup{below}");
    let usage = || {
        let v1 = std::fs::read_to_string(format!("{cgroup}/memory.usage_in_bytes"));
        let text = v1.or_else(|_| std::fs::read_to_string(format!("{v2}/memory.current")));
        text.ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    if usage().is_none() {
        eprintln!("SKIPPED: no memory controller");
        return;
    }
    wait::until("32 MiB to be used", PATIENCE, async || {
        Ok(usage().filter(|bytes| *bytes >= 32 << 20))
    })
    .await
    .unwrap();
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
    let conditions = world.sink.0.borrow().nodes.last().unwrap()["status"]["conditions"].clone();
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

/// The kernel's words are written into its own log: a real shortage would take the machine along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shortage_of_the_whole_machine_is_told_of_the_node() {
    use std::io::Write;
    let Ok(mut kernel) = std::fs::File::options().write(true).open("/dev/kmsg") else {
        eprintln!("SKIPPED: no kernel log that can be written");
        return;
    };
    let Some(mut world) = World::new().await else {
        return;
    };
    world.until("the node", |news| !news.nodes.is_empty()).await;
    let name = format!("hog{:x}", std::process::id());
    let words = format!(
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
         task_memcg=/edgepods,task={name},pid=4711,uid=0"
    );
    let own = format!(
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
         oom_memcg=/edgepods/x,task_memcg=/edgepods/x,task={name}-own,pid=4712,uid=0"
    );
    for line in [own, words] {
        kernel.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    let told = format!("System OOM encountered, victim process: {name}, pid: 4711");
    world
        .until("the event", |news| {
            let mut events = news.events.iter();
            events.any(|event| event["reason"] == "SystemOOM" && event["message"] == *told)
        })
        .await;
    let news = format!("{:?}", world.sink.0.borrow().events);
    assert!(!news.contains(&format!("{name}-own")), "{news}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_is_ready_when_its_network_is_and_waiting_pods_start() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.edged.take().unwrap().stop().await;
    let conf = world.directory.path().join("net.d");
    std::fs::create_dir(&conf).unwrap();
    let file = conf.join("10-site.conflist");
    std::fs::write(&file, "{").unwrap();
    world.config.cni_conf_dir = conf;
    world.start();
    let ready = |news: &super::News| {
        let conditions = news.nodes.last()?["status"]["conditions"].as_array()?;
        let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
        Some((ready["status"] == "True", ready["message"].to_string()))
    };
    world
        .until("a node without a network", |news| {
            ready(news).is_some_and(|(is, why)| !is && why.contains("10-site.conflist"))
        })
        .await;
    let mut waits = pod("waits", "exec sleep 1000");
    waits["spec"].as_object_mut().unwrap().remove("hostNetwork");
    world.store.apply(waits);
    world
        .until("the event", |news| {
            news.events
                .iter()
                .any(|event| event["reason"] == "NetworkNotReady")
        })
        .await;
    // Nothing at all is a configuration, too: the built-in one.
    std::fs::remove_file(&file).unwrap();
    world
        .until("ready", |news| ready(news).is_some_and(|(is, _)| is))
        .await;
    world.until_phase("waits", "Running").await;
    std::fs::write(&file, "{").unwrap();
    world
        .until("not ready again", |news| {
            ready(news).is_some_and(|(is, _)| !is)
        })
        .await;
    std::fs::remove_file(&file).unwrap();
    world
        .until("ready again", |news| ready(news).is_some_and(|(is, _)| is))
        .await;
    world.end().await;
}
