//! What is told about the pod: events and the status.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use k8s_openapi::api::core::v1::PodStatus;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::super::state::Phase;
use super::super::status::{self, View};
use super::super::times::{self, Times};
use super::Worker;
use crate::edged::PodSummary;
use crate::edged::events::Severity;

impl Worker {
    pub(super) fn event(
        &mut self,
        severity: Severity,
        reason: &str,
        container: Option<&str>,
        message: &str,
    ) {
        let now_ms = (self.context.now_ms)();
        if self.removed {
            return;
        }
        let path = container.map(|name| self.field_path(name));
        self.recorder
            .record(severity, reason, path.as_deref(), message, now_ms);
    }

    /// `spec.containers{web}`
    pub(super) fn field_path(&self, name: &str) -> String {
        let spec = self.pod.spec.as_ref();
        let mut inits = spec.iter().flat_map(|s| s.init_containers.iter().flatten());
        let list = if inits.any(|init| init.name == name) {
            "initContainers"
        } else {
            "containers"
        };
        format!("spec.{list}{{{name}}}")
    }

    pub(super) fn board(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PodSummary>> {
        self.context
            .board
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod that is over keeps the addresses that it had, as kubelet's does.
    fn pod_ips(&self) -> Option<&[String]> {
        let own = self.sandbox.as_ref().map(|sandbox| &sandbox.ips);
        self.record.ips.as_ref().or(own).map(Vec::as_slice)
    }

    /// Before it is told: who is killed in between tells the same again.
    async fn keep_times(&mut self, status: &PodStatus) {
        let times = Times::of(status);
        if self.times == times {
            return;
        }
        self.times = times.clone();
        let Some(dir) = self.context.dirs.told(&self.id.uid) else {
            return;
        };
        let kept = tokio::task::spawn_blocking(move || times::keep(&dir, &times)).await;
        if let Ok(Err(error)) = kept {
            debug!(pod = %self.id.name, namespace = %self.id.namespace, error = %error,
                "times of the pod's conditions not written down; a restart would renew them");
        }
    }

    /// Tells the status if it is another one. A pod the API already knows as finished, or no
    /// longer knows, has nothing to tell.
    pub(super) async fn publish(&mut self, now: Instant) {
        if self.removed {
            return;
        }
        if self.want.finished && !self.want.delete {
            if let Some(status) = &self.pod.status {
                let summary = PodSummary::of(&self.id, status, false);
                self.board().insert(self.id.uid.clone(), summary);
            }
            return;
        }
        let status = self.status(now);
        if self.told.as_ref() == Some(&status) {
            return;
        }
        self.keep_times(&status).await;
        let terminating = matches!(self.phase, Phase::Terminating { .. } | Phase::Terminated);
        let summary = PodSummary::of(&self.id, &status, terminating);
        self.board().insert(self.id.uid.clone(), summary);
        match serde_json::to_value(&status) {
            Ok(value) => {
                let id = &self.id;
                self.context
                    .sink
                    .pod_status(&id.namespace, &id.name, &id.uid, value);
                self.told = Some(status);
            }
            Err(error) => {
                warn!(pod = %self.id.name, error = %error, "status cannot be written as JSON");
            }
        }
    }

    fn status(&self, now: Instant) -> PodStatus {
        let health = |id: &str| self.probes.health(id);
        status::build(&View {
            pod: &self.pod,
            want: &self.want,
            seen: &self.seen,
            memory: &self.memory,
            troubles: &self.troubles,
            health: &health,
            last_words: &self.last_words,
            unstarted: &self.unstarted,
            pod_ips: self.pod_ips(),
            host_ip: &self.host_ip,
            times: &self.times,
            verdict: self.record.verdict.as_ref(),
            started_ms: self.record.started_at_ms,
            now,
            now_ms: (self.context.now_ms)(),
        })
    }
}
