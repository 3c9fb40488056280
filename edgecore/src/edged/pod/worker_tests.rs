//! Edged as a whole on a scripted runtime and tokio's paused clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::edged::runtime::fake::{EPOCH_MS, FakeRuntime};
use crate::edged::runtime::{Container, ContainerState, RuntimeError};
use crate::edged::{Deps, DesiredError, DesiredState, Edged, EdgedHandle, Settings, StatusSink};

#[derive(Default)]
struct Store {
    pods: Mutex<BTreeMap<String, Pod>>,
    configmaps: Mutex<BTreeMap<String, ConfigMap>>,
    broken: Mutex<bool>,
    generation: watch::Sender<u64>,
}

#[async_trait]
impl DesiredState for Store {
    async fn pods(&self) -> Result<Vec<Pod>, DesiredError> {
        if *self.broken.lock().unwrap() {
            return Err(DesiredError::Store {
                reason: "disk I/O error".to_owned(),
            });
        }
        Ok(self.pods.lock().unwrap().values().cloned().collect())
    }

    async fn configmap(&self, _: &str, name: &str) -> Result<Option<ConfigMap>, DesiredError> {
        Ok(self.configmaps.lock().unwrap().get(name).cloned())
    }

    /// No secret is on the node, and the hub is away.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, DesiredError> {
        Err(DesiredError::Unreachable {
            kind: "secret",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason: "the link is down".to_owned(),
        })
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

#[derive(Default)]
struct News {
    statuses: BTreeMap<String, Value>,
    told: usize,
    nodes: Vec<Value>,
    gone: Vec<String>,
    events: Vec<Value>,
}

struct Sink(watch::Sender<News>);

impl StatusSink for Sink {
    fn pod_status(&self, _: &str, name: &str, _: &str, status: Value) {
        self.0.send_modify(|news| {
            news.statuses.insert(name.to_owned(), status);
            news.told += 1;
        });
    }

    fn pod_gone(&self, _: &str, name: &str, _: &str) {
        self.0.send_modify(|news| news.gone.push(name.to_owned()));
    }

    fn node_status(&self, node: Value) {
        self.0.send_modify(|news| news.nodes.push(node));
    }

    fn event(&self, event: Value) {
        self.0.send_modify(|news| news.events.push(event));
    }
}

struct World {
    runtime: Arc<FakeRuntime>,
    store: Arc<Store>,
    sink: Arc<Sink>,
    dir: tempfile::TempDir,
    edged: Option<EdgedHandle>,
}

const IMAGE: &str = "busybox:1.36";

impl World {
    fn new() -> Self {
        let runtime = Arc::new(FakeRuntime::default());
        runtime.add_image(IMAGE);
        Self {
            runtime,
            store: Arc::default(),
            sink: Arc::new(Sink(watch::Sender::new(News::default()))),
            dir: tempfile::tempdir().unwrap(),
            edged: None,
        }
    }

    fn start(&mut self) {
        let mut settings = Settings::new("edge-1");
        settings.disk_dir = self.dir.path().join("disk");
        settings.run_dir = self.dir.path().join("run");
        settings.log_dir = self.dir.path().join("log");
        settings.node_ip = Some("192.0.2.9".to_owned());
        let deps = Deps {
            runtime: self.runtime.clone(),
            desired: self.store.clone(),
            sink: self.sink.clone(),
            settings,
        };
        let clock = self.runtime.clone();
        self.edged = Some(Edged::start_with_clock(
            deps,
            Box::new(move || clock.now_ms()),
        ));
    }

    async fn stop(&mut self) {
        if let Some(edged) = self.edged.take() {
            edged.stop().await;
        }
    }

    fn apply(&self, pod: Value) {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let uid = pod.metadata.uid.clone().unwrap();
        self.store.pods.lock().unwrap().insert(uid, pod);
        self.bump();
    }

    fn edit(&self, uid: &str, edit: impl FnOnce(&mut Pod)) {
        edit(self.store.pods.lock().unwrap().get_mut(uid).unwrap());
        self.bump();
    }

    fn bump(&self) {
        self.store.generation.send_modify(|g| *g += 1);
    }

    fn configmap(&self, name: &str, key: &str, value: &str) {
        let map = ConfigMap {
            data: Some([(key.to_owned(), value.to_owned())].into()),
            ..ConfigMap::default()
        };
        self.store
            .configmaps
            .lock()
            .unwrap()
            .insert(name.to_owned(), map);
        self.bump();
    }

    /// Waits until the news are so. Paused time runs on by itself while everybody waits.
    async fn until(&self, what: &str, is_so: impl FnMut(&News) -> bool) {
        let mut news = self.sink.0.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(3600), news.wait_for(is_so)).await;
        if waited.is_err() {
            let news = self.sink.0.borrow();
            panic!(
                "never: {what}; statuses {:#?}; calls {:?}",
                news.statuses,
                self.runtime.calls()
            );
        }
    }

    async fn until_waiting(&self, pod: &str, reason: &str) {
        self.until(reason, |news| {
            let state = news
                .statuses
                .get(pod)
                .map(|s| &s["containerStatuses"][0]["state"]);
            state.is_some_and(|s| s["waiting"]["reason"] == reason)
        })
        .await;
    }

    async fn until_running(&self, pod: &str, restarts: u64) {
        self.until("running", |news| {
            news.statuses.get(pod).is_some_and(|s| {
                s["phase"] == "Running"
                    && s["containerStatuses"][0]["ready"] == true
                    && s["containerStatuses"][0]["restartCount"] == restarts
            })
        })
        .await;
    }

    fn status(&self, pod: &str) -> Value {
        self.sink
            .0
            .borrow()
            .statuses
            .get(pod)
            .cloned()
            .unwrap_or_default()
    }

    fn reasons(&self) -> Vec<String> {
        let news = self.sink.0.borrow();
        news.events
            .iter()
            .map(|e| e["reason"].as_str().unwrap().to_owned())
            .collect()
    }

    fn calls(&self, word: &str) -> usize {
        self.runtime
            .calls()
            .iter()
            .filter(|call| call.starts_with(word))
            .count()
    }

    /// Lets every task run until all wait, without letting time pass.
    async fn settle(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {
            "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent"}]
        }
    })
}

fn delete(pod: &mut Pod) {
    pod.metadata.deletion_timestamp = Some(super::status::time(EPOCH_MS));
    pod.metadata.deletion_grace_period_seconds = Some(30);
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
    world.edit("uid-web", delete);
    world.until("gone", |news| news.gone == ["web"]).await;
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
    let begun = tokio::time::Instant::now();
    world.edit("uid-web", delete);
    world.until("gone", |news| news.gone == ["web"]).await;
    assert_eq!(begun.elapsed().as_secs(), 30);
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
async fn a_missing_image_is_told_and_tried_again() {
    let mut world = World::new();
    let image = "reg.example/none:1";
    world
        .runtime
        .script_pulls(image, [Err("not found".to_owned()), Ok(())]);
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0]["image"] = json!(image);
    world.apply(wanted);
    world.until_waiting("web", "ErrImagePull").await;
    world.until_waiting("web", "ImagePullBackOff").await;
    assert_eq!(world.status("web")["phase"], "Pending");
    world.until_running("web", 0).await;
    assert_eq!(world.calls("pull"), 2);
    let reasons = world.reasons();
    assert_eq!(
        reasons,
        [
            "Pulling", "Failed", "Failed", "BackOff", "Failed", "Pulling", "Pulled", "Created",
            "Started"
        ]
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pull_under_way_does_not_delay_deletion() {
    let mut world = World::new();
    world.runtime.set_pull_time(Duration::from_secs(600));
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0]["image"] = json!("slow:1");
    world.apply(wanted);
    world.until("pulling", |news| !news.events.is_empty()).await;
    let begun = tokio::time::Instant::now();
    world.edit("uid-web", delete);
    world.until("gone", |news| news.gone == ["web"]).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn always_falls_back_to_the_image_that_is_there() {
    let mut world = World::new();
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
    world.apply(wanted);
    world.until_running("web", 0).await;
    assert_eq!(world.calls("pull"), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn never_does_not_pull() {
    let mut world = World::new();
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0]["image"] = json!("absent:1");
    wanted["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    world.apply(wanted);
    world.until_waiting("web", "ErrImageNeverPull").await;
    assert_eq!(world.calls("pull"), 0);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_configmap_holds_the_container_until_it_comes() {
    let mut world = World::new();
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "cm"}}]);
    world.apply(wanted);
    world
        .until_waiting("web", "CreateContainerConfigError")
        .await;
    let state = world.status("web")["containerStatuses"][0]["state"].clone();
    assert_eq!(state["waiting"]["message"], "configmap \"cm\" not found");
    let begun = tokio::time::Instant::now();
    world.configmap("cm", "k", "v");
    world.until_running("web", 0).await;
    assert_eq!(begun.elapsed().as_secs(), 0, "no timer was waited for");
    assert_eq!(
        world.runtime.specs()[0].env,
        [("k".to_owned(), "v".to_owned())]
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn new_content_reaches_a_running_container_in_place() {
    let mut world = World::new();
    world.configmap("cm", "k", "one");
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "cm"}}]);
    wanted["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    world.apply(wanted);
    world.until_running("web", 0).await;
    let mounts = world.runtime.specs()[0].mounts.clone();
    let mount = mounts
        .iter()
        .find(|m| m.target.to_str() == Some("/v"))
        .unwrap();
    let file = mount.source.join("k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    world.configmap("cm", "k", "two");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while std::fs::read_to_string(&file).unwrap() != "two" {
        assert!(std::time::Instant::now() < deadline, "content never came");
        tokio::task::yield_now().await;
    }
    assert_eq!(world.calls("start"), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn running_containers_are_adopted_and_not_restarted() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    let before = world.status("web");
    world.stop().await;
    world.sink.0.send_modify(|news| *news = News::default());
    world.start();
    world.until_running("web", 0).await;
    world.settle().await;
    assert_eq!(world.status("web")["podIP"], before["podIP"]);
    assert_eq!(world.calls("start"), 1);
    assert_eq!(world.calls("stop"), 0);
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
async fn after_a_reboot_pods_run_again_at_once_without_hub_or_registry() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    world.stop().await;
    world.runtime.reboot();
    let begun = tokio::time::Instant::now();
    world.start();
    world.until_running("web", 1).await;
    assert_eq!(begun.elapsed().as_secs(), 0);
    let last = world.status("web")["containerStatuses"][0]["lastState"].clone();
    assert_eq!(last["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!(world.calls("sandbox"), 2);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_store_stops_nothing() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    *world.store.broken.lock().unwrap() = true;
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
async fn a_start_that_fails_is_told_and_tried_again() {
    let mut world = World::new();
    world.runtime.fail_start(
        "c",
        RuntimeError::Create {
            reason: "no space left on device".to_owned(),
        },
    );
    world.start();
    world.apply(pod("web"));
    world.until_waiting("web", "CreateContainerError").await;
    world.until_running("web", 0).await;
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
    world
        .until("succeeded", |news| {
            news.statuses
                .get("job")
                .is_some_and(|s| s["phase"] == "Succeeded")
        })
        .await;
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
    world.settle().await;
    let (told, nodes) = (
        world.sink.0.borrow().told,
        world.sink.0.borrow().nodes.len(),
    );
    world.bump();
    world.settle().await;
    tokio::time::sleep(Duration::from_secs(86_400)).await;
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

#[tokio::test(start_paused = true)]
async fn work_done_offline_is_not_done_again_after_a_reboot() {
    let mut world = World::new();
    world.runtime.exit_at_once("c", 0);
    world.start();
    let mut wanted = pod("job");
    wanted["spec"]["restartPolicy"] = json!("OnFailure");
    world.apply(wanted);
    let succeeded = |news: &News| {
        news.statuses
            .get("job")
            .is_some_and(|s| s["phase"] == "Succeeded")
    };
    world.until("succeeded", succeeded).await;
    let before = world.status("job");
    world.stop().await;
    // The hub never heard of it: the desired pod has no status.
    world.runtime.reboot();
    world.sink.0.send_modify(|news| *news = News::default());
    world.start();
    world.until("succeeded still", succeeded).await;
    world.settle().await;
    assert_eq!(world.calls("start"), 1);
    let end = |status: &Value| status["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!(end(&world.status("job")), end(&before));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_optional_secret_is_not_waited_for_while_the_hub_is_away() {
    let mut world = World::new();
    world.start();
    let mut wanted = pod("web");
    let secret = |optional: bool| json!([{"secretRef": {"name": "s", "optional": optional}}]);
    wanted["spec"]["containers"][0]["envFrom"] = secret(false);
    world.apply(wanted.clone());
    world
        .until_waiting("web", "CreateContainerConfigError")
        .await;
    wanted["metadata"]["name"] = json!("other");
    wanted["metadata"]["uid"] = json!("uid-other");
    wanted["spec"]["containers"][0]["envFrom"] = secret(true);
    world.apply(wanted);
    world.until_running("other", 0).await;
    world.stop().await;
}
