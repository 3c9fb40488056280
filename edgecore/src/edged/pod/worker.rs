//! One task per pod: asks `state` what is next, does it, tells the status, and sleeps until
//! something changed or is due. Owns everything about its pod; nothing here waits for another pod.

mod end;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::convert::{self, PodId};
use super::exits::{self, PodRecord};
use super::state::{
    self, Action, Desired, Key, Memory, Observed, Phase, RestartPolicy, SeenContainer, SeenState,
};
use super::status::{self, Trouble, View};
use super::verdict::Verdict;
use crate::clock::UnixMillis;
use crate::edged::PodSummary;
use crate::edged::deps::{DesiredState, StatusSink};
use crate::edged::events::{Recorder, Severity};
use crate::edged::runtime::{
    Container as Seen, ContainerState, Image, Runtime, RuntimeError, Sandbox,
};
use crate::edged::volumes::{self, Dirs};
use start::Failure;

/// First and longest delay before something that failed for a passing reason is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What all workers share.
pub(crate) struct Context {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) desired: Arc<dyn DesiredState>,
    pub(crate) sink: Arc<dyn StatusSink>,
    pub(crate) placement: convert::Placement,
    pub(crate) node_name: String,
    pub(crate) cpu_milli: i64,
    pub(crate) dirs: Dirs,
    /// Orders listings of containers and actions on them.
    pub(crate) ticks: AtomicU64,
    /// Asks the main loop to list the containers again.
    pub(crate) poke: Notify,
    pub(crate) board: Mutex<BTreeMap<String, PodSummary>>,
    /// Pods that this node ends although they are wanted, by uid.
    pub(crate) verdicts: Mutex<BTreeMap<String, Verdict>>,
    pub(crate) now_ms: Box<dyn Fn() -> UnixMillis + Send + Sync>,
}

impl Context {
    pub(crate) fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    /// Ends a pod that is still wanted; the first verdict on a pod stays.
    pub(crate) fn judge(&self, uid: &str, verdict: Verdict) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.entry(uid.to_owned()).or_insert(verdict);
        self.poke.notify_one();
    }

    /// Tells that a pod is gone; remains of which only the uid is known concern nobody.
    pub(crate) fn pod_gone(&self, id: &PodId) {
        if !id.name.is_empty() {
            self.sink.pod_gone(&id.namespace, &id.name, &id.uid);
        }
    }
}

/// What the main loop tells a worker; the newest wins.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) pod: Arc<Pod>,
    /// No longer desired at all.
    pub(crate) removed: bool,
    pub(crate) seen: Vec<Seen>,
    /// Tick at which the listing behind `seen` began.
    pub(crate) stamp: u64,
    pub(crate) generation: u64,
    /// Rises when every status is to be told again.
    pub(crate) resend: u64,
    pub(crate) host_ip: String,
    /// This node ends the pod although it is wanted.
    pub(crate) verdict: Option<Verdict>,
}

pub(crate) struct Worker {
    context: Arc<Context>,
    input: watch::Receiver<Input>,
    /// Set when this worker acted, so that the next listing reaches it even if nothing changed.
    acted: Arc<AtomicBool>,
    id: PodId,
    pod: Arc<Pod>,
    want: Desired,
    removed: bool,
    /// Some volume's content follows the API.
    has_live_volumes: bool,
    host_ip: String,
    generation: u64,
    resend: u64,
    phase: Phase,
    memory: Memory,
    seen: Vec<Seen>,
    /// Listings that began before this do not count.
    acted_at: u64,
    sandbox: Option<Sandbox>,
    troubles: BTreeMap<String, Trouble>,
    /// Troubles that turn into another one when due.
    flips: BTreeMap<String, (Instant, Trouble)>,
    /// Containers to try again as soon as some desired object changed.
    on_change: BTreeSet<String>,
    /// Keys to try again as soon as the runtime speaks again.
    on_runtime: BTreeSet<Key>,
    delays: BTreeMap<Key, Duration>,
    pulls: JoinSet<(String, Duration, Result<Image, RuntimeError>)>,
    pulled: BTreeMap<String, (Duration, Result<Image, RuntimeError>)>,
    told_backoff: BTreeMap<String, u32>,
    /// Ends that have been written down or looked up, by container and attempt.
    exits: BTreeMap<(String, u32), ContainerState>,
    /// What outlives a reboot.
    record: PodRecord,
    /// A verdict somebody else on this node gave.
    sentence: Option<Verdict>,
    /// When this process first knew the pod, and how long it had been here then.
    born: (Instant, Duration),
    recorder: Recorder,
    told: Option<PodStatus>,
    volumes_stale: bool,
}

impl Worker {
    pub(crate) fn new(
        context: Arc<Context>,
        input: watch::Receiver<Input>,
        acted: Arc<AtomicBool>,
        sandbox: Option<Sandbox>,
    ) -> Self {
        let first = input.borrow().clone();
        let id = PodId::of(&first.pod);
        let recorder = Recorder::new(context.sink.clone(), context.node_name.clone(), id.clone());
        Self {
            want: convert::desired(&first.pod, first.removed),
            has_live_volumes: volumes::has_live_content(&first.pod),
            removed: first.removed,
            volumes_stale: sandbox.is_some() && volumes::has_live_content(&first.pod),
            pod: first.pod,
            host_ip: first.host_ip,
            generation: first.generation,
            resend: first.resend,
            seen: first.seen,
            context,
            input,
            acted,
            id,
            phase: Phase::Syncing,
            memory: Memory::default(),
            acted_at: 0,
            sandbox,
            troubles: BTreeMap::new(),
            flips: BTreeMap::new(),
            on_change: BTreeSet::new(),
            on_runtime: BTreeSet::new(),
            delays: BTreeMap::new(),
            pulls: JoinSet::new(),
            pulled: BTreeMap::new(),
            told_backoff: BTreeMap::new(),
            exits: BTreeMap::new(),
            record: PodRecord::default(),
            sentence: None,
            born: (Instant::now(), Duration::ZERO),
            recorder,
            told: None,
        }
    }

    /// Runs until the pod is gone, or the main loop is: then everything is left as it is.
    pub(crate) async fn run(mut self) -> String {
        self.recall().await;
        loop {
            self.take_input();
            if std::mem::take(&mut self.volumes_stale) {
                self.refresh_volumes().await;
            }
            self.keep_exits().await;
            let now = Instant::now();
            let saw = self.observed();
            self.memory.observe(&saw, now);
            let deadline = self.judge(&saw, now).await;
            self.turn_troubles(now);
            let step = state::step(self.phase, &self.want, &saw, &self.memory, now);
            if self.phase == Phase::Syncing && step.phase != Phase::Syncing {
                self.flips.clear();
                info!(pod = %self.id.name, namespace = %self.id.namespace, uid = %self.id.uid, "pod is terminating");
                self.pulls.abort_all();
            }
            self.phase = step.phase;
            self.publish(now);
            if step.actions.is_empty() {
                if !self.wait(step.wake.into_iter().chain(deadline).min()).await {
                    return self.id.uid;
                }
                continue;
            }
            for action in step.actions {
                self.perform(action).await;
                if self.phase == Phase::Terminated {
                    return self.id.uid;
                }
                if self.input.has_changed().unwrap_or(true) {
                    break;
                }
            }
        }
    }

    fn take_input(&mut self) {
        let input = self.input.borrow_and_update().clone();
        if !Arc::ptr_eq(&input.pod, &self.pod) || input.removed != self.removed {
            self.want = convert::desired(&input.pod, input.removed);
            self.want.verdict = self.record.verdict.as_ref().map(|v| v.grace);
            self.has_live_volumes = volumes::has_live_content(&input.pod);
            self.pod = input.pod;
            self.removed = input.removed;
        }
        if input.stamp >= self.acted_at && input.seen != self.seen {
            self.seen = input.seen;
        }
        self.host_ip = input.host_ip;
        self.sentence = input.verdict;
        if input.generation != self.generation {
            self.generation = input.generation;
            self.volumes_stale = self.has_live_volumes && self.sandbox.is_some();
            for name in std::mem::take(&mut self.on_change) {
                self.memory.release(&Key::Start(name));
            }
        }
        if input.resend != self.resend {
            self.resend = input.resend;
            self.told = None;
        }
        for key in std::mem::take(&mut self.on_runtime) {
            self.memory.release(&key);
        }
    }

    /// Writes down how containers ended before it is told, and recalls what a reboot made the
    /// runtime forget: work that was done is not done again.
    async fn keep_exits(&mut self) {
        if self.want.restart == RestartPolicy::Always && self.record.verdict.is_none() {
            return;
        }
        let Some(dir) = self.context.dirs.exits(&self.id.uid) else {
            return;
        };
        for index in 0..self.seen.len() {
            let Some(seen) = self.seen.get(index).cloned() else {
                return;
            };
            let key = (seen.name.clone(), seen.attempt);
            if matches!(
                seen.state,
                ContainerState::Created | ContainerState::Running { .. }
            ) {
                continue;
            }
            let known = if let Some(known) = self.exits.get(&key) {
                known.clone()
            } else {
                let dir = dir.clone();
                let work = move || match seen.state {
                    ContainerState::Unknown => {
                        Ok(exits::recall(&dir, &seen.name, seen.attempt).unwrap_or(seen.state))
                    }
                    ContainerState::Created
                    | ContainerState::Running { .. }
                    | ContainerState::Exited { .. } => {
                        exits::record(&dir, &seen.name, seen.attempt, &seen.state)
                            .map(|()| seen.state)
                    }
                };
                match tokio::task::spawn_blocking(work).await {
                    Ok(Ok(state)) => {
                        self.exits.insert(key, state.clone());
                        state
                    }
                    Ok(Err(error)) => {
                        warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %error,
                            "end of a container not written down; a reboot would forget it");
                        continue;
                    }
                    Err(_) => continue,
                }
            };
            if let Some(seen) = self.seen.get_mut(index)
                && seen.state == ContainerState::Unknown
            {
                seen.state = known;
            }
        }
        let seen: BTreeSet<(&str, u32)> = self
            .seen
            .iter()
            .map(|s| (s.name.as_str(), s.attempt))
            .collect();
        self.exits
            .retain(|(name, attempt), _| seen.contains(&(name.as_str(), *attempt)));
    }

    fn observed(&self) -> Observed {
        let containers = self.seen.iter().map(|seen| SeenContainer {
            id: seen.id.clone(),
            name: seen.name.clone(),
            hash: seen.spec_hash.clone(),
            attempt: seen.attempt,
            state: match seen.state {
                ContainerState::Created => SeenState::Created,
                ContainerState::Running { .. } => SeenState::Running,
                ContainerState::Exited { exit_code, .. } => {
                    SeenState::Exited { ok: exit_code == 0 }
                }
                ContainerState::Unknown => SeenState::Exited { ok: false },
            },
        });
        Observed {
            containers: containers.collect(),
        }
    }

    /// Sleeps until something changed or is due; false when there is nobody to work for.
    async fn wait(&mut self, wake: Option<Instant>) -> bool {
        let flip = self.flips.values().map(|(at, _)| *at).min();
        let due = wake.into_iter().chain(flip).min();
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Cancel-safe: a watch and a timer keep nothing; a finished pull stays in its set.
        tokio::select! {
            changed = self.input.changed() => return changed.is_ok(),
            () = timer => {}
            Some(pull) = self.pulls.join_next(), if !self.pulls.is_empty() => {
                match pull {
                    Ok((name, took, result)) => {
                        self.memory.set_busy(&name, false);
                        self.pulled.insert(name, (took, result));
                    }
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => {
                        tracing::error!(pod = %self.id.name, error = %error, "image pull ended unexpectedly");
                        let later = Instant::now() + RETRY_MAX;
                        for name in self.memory.clear_busy() {
                            self.memory.hold(Key::Start(name), later);
                        }
                    }
                }
            }
        }
        true
    }

    /// Something was done to containers: older listings are void, and a new one is wanted.
    fn note_action(&mut self) {
        self.acted_at = self.context.tick();
        self.acted.store(true, Ordering::SeqCst);
        self.context.poke.notify_one();
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Start { name, attempt } => self.start(&name, attempt).await,
            Action::Stop { id, name } => self.stop(&id, &name).await,
            Action::Kill { id, name } => self.kill(&id, &name).await,
            Action::Remove { id } => self.remove(&id).await,
            Action::Cleanup => self.clean_up().await,
        }
    }

    async fn stop(&mut self, id: &str, name: &str) {
        let now = Instant::now();
        let deadline = match self.phase {
            Phase::Terminating { deadline, .. } | Phase::Ending { deadline, .. } => deadline,
            Phase::Syncing | Phase::Terminated => now + self.want.grace,
        };
        let message = format!("Stopping container {name}");
        self.event(Severity::Normal, "Killing", Some(name), &message);
        match self.context.runtime.signal_stop(id).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => self.memory.signalled(id, deadline),
            Err(error) => self.retry_later(Key::Container(id.to_owned()), &error),
        }
        self.note_action();
    }

    async fn kill(&mut self, id: &str, name: &str) {
        info!(pod = %self.id.name, namespace = %self.id.namespace, container = name, "grace is over; killing");
        match self.context.runtime.kill(id).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => self.memory.killed(id, Instant::now()),
            Err(error) => self.retry_later(Key::Container(id.to_owned()), &error),
        }
        self.note_action();
    }

    async fn remove(&mut self, id: &str) {
        match self.context.runtime.remove(id).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => {
                if self.phase == Phase::Syncing
                    && let Some(gone) = self.seen.iter().find(|seen| seen.id == id)
                {
                    remove_log(gone.log_path.clone()).await;
                }
                self.seen.retain(|seen| seen.id != id);
                self.delays.remove(&Key::Container(id.to_owned()));
            }
            Err(error) => self.retry_later(Key::Container(id.to_owned()), &error),
        }
        self.note_action();
    }

    async fn clean_up(&mut self) {
        if let Err(error) = self.context.runtime.remove_sandbox(&self.id.uid).await
            && !matches!(error, RuntimeError::NotFound { .. })
        {
            return self.retry_later(Key::Cleanup, &error);
        }
        self.sandbox = None;
        let (dirs, uid) = (self.context.dirs.clone(), self.id.uid.clone());
        let logs = convert::log_directory(&self.id, &self.context.placement);
        let removed = tokio::task::spawn_blocking(move || {
            let _ = std::fs::remove_dir_all(logs);
            dirs.remove_pod(&uid)
        })
        .await;
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

    fn next_delay(&mut self, key: &Key, first: Duration, max: Duration) -> Duration {
        let delay = self
            .delays
            .get(key)
            .map_or(first, |last| (*last * 2).clamp(first, max));
        self.delays.insert(key.clone(), delay);
        delay
    }

    fn retry_later(&mut self, key: Key, error: &RuntimeError) {
        if matches!(error, RuntimeError::Unavailable { .. }) {
            self.on_runtime.insert(key.clone());
            debug!(pod = %self.id.name, namespace = %self.id.namespace, error = %error, "runtime not reachable; waiting for it");
        } else {
            warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %error, "runtime refused; trying again");
        }
        let delay = self.next_delay(&key, RETRY_FIRST, RETRY_MAX);
        self.memory.hold(key, Instant::now() + delay);
    }

    async fn start(&mut self, name: &str, attempt: u32) {
        let result = self.try_start(name, attempt).await;
        let now = Instant::now();
        let key = Key::Start(name.to_owned());
        match result {
            Ok(container) => {
                self.seen.retain(|seen| seen.id != container.id);
                self.seen.push(container);
                self.memory.started(name, attempt, now);
                self.troubles.remove(name);
                self.flips.remove(name);
                self.on_change.remove(name);
                self.delays.remove(&key);
                self.note_action();
            }
            Err(Failure::Pulling) => self.memory.set_busy(name, true),
            Err(Failure::Runtime(error)) => {
                self.retry_later(key, &error);
                self.note_action();
            }
            Err(Failure::PullFailed(error)) => self.pull_failed(name, &error),
            Err(Failure::Waiting {
                trouble,
                event,
                on_change,
                delay: (first, max),
            }) => {
                let message = match event {
                    "Failed" => format!("Error: {}", trouble.message),
                    _ => trouble.message.clone(),
                };
                // Volumes are the pod's, not the container's.
                let about = (event != "FailedMount").then_some(name);
                self.event(Severity::Warning, event, about, &message);
                self.set_trouble(name, trouble);
                if on_change {
                    self.on_change.insert(name.to_owned());
                }
                let delay = self.next_delay(&key, first, max);
                self.memory.hold(key, now + delay);
                self.note_action();
            }
        }
    }

    fn set_trouble(&mut self, name: &str, trouble: Trouble) {
        if self.troubles.get(name) != Some(&trouble) {
            warn!(pod = %self.id.name, namespace = %self.id.namespace, container = name,
                reason = trouble.reason, message = %trouble.message, "container cannot be started yet");
        }
        self.flips.remove(name);
        self.troubles.insert(name.to_owned(), trouble);
    }

    fn pull_failed(&mut self, name: &str, error: &RuntimeError) {
        let image = convert::container(&self.pod, name).and_then(|c| c.image.clone());
        let image = image.unwrap_or_default();
        let key = Key::Start(name.to_owned());
        let delay = self.next_delay(&key, state::BACKOFF_FIRST, state::BACKOFF_MAX);
        let now = Instant::now();
        self.memory.hold(key, now + delay);
        if let RuntimeError::InvalidImageName { reference, reason } = error {
            let message = format!("Failed to apply default image tag \"{reference}\": {reason}");
            self.event(Severity::Warning, "InspectFailed", Some(name), &message);
            self.event(
                Severity::Warning,
                "Failed",
                Some(name),
                "Error: InvalidImageName",
            );
            return self.set_trouble(
                name,
                Trouble {
                    reason: "InvalidImageName",
                    message,
                },
            );
        }
        let message = format!("Failed to pull image \"{image}\": {error}");
        self.event(Severity::Warning, "Failed", Some(name), &message);
        self.event(
            Severity::Warning,
            "Failed",
            Some(name),
            "Error: ErrImagePull",
        );
        self.set_trouble(
            name,
            Trouble {
                reason: "ErrImagePull",
                message: error.to_string(),
            },
        );
        // The API shows the error itself first, and that it is waited for soon after.
        let later = Trouble {
            reason: "ImagePullBackOff",
            message: format!("Back-off pulling image \"{image}\": ErrImagePull: {error}"),
        };
        self.flips
            .insert(name.to_owned(), (now + Duration::from_secs(2), later));
    }

    /// Troubles whose time has come become what follows them; crash loops are told.
    fn turn_troubles(&mut self, now: Instant) {
        let due: Vec<String> = self
            .flips
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            if let Some((_, trouble)) = self.flips.remove(&name) {
                let image = convert::container(&self.pod, &name).and_then(|c| c.image.clone());
                let message = format!("Back-off pulling image \"{}\"", image.unwrap_or_default());
                self.event(Severity::Normal, "BackOff", Some(&name), &message);
                self.event(
                    Severity::Warning,
                    "Failed",
                    Some(&name),
                    "Error: ImagePullBackOff",
                );
                self.troubles.insert(name, trouble);
            }
        }
        if self.phase != Phase::Syncing {
            return;
        }
        let waiting: Vec<(String, u32)> = self
            .seen
            .iter()
            .filter(|seen| self.memory.backing_off(&seen.name, now).is_some())
            .map(|seen| (seen.name.clone(), seen.attempt))
            .collect();
        for (name, attempt) in waiting {
            if self
                .told_backoff
                .get(&name)
                .is_some_and(|told| *told >= attempt)
            {
                continue;
            }
            let id = &self.id;
            let message = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                id.name, id.namespace, id.uid
            );
            self.event(Severity::Warning, "BackOff", Some(&name), &message);
            self.told_backoff.insert(name, attempt);
        }
    }

    fn event(&mut self, severity: Severity, reason: &str, container: Option<&str>, message: &str) {
        let now_ms = (self.context.now_ms)();
        if !self.removed {
            self.recorder
                .record(severity, reason, container, message, now_ms);
        }
    }

    fn board(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PodSummary>> {
        self.context
            .board
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the status if it is another one. A pod the API already knows as finished, or no
    /// longer knows, has nothing to tell.
    fn publish(&mut self, now: Instant) {
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
        let view = View {
            pod: &self.pod,
            want: &self.want,
            seen: &self.seen,
            memory: &self.memory,
            troubles: &self.troubles,
            pod_ips: self.sandbox.as_ref().map(|s| s.ips.as_slice()),
            host_ip: &self.host_ip,
            previous: self.told.as_ref(),
            verdict: self.record.verdict.as_ref(),
            started_ms: self.record.started_at_ms,
            now,
            now_ms: (self.context.now_ms)(),
        };
        let status = status::build(&view);
        if self.told.as_ref() == Some(&status) {
            return;
        }
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
}

/// Removes the log of an attempt nobody can ask for any more, its rotated parts included.
async fn remove_log(path: std::path::PathBuf) {
    let work = move || {
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
