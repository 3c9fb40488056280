//! Why a pod that is wanted ends nevertheless: a verdict of this node, or its own deadline. Kept on
//! disk before it is obeyed.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::super::exits::{self, PodRecord};
use super::super::state::{self, Observed, Phase};
use super::super::verdict::Verdict;
use super::Worker;
use crate::edged::events::Severity;

/// `status.reason` of a pod that was active longer than `spec.activeDeadlineSeconds`
/// (`kubelet/active_deadline.go`).
const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";

impl Worker {
    /// Reads what an earlier process wrote down about this pod.
    pub(super) async fn recall(&mut self) {
        let now_ms = (self.context.now_ms)();
        if let Some(dir) = self.context.dirs.exits(&self.id.uid) {
            let read = tokio::task::spawn_blocking(move || exits::recall_pod(&dir)).await;
            self.record = read.unwrap_or_default();
        }
        let told = self.pod.status.as_ref().and_then(|s| s.start_time.clone());
        let told = told.map(|at| at.0.as_millisecond());
        let started = self.record.started_at_ms.or(told).unwrap_or(now_ms);
        // A clock that was set back makes a pod younger, never older.
        let age = u64::try_from(now_ms.saturating_sub(started)).unwrap_or(0);
        self.born = (Instant::now(), Duration::from_millis(age));
        self.want.verdict = self.record.verdict.as_ref().map(|v| v.grace);
        if self.deadline().is_some() && self.record.started_at_ms.is_none() && !self.removed {
            self.record.started_at_ms = Some(started);
            self.keep_record().await;
        }
    }

    /// When the pod's own deadline is over.
    fn deadline(&self) -> Option<Instant> {
        let secs = self.pod.spec.as_ref()?.active_deadline_seconds?;
        let allowed = Duration::from_secs(u64::try_from(secs).unwrap_or(0));
        let (born, age) = self.born;
        born.checked_add(allowed.saturating_sub(age))
    }

    /// Takes a verdict, if there is one and something is left to end; when to look again.
    pub(super) async fn judge(&mut self, saw: &Observed, now: Instant) -> Option<Instant> {
        if self.record.verdict.is_some()
            || self.phase != Phase::Syncing
            || self.want.delete
            || state::is_over(&self.want, saw)
        {
            return None;
        }
        let (verdict, severity) = match (&self.sentence, self.deadline()) {
            (Some(verdict), _) => (verdict.clone(), Severity::Warning),
            (None, Some(at)) if at <= now => {
                let message = "Pod was active on the node longer than the specified deadline";
                let verdict = Verdict {
                    reason: DEADLINE_EXCEEDED.to_owned(),
                    message: message.to_owned(),
                    grace: self.want.grace,
                };
                (verdict, Severity::Normal)
            }
            (None, at) => return at,
        };
        info!(pod = %self.id.name, namespace = %self.id.namespace, uid = %self.id.uid,
            reason = verdict.reason, message = verdict.message, "the node ends the pod");
        self.event(severity, &verdict.reason, None, &verdict.message);
        self.want.verdict = Some(verdict.grace);
        self.record.verdict = Some(verdict);
        self.keep_record().await;
        None
    }

    async fn keep_record(&self) {
        let Some(dir) = self.context.dirs.exits(&self.id.uid) else {
            return;
        };
        let record: PodRecord = self.record.clone();
        let kept = tokio::task::spawn_blocking(move || exits::record_pod(&dir, &record)).await;
        if let Ok(Err(error)) = kept {
            warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %error,
                "record of the pod not written down; a restart would forget it");
        }
    }
}
