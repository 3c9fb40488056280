//! A store and a sink that do as they are told, for the tests of Edged on the scripted runtime and,
//! from `tests/edged`, on real containerd.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use serde_json::Value;
use tokio::sync::watch;

// Of `edged`, whichever crate it is in here.
use super::{DesiredError, DesiredState, StatusSink, Token, TokenWish};

/// What is desired, by name; pods by uid.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) pods: Mutex<BTreeMap<String, Pod>>,
    pub(crate) configmaps: Mutex<BTreeMap<String, ConfigMap>>,
    pub(crate) secrets: Mutex<BTreeMap<String, Secret>>,
    pub(crate) claims: Mutex<BTreeMap<String, PersistentVolumeClaim>>,
    pub(crate) volumes: Mutex<BTreeMap<String, PersistentVolume>>,
    /// Tokens yet to be issued; none means that the hub is away.
    pub(crate) tokens: Mutex<Vec<Token>>,
    pub(crate) tokens_asked: watch::Sender<u64>,
    pub(crate) is_broken: AtomicBool,
    pub(crate) is_incomplete: AtomicBool,
    /// It has never known a pod.
    pub(crate) is_new: AtomicBool,
    generation: watch::Sender<u64>,
}

impl Store {
    /// Says that something changed.
    pub(crate) fn bump(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// These pods and no others.
    pub(crate) fn set(&self, pods: impl IntoIterator<Item = Pod>) {
        let by_uid = |pod: Pod| (pod.metadata.uid.clone().unwrap_or_default(), pod);
        *self.pods.lock().unwrap() = pods.into_iter().map(by_uid).collect();
        self.bump();
    }

    pub(crate) fn apply(&self, pod: Value) {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let uid = pod.metadata.uid.clone().unwrap();
        self.pods.lock().unwrap().insert(uid, pod);
        self.bump();
    }

    pub(crate) fn configmap(&self, name: &str, key: &str, value: &str) {
        let map = ConfigMap {
            data: Some([(key.to_owned(), value.to_owned())].into()),
            ..ConfigMap::default()
        };
        self.configmaps.lock().unwrap().insert(name.to_owned(), map);
        self.bump();
    }
}

fn unreachable(kind: &'static str, namespace: &str, name: &str) -> DesiredError {
    DesiredError::Unreachable {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        reason: "the link is down".to_owned(),
    }
}

#[async_trait]
impl DesiredState for Store {
    async fn pods(&self) -> Result<Vec<Pod>, DesiredError> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(DesiredError::Store {
                reason: "disk I/O error".to_owned(),
            });
        }
        Ok(self.pods.lock().unwrap().values().cloned().collect())
    }

    async fn configmap(&self, _: &str, name: &str) -> Result<Option<ConfigMap>, DesiredError> {
        Ok(self.configmaps.lock().unwrap().get(name).cloned())
    }

    /// One that is not on the node would have to be asked for, and the hub is away.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, DesiredError> {
        let known = self.secrets.lock().unwrap().get(name).cloned();
        known
            .map(Some)
            .ok_or_else(|| unreachable("secret", namespace, name))
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
        let issued = self.tokens.lock().unwrap().pop();
        issued.ok_or_else(|| unreachable("token of ServiceAccount", namespace, &wish.account))
    }

    async fn found_containers(&self, any: bool) -> Result<(), DesiredError> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(DesiredError::Store {
                reason: "disk I/O error".to_owned(),
            });
        }
        if self.is_new.swap(false, Ordering::Relaxed) && any {
            self.is_incomplete.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        !self.is_incomplete.load(Ordering::Relaxed)
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

/// All that was told.
#[derive(Default)]
pub(crate) struct News {
    /// The newest of each pod, by name.
    pub(crate) statuses: BTreeMap<String, Value>,
    /// How many statuses in all.
    pub(crate) told: usize,
    pub(crate) nodes: Vec<Value>,
    /// Names of pods, in their order.
    pub(crate) gone: Vec<String>,
    pub(crate) volumes_gone: Vec<String>,
    pub(crate) events: Vec<Value>,
}

impl News {
    /// The newest status of a pod; null before the first.
    pub(crate) fn status(&self, pod: &str) -> &Value {
        self.statuses.get(pod).unwrap_or(&Value::Null)
    }

    /// The only container runs, is ready, and has been restarted so often.
    pub(crate) fn is_running(&self, pod: &str, restarts: u64) -> bool {
        let status = self.status(pod);
        let container = &status["containerStatuses"][0];
        status["phase"] == "Running"
            && container["ready"] == true
            && container["restartCount"] == restarts
    }

    /// Messages of the events with this reason.
    pub(crate) fn messages(&self, reason: &str) -> Vec<String> {
        let mine = self.events.iter().filter(|event| event["reason"] == reason);
        mine.map(|event| event["message"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Keeps the news for those who wait for them.
#[derive(Default)]
pub(crate) struct Sink(pub(crate) watch::Sender<News>);

impl Sink {
    /// Forgets what was told before.
    pub(crate) fn forget(&self) {
        self.0.send_modify(|news| *news = News::default());
    }
}

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
