//! Edged on a real containerd, a private one that the test starts: a pod with what a pod has.

#![expect(
    clippy::print_stderr,
    reason = "a skipped test says so, and figures are shown"
)]
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

/// Shared with the end-to-end tests, which own these files.
#[path = "../../../tests/src/containerd.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod daemon;
#[path = "../../../tests/src/oci.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod oci;
mod resources;

mod life;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use daemon::PrivateContainerd;
use edgecore::edged::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use edgecore::edged::{
    Deps, DesiredError, DesiredState, Edged, EdgedHandle, Settings, StatusSink, Token, TokenWish,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use oci::{ImageSpec, write_archive};
use serde_json::{Value, json};
use tokio::sync::watch;

const IMAGE: &str = "docker.io/library/busybox:test";
/// Longest that anything here may take; a wait that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Store {
    pods: Mutex<BTreeMap<String, Pod>>,
    text: Mutex<String>,
    generation: watch::Sender<u64>,
}

#[async_trait]
impl DesiredState for Store {
    async fn pods(&self) -> Result<Vec<Pod>, DesiredError> {
        Ok(self.pods.lock().unwrap().values().cloned().collect())
    }

    async fn configmap(&self, _: &str, _: &str) -> Result<Option<ConfigMap>, DesiredError> {
        let text = self.text.lock().unwrap().clone();
        Ok(Some(ConfigMap {
            data: Some([("text".to_owned(), text)].into()),
            ..ConfigMap::default()
        }))
    }

    async fn secret(&self, _: &str, _: &str) -> Result<Option<Secret>, DesiredError> {
        Ok(Some(Secret {
            data: Some([("key".to_owned(), ByteString(b"open".to_vec()))].into()),
            ..Secret::default()
        }))
    }

    async fn claim(&self, _: &str, _: &str) -> Result<Option<PersistentVolumeClaim>, DesiredError> {
        Ok(None)
    }

    async fn volume(&self, _: &str) -> Result<Option<PersistentVolume>, DesiredError> {
        Ok(None)
    }

    async fn volumes(&self) -> Result<Vec<PersistentVolume>, DesiredError> {
        Ok(Vec::new())
    }

    async fn token(&self, namespace: &str, wish: &TokenWish) -> Result<Token, DesiredError> {
        Err(DesiredError::Unreachable {
            kind: "token of ServiceAccount",
            namespace: namespace.to_owned(),
            name: wish.account.clone(),
            reason: "no hub".to_owned(),
        })
    }

    fn is_complete(&self) -> bool {
        true
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

#[derive(Default)]
struct News {
    status: Value,
    /// The newest of each pod, by name.
    statuses: BTreeMap<String, Value>,
    node: Value,
    gone: bool,
    gone_count: usize,
    events: Vec<String>,
}

struct Sink(watch::Sender<News>);

impl StatusSink for Sink {
    fn pod_status(&self, _: &str, name: &str, _: &str, status: Value) {
        self.0.send_modify(|news| {
            news.statuses.insert(name.to_owned(), status.clone());
            news.status = status;
        });
    }

    fn pod_gone(&self, _: &str, _: &str, _: &str) {
        self.0.send_modify(|news| {
            news.gone = true;
            news.gone_count += 1;
        });
    }

    fn volume_gone(&self, _: &str, _: &str) {}

    fn hub_link(&self) -> Option<watch::Receiver<bool>> {
        None
    }

    fn node_status(&self, node: Value) {
        self.0.send_modify(|news| news.node = node);
    }

    fn event(&self, event: Value) {
        let text = format!("{} {}", event["reason"], event["message"]);
        self.0.send_modify(|news| news.events.push(text));
    }
}

struct World {
    _daemon: PrivateContainerd,
    config: ContainerdConfig,
    store: Arc<Store>,
    sink: Arc<Sink>,
    directory: tempfile::TempDir,
    edged: Option<EdgedHandle>,
}

/// `None`, said aloud, where containerd is absent; a failure where it is required.
fn skipped(test: &str) -> bool {
    let Some(reason) = daemon::missing() else {
        return false;
    };
    let required = std::env::var("OUTPOST_REQUIRE_NEIGHBOURS").is_ok_and(|value| value == "1");
    assert!(!required, "{test}: {reason}");
    eprintln!("SKIPPED {test}: {reason}");
    true
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ed").tempdir().unwrap();
        let daemon = PrivateContainerd::start(directory.path()).unwrap();
        let config = ContainerdConfig {
            address: daemon.address().display().to_string(),
            namespace: format!("t{}", uuid::Uuid::new_v4().simple()),
            state_dir: directory.path().join("run"),
            cni_conf_dir: directory.path().join("no-cni-here"),
            logger_path: PathBuf::from(env!("CARGO_BIN_EXE_edged-logger")),
            cgroup_root: "/edgepods-test".to_owned(),
            ..ContainerdConfig::default()
        };
        let archive = directory.path().join("busybox.tar");
        write_archive(&ImageSpec::busybox(IMAGE), &archive).unwrap();
        let mut world = Self {
            _daemon: daemon,
            config,
            store: Arc::default(),
            sink: Arc::new(Sink(watch::Sender::new(News::default()))),
            directory,
            edged: None,
        };
        let runtime = world.start();
        runtime.import_archive(&archive, None).await.unwrap();
        world
    }

    fn start(&mut self) -> Arc<ContainerdRuntime> {
        self.start_with(|_| ())
    }

    fn start_with(&mut self, change: impl FnOnce(&mut Settings)) -> Arc<ContainerdRuntime> {
        let runtime = ContainerdRuntime::connect(self.config.clone()).unwrap();
        let mut settings = Settings::new("edge-1");
        settings.disk_dir = self.directory.path().join("disk");
        settings.run_dir = self.directory.path().join("volumes");
        settings.log_dir = self.directory.path().join("logs");
        settings.cgroup_root.clone_from(&self.config.cgroup_root);
        change(&mut settings);
        self.edged = Some(Edged::start(Deps {
            runtime: runtime.clone(),
            desired: self.store.clone(),
            sink: self.sink.clone(),
            settings,
        }));
        runtime
    }

    async fn until(&self, what: &str, is_so: impl FnMut(&News) -> bool) {
        let mut news = self.sink.0.subscribe();
        let so = tokio::time::timeout(PATIENCE, news.wait_for(is_so))
            .await
            .is_ok();
        let last = self.sink.0.borrow();
        assert!(so, "never: {what}; {:#}; {:#?}", last.status, last.events);
    }

    async fn until_running(&self, restarts: u64) {
        self.until("running", |news| {
            let container = &news.status["containerStatuses"][0];
            news.status["phase"] == "Running"
                && container["ready"] == true
                && container["restartCount"] == restarts
        })
        .await;
    }

    fn bump(&self) {
        self.store.generation.send_modify(|g| *g += 1);
    }

    fn log(&self, uid: &str, attempt: u32) -> PathBuf {
        let pod = format!("logs/default_web_{uid}/main/{attempt}.log");
        self.directory.path().join(pod)
    }

    /// Waits until the log has the line; files cannot wake anybody, so this looks again.
    async fn until_logged(&self, uid: &str, attempt: u32, line: &str) {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.log(uid, attempt)).unwrap_or_default();
            if text.contains(line) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "never logged `{line}`: {text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_through_restarts_of_its_daemon_and_ends_clean() {
    if skipped("a_pod_lives_through_restarts_of_its_daemon_and_ends_clean") {
        return;
    }
    let mut world = World::new().await;
    "one".clone_into(&mut world.store.text.lock().unwrap());
    let uid = uuid::Uuid::new_v4().to_string();
    let script = "trap 'exit 0' TERM; echo $GREETING $(hostname) $POD_IP $(cat /secret/key); \
        while true; do cat /config/text; echo; test -e /scratch/die && rm /scratch/die && exit 3; sleep 0.1; done";
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": uid},
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "volumes": [
                {"name": "config", "configMap": {"name": "cm"}},
                {"name": "secret", "secret": {"secretName": "s"}},
                {"name": "scratch", "emptyDir": {}}
            ],
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "env": [
                    {"name": "WHO", "value": "world"},
                    {"name": "GREETING", "value": "hello-$(WHO)"},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
                ],
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                "volumeMounts": [
                    {"name": "config", "mountPath": "/config"},
                    {"name": "secret", "mountPath": "/secret"},
                    {"name": "scratch", "mountPath": "/scratch"}
                ]
            }]
        }
    }))
    .unwrap();
    let begun = Instant::now();
    world.store.pods.lock().unwrap().insert(uid.clone(), pod);
    world.bump();
    world.until_running(0).await;
    eprintln!("pod applied -> Running told: {:?}", begun.elapsed());
    let ip = world.sink.0.borrow().status["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    world
        .until_logged(&uid, 0, &format!("hello-world web {ip} open"))
        .await;
    world.until_logged(&uid, 0, " one").await;

    "two".clone_into(&mut world.store.text.lock().unwrap());
    world.bump();
    world.until_logged(&uid, 0, " two").await;

    // The daemon goes and comes: nothing is restarted.
    let id = world.sink.0.borrow().status["containerStatuses"][0]["containerID"].clone();
    world.edged.take().unwrap().stop().await;
    world.sink.0.send_modify(|news| *news = News::default());
    let begun = Instant::now();
    world.start();
    world.until_running(0).await;
    eprintln!("daemon started -> pod known running: {:?}", begun.elapsed());
    assert_eq!(
        world.sink.0.borrow().status["containerStatuses"][0]["containerID"],
        id
    );
    assert_eq!(world.sink.0.borrow().status["podIP"], json!(ip));

    // The container ends by itself: it is started again at once.
    let scratch = world.directory.path().join(format!("disk/{uid}/volumes"));
    std::fs::write(scratch.join("kubernetes.io~empty-dir/scratch/die"), "").unwrap();
    let begun = Instant::now();
    world.until_running(1).await;
    eprintln!("exit -> Running again: {:?}", begun.elapsed());
    let last = world.sink.0.borrow().status["containerStatuses"][0]["lastState"].clone();
    assert_eq!(last["terminated"]["exitCode"], 3);
    world
        .until_logged(&uid, 1, &format!("hello-world web {ip} open"))
        .await;

    world.store.pods.lock().unwrap().clear();
    world.bump();
    let begun = Instant::now();
    world.until("gone", |news| news.gone).await;
    eprintln!("deleted -> gone: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15), "TERM was heeded");
    assert!(!scratch.exists() && !world.log(&uid, 0).exists());
    assert_eq!(world.sink.0.borrow().node["kind"], "Node");
    world.edged.take().unwrap().stop().await;
}
