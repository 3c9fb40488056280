//! One task per pod: asks `state` what is next, does it, tells the status, and sleeps until
//! something changed or is due. Owns everything about its pod; nothing here waits for another pod.

mod context;
mod end;
mod ends;
mod network;
mod pulling;
mod start;
mod tell;
mod trouble;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::convert::{self, PodId};
use super::dns::Notice;
use super::exits::PodRecord;
use super::probe::Probes;
use super::state::{self, Action, Desired, Key, Memory, Observed, Phase, SeenContainer, SeenState};
use super::status::Trouble;
use super::times::Times;
use super::verdict::Verdict;
use crate::clock::{self, UnixMillis};
use crate::edged::events::{Recorder, Severity};
use crate::edged::runtime::{
    Container as Seen, ContainerState, Image, NetworkHealth, RuntimeError, Sandbox,
};
use crate::edged::volumes;
pub(crate) use context::Context;
use watching::{HookOver, Probed};

/// First and longest delay before something that failed for a passing reason is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

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
    /// What was found of its network when the daemon started.
    pub(crate) network: Option<NetworkHealth>,
    /// Nothing of it is to run until the hub is back.
    pub(crate) suspended: bool,
}

impl Input {
    /// Whether there is news in `other`. A later listing that shows the same is none.
    pub(crate) fn differs(&self, other: &Self) -> bool {
        let Self {
            pod,
            removed,
            seen,
            stamp: _,
            generation,
            resend,
            host_ip,
            verdict,
            network,
            suspended,
        } = other;
        !Arc::ptr_eq(&self.pod, pod)
            || self.removed != *removed
            || self.generation != *generation
            || self.resend != *resend
            || self.host_ip != *host_ip
            || self.verdict != *verdict
            || self.network != *network
            || self.suspended != *suspended
            || self.seen != *seen
    }
}

/// An image pull that is over: for which container, how long it took, what it brought.
type Pulled = (String, Duration, Result<Image, RuntimeError>);

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
    /// A start failed: the sandbox is asked for again before the next one.
    sandbox_doubted: bool,
    troubles: BTreeMap<String, Trouble>,
    /// Troubles that turn into another one, or are over, when due.
    flips: BTreeMap<String, (Instant, Option<Trouble>)>,
    /// Containers to try again as soon as some desired object changed.
    on_change: BTreeSet<String>,
    /// Keys to try again as soon as the runtime speaks again.
    on_runtime: BTreeSet<Key>,
    delays: BTreeMap<Key, Duration>,
    pulls: JoinSet<Pulled>,
    pulled: BTreeMap<String, (Duration, Result<Image, RuntimeError>)>,
    told_backoff: BTreeMap<String, u32>,
    told_dns: Vec<Notice>,
    /// Ends that have been written down or looked up, by container and attempt.
    exits: BTreeMap<(String, u32), ContainerState>,
    /// What outlives a reboot, and whether it is on the disk.
    record: PodRecord,
    record_kept: bool,
    /// What ended containers said last, by id.
    last_words: BTreeMap<String, String>,
    /// Attempts of which no process came to be, by an id of their own.
    unstarted: BTreeMap<String, Seen>,
    probes: Probes,
    probing: JoinSet<Probed>,
    hooks: JoinSet<HookOver>,
    /// Nothing runs until the hub is back.
    suspended: bool,
    /// A verdict somebody else on this node gave.
    sentence: Option<Verdict>,
    /// What was found of the network, until it is heeded, and whether it was.
    network_found: Option<NetworkHealth>,
    network_heeded: bool,
    /// The containers end to be started again in a new sandbox.
    rebuilding: bool,
    /// When this process first knew the pod, and how long it had been here then.
    born: (Instant, Duration),
    recorder: Recorder,
    told: Option<PodStatus>,
    /// Since when what was told is so, also by an earlier process.
    times: Times,
    volumes_stale: bool,
    /// When tokens in volumes are looked at again, and when one is to be replaced.
    tokens_due: Option<Instant>,
    tokens_at_ms: UnixMillis,
    /// How long the last try waited, while one could not be had or replaced.
    tokens_late: Option<Duration>,
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
            sandbox_doubted: false,
            troubles: BTreeMap::new(),
            flips: BTreeMap::new(),
            on_change: BTreeSet::new(),
            on_runtime: BTreeSet::new(),
            delays: BTreeMap::new(),
            pulls: JoinSet::new(),
            pulled: BTreeMap::new(),
            told_backoff: BTreeMap::new(),
            told_dns: Vec::new(),
            exits: BTreeMap::new(),
            record: PodRecord::default(),
            record_kept: true,
            last_words: BTreeMap::new(),
            unstarted: BTreeMap::new(),
            probes: Probes::default(),
            probing: JoinSet::new(),
            hooks: JoinSet::new(),
            suspended: false,
            sentence: None,
            network_found: None,
            network_heeded: false,
            rebuilding: false,
            born: (Instant::now(), Duration::ZERO),
            recorder,
            told: None,
            times: Times::default(),
            tokens_due: None,
            tokens_at_ms: 0,
            tokens_late: None,
        }
    }

    /// Runs until the pod is gone, or the main loop is: then everything is left as it is.
    pub(crate) async fn run(mut self) -> String {
        self.recall().await;
        loop {
            self.take_input();
            self.look_at_tokens();
            if std::mem::take(&mut self.volumes_stale) {
                self.refresh_volumes().await;
            }
            self.keep_exits().await;
            self.hear_last_words().await;
            let now = Instant::now();
            self.watch_adopted(now);
            self.mend_network().await;
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
            self.publish(now).await;
            if step.actions.is_empty() {
                if !self
                    .wait(
                        step.wake
                            .into_iter()
                            .chain(deadline)
                            .chain(self.tokens_due)
                            .min(),
                    )
                    .await
                {
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
            self.want.suspended = self.suspended || self.rebuilding;
            self.pod = input.pod;
            self.removed = input.removed;
        }
        if input.stamp >= self.acted_at {
            self.seen = input.seen;
            let seen = &self.seen;
            self.unstarted.retain(|_, ghost| {
                let mut real = seen.iter();
                !real.any(|real| real.name == ghost.name && real.attempt == ghost.attempt)
            });
            self.seen.extend(self.unstarted.values().cloned());
        }
        self.host_ip = input.host_ip;
        self.sentence = input.verdict;
        if input.network.is_some() && !std::mem::replace(&mut self.network_heeded, true) {
            self.network_found = input.network;
        }
        self.suspend(input.suspended);
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
            // The hub is back: what could not be replaced is asked for now.
            if self.tokens_late.is_some() {
                self.tokens_due = Some(Instant::now());
            }
        }
        for key in std::mem::take(&mut self.on_runtime) {
            self.memory.release(&key);
        }
    }

    /// The pod asked to be stopped while the hub is away, and to go on when it is back.
    fn suspend(&mut self, suspended: bool) {
        self.want.suspended = suspended || self.rebuilding;
        if std::mem::replace(&mut self.suspended, suspended) == suspended {
            return;
        }
        let (reason, message) = if suspended {
            (
                "HubAway",
                "Stopping the pod's containers until the hub is back",
            )
        } else {
            ("HubBack", "The hub is back; the pod goes on")
        };
        info!(pod = %self.id.name, namespace = %self.id.namespace, suspended, "what the pod asked for while the hub is away");
        self.event(Severity::Normal, reason, None, message);
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
            health: self.probes.health(&seen.id),
        });
        Observed {
            containers: containers.collect(),
        }
    }

    /// Sleeps until something changed or is due; false when there is nobody to work for. Probes
    /// that change nothing are taken without waking anybody.
    async fn wait(&mut self, wake: Option<Instant>) -> bool {
        let flip = self.flips.values().map(|(at, _)| *at).min();
        let due = wake.into_iter().chain(flip).min();
        loop {
            self.send_probes(Instant::now());
            let next = due.into_iter().chain(self.next_probe()).min();
            let timer = clock::reached(next);
            // Cancel-safe: a watch and a timer keep nothing; what is finished stays in its set.
            tokio::select! {
                changed = self.input.changed() => return changed.is_ok(),
                () = timer => {
                    if due.is_some_and(|at| at <= Instant::now()) {
                        return true;
                    }
                }
                Some(pull) = self.pulls.join_next(), if !self.pulls.is_empty() => {
                    self.take_pull(pull);
                    return true;
                }
                Some(probe) = self.probing.join_next(), if !self.probing.is_empty() => {
                    if self.probed(probe) {
                        return true;
                    }
                }
                Some(hook) = self.hooks.join_next(), if !self.hooks.is_empty() => {
                    self.hooked(hook);
                    return true;
                }
            }
        }
    }

    fn take_pull(&mut self, pull: Result<Pulled, JoinError>) {
        match pull {
            Ok((name, took, result)) => {
                self.memory.set_busy(&name, false);
                self.context.images.changed();
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

    /// Something was done to containers: older listings are void, and a new one is wanted.
    fn note_action(&mut self) {
        self.acted_at = self.context.tick();
        self.acted.store(true, Ordering::SeqCst);
        self.context.poke.notify_one();
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Start { name, attempt } => self.start(&name, attempt).await,
            Action::Stop {
                id,
                name,
                why,
                deadline,
            } => self.stop(&id, &name, why, deadline),
            Action::Signal { id, .. } => self.signal(&id).await,
            Action::Kill { id, name } => self.kill(&id, &name).await,
            Action::Remove { id } => self.remove(&id).await,
            Action::Release => self.release().await,
            Action::Cleanup => self.clean_up().await,
        }
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
}
