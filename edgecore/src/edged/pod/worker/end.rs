//! Ending: why a pod that is wanted ends nevertheless (a verdict of this node, or its own deadline;
//! kept on disk before it is obeyed), and what is done to end a container and a pod.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::super::convert::{self, PodId};
use super::super::exits::{self, PodRecord};
use super::super::state::{self, Cause, Key, Observed, Phase, RestartPolicy, Why};
use super::super::times;
use super::super::verdict::Verdict;
use super::{RETRY_FIRST, RETRY_MAX, Worker};
use crate::edged::events::Severity;
use crate::edged::runtime::RuntimeError;

/// `status.reason` of a pod that was active longer than `spec.activeDeadlineSeconds`
/// (`kubelet/active_deadline.go`).
const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";

impl Worker {
    /// Reads what an earlier process wrote down about this pod.
    pub(super) async fn recall(&mut self) {
        let now_ms = (self.context.now_ms)();
        if let Some(dir) = self.context.dirs.exits(&self.id.uid) {
            let told = self.context.dirs.told(&self.id.uid);
            let id = self.id.clone();
            let work = move || (recall(&id, &dir), told.and_then(|dir| times::recall(&dir)));
            let (record, told) = tokio::task::spawn_blocking(work).await.unwrap_or_default();
            self.times = told.or_else(|| record.times.clone()).unwrap_or_default();
            self.record = record;
        }
        let told = self.pod.status.as_ref().and_then(|s| s.start_time.clone());
        let told = told.map(|at| at.0.as_millisecond());
        let started = self.record.started_at_ms.or(self.times.started_at_ms);
        let started = started.or(told).unwrap_or(now_ms);
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
                    disruption: None,
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

    pub(super) async fn keep_record(&mut self) {
        let Some(dir) = self.context.dirs.exits(&self.id.uid) else {
            return;
        };
        let record: PodRecord = self.record.clone();
        let kept = tokio::task::spawn_blocking(move || exits::record_pod(&dir, &record)).await;
        self.record_kept = matches!(kept, Ok(Ok(())));
        if let Ok(Err(error)) = kept {
            warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %error,
                "record of the pod not written down; a restart would forget it");
        }
    }

    /// Tells that a container is ended and begins with its preStop hook.
    pub(super) fn stop(&mut self, id: &str, name: &str, why: Why, deadline: Instant) {
        let now = Instant::now();
        let again = self.want.restart != RestartPolicy::Never;
        let will = if again { ", will be restarted" } else { "" };
        let message = match why {
            Why::PodEnds => format!("Stopping container {name}"),
            Why::Changed if convert::container(&self.pod, name).is_some() => {
                format!("Container {name} definition changed, will be restarted")
            }
            Why::Changed => format!("Stopping container {name}"),
            Why::Fault(Cause::Liveness) => format!("Container {name} failed liveness probe{will}"),
            Why::Fault(Cause::Startup) => format!("Container {name} failed startup probe{will}"),
            Why::Fault(Cause::PostStart) => "FailedPostStartHook".to_owned(),
        };
        self.event(Severity::Normal, "Killing", Some(name), &message);
        let limit = deadline.saturating_duration_since(now);
        let hook = self.begin_pre_stop(id, name, limit);
        self.memory.stopping(id, hook, now);
    }

    pub(super) async fn signal(&mut self, id: &str) {
        match self.context.runtime.signal_stop(id).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => {
                self.memory.signalled(id, Instant::now());
            }
            Err(error) => self.retry_later(Key::Container(id.to_owned()), &error),
        }
        self.note_action();
    }

    pub(super) async fn kill(&mut self, id: &str, name: &str) {
        info!(pod = %self.id.name, namespace = %self.id.namespace, container = name, "grace is over; killing");
        match self.context.runtime.kill(id).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => self.memory.killed(id, Instant::now()),
            Err(error) => self.retry_later(Key::Container(id.to_owned()), &error),
        }
        self.note_action();
    }

    pub(super) async fn remove(&mut self, id: &str) {
        if let Some(ghost) = self.unstarted.remove(id) {
            let words = self.message_file(&ghost.name, ghost.attempt);
            remove_files(ghost.log_path, words).await;
            self.seen.retain(|seen| seen.id != id);
            return;
        }
        match self.context.runtime.remove(id).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => {
                if self.phase == Phase::Syncing
                    && let Some(gone) = self.seen.iter().find(|seen| seen.id == id)
                {
                    let words = self.message_file(&gone.name, gone.attempt);
                    remove_files(gone.log_path.clone(), words).await;
                }
                self.seen.retain(|seen| seen.id != id);
                self.delays.remove(&Key::Container(id.to_owned()));
            }
            Err(error) => self.retry_later(Key::Container(id.to_owned()), &error),
        }
        self.note_action();
    }

    /// Gives back what a pod that is over holds of the node (`kubelet: syncTerminatedPod`): tasks,
    /// network, namespaces, cgroup and volumes, whose room is often why it was ended. What there is to
    /// look at stays: the records of its containers, its logs and the addresses that it had.
    ///
    /// Every step may be repeated, and until the last one is done all of them are, by this process or
    /// by the next.
    pub(super) async fn release(&mut self) {
        let is_host = convert::sandbox_spec(&self.pod, &self.context.placement).host_network;
        let mut is_new = false;
        if let Some(sandbox) = &self.sandbox
            && self.record.ips.is_none()
            && (is_host || !sandbox.ips.is_empty())
        {
            self.record.ips = Some(sandbox.ips.clone());
            self.record.started_at_ms = self.record.started_at_ms.or(self.times.started_at_ms);
            is_new = true;
        }
        if self.record.times.is_none() && self.told.is_some() {
            self.record.times = Some(self.times.clone());
            is_new = true;
        }
        if is_new {
            self.keep_record().await;
        }
        let runtime = self.context.runtime.clone();
        for seen in &self.seen {
            if self.unstarted.contains_key(&seen.id) {
                continue;
            }
            if let Err(error) = runtime.retire(&seen.id).await {
                return self.release_later(&error);
            }
        }
        match runtime.remove_sandbox(&self.id.uid).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => self.sandbox = None,
            Err(error) => return self.release_later(&error),
        }
        // A listing from between may lack both a task and how it ended.
        self.note_action();
        let (dirs, uid) = (self.context.dirs.clone(), self.id.uid.clone());
        let removed = tokio::task::spawn_blocking(move || dirs.remove_volumes(&uid)).await;
        if let Ok(Err(error)) = removed {
            warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %error, "volumes of the pod not removed; trying again");
            let delay = self.next_delay(&Key::Cleanup, RETRY_FIRST, RETRY_MAX);
            return self.memory.hold(Key::Cleanup, Instant::now() + delay);
        }
        self.delays.remove(&Key::Cleanup);
        self.memory.released();
        // Often the disk was full until now.
        if !self.record_kept {
            self.keep_record().await;
        }
    }

    fn release_later(&mut self, error: &RuntimeError) {
        self.retry_later(Key::Cleanup, error);
        self.note_action();
    }

    pub(super) async fn clean_up(&mut self) {
        // Before the sandbox: what is left after a crash in between is found by the sandbox.
        remove_logs(&self.id, &self.context.placement).await;
        if let Err(error) = self.context.runtime.remove_sandbox(&self.id.uid).await
            && !matches!(error, RuntimeError::NotFound { .. })
        {
            return self.retry_later(Key::Cleanup, &error);
        }
        self.sandbox = None;
        let (dirs, uid) = (self.context.dirs.clone(), self.id.uid.clone());
        let removed = tokio::task::spawn_blocking(move || dirs.remove_pod(&uid)).await;
        if let Ok(Err(error)) = removed {
            warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %error, "files of the pod not removed; trying again");
            let delay = self.next_delay(&Key::Cleanup, RETRY_FIRST, RETRY_MAX);
            return self.memory.hold(Key::Cleanup, Instant::now() + delay);
        }
        self.phase = Phase::Terminated;
        self.board().remove(&self.id.uid);
        info!(pod = %self.id.name, namespace = %self.id.namespace, uid = %self.id.uid, "pod is gone");
        self.context.pod_gone(&self.id);
    }
}

/// The pod's record. One that cannot be read is put aside, and the pod goes on without: what runs is
/// not ended for it, and what was ended wrongly started can be ended again.
fn recall(id: &PodId, dir: &Path) -> PodRecord {
    let error = match exits::recall_pod(dir) {
        Ok(record) => return record,
        Err(error) => error,
    };
    let aside = exits::set_aside(dir);
    let path = aside.as_deref().unwrap_or(dir).display();
    warn!(pod = %id.name, namespace = %id.namespace, uid = %id.uid, %error, %path,
        "record of the pod cannot be read; if this node had ended it, it may start again");
    PodRecord::default()
}

/// Removes what an attempt left that nobody can ask for any more: its last words and its log, rotated
/// parts included.
async fn remove_files(path: PathBuf, words: Option<PathBuf>) {
    let work = move || {
        if let Some(words) = words {
            let _ = std::fs::remove_file(words);
        }
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        let name = name.to_string_lossy().into_owned();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let other = entry.file_name().to_string_lossy().into_owned();
            let rotated = other
                .strip_prefix(&name)
                .is_some_and(|rest| rest.starts_with('.'));
            if other == name || rotated {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    };
    // A log that stays goes with its pod.
    let _ = tokio::task::spawn_blocking(work).await;
}

/// Removes the logs of a pod that is gone. Of one that only its sandbox remembers, the name is not
/// known: the uid is the end of the directory's name.
async fn remove_logs(id: &PodId, placement: &convert::Placement) {
    let named = convert::log_directory(id, placement);
    let root = placement.log_root.clone();
    let suffix = format!("_{}", id.uid);
    let is_known = !id.name.is_empty();
    let work = move || {
        if is_known {
            let _ = std::fs::remove_dir_all(named);
            return;
        }
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(&suffix) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    };
    // Logs that stay are no reason to keep the pod.
    let _ = tokio::task::spawn_blocking(work).await;
}
