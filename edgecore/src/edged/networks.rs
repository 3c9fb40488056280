//! Looks once, after a start, at the networks of the pods that were found running: what somebody took
//! down while nobody watched is told, and rebuilt by the pod's worker. One at a time, beside
//! everything else: plugins are processes.

use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::pod::worker::Context;
use super::runtime::NetworkHealth;

/// Looks at the pods that are given, when they are, and ends.
pub(super) async fn run(context: Arc<Context>, adopted: oneshot::Receiver<Vec<String>>) {
    let Ok(uids) = adopted.await else { return };
    for uid in uids {
        let health = context.runtime.check_network(&uid).await;
        match &health {
            NetworkHealth::Good => {
                debug!(uid, "network of an adopted pod stands");
                continue;
            }
            NetworkHealth::Doubtful { reason } => {
                warn!(
                    uid,
                    reason, "plugins complain of a pod's network that stands; left alone"
                );
            }
            NetworkHealth::Gone { reason } => warn!(uid, reason, "network of a pod is gone"),
        }
        let networks = context.networks.lock();
        networks
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid, health);
        context.poke.notify_one();
    }
}
