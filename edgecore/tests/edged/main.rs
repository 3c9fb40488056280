//! Edged on a real containerd, a private one that the test starts: a pod with what a pod has.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

/// Shared with the end-to-end tests, which own these files.
#[path = "../../../tests/src/containerd.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod daemon;
#[path = "../../../tests/src/ground.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod ground;
#[path = "../../../tests/src/oci.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod oci;
/// Shared with the unit tests.
#[path = "../../src/edged/scripted.rs"]
mod scripted;
#[path = "../../../tests/src/wait.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod wait;

mod adoption;
mod life;
mod network;
mod over;
mod resources;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use daemon::PrivateContainerd;
use edgecore::edged::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
// The scripted store and sink find the traits here.
use edgecore::edged::{
    Deps, DesiredError, DesiredState, Edged, EdgedHandle, Settings, StatusSink, Token, TokenWish,
};
use ground::Ground;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use oci::{ImageSpec, write_archive};
use scripted::{News, Sink, Store};
use serde_json::{Value, json};

const IMAGE: &str = "docker.io/library/busybox:test";
/// Longest that anything here may take; a wait that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    daemon: PrivateContainerd,
    config: ContainerdConfig,
    store: Arc<Store>,
    sink: Arc<Sink>,
    edged: Option<EdgedHandle>,
    /// What the clock of the next daemon is ahead by.
    ahead_ms: i64,
    /// Last: cleared when the daemon is gone.
    directory: Ground,
}

impl World {
    /// `None`, said aloud, where containerd is absent.
    async fn new() -> Option<Self> {
        if daemon::skipped() {
            return None;
        }
        let directory = Ground::temporary("ed").unwrap();
        let daemon = PrivateContainerd::start(directory.path()).unwrap();
        let config = ContainerdConfig {
            address: daemon.address().display().to_string(),
            namespace: format!("t{}", uuid::Uuid::new_v4().simple()),
            state_dir: directory.path().join("run"),
            cni_conf_dir: directory.path().join("no-cni-here"),
            logger_path: PathBuf::from(env!("CARGO_BIN_EXE_edged-logger")),
            cgroup_root: directory.cgroup_root(),
            ..ContainerdConfig::default()
        };
        let archive = directory.path().join("busybox.tar");
        write_archive(&ImageSpec::busybox(IMAGE), &archive).unwrap();
        let mut world = Self {
            daemon,
            config,
            store: Arc::default(),
            sink: Arc::default(),
            edged: None,
            ahead_ms: 0,
            directory,
        };
        let runtime = world.start();
        runtime.import_archive(&archive, None).await.unwrap();
        Some(world)
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
        let deps = Deps {
            runtime: runtime.clone(),
            desired: self.store.clone(),
            sink: self.sink.clone(),
            settings,
        };
        let ahead_ms = self.ahead_ms;
        let clock = move || edgecore::clock::unix_millis() + ahead_ms;
        self.edged = Some(Edged::start_with_clock(deps, Box::new(clock)));
        runtime
    }

    async fn until(&self, what: &str, is_so: impl FnMut(&News) -> bool) {
        let mut news = self.sink.0.subscribe();
        let so = tokio::time::timeout(PATIENCE, news.wait_for(is_so))
            .await
            .is_ok();
        let last = self.sink.0.borrow();
        let (statuses, events) = (&last.statuses, &last.events);
        assert!(so, "never: {what}; {statuses:#?}; {events:#?}");
    }

    async fn until_running(&self, pod: &str, restarts: u64) {
        self.until("running", |news| news.is_running(pod, restarts))
            .await;
    }

    async fn until_gone(&self, pod: &str) {
        self.until("gone", |news| news.gone == [pod]).await;
    }

    fn status(&self, pod: &str) -> Value {
        self.sink.0.borrow().status(pod).clone()
    }

    /// Status of the only container.
    fn container(&self, pod: &str) -> Value {
        self.status(pod)["containerStatuses"][0].clone()
    }

    fn log(&self, uid: &str, attempt: u32) -> PathBuf {
        let pod = format!("logs/default_web_{uid}/main/{attempt}.log");
        self.directory.path().join(pod)
    }

    async fn until_logged(&self, uid: &str, attempt: u32, line: &str) {
        wait::until(&format!("`{line}` to be logged"), PATIENCE, async || {
            let text = std::fs::read_to_string(self.log(uid, attempt))?;
            ensure!(text.contains(line), "{text}");
            Ok(Some(()))
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_through_restarts_of_its_daemon_and_ends_clean() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.store.configmap("cm", "text", "one");
    let secret = Secret {
        data: Some([("key".to_owned(), ByteString(b"open".to_vec()))].into()),
        ..Secret::default()
    };
    let secrets = &world.store.secrets;
    secrets.lock().unwrap().insert("s".to_owned(), secret);
    let uid = uuid::Uuid::new_v4().to_string();
    let script = "trap 'exit 0' TERM; echo $GREETING $(hostname) $POD_IP $(cat /secret/key); \
        while true; do cat /config/text; echo; test -e /scratch/die && rm /scratch/die && exit 3; sleep 0.1; done";
    let pod = json!({
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
    });
    let begun = Instant::now();
    world.store.apply(pod);
    world.until_running("web", 0).await;
    eprintln!("pod applied -> Running told: {:?}", begun.elapsed());
    let ip = world.status("web")["podIP"].as_str().unwrap().to_owned();
    world
        .until_logged(&uid, 0, &format!("hello-world web {ip} open"))
        .await;
    world.until_logged(&uid, 0, " one").await;

    world.store.configmap("cm", "text", "two");
    world.until_logged(&uid, 0, " two").await;

    // The daemon goes and comes, an hour later: nothing is restarted, and nothing looks new.
    let told = world.status("web");
    world.edged.take().unwrap().stop().await;
    world.sink.forget();
    world.ahead_ms += 3_600_000;
    let begun = Instant::now();
    world.start();
    world.until_running("web", 0).await;
    eprintln!("daemon started -> pod known running: {:?}", begun.elapsed());
    assert_eq!(world.status("web"), told);

    // The container ends by itself: it is started again at once.
    let scratch = world.directory.path().join(format!("disk/{uid}/volumes"));
    std::fs::write(scratch.join("kubernetes.io~empty-dir/scratch/die"), "").unwrap();
    let begun = Instant::now();
    world.until_running("web", 1).await;
    eprintln!("exit -> Running again: {:?}", begun.elapsed());
    let last = world.container("web")["lastState"].clone();
    assert_eq!(last["terminated"]["exitCode"], 3);
    world
        .until_logged(&uid, 1, &format!("hello-world web {ip} open"))
        .await;

    world.store.set([]);
    let begun = Instant::now();
    world.until_gone("web").await;
    eprintln!("deleted -> gone: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15), "TERM was heeded");
    assert!(!scratch.exists() && !world.log(&uid, 0).exists());
    assert_eq!(world.sink.0.borrow().nodes[0]["kind"], "Node");
    world.edged.take().unwrap().stop().await;
}
