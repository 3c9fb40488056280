//! Edged as a whole on a scripted runtime and tokio's paused clock.

mod hooks;
mod life;
mod needs;
mod networks;
mod over;
mod probes;
mod resources;
mod sidecars;
mod verdicts;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::edged::runtime::fake::{EPOCH_MS, FakeRuntime};
use crate::edged::runtime::{Container, ContainerState, RuntimeError};
use crate::edged::scripted::{News, Sink, Store};
use crate::edged::{Deps, Edged, EdgedHandle, Settings, Token};

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
            sink: Arc::default(),
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
        self.store.apply(pod);
    }

    fn edit(&self, uid: &str, edit: impl FnOnce(&mut Pod)) {
        edit(self.store.pods.lock().unwrap().get_mut(uid).unwrap());
        self.bump();
    }

    fn bump(&self) {
        self.store.bump();
    }

    fn configmap(&self, name: &str, key: &str, value: &str) {
        self.store.configmap(name, key, value);
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
            let state = &news.status(pod)["containerStatuses"][0]["state"];
            state["waiting"]["reason"] == reason
        })
        .await;
    }

    async fn until_running(&self, pod: &str, restarts: u64) {
        self.until("running", |news| news.is_running(pod, restarts))
            .await;
    }

    fn status(&self, pod: &str) -> Value {
        self.sink.0.borrow().status(pod).clone()
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

    /// Time enough for whatever would happen.
    async fn pass(&self, secs: u64) {
        tokio::time::sleep(Duration::from_secs(secs)).await;
    }

    async fn until_gone(&self, pod: &str) {
        self.until("gone", |news| news.gone == [pod]).await;
    }

    /// Deletes the pod and waits until it is gone; how long that took.
    async fn delete(&self, pod: &str) -> Duration {
        let begun = tokio::time::Instant::now();
        self.edit(&format!("uid-{pod}"), delete);
        self.until_gone(pod).await;
        begun.elapsed()
    }

    async fn until_phase(&self, pod: &str, phase: &str) {
        self.until(phase, |news| news.status(pod)["phase"] == phase)
            .await;
    }

    /// Where on the node lies what the first container sees at `target`.
    fn mounted(&self, target: &str) -> PathBuf {
        let mounts = self.runtime.specs()[0].mounts.clone();
        let mut sources = mounts.into_iter();
        let found = sources.find(|mount| mount.target == Path::new(target));
        found.unwrap().source
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
            let container = &news.status(pod)["containerStatuses"][0];
            container["restartCount"] == restarts && container["state"]["running"].is_object()
        })
        .await;
    }

    async fn until_ready(&self, pod: &str, ready: bool) {
        let wanted = if ready { "True" } else { "False" };
        self.until("readiness", |news| {
            let condition = &news.status(pod)["conditions"][2];
            condition["type"] == "Ready" && condition["status"] == wanted
        })
        .await;
    }

    /// Messages of the events with this reason.
    fn messages(&self, reason: &str) -> Vec<String> {
        self.sink.0.borrow().messages(reason)
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

/// The pod `web`, its container with one thing more.
fn web_with(field: &str, value: Value) -> Value {
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0][field] = value;
    wanted
}

fn delete(pod: &mut Pod) {
    pod.metadata.deletion_timestamp = Some(super::status::time(EPOCH_MS));
    pod.metadata.deletion_grace_period_seconds = Some(30);
}
