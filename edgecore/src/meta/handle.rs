//! Reading the desired state: what Edged is given.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use wire::body::Reply;
use wire::message::{Content, Message, Operation, Route};
use wire::resource::{Kind, NULL_NAMESPACE};
use wire::rules::Routes;

use super::objects::{self, Key};
use super::{Sealer, apply, routes};
use crate::clock;
use crate::document;
use crate::edged::{DesiredError, DesiredState, Token, TokenWish};
use crate::hub::HubHandle;
use crate::store::{Store, StoreError};

/// An object that the hub does not have is not asked for again so soon. One that comes into being is
/// pushed, so nobody waits for this.
const ABSENT_FOR: Duration = Duration::from_secs(30);
/// Names that are remembered as absent; beyond, the hub is asked.
const ABSENT_MAX: usize = 1024;

const STORE_LOST: &str =
    "the store was lost; pods that it does not know are kept until the hub has told all of them";

/// Clones share everything.
#[derive(Clone, Debug)]
pub struct MetaHandle {
    pub(super) store: Store,
    pub(super) sealer: Arc<Sealer>,
    node: Arc<str>,
    generation: watch::Sender<u64>,
    /// Rises when a device or a model was committed.
    devices: watch::Sender<u64>,
    /// What rules want from this node.
    routes: watch::Sender<Arc<Routes>>,
    /// False after the database was lost, until the hub has told everything again.
    complete: Arc<AtomicBool>,
    pub(super) hub: HubHandle,
    /// One query a path at a time; the others find its result in the store (protocol C4).
    asking: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    /// By path: until when the hub is not asked again.
    absent: Arc<Mutex<HashMap<String, Instant>>>,
}

impl MetaHandle {
    /// Forgets secrets that this node's key does not open (they are asked for again), and is
    /// ready. Needs no hub.
    pub async fn open(
        store: Store,
        sealer: Arc<Sealer>,
        node: &str,
        hub: HubHandle,
    ) -> Result<Self, StoreError> {
        let key = Arc::clone(&sealer);
        let (unreadable, complete, is_rebuilt, routes) = store
            .write(move |tx| {
                let (complete, is_rebuilt) = (objects::is_complete(tx)?, objects::is_rebuilt(tx)?);
                let unreadable = objects::forget_unreadable(tx, &key)?;
                Ok((unreadable, complete, is_rebuilt, routes::load(tx)?))
            })
            .await?;
        if is_rebuilt {
            tracing::warn!("{STORE_LOST}");
        }
        if unreadable > 0 {
            tracing::warn!(
                secrets = unreadable,
                "secrets cannot be opened with this node's key; they will be asked for again"
            );
        }
        Ok(Self {
            store,
            sealer,
            node: node.into(),
            generation: watch::Sender::new(1),
            devices: watch::Sender::new(1),
            routes: watch::Sender::new(Arc::new(routes)),
            complete: Arc::new(AtomicBool::new(complete)),
            hub,
            asking: Arc::default(),
            absent: Arc::default(),
        })
    }

    /// The sealer, for applying pushes.
    pub fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.sealer)
    }

    /// The hub has told everything: pods that are not in the store are not desired.
    pub async fn set_complete(&self) -> Result<(), StoreError> {
        self.store.write(objects::set_complete).await?;
        self.complete.store(true, Ordering::Release);
        self.bump();
        Ok(())
    }

    /// Tells the readers that something they may care about was committed.
    pub fn bump(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Tells the mappers' side that a device or a model was committed.
    pub fn bump_devices(&self) {
        self.devices.send_modify(|generation| *generation += 1);
    }

    /// Rises when devices or models may have changed.
    pub fn devices(&self) -> watch::Receiver<u64> {
        self.devices.subscribe()
    }

    /// What rules want from this node was committed.
    pub fn set_routes(&self, routes: Routes) {
        self.routes.send_replace(Arc::new(routes));
    }

    /// What rules want from this node, as last told; known before the hub is there.
    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.subscribe()
    }

    async fn local(&self, key: Key) -> Result<Option<Vec<u8>>, DesiredError> {
        let sealer = Arc::clone(&self.sealer);
        self.store
            .read(move |tx| objects::get(tx, &sealer, &key))
            .await
            .map(|found| found.map(|object| object.json))
            .map_err(store_error)
    }

    /// The object from the store, else from the hub. An error is never stored as an object (E1).
    async fn object<T: DeserializeOwned>(
        &self,
        kind: Kind,
        human: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>, DesiredError> {
        let key = Key::new(&kind, namespace, name);
        if let Some(json) = self.local(key.clone()).await? {
            return decode(&json).map(Some);
        }
        let turn = self.turn(&key);
        let guard = turn.lock().await;
        let found = match self.local(key.clone()).await? {
            Some(json) => Ok(Some(json)),
            None if self.is_absent(&key) => Ok(None),
            None => self.ask(&key, human).await,
        };
        drop(guard);
        self.end_turn(&key, &turn);
        found?.map(|json| decode(&json)).transpose()
    }

    fn is_absent(&self, key: &Key) -> bool {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        let until = absent.get(&key.path());
        until.is_some_and(|until| *until > clock::monotonic())
    }

    fn note_absent(&self, key: &Key) {
        let now = clock::monotonic();
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        absent.retain(|_, until| *until > now);
        if absent.len() < ABSENT_MAX {
            absent.insert(key.path(), now + ABSENT_FOR);
        }
    }

    fn turn(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(asking.entry(key.path()).or_default())
    }

    fn end_turn(&self, key: &Key, turn: &Arc<tokio::sync::Mutex<()>>) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and ours: nobody else waits.
        if Arc::strong_count(turn) <= 2 {
            asking.remove(&key.path());
        }
    }

    async fn ask(&self, key: &Key, human: &'static str) -> Result<Option<Vec<u8>>, DesiredError> {
        let unreachable = |reason: String| DesiredError::Unreachable {
            kind: human,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            reason,
        };
        let now = clock::unix_millis();
        let route = Route::new("edged", "meta", &Operation::Query, key.path());
        let id = uuid::Uuid::new_v4().to_string();
        let message = Message::new(id, now, route, Content::null());
        let reply = self
            .hub
            .request(message)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        match Reply::classify(&reply.content) {
            Reply::Object(object) => {
                let json = object.get().as_bytes().to_vec();
                self.keep(key, &reply).await?;
                Ok(Some(json))
            }
            Reply::Failed(status) if status.reason == "NotFound" || status.code == 404 => {
                self.note_absent(key);
                Ok(None)
            }
            Reply::Failed(status) => Err(unreachable(status.message)),
            Reply::Empty => {
                self.note_absent(key);
                Ok(None)
            }
            Reply::Ok | Reply::Text(_) | Reply::UnknownError => {
                Err(unreachable("the hub's answer is no object".into()))
            }
        }
    }

    async fn keep(&self, key: &Key, reply: &Message) -> Result<(), DesiredError> {
        let mut push = reply.clone();
        push.route = Route::new("edgecontroller", "resource", &Operation::Update, key.path());
        let (sealer, node) = (Arc::clone(&self.sealer), Arc::clone(&self.node));
        self.store
            .write(move |tx| apply(tx, &sealer, &node, &push, clock::unix_millis()))
            .await
            .map(|_| ())
            .map_err(store_error)
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
pub(super) fn store_error(error: StoreError) -> DesiredError {
    DesiredError::Store {
        reason: error.to_string(),
    }
}

fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, DesiredError> {
    document::read(json).map_err(|error| DesiredError::Store {
        reason: error.to_string(),
    })
}

#[async_trait]
impl DesiredState for MetaHandle {
    async fn pods(&self) -> Result<Vec<Pod>, DesiredError> {
        let sealer = Arc::clone(&self.sealer);
        let objects = self
            .store
            .read(move |tx| objects::list(tx, &sealer, &Kind::Pod))
            .await
            .map_err(store_error)?;
        objects
            .into_iter()
            .map(|object| {
                let mut pod: Pod = decode(&object.json)?;
                // Bodies without metadata members take them from the path (protocol §10.2).
                let (namespace, name) = (object.key.namespace, object.key.name);
                pod.metadata.namespace.get_or_insert(namespace);
                pod.metadata.name.get_or_insert(name);
                Ok(pod)
            })
            .collect()
    }

    async fn configmap(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ConfigMap>, DesiredError> {
        self.object(Kind::ConfigMap, "ConfigMap", namespace, name)
            .await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, DesiredError> {
        self.object(Kind::Secret, "Secret", namespace, name).await
    }

    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, DesiredError> {
        self.object(
            Kind::PersistentVolumeClaim,
            "PersistentVolumeClaim",
            namespace,
            name,
        )
        .await
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, DesiredError> {
        self.object(
            Kind::PersistentVolume,
            "PersistentVolume",
            NULL_NAMESPACE,
            name,
        )
        .await
    }

    async fn volumes(&self) -> Result<Vec<PersistentVolume>, DesiredError> {
        let sealer = Arc::clone(&self.sealer);
        let objects = self
            .store
            .read(move |tx| objects::list(tx, &sealer, &Kind::PersistentVolume))
            .await
            .map_err(store_error)?;
        objects.iter().map(|object| decode(&object.json)).collect()
    }

    async fn token(&self, namespace: &str, wish: &TokenWish) -> Result<Token, DesiredError> {
        self.issued_token(namespace, wish, clock::unix_millis())
            .await
    }

    async fn found_containers(&self, any: bool) -> Result<(), DesiredError> {
        if self.is_complete() {
            return Ok(());
        }
        let noted = self.store.write(move |tx| {
            let was_rebuilt = objects::is_rebuilt(tx)?;
            objects::found_containers(tx, any)?;
            let is_found_out = objects::is_rebuilt(tx)? && !was_rebuilt;
            Ok((objects::is_complete(tx)?, is_found_out))
        });
        let (complete, is_found_out) = noted.await.map_err(store_error)?;
        if is_found_out {
            tracing::warn!("{STORE_LOST}");
        }
        self.complete.store(complete, Ordering::Release);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
