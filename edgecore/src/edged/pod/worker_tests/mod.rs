//! Edged as a whole on a scripted runtime and tokio's paused clock.

mod hooks;
mod life;
mod needs;
mod probes;
mod resources;
mod sidecars;
mod verdicts;
mod volumes;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::edged::runtime::fake::{EPOCH_MS, FakeRuntime};
use crate::edged::runtime::{Container, ContainerState, RuntimeError};
use crate::edged::{
    Deps, DesiredError, DesiredState, Edged, EdgedHandle, Settings, StatusSink, Token, TokenWish,
};

#[derive(Default)]
struct Store {
    pods: Mutex<BTreeMap<String, Pod>>,
    configmaps: Mutex<BTreeMap<String, ConfigMap>>,
    claims: Mutex<BTreeMap<String, PersistentVolumeClaim>>,
    volumes: Mutex<BTreeMap<String, PersistentVolume>>,
    /// Tokens yet to be issued; none means that the hub is away.
    tokens: Mutex<Vec<Token>>,
    tokens_asked: watch::Sender<u64>,
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

    async fn claim(
        &self,
        _: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, DesiredError> {
        Ok(self.claims.lock().unwrap().get(name).cloned())
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, DesiredError> {
        Ok(self.volumes.lock().unwrap().get(name).cloned())
    }

    async fn volumes(&self) -> Result<Vec<PersistentVolume>, DesiredError> {
        Ok(self.volumes.lock().unwrap().values().cloned().collect())
    }

    async fn token(&self, namespace: &str, wish: &TokenWish) -> Result<Token, DesiredError> {
        self.tokens_asked.send_modify(|asked| *asked += 1);
        self.tokens
            .lock()
            .unwrap()
            .pop()
            .ok_or(DesiredError::Unreachable {
                kind: "token of ServiceAccount",
                namespace: namespace.to_owned(),
                name: wish.account.clone(),
                reason: "the link is down".to_owned(),
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
    statuses: BTreeMap<String, Value>,
    told: usize,
    nodes: Vec<Value>,
    gone: Vec<String>,
    volumes_gone: Vec<String>,
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

    fn volume_gone(&self, name: &str, _: &str) {
        self.0
            .send_modify(|news| news.volumes_gone.push(name.to_owned()));
    }

    fn hub_link(&self) -> Option<watch::Receiver<bool>> {
        None
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
    /// What somebody has set the wall clock forward by.
    clock_ahead_ms: Arc<AtomicI64>,
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
            clock_ahead_ms: Arc::default(),
        }
    }

    fn start(&mut self) {
        self.start_on(self.settings());
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::new("edge-1");
        settings.disk_dir = self.dir.path().join("disk");
        settings.run_dir = self.dir.path().join("run");
        settings.log_dir = self.dir.path().join("log");
        settings.node_ip = Some("192.0.2.9".to_owned());
        settings
    }

    fn start_on(&mut self, settings: Settings) {
        let deps = Deps {
            runtime: self.runtime.clone(),
            desired: self.store.clone(),
            sink: self.sink.clone(),
            settings,
        };
        let (clock, ahead) = (self.runtime.clone(), self.clock_ahead_ms.clone());
        self.edged = Some(Edged::start_with_clock(
            deps,
            Box::new(move || clock.now_ms() + ahead.load(Ordering::Relaxed)),
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

    /// Waits for something on the disk, which tells nobody, without letting time pass.
    async fn settle_disk(&self, mut is_so: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(std::time::Instant::now() < deadline, "never on the disk");
            tokio::task::yield_now().await;
        }
    }

    /// Lets every task run until all wait, without letting time pass.
    async fn settle(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }
}

impl World {
    /// Until the only container is restarted so often, ready or not.
    async fn until_restarted(&self, pod: &str, restarts: u64) {
        self.until("restarted", |news| {
            let status = news.statuses.get(pod);
            status.is_some_and(|s| {
                let container = &s["containerStatuses"][0];
                container["restartCount"] == restarts && container["state"]["running"].is_object()
            })
        })
        .await;
    }

    async fn until_ready(&self, pod: &str, ready: bool) {
        let wanted = if ready { "True" } else { "False" };
        self.until("readiness", |news| {
            let conditions = news.statuses.get(pod).map(|s| &s["conditions"]);
            conditions.is_some_and(|c| c[2]["type"] == "Ready" && c[2]["status"] == wanted)
        })
        .await;
    }

    /// Messages of the events with this reason.
    fn messages(&self, reason: &str) -> Vec<String> {
        let news = self.sink.0.borrow();
        let mine = news.events.iter().filter(|e| e["reason"] == reason);
        mine.map(|e| e["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// When something was first called, by this word.
    fn position(&self, call: &str) -> usize {
        let calls = self.runtime.calls();
        calls
            .iter()
            .position(|made| made.starts_with(call))
            .unwrap_or_else(|| panic!("never called {call}: {calls:?}"))
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
