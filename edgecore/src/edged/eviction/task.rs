//! The one task that looks, and acts on what it sees.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::local::{self, DiskUsage};
use super::manager::{Manager, Starved};
use super::pressure_file::PressureFile;
use super::rank::{Candidate, message, rank};
use super::signals;
use super::threshold::{Config, Shortage, Signal};
use crate::edged::admission;
use crate::edged::events;
use crate::edged::image_gc;
use crate::edged::node::Pressure;
use crate::edged::pod::convert::PodId;
use crate::edged::pod::resources;
use crate::edged::pod::verdict::Verdict;
use crate::edged::pod::worker::Context;
use crate::edged::runtime::{Container, ContainerState};

/// What a pod gets that must go now (`immediateEvictionGracePeriodSeconds`).
const GRACE_NOW: Duration = Duration::from_secs(1);
/// The next pod is not chosen before this one is gone, or this long has passed
/// (`podCleanupTimeout`).
const CLEANUP_MAX: Duration = Duration::from_secs(30);
/// Counting files may take this part of the time at most.
const COUNT_SHARE: u32 = 50;

/// Pods that run here and are not on their way out.
pub(crate) type Active = Arc<Vec<Arc<Pod>>>;

/// Looks after the node.
pub(crate) struct Evictor {
    pub(crate) context: Arc<Context>,
    pub(crate) config: Config,
    pub(crate) disk_dir: PathBuf,
    pub(crate) image_dir: PathBuf,
    /// Images that came, or were used, more recently stay even then.
    pub(crate) image_age_min: Duration,
    pub(crate) active: watch::Receiver<Active>,
    pub(crate) pressure: watch::Sender<Pressure>,
}

struct State {
    given: Evictor,
    manager: Manager,
    /// Who was ended last, and until when it is waited for.
    leaving: Option<(String, Instant)>,
    told: Option<Signal>,
    count_at: Instant,
}

impl Evictor {
    /// Runs until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kernel = PressureFile::open()
            .inspect_err(|error| debug!(%error, "the kernel does not tell of memory pressure"))
            .ok();
        let mut state = State {
            manager: Manager::new(self.config.clone()),
            given: self,
            leaving: None,
            told: None,
            count_at: Instant::now(),
        };
        loop {
            let fired = async {
                match &kernel {
                    Some(file) => file.fired().await,
                    None => std::future::pending().await,
                }
            };
            // Cancel-safe: a timer, a readiness and a token.
            let heard = tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => Ok(()),
                heard = fired => heard,
            };
            if let Err(error) = heard {
                debug!(%error, "the kernel tells no more of memory pressure");
                kernel = None;
            }
            state.look().await;
        }
    }
}

impl State {
    fn context(&self) -> &Context {
        &self.given.context
    }

    async fn look(&mut self) {
        let saw = signals::read(&self.given.disk_dir, &self.given.image_dir);
        let outlook = self.manager.observe(&saw, Instant::now());
        self.given.pressure.send_if_modified(|held| {
            let changed = *held != outlook.pressure;
            *held = outlook.pressure;
            changed
        });
        if self.is_waiting() || self.end_greedy().await {
            return;
        }
        match outlook.starved {
            Some(starved) => self.relieve(starved).await,
            None => self.told = None,
        }
    }

    /// Whether the pod ended last is still going.
    fn is_waiting(&mut self) -> bool {
        let Some((uid, until)) = &self.leaving else {
            return false;
        };
        let board = self.context().board.lock();
        let board = board.unwrap_or_else(PoisonError::into_inner);
        let goes = board
            .get(uid)
            .is_some_and(|pod| !matches!(pod.phase.as_str(), "Failed" | "Succeeded"));
        let waits = goes && Instant::now() < *until;
        drop(board);
        if !waits {
            self.leaving = None;
        }
        waits
    }

    fn candidates(&self) -> Vec<Arc<Pod>> {
        let judged = self.context().verdicts.lock();
        let judged = judged.unwrap_or_else(PoisonError::into_inner);
        let active = self.given.active.borrow();
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        active
            .iter()
            .filter(|pod| !judged.contains_key(&uid(pod)))
            .cloned()
            .collect()
    }

    /// Ends pods that take more of the disk than they may; true if there was one.
    async fn end_greedy(&mut self) -> bool {
        let limited: Vec<Arc<Pod>> = self.candidates();
        let limited: Vec<Arc<Pod>> = limited
            .into_iter()
            .filter(|pod| local::is_limited(pod))
            .collect();
        if limited.is_empty() || Instant::now() < self.count_at {
            return false;
        }
        let began = Instant::now();
        let mut any = false;
        let counts_layers = limited.iter().any(|pod| local::limits_layers(pod));
        let listed = if counts_layers {
            self.listed().await
        } else {
            None
        };
        for pod in limited {
            let layers = match (local::limits_layers(&pod), &listed) {
                (false, _) => None,
                (true, Some(listed)) => Some(listed.as_slice()),
                // Nothing is known without them.
                (true, None) => continue,
            };
            let usage = self.disk_usage(&pod, layers).await;
            if let Some(text) = usage.and_then(|usage| local::excess(&pod, &usage)) {
                any |= self.evict(&pod, text, GRACE_NOW, false);
            }
        }
        self.count_at = Instant::now() + began.elapsed() * COUNT_SHARE;
        any
    }

    /// Every container, once for all pods of a pass.
    async fn listed(&self) -> Option<Vec<Container>> {
        self.context().runtime.containers().await.ok()
    }

    /// `layers`: the containers whose writable layers count, too.
    async fn disk_usage(&self, pod: &Arc<Pod>, layers: Option<&[Container]>) -> Option<DiskUsage> {
        let (context, counted) = (self.given.context.clone(), pod.clone());
        let count = move || local::count(&counted, &context);
        let mut usage = tokio::task::spawn_blocking(count).await.ok()?;
        let Some(listed) = layers else {
            return Some(usage);
        };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let runtime = &self.context().runtime;
        for container in listed.iter().filter(|listed| listed.pod_uid == uid) {
            // A container that has just gone takes nothing.
            let layer = runtime.layer_bytes(&container.id).await.unwrap_or(0);
            let sum = usage.containers.entry(container.name.clone()).or_default();
            *sum = sum.saturating_add(layer);
        }
        Some(usage)
    }

    /// Gives back what nobody uses; if that is not enough, ends one pod.
    async fn relieve(&mut self, starved: Starved) {
        let signal = starved.threshold.signal;
        if self.told.replace(signal) != Some(signal) {
            let message = format!("Attempting to reclaim {}", signal.resource());
            warn!(
                signal = signal.as_str(),
                available = starved.observation.available,
                "the node runs short"
            );
            let context = self.context();
            context.sink.event(events::of_node(
                &context.node_name,
                "EvictionThresholdMet",
                &message,
                (context.now_ms)(),
            ));
        }
        let mut starved = starved;
        if signal.shortage() == Shortage::Disk {
            self.reclaim_images().await;
            let saw = signals::read(&self.given.disk_dir, &self.given.image_dir);
            match self.manager.observe(&saw, Instant::now()).starved {
                Some(still) => starved = still,
                None => return,
            }
        }
        self.evict_one(&starved).await;
    }

    async fn reclaim_images(&self) {
        let context = self.context();
        let (runtime, desired) = (&*context.runtime, &*context.desired);
        let min_age = self.given.image_age_min;
        match image_gc::reclaim(runtime, desired, min_age, None).await {
            Ok(bytes) => info!(bytes, "unused images removed, the disk runs short"),
            Err(error) => debug!(%error, "unused images not removed"),
        }
    }

    async fn evict_one(&mut self, starved: &Starved) {
        let signal = starved.threshold.signal;
        let mut pods = Vec::new();
        let listed = match signal {
            Signal::NodefsAvailable | Signal::ImagefsAvailable | Signal::MemoryAvailable => {
                self.listed().await
            }
            Signal::PidAvailable | Signal::NodefsInodesFree | Signal::ImagefsInodesFree => None,
        };
        let listed = listed.as_deref();
        for pod in self.candidates() {
            if admission::is_critical(&pod) {
                continue;
            }
            if let Some(candidate) = self.candidate(&pod, signal, listed).await {
                pods.push((pod, candidate));
            }
        }
        let mut order: Vec<Candidate> = pods.iter().map(|(_, c)| c.clone()).collect();
        rank(signal, &mut order);
        let Some(mut first) = order.into_iter().next() else {
            warn!(
                signal = signal.as_str(),
                "nothing can be given back and no pod may be ended"
            );
            return;
        };
        let found = pods.into_iter().find(|(_, c)| c.uid == first.uid);
        let Some((pod, _)) = found else { return };
        if signal == Signal::MemoryAvailable {
            first.containers = self.containers_above(&pod, listed.unwrap_or_default());
        }
        let grace = if starved.threshold.is_hard() {
            GRACE_NOW
        } else {
            let own = pod.spec.as_ref();
            let own = own.and_then(|s| s.termination_grace_period_seconds);
            let own = own.and_then(|s| u64::try_from(s).ok()).unwrap_or(30);
            Duration::from_secs(own).min(self.given.config.pod_grace_max)
        };
        self.evict(&pod, message(starved, &first), grace, true);
    }

    /// What the pod uses of what is short.
    async fn candidate(
        &self,
        pod: &Arc<Pod>,
        signal: Signal,
        listed: Option<&[Container]>,
    ) -> Option<Candidate> {
        let cgroup = resources::cgroup(pod, &self.context().placement);
        let usage = || self.context().runtime.cgroup_usage(&cgroup);
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (request, usage) = match signal {
            Signal::MemoryAvailable => {
                let used = usage().map_or(0, |u| number(u.memory_bytes));
                (resources::pod_request(pod, "memory"), used)
            }
            Signal::PidAvailable => (0, usage().map_or(0, |u| number(u.pids))),
            Signal::NodefsAvailable | Signal::ImagefsAvailable => {
                let used = number(self.disk_usage(pod, Some(listed?)).await?.total());
                (resources::pod_request(pod, "ephemeral-storage"), used)
            }
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => {
                (0, number(self.disk_usage(pod, None).await?.inodes))
            }
        };
        Some(Candidate {
            uid: PodId::of(pod).uid,
            priority: admission::priority(pod),
            request,
            usage,
            containers: Vec::new(),
        })
    }

    /// Name, usage and request of the containers that use more memory than they asked for.
    fn containers_above(&self, pod: &Pod, listed: &[Container]) -> Vec<(String, i64, i64)> {
        let context = self.context();
        let cgroup = resources::cgroup(pod, &context.placement);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let running = listed
            .iter()
            .filter(|c| c.pod_uid == uid && matches!(c.state, ContainerState::Running { .. }));
        let mut found: Vec<(String, i64, i64)> = running
            .filter_map(|seen| {
                let usage = context
                    .runtime
                    .cgroup_usage(&format!("{cgroup}/{}", seen.id))?;
                let usage = i64::try_from(usage.memory_bytes).ok()?;
                let container = crate::edged::pod::convert::container(pod, &seen.name)?;
                let request = resources::request(container, "memory");
                (usage > request).then(|| (seen.name.clone(), usage, request))
            })
            .collect();
        found.sort();
        found
    }

    /// `for_node`: for the node's sake, not for what the pod itself may not
    /// (`eviction_manager.go`: only the former gets the condition `DisruptionTarget`).
    fn evict(&mut self, pod: &Pod, text: String, grace: Duration, for_node: bool) -> bool {
        let id = PodId::of(pod);
        if admission::is_critical(pod) {
            return false;
        }
        info!(pod = %id.name, namespace = %id.namespace, uid = %id.uid, why = text, "pod evicted");
        let verdict = Verdict {
            reason: "Evicted".to_owned(),
            disruption: for_node.then(|| text.clone()),
            message: text,
            grace,
        };
        self.context().judge(&id.uid, verdict);
        self.leaving = Some((id.uid, Instant::now() + grace + CLEANUP_MAX));
        true
    }
}
