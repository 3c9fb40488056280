//! What Edged needs from its neighbours: where the desired pods come from and where news go.
//! The daemon plugs in its store and its hub link; tests plug in scripted ones.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde_json::Value;
use tokio::sync::watch;

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

/// The desired objects of this node, read from its own store.
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

    /// Whether [`DesiredState::pods`] is everything. Not so after the store was lost, until the
    /// hub has told it all again: what is not listed then is left alone.
    fn is_complete(&self) -> bool {
        true
    }

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
    /// A whole v1 Node (metadata, spec, status); called only when it differs from the one before.
    fn node_status(&self, node: Value);
    /// Whether the hub can be reached now; `None` where there is none.
    fn hub_link(&self) -> Option<watch::Receiver<bool>> {
        None
    }
    /// A v1 Event. The same `metadata.name` again with a higher `count` replaces the earlier one.
    fn event(&self, event: Value);
}
