//! Static pods: pods from files of a directory of this node, and their mirrors in the API.
//!
//! ```text
//! store ──▶ StaticPods ──▶ Edged        (desired: the store's pods without mirrors, plus the files')
//! hub   ◀── StaticPods ◀── Edged        (statuses: under the mirror's uid)
//! ```
//!
//! It stands between Edged and its neighbours, so that a static pod is a pod like any other to
//! Edged. The pods start with no hub and nothing in the store. The files are the truth: the mirror
//! only shows it. Deleting the mirror ends nothing (it is made again); removing the file ends the
//! pod, and then its mirror goes. A file that is not a pod changes nothing: what runs is kept, the
//! log and an event of the node name file and field.
//!
//! It does not know how the hub is reached: see [`MirrorHub`].

mod files;
mod mirror;
mod parse;
#[cfg(test)]
mod tests;
pub(in crate::edged) mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch as tokio_watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::files::{Found, Trouble};
use self::mirror::{Mirror, Mirrors};
use self::parse::{CONFIG_MIRROR, CONFIG_SOURCE};
use self::watch::{Change, Watch};
use super::deps::{DesiredError, DesiredState, StatusSink, Token, TokenWish};
use super::pod::status::time;
use crate::clock;

/// The directory cannot be followed: looked at again this much later.
const FOLLOW_AGAIN: Duration = Duration::from_secs(60);

/// Namespace and name.
type Name = (String, String);

/// The hub as far as mirrors need it. Deletions go by [`StatusSink::pod_gone`].
#[async_trait]
pub trait MirrorHub: Send + Sync + 'static {
    /// Puts a pod into the API. Waits for the answer; the error is for people.
    async fn create_mirror(&self, namespace: &str, name: &str, pod: Value) -> Result<(), String>;
    /// Whether the hub can be reached now.
    fn connected(&self) -> tokio_watch::Receiver<bool>;
}

/// What static pods are plugged into.
pub struct StaticDeps {
    pub node: String,
    pub directory: PathBuf,
    pub desired: Arc<dyn DesiredState>,
    pub sink: Arc<dyn StatusSink>,
    pub hub: Arc<dyn MirrorHub>,
}

/// Static pods, and the store's; clones share everything.
#[derive(Clone)]
pub struct StaticPods {
    shared: Arc<Shared>,
}

struct Shared {
    deps: StaticDeps,
    state: Mutex<State>,
    generation: tokio_watch::Sender<u64>,
    /// The mirrors may not be what they should be.
    mirrors: Notify,
}

#[derive(Default)]
struct State {
    /// The directory has been read.
    read: bool,
    /// What each file holds, and the trouble with it that was told.
    files: BTreeMap<String, Found>,
    /// By uid: what Edged was given and has not yet told to be gone.
    known: BTreeMap<String, Known>,
    mirrors: Mirrors,
}

struct Known {
    name: Name,
    /// Newest status.
    status: Option<Value>,
}

impl State {
    /// What the files ask for; the first file by name wins a name that two have.
    fn wanted(&self) -> BTreeMap<Name, &Pod> {
        let mut wanted = BTreeMap::new();
        for pod in self.files.values().filter_map(|file| file.pod.as_ref()) {
            wanted.entry(name_of(pod)).or_insert(pod);
        }
        wanted
    }

    /// What Edged should run now: a changed pod only after the one before it has ended.
    fn due(&self) -> Vec<Pod> {
        let wanted = self.wanted().into_iter().filter(|(name, pod)| {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            !self
                .known
                .iter()
                .any(|(other, known)| other != uid && known.name == *name && known.status.is_some())
        });
        wanted.map(|(_, pod)| pod.clone()).collect()
    }
}

fn name_of(pod: &Pod) -> Name {
    let text = |member: &Option<String>| member.clone().unwrap_or_default();
    (text(&pod.metadata.namespace), text(&pod.metadata.name))
}

impl StaticPods {
    /// Reads the directory once. What is in it is desired from the first moment on.
    pub fn new(deps: StaticDeps) -> Self {
        let statics = Self {
            shared: Arc::new(Shared {
                generation: tokio_watch::Sender::new(*deps.desired.generation().borrow()),
                deps,
                state: Mutex::default(),
                mirrors: Notify::new(),
            }),
        };
        // Before anything runs: what is in it must not look absent for a moment.
        let (files, read) = statics.held();
        statics.take(statics.reading(files, read, Change::Everything)());
        statics
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = &self.shared.state;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.shared
            .generation
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }

    /// Follows the directory, the store and the hub until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut store = self.shared.deps.desired.generation();
        let store_changed = async {
            while store.changed().await.is_ok() {
                self.bump();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = store_changed => {}
            () = self.follow_directory() => {}
            () = mirror::keep(&self) => {}
        }
        Ok(())
    }

    async fn follow_directory(&self) {
        let directory = &self.shared.deps.directory;
        loop {
            let mut watch = match Watch::new(directory) {
                Ok(watch) => watch,
                Err(error) => {
                    warn!(directory = %directory.display(), %error,
                        "the directory of static pods cannot be followed; looked at again in a minute");
                    tokio::time::sleep(FOLLOW_AGAIN).await;
                    self.look(Change::Everything).await;
                    continue;
                }
            };
            // Between the look before and this watch something may have happened.
            self.look(Change::Everything).await;
            loop {
                match watch.next().await {
                    Ok(Change::Everything) => break,
                    Ok(change) => self.look(change).await,
                    Err(error) => {
                        warn!(directory = %directory.display(), %error, "inotify failed; following anew");
                        tokio::time::sleep(FOLLOW_AGAIN).await;
                        break;
                    }
                }
            }
        }
    }

    /// Reads what changed and tells Edged.
    async fn look(&self, change: Change) {
        let (files, read) = self.held();
        match tokio::task::spawn_blocking(self.reading(files, read, change)).await {
            Ok(outcome) => self.take(outcome),
            Err(error) => warn!(%error, "static pods not read; what runs is kept"),
        }
    }

    /// What is known of the files. Only who looks changes it, and one does at a time.
    fn held(&self) -> (BTreeMap<String, Found>, bool) {
        let state = self.state();
        (state.files.clone(), state.read)
    }

    /// The reading of what changed; it blocks, and holds no lock.
    fn reading(
        &self,
        mut files: BTreeMap<String, Found>,
        read: bool,
        change: Change,
    ) -> impl FnOnce() -> (BTreeMap<String, Found>, files::Outcome) + Send + use<> {
        let (directory, node) = (
            self.shared.deps.directory.clone(),
            self.shared.deps.node.clone(),
        );
        move || {
            let outcome = match change {
                Change::Everything => files::read_all(&directory, &node, read, &mut files),
                Change::Files(names) => files::read_some(&directory, &node, &names, &mut files),
            };
            (files, outcome)
        }
    }

    fn take(&self, (files, outcome): (BTreeMap<String, Found>, files::Outcome)) {
        let (read, troubles, changed) = outcome;
        let mut state = self.state();
        state.files = files;
        state.read |= read;
        drop(state);
        for trouble in troubles {
            self.tell(&trouble);
        }
        if changed {
            self.bump();
            self.shared.mirrors.notify_one();
        }
    }

    /// A file that is not a pod, in the log and as an event of the node.
    fn tell(&self, trouble: &Trouble) {
        let deps = &self.shared.deps;
        let Trouble { file, why } = trouble;
        warn!(file = %file.display(), reason = why, "static pod not taken; what runs is kept");
        let now = time(clock::unix_millis());
        deps.sink.event(json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {
                "name": format!("{}.{:016x}", deps.node, rand::random::<u64>()),
                "namespace": "default",
            },
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": deps.node, "uid": deps.node},
            "reason": "InvalidStaticPod",
            "message": format!("{}: {why}", file.display()),
            "type": "Warning",
            "source": {"component": "kubelet", "host": deps.node},
            "reportingComponent": "kubelet",
            "reportingInstance": deps.node,
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }));
    }

    /// Mirrors out of what the store has; the rest is the API's own.
    fn split(&self, pods: Vec<Pod>) -> Vec<Pod> {
        let (mirrors, own): (Vec<Pod>, Vec<Pod>) = pods.into_iter().partition(is_mirror);
        let mut state = self.state();
        let fresh = state.mirrors.take(mirrors.iter().filter_map(Mirror::of));
        // What was told before the mirror was there is told under its uid now.
        let told: Vec<(Name, String, Value)> = fresh
            .into_iter()
            .filter_map(|(name, mirror)| {
                let known = state.known.get(&mirror.hash)?;
                Some((name, mirror.uid, known.status.clone()?))
            })
            .collect();
        let mut pods = own;
        for pod in state.due() {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let name = name_of(&pod);
            state
                .known
                .entry(uid)
                .or_insert(Known { name, status: None });
            pods.push(pod);
        }
        drop(state);
        for ((namespace, name), uid, status) in told {
            let sink = &self.shared.deps.sink;
            sink.pod_status(&namespace, &name, &uid, status);
        }
        self.shared.mirrors.notify_one();
        pods
    }
}

fn is_mirror(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|map| map.contains_key(CONFIG_MIRROR))
}

#[async_trait]
impl DesiredState for StaticPods {
    async fn pods(&self) -> Result<Vec<Pod>, DesiredError> {
        Ok(self.split(self.shared.deps.desired.pods().await?))
    }

    async fn configmap(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ConfigMap>, DesiredError> {
        self.shared.deps.desired.configmap(namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, DesiredError> {
        self.shared.deps.desired.secret(namespace, name).await
    }

    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, DesiredError> {
        self.shared.deps.desired.claim(namespace, name).await
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, DesiredError> {
        self.shared.deps.desired.volume(name).await
    }

    async fn volumes(&self) -> Result<Vec<PersistentVolume>, DesiredError> {
        self.shared.deps.desired.volumes().await
    }

    async fn token(&self, namespace: &str, wish: &TokenWish) -> Result<Token, DesiredError> {
        self.shared.deps.desired.token(namespace, wish).await
    }

    async fn found_containers(&self, any: bool) -> Result<(), DesiredError> {
        self.shared.deps.desired.found_containers(any).await
    }

    fn is_complete(&self) -> bool {
        self.state().read && self.shared.deps.desired.is_complete()
    }

    fn generation(&self) -> tokio_watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }
}

impl StatusSink for StaticPods {
    fn pod_status(&self, namespace: &str, name: &str, uid: &str, status: Value) {
        let sink = &self.shared.deps.sink;
        let mut state = self.state();
        let Some(known) = state.known.get_mut(uid) else {
            drop(state);
            return sink.pod_status(namespace, name, uid, status);
        };
        known.status = Some(status.clone());
        let mirror = state.mirrors.of(&known_name(namespace, name), uid);
        drop(state);
        if let Some(mirror) = mirror {
            sink.pod_status(namespace, name, &mirror, status);
        }
    }

    fn pod_gone(&self, namespace: &str, name: &str, uid: &str) {
        if self.state().known.remove(uid).is_none() {
            return self.shared.deps.sink.pod_gone(namespace, name, uid);
        }
        info!(pod = name, namespace, uid, "static pod has ended");
        // The one that replaces it may start, and its mirror may go.
        self.bump();
        self.shared.mirrors.notify_one();
    }

    fn volume_gone(&self, name: &str, uid: &str) {
        self.shared.deps.sink.volume_gone(name, uid);
    }

    fn node_status(&self, node: Value) {
        self.shared.deps.sink.node_status(node);
    }

    fn hub_link(&self) -> Option<tokio_watch::Receiver<bool>> {
        self.shared.deps.sink.hub_link()
    }

    fn event(&self, event: Value) {
        self.shared.deps.sink.event(event);
    }
}

fn known_name(namespace: &str, name: &str) -> Name {
    (namespace.to_owned(), name.to_owned())
}

/// Whether a pod comes from a file of this node.
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|map| {
        map.get(CONFIG_SOURCE)
            .is_some_and(|source| source == "file")
    }) && !is_mirror(pod)
}
