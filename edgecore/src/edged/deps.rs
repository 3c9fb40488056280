//! What Edged needs from its neighbours: where the desired pods come from and where news go.
//! The daemon plugs in its store and its hub link; tests plug in scripted ones.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use serde_json::Value;
use tokio::sync::watch;

use crate::clock::UnixMillis;

/// Why a desired object could not be read. An absent object is `Ok(None)`, never an error: Edged
/// keeps what runs when it gets an error and acts on an absence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DesiredError {
    #[error("cannot read the node's store: {reason}")]
    Store { reason: String },
    #[error("{kind} `{namespace}/{name}` is not on the node and the hub cannot be asked: {reason}")]
    Unreachable {
        kind: &'static str,
        namespace: String,
        name: String,
        reason: String,
    },
}

/// A token of a service account, for one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWish {
    pub account: String,
    pub pod_name: String,
    pub pod_uid: String,
    /// Empty: the API itself.
    pub audience: String,
    pub ttl_secs: i64,
}

/// A token that was issued.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub token: String,
    /// When it should be replaced by a new one.
    pub refresh_at_ms: UnixMillis,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("refresh_at_ms", &self.refresh_at_ms)
            .finish_non_exhaustive()
    }
}

/// The desired objects of this node, read from its own store. No method has a default: a layer
/// between store and Edged that forgot to hand one on would make everything of its kind absent.
#[async_trait]
pub trait DesiredState: Send + Sync + 'static {
    /// Every pod bound to this node, those being deleted included.
    ///
    /// # Errors
    /// When the store cannot be read: Edged then changes nothing.
    async fn pods(&self) -> Result<Vec<Pod>, DesiredError>;

    /// `Ok(None)` only when it is known not to exist. May ask the hub; Edged bounds the wait.
    async fn configmap(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ConfigMap>, DesiredError>;

    /// See [`DesiredState::configmap`].
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, DesiredError>;

    /// See [`DesiredState::configmap`].
    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, DesiredError>;

    /// See [`DesiredState::configmap`].
    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, DesiredError>;

    /// Every volume that this node knows of.
    ///
    /// # Errors
    /// When the store cannot be read: Edged then removes nothing.
    async fn volumes(&self) -> Result<Vec<PersistentVolume>, DesiredError>;

    /// A token for a pod: the one that is kept, or a new one of the hub when that is due. One that
    /// is kept is good enough while the hub is away, even after its time.
    ///
    /// # Errors
    /// When there is none and the hub cannot be asked, or refuses.
    async fn token(&self, namespace: &str, wish: &TokenWish) -> Result<Token, DesiredError>;

    /// Whether [`DesiredState::pods`] is everything. Not so after the store was lost, until the
    /// hub has told it all again: what is not listed then is left alone.
    fn is_complete(&self) -> bool;

    /// Told before anything is decided: whether pods' containers were there when Edged first looked. A
    /// store that never knew a pod is then one that was lost.
    ///
    /// # Errors
    /// When it cannot be noted: asked again before anything is decided.
    async fn found_containers(&self, any: bool) -> Result<(), DesiredError>;

    /// Rises after each commit that changed a pod, a ConfigMap or a Secret.
    fn generation(&self) -> watch::Receiver<u64>;
}

/// Where Edged's news go. No method blocks: the sink keeps the newest per key and sends it when
/// the link is up.
pub trait StatusSink: Send + Sync + 'static {
    /// `status` is a whole v1 PodStatus; called only when it differs from the one before.
    fn pod_status(&self, namespace: &str, name: &str, uid: &str, status: Value);
    /// The pod has finished terminating and left nothing behind: the hub may delete it with
    /// grace 0. Repeated after a restart while the pod is still desired, so it may be lost.
    fn pod_gone(&self, namespace: &str, name: &str, uid: &str);
    /// The data of a deleted volume has been removed. Repeated while the volume is still known, so
    /// it may be lost.
    fn volume_gone(&self, name: &str, uid: &str);
    /// A whole v1 Node (metadata, spec, status); called only when it differs from the one before.
    fn node_status(&self, node: Value);
    /// Whether the hub can be reached now; `None` where there is none.
    fn hub_link(&self) -> Option<watch::Receiver<bool>>;
    /// A v1 Event. The same `metadata.name` again with a higher `count` replaces the earlier one.
    fn event(&self, event: Value);
}
