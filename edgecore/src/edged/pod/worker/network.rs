//! The pod's network was lost while nobody watched: told, and made anew where the pod can bear it.

use tracing::{info, warn};

use super::super::state::{Phase, RestartPolicy};
use super::Worker;
use crate::edged::events::Severity;
use crate::edged::runtime::{ContainerState, NetworkHealth};

impl Worker {
    /// Acts on what was found of the network, once for each process. A pod on a new network is a new
    /// sandbox, so its containers end first (`kuberuntime_manager.go: podSandboxChanged`). One whose
    /// containers would not be started again keeps running: without a network is better than not.
    pub(super) async fn mend_network(&mut self) {
        match self.network_found.take() {
            None | Some(NetworkHealth::Good) => {}
            Some(NetworkHealth::Doubtful { reason }) => {
                let told = format!("Network is there, but its plugins complain: {reason}");
                self.event(Severity::Warning, "NetworkCheckFailed", None, &told);
            }
            Some(NetworkHealth::Gone { reason }) => self.abandon_sandbox(&reason).await,
        }
        let runs = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
        if self.rebuilding && !self.seen.iter().any(|seen| runs(&seen.state)) {
            self.rebuilding = false;
            self.sandbox = None;
            self.want.suspended = self.suspended;
        }
    }

    async fn abandon_sandbox(&mut self, reason: &str) {
        if self.phase != Phase::Syncing || self.want.delete || self.want.verdict.is_some() {
            return;
        }
        if self.want.restart != RestartPolicy::Always {
            let told =
                format!("Network is gone, and containers that end are not restarted: {reason}");
            return self.event(Severity::Warning, "NetworkLost", None, &told);
        }
        if let Err(error) = self.context.runtime.abandon_sandbox(&self.id.uid).await {
            warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %error,
                "lost network of the pod cannot be made anew; it runs on without");
            return;
        }
        info!(pod = %self.id.name, namespace = %self.id.namespace, uid = %self.id.uid, reason,
            "the pod's network is gone; its containers are started again on a new one");
        let told = format!("Pod sandbox changed, it will be killed and re-created: {reason}");
        self.event(Severity::Normal, "SandboxChanged", None, &told);
        self.rebuilding = true;
        self.want.suspended = true;
    }
}
