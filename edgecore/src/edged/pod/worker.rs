//! One task per pod: asks `state` what is next, does it, tells the status, and sleeps until
//! something changed or is due. Owns everything about its pod; nothing here waits for another pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::convert::{self, PodId};
use super::env::{Facts, References};
use super::state::{self, Action, Desired, Key, Memory, Observed, Phase, SeenContainer, SeenState};
use super::status::{self, Trouble, View};
use crate::clock::UnixMillis;
use crate::edged::PodSummary;
use crate::edged::deps::{DesiredState, StatusSink};
use crate::edged::events::{Recorder, Severity};
use crate::edged::runtime::{
    Container as Seen, ContainerState, Image, Runtime, RuntimeError, Sandbox,
};
use crate::edged::volumes::{self, Dirs};

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
    /// Image pulls at the same time.
    pub(crate) pulls: Arc<Semaphore>,
    /// Orders listings of containers and actions on them.
    pub(crate) ticks: AtomicU64,
    /// Asks the main loop to list the containers again.
    pub(crate) poke: Notify,
    pub(crate) board: Mutex<BTreeMap<String, PodSummary>>,
    pub(crate) now_ms: Box<dyn Fn() -> UnixMillis + Send + Sync>,
}

impl Context {
    pub(crate) fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
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
    volume_refs: References,
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
    recorder: Recorder,
    told: Option<PodStatus>,
    volumes_stale: bool,
}

/// How far a start got.
enum Failure {
    /// Nothing to tell; tried again when the runtime is back.
    Runtime(RuntimeError),
    /// The container waits with this reason.
    Waiting {
        trouble: Trouble,
        event: &'static str,
        /// A desired object may repair it.
        on_change: bool,
        delay: (Duration, Duration),
    },
    /// An image pull is under way.
    Pulling,
    PullFailed(RuntimeError),
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
            volume_refs: References::of_volumes(&first.pod),
            removed: first.removed,
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
            volumes_stale: sandbox.is_some(),
            sandbox,
            troubles: BTreeMap::new(),
            flips: BTreeMap::new(),
            on_change: BTreeSet::new(),
            on_runtime: BTreeSet::new(),
            delays: BTreeMap::new(),
            pulls: JoinSet::new(),
            pulled: BTreeMap::new(),
            told_backoff: BTreeMap::new(),
            recorder,
            told: None,
        }
    }

    /// Runs until the pod is gone, or the main loop is: then everything is left as it is.
    pub(crate) async fn run(mut self) -> String {
        loop {
            self.take_input();
            if std::mem::take(&mut self.volumes_stale) {
                self.refresh_volumes().await;
            }
            let now = Instant::now();
            let saw = self.observed();
            self.memory.observe(&saw, now);
            self.turn_troubles(now);
            let step = state::step(self.phase, &self.want, &saw, &self.memory, now);
            if self.phase == Phase::Syncing && step.phase != Phase::Syncing {
                info!(pod = %self.id.name, namespace = %self.id.namespace, uid = %self.id.uid, "pod is terminating");
                self.pulls.abort_all();
            }
            self.phase = step.phase;
            self.publish(now);
            if step.actions.is_empty() {
                if !self.wait(step.wake).await {
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
            self.volume_refs = References::of_volumes(&input.pod);
            self.pod = input.pod;
            self.removed = input.removed;
        }
        if input.stamp >= self.acted_at && input.seen != self.seen {
            self.seen = input.seen;
        }
        self.host_ip = input.host_ip;
        if input.generation != self.generation {
            self.generation = input.generation;
            self.volumes_stale = !self.volume_refs.is_empty() && self.sandbox.is_some();
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
                if let Ok((name, took, result)) = pull {
                    self.memory.set_busy(&name, false);
                    self.pulled.insert(name, (took, result));
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
            Phase::Terminating { deadline, .. } => deadline,
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
                self.event(Severity::Warning, event, Some(name), &message);
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

    async fn try_start(&mut self, name: &str, attempt: u32) -> Result<Seen, Failure> {
        let pod = self.pod.clone();
        let Some(container) = convert::container(&pod, name) else {
            return Err(config("the pod has no such container".to_owned()));
        };
        let image = self.image(container).await?;
        convert::verify_non_root(&pod, container, &image.user)
            .map_err(|error| config(error.to_string()))?;
        let sandbox = self.sandbox().await?;
        let refs = References::of(&pod);
        let sources = super::sources::fetch(&*self.context.desired, &self.id.namespace, &refs)
            .await
            .map_err(|error| config(error.to_string()))?;
        let facts = self.facts(&sandbox);
        let prepared = self.prepare(&sources, &facts).await?;
        let env = super::env::resolve(&pod, container, &sources, &facts)
            .map_err(|error| config(error.to_string()))?;
        let env: BTreeMap<String, String> = env.into_iter().collect();
        let mounts = volumes::mounts(container, &prepared, &env)
            .map_err(|error| config(error.to_string()))?;
        let placement = &self.context.placement;
        let spec = convert::container_spec(
            &pod, container, attempt, &sources, &facts, mounts, placement,
        )
        .map_err(|error| config(error.to_string()))?;
        let result = self.context.runtime.start(&spec).await;
        let id = result.map_err(|error| self.start_failure(name, error))?;
        self.event(
            Severity::Normal,
            "Created",
            Some(name),
            &format!("Created container: {name}"),
        );
        self.event(
            Severity::Normal,
            "Started",
            Some(name),
            &format!("Started container {name}"),
        );
        info!(pod = %self.id.name, namespace = %self.id.namespace, container = name, attempt, "container started");
        Ok(Seen {
            id,
            image_id: image_id(&spec.image, &image.digest),
            state: ContainerState::Running {
                started_at_ms: (self.context.now_ms)(),
            },
            pod_uid: spec.pod_uid,
            pod_namespace: spec.pod_namespace,
            pod_name: spec.pod_name,
            name: spec.name,
            attempt,
            spec_hash: spec.spec_hash,
            image: spec.image,
            log_path: spec.log_path,
        })
    }

    fn start_failure(&mut self, name: &str, error: RuntimeError) -> Failure {
        let message = error.to_string();
        let reason = match &error {
            RuntimeError::Unavailable { .. } => return Failure::Runtime(error),
            RuntimeError::ImageNotPresent { .. }
            | RuntimeError::InvalidImageName { .. }
            | RuntimeError::Pull { .. } => return Failure::PullFailed(error),
            RuntimeError::Create { .. } => "CreateContainerError",
            RuntimeError::Start { .. }
            | RuntimeError::Network { .. }
            | RuntimeError::NotFound { .. }
            | RuntimeError::Timeout { .. }
            | RuntimeError::Other { .. } => "RunContainerError",
        };
        debug!(pod = %self.id.name, namespace = %self.id.namespace, container = name, "start refused");
        Failure::Waiting {
            trouble: Trouble { reason, message },
            event: "Failed",
            on_change: false,
            delay: (state::BACKOFF_FIRST, state::BACKOFF_MAX),
        }
    }

    /// The image, by the container's policy; begins a pull where one is needed.
    async fn image(
        &mut self,
        container: &k8s_openapi::api::core::v1::Container,
    ) -> Result<Image, Failure> {
        let name = container.name.clone();
        let reference = container.image.clone().unwrap_or_default();
        let present = self.context.runtime.image(&reference).await;
        let present = present.map_err(|error| match error {
            RuntimeError::InvalidImageName { .. } => Failure::PullFailed(error),
            other => Failure::Runtime(other),
        })?;
        match self.pulled.remove(&name) {
            Some((took, Ok(image))) => {
                let message = format!(
                    "Successfully pulled image \"{reference}\" in {}ms. Image size: {} bytes.",
                    took.as_millis(),
                    image.size_bytes
                );
                self.event(Severity::Normal, "Pulled", Some(&name), &message);
                return Ok(image);
            }
            Some((_, Err(RuntimeError::Unavailable { address, source }))) => {
                return Err(Failure::Runtime(RuntimeError::Unavailable {
                    address,
                    source,
                }));
            }
            Some((_, Err(error))) => {
                // `Always` asks the registry; a node that cannot reach it runs what it has. A
                // workload does not stay down after a reboot because the uplink is away.
                let Some(image) = present else {
                    return Err(Failure::PullFailed(error));
                };
                let message = format!(
                    "Failed to pull image \"{reference}\": {error}; using the one already present"
                );
                self.event(Severity::Warning, "Failed", Some(&name), &message);
                return Ok(image);
            }
            None => {}
        }
        let policy = convert::pull_policy(container);
        match (present, policy) {
            (Some(image), convert::PullPolicy::IfNotPresent | convert::PullPolicy::Never) => {
                let message = format!("Container image \"{reference}\" already present on machine");
                self.event(Severity::Normal, "Pulled", Some(&name), &message);
                Ok(image)
            }
            (None, convert::PullPolicy::Never) => {
                let message = format!(
                    "Container image \"{reference}\" is not present with pull policy of Never"
                );
                Err(Failure::Waiting {
                    trouble: Trouble {
                        reason: "ErrImageNeverPull",
                        message,
                    },
                    event: "ErrImageNeverPull",
                    on_change: false,
                    delay: (state::BACKOFF_FIRST, state::BACKOFF_MAX),
                })
            }
            (_, convert::PullPolicy::Always | convert::PullPolicy::IfNotPresent) => {
                self.begin_pull(name, reference);
                Err(Failure::Pulling)
            }
        }
    }

    fn begin_pull(&mut self, name: String, reference: String) {
        let message = format!("Pulling image \"{reference}\"");
        self.event(Severity::Normal, "Pulling", Some(&name), &message);
        let context = self.context.clone();
        let namespace = self.id.namespace.clone();
        let spec = self.pod.spec.as_ref();
        let secrets: BTreeSet<String> = spec
            .iter()
            .flat_map(|s| s.image_pull_secrets.iter().flatten())
            .map(|reference| reference.name.clone())
            .collect();
        self.pulls.spawn(async move {
            let slots = context.pulls.clone();
            // Never closed; were it, pulling without a slot is right.
            let _slot = slots.acquire_owned().await.ok();
            let refs = References {
                secrets,
                ..References::default()
            };
            let sources = super::sources::fetch(&*context.desired, &namespace, &refs).await;
            // Without its credentials the pull is tried as a stranger: the image may be public.
            let sources = sources.unwrap_or_default();
            let auth = super::image::auth_for(&reference, sources.secrets.values().flatten());
            let begun = Instant::now();
            let result = context.runtime.pull(&reference, auth.as_ref()).await;
            (name, begun.elapsed(), result)
        });
    }

    async fn sandbox(&mut self) -> Result<Sandbox, Failure> {
        if let Some(sandbox) = &self.sandbox {
            return Ok(sandbox.clone());
        }
        let spec = convert::sandbox_spec(&self.pod, &self.context.placement);
        let made = self.context.runtime.ensure_sandbox(&spec).await;
        let sandbox = made.map_err(|error| {
            if matches!(error, RuntimeError::Unavailable { .. }) {
                return Failure::Runtime(error);
            }
            Failure::Waiting {
                trouble: Trouble {
                    reason: "ContainerCreating",
                    message: format!("Failed to create pod sandbox: {error}"),
                },
                event: "FailedCreatePodSandBox",
                on_change: false,
                delay: (RETRY_FIRST, RETRY_MAX),
            }
        })?;
        self.sandbox = Some(sandbox.clone());
        Ok(sandbox)
    }

    fn facts(&self, sandbox: &Sandbox) -> Facts {
        let pod_ips = match sandbox.ips.as_slice() {
            [] => vec![self.host_ip.clone()],
            ips => ips.to_vec(),
        };
        Facts {
            node_name: self.context.node_name.clone(),
            host_ip: self.host_ip.clone(),
            pod_ips,
            cpu_milli: self.context.cpu_milli,
            memory_bytes: self.context.placement.memory_bytes,
        }
    }

    async fn prepare(
        &mut self,
        sources: &super::env::Sources,
        facts: &Facts,
    ) -> Result<volumes::Prepared, Failure> {
        let (pod, dirs) = (self.pod.clone(), self.context.dirs.clone());
        let (sources, facts) = (sources.clone(), facts.clone());
        let hostname = convert::hostname(&pod, &self.context.placement);
        let work = move || {
            let mut prepared = volumes::prepare(&pod, &sources, &facts, &dirs)?;
            prepared.files = volumes::write_etc(&pod, &hostname, &facts.pod_ips, &dirs)?;
            Ok(prepared)
        };
        let result = tokio::task::spawn_blocking(work).await;
        let error = match result {
            Ok(Ok(prepared)) => return Ok(prepared),
            Ok(Err(error)) => error,
            Err(_) => return Err(config("preparing volumes was interrupted".to_owned())),
        };
        let source = std::error::Error::source(&error).map(|s| format!(": {s}"));
        let message = format!("{error}{}", source.unwrap_or_default());
        Err(match error {
            volumes::VolumeError::Unsupported { .. } => config(message),
            volumes::VolumeError::NotReady { .. } | volumes::VolumeError::Io { .. } => {
                Failure::Waiting {
                    trouble: Trouble {
                        reason: "ContainerCreating",
                        message,
                    },
                    event: "FailedMount",
                    on_change: true,
                    delay: (RETRY_FIRST, RETRY_MAX),
                }
            }
        })
    }

    /// Brings new content of ConfigMaps and Secrets into volumes that stand. What cannot be read
    /// now stays as it is.
    async fn refresh_volumes(&mut self) {
        let Some(sandbox) = self.sandbox.clone() else {
            return;
        };
        if self.phase != Phase::Syncing || self.want.delete || self.volume_refs.is_empty() {
            return;
        }
        let refs = References::of(&self.pod);
        let desired = self.context.desired.clone();
        let Ok(sources) = super::sources::fetch(&*desired, &self.id.namespace, &refs).await else {
            return;
        };
        let facts = self.facts(&sandbox);
        if let Err(Failure::Waiting { trouble, event, .. }) = self.prepare(&sources, &facts).await {
            self.event(Severity::Warning, event, None, &trouble.message);
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
        if self.removed || (self.want.finished && !self.want.delete) {
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
            now,
            now_ms: (self.context.now_ms)(),
        };
        let status = status::build(&view);
        if self.told.as_ref() == Some(&status) {
            return;
        }
        let summary = PodSummary::of(&self.id, &status, self.phase != Phase::Syncing);
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
                warn!(pod = %self.id.name, error = %error, "status cannot be written as JSON")
            }
        }
    }
}

fn config(message: String) -> Failure {
    Failure::Waiting {
        trouble: Trouble {
            reason: "CreateContainerConfigError",
            message,
        },
        event: "Failed",
        on_change: true,
        delay: (state::BACKOFF_FIRST, state::BACKOFF_MAX),
    }
}

fn image_id(reference: &str, digest: &str) -> String {
    let name = reference.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    };
    format!("{name}@{digest}")
}
