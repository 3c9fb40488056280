//! Wakes on the store's generation, on the runtime's changes and on a worker's wish; lists once;
//! gives every worker its part. One owner of all workers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Settings;
use super::disconnect::{self, Absence};
use super::eviction::Active;
use super::node::{Machine, Pressure, Reporter};
use super::pod::convert::PodId;
use super::pod::worker::{Context, Input, Worker};
use super::runtime::{Container, Sandbox};
use crate::clock;

/// Tried again after a listing or the store failed, should nothing wake the loop earlier.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Listings and readings of the store are at least this far apart: each is of everything, so a
/// burst of n pods that each caused one would cost n². The first is never delayed.
const LIST_SPACING: Duration = Duration::from_millis(100);
const READ_SPACING: Duration = Duration::from_millis(20);

mod admit;

pub(super) struct MainLoop {
    context: Arc<Context>,
    node: Reporter,
    workers: BTreeMap<String, Tracked>,
    tasks: JoinSet<String>,
    generation: watch::Receiver<u64>,
    changes: watch::Receiver<u64>,
    resend: watch::Receiver<u64>,
    /// As last read from the store.
    desired: Option<BTreeMap<String, Arc<Pod>>>,
    seen: BTreeMap<String, Vec<Container>>,
    sandboxes: BTreeMap<String, Sandbox>,
    /// Pods that this process did not take.
    refused: BTreeSet<String>,
    active: watch::Sender<Active>,
    pressure: watch::Receiver<Pressure>,
    stamp: u64,
    /// What earlier processes left has been looked at.
    adopted: bool,
    /// Told then which pods with a network of their own were found.
    tell_adopted: Option<oneshot::Sender<Vec<String>>>,
    runtime_lost: bool,
    absence: Absence,
    /// Pods that ask to be stopped while the hub is away, and when.
    stops: BTreeMap<String, Duration>,
}

struct Tracked {
    input: watch::Sender<Input>,
    acted: Arc<AtomicBool>,
    /// The next hand-out wakes the worker even if it brings nothing new.
    wake: bool,
    /// Terminated here but still desired: kept so that it is not made again.
    over: bool,
    /// The wish to tell everything again that has been heeded.
    told_over: u64,
}

/// Something to be done when wanted, but not too often, and again after it failed.
struct Due {
    spacing: Duration,
    at: Option<Instant>,
    done_at: Option<Instant>,
    retry: Duration,
}

impl Due {
    /// Due at once.
    fn new(spacing: Duration) -> Self {
        Self {
            spacing,
            at: Some(Instant::now()),
            done_at: None,
            retry: RETRY_FIRST,
        }
    }

    fn want(&mut self) {
        let now = Instant::now();
        let earliest = self.done_at.map_or(now, |at| (at + self.spacing).max(now));
        self.at = Some(self.at.map_or(earliest, |at| at.min(earliest)));
    }

    fn is_due(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }

    fn done(&mut self, ok: bool) {
        let now = Instant::now();
        self.done_at = Some(now);
        self.at = (!ok).then(|| now + self.retry);
        self.retry = if ok {
            RETRY_FIRST
        } else {
            (self.retry * 2).min(RETRY_MAX)
        };
    }
}

impl MainLoop {
    pub(super) fn new(
        context: Arc<Context>,
        settings: Settings,
        machine: Machine,
        resend: watch::Receiver<u64>,
        active: watch::Sender<Active>,
        pressure: watch::Receiver<Pressure>,
        tell_adopted: oneshot::Sender<Vec<String>>,
    ) -> Self {
        let away_file = settings.disk_dir.with_file_name("hub-away.json");
        Self {
            absence: Absence::new(context.sink.hub_link(), away_file, machine.boot_id.clone()),
            stops: BTreeMap::new(),
            generation: context.desired.generation(),
            changes: context.runtime.changes(),
            node: Reporter::new(context.clone(), settings, machine, pressure.clone()),
            refused: BTreeSet::new(),
            active,
            pressure,
            resend,
            context,
            workers: BTreeMap::new(),
            tasks: JoinSet::new(),
            desired: None,
            seen: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            stamp: 0,
            adopted: false,
            tell_adopted: Some(tell_adopted),
            runtime_lost: false,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut read = Due::new(READ_SPACING);
        let mut list = Due::new(LIST_SPACING);
        // Something is known that was not handed out yet.
        let mut fresh = true;
        loop {
            if read.is_due() {
                read.done(self.read_desired().await);
                fresh = true;
            }
            if list.is_due() {
                list.done(self.list().await);
                fresh = true;
            }
            let resend = *self.resend.borrow_and_update();
            if std::mem::take(&mut fresh) {
                self.dispatch();
                self.node.refresh(self.runtime_lost, resend).await;
            }
            let stop_due = self.absence.keep(self.stops.values().copied());
            let due = [self.node.due(), read.at, list.at, stop_due];
            let due = due.into_iter().flatten().min();
            let timer = clock::reached(due);
            let context = self.context.clone();
            // Cancel-safe: watches, a notification and a timer lose nothing by being dropped.
            tokio::select! {
                () = stop.cancelled() => return self.absence.leave(),
                changed = self.generation.changed() => {
                    if changed.is_err() { return; }
                    read.want();
                }
                changed = self.changes.changed() => {
                    if changed.is_err() { return; }
                    list.want();
                }
                () = context.poke.notified() => list.want(),
                changed = self.pressure.changed() => {
                    if changed.is_err() { return; }
                    fresh = true;
                }
                changed = self.resend.changed() => {
                    if changed.is_err() { return; }
                    fresh = true;
                }
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    fresh = true;
                    match ended {
                        Ok(uid) => self.ended(&uid),
                        Err(error) => {
                            // A worker never panics by design; the process leaves and adopts anew.
                            tracing::error!(error = %error, "pod worker ended unexpectedly");
                            return;
                        }
                    }
                }
                () = self.absence.changed() => {
                    self.absence.look();
                    fresh = true;
                }
                () = timer => {
                    let others = [self.node.due(), stop_due];
                    fresh = others.into_iter().flatten().any(|at| at <= Instant::now());
                }
            }
        }
    }

    async fn read_desired(&mut self) -> bool {
        self.generation.mark_unchanged();
        match self.context.desired.pods().await {
            Ok(pods) => {
                let old = self.desired.take().unwrap_or_default();
                let pods = pods.into_iter().filter_map(|pod| {
                    let uid = pod.metadata.uid.clone().filter(|uid| !uid.is_empty())?;
                    let kept = old.get(&uid).filter(|before| ***before == pod).cloned();
                    Some((uid, kept.unwrap_or_else(|| Arc::new(pod))))
                });
                let pods: BTreeMap<String, Arc<Pod>> = pods.collect();
                self.stops = stops(&pods, &old);
                self.desired = Some(pods);
                true
            }
            Err(error) => {
                warn!(error = %error, "desired pods cannot be read; what runs is left alone");
                false
            }
        }
    }

    async fn list(&mut self) -> bool {
        self.changes.mark_unchanged();
        let stamp = self.context.tick();
        let acted: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, tracked)| tracked.acted.swap(false, Ordering::SeqCst))
            .map(|(uid, _)| uid.clone())
            .collect();
        let listed = self.context.runtime.containers().await;
        let containers = match listed {
            Ok(containers) => containers,
            Err(error) => {
                if !self.runtime_lost {
                    warn!(error = %error, "containers cannot be listed; pods are looked at again when they can");
                }
                self.runtime_lost = true;
                for uid in acted {
                    if let Some(tracked) = self.workers.get(&uid) {
                        tracked.acted.store(true, Ordering::SeqCst);
                    }
                }
                return false;
            }
        };
        if !self.adopted {
            match self.context.runtime.sandboxes().await {
                Ok(list) => {
                    self.sandboxes = list.into_iter().map(|s| (s.pod_uid.clone(), s)).collect();
                }
                Err(error) => {
                    debug!(error = %error, "sandboxes cannot be listed");
                    return false;
                }
            }
            let any = !containers.is_empty() || !self.sandboxes.is_empty();
            if let Err(error) = self.context.desired.found_containers(any).await {
                warn!(error = %error, "the store cannot note what runs; it is left alone");
                return false;
            }
        }
        if self.runtime_lost {
            info!("container runtime answers again");
        }
        let back = std::mem::take(&mut self.runtime_lost);
        self.stamp = stamp;
        self.seen.clear();
        for container in containers {
            self.seen
                .entry(container.pod_uid.clone())
                .or_default()
                .push(container);
        }
        for (uid, tracked) in &mut self.workers {
            tracked.wake |= back || acted.contains(uid);
        }
        true
    }

    /// Hands out what is known. Without desired pods or a first listing nothing is decided.
    fn dispatch(&mut self) {
        let Some(desired) = self.desired.clone() else {
            return;
        };
        if self.stamp == 0 {
            return;
        }
        self.workers
            .retain(|uid, tracked| !tracked.over || desired.contains_key(uid));
        let verdicts = self.context.verdicts.lock();
        verdicts
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid, _| desired.contains_key(uid));
        let networks = self.context.networks.lock();
        networks
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid, _| desired.contains_key(uid));
        let waiting = self.admit(&desired);
        for (uid, pod) in &desired {
            if !waiting.contains(uid) {
                self.give(uid, pod, false);
            }
        }
        let removed: Vec<(String, Arc<Pod>)> = self
            .workers
            .iter()
            .filter(|(uid, tracked)| !tracked.over && !desired.contains_key(*uid))
            .map(|(uid, tracked)| (uid.clone(), tracked.input.borrow().pod.clone()))
            .collect();
        for (uid, pod) in removed {
            self.give(&uid, &pod, true);
        }
        if !self.context.desired.is_complete() {
            return;
        }
        let unknown: Vec<(String, Arc<Pod>)> = self
            .seen
            .iter()
            .filter(|(uid, _)| !desired.contains_key(*uid) && !self.workers.contains_key(*uid))
            .filter_map(|(uid, seen)| Some((uid.clone(), Arc::new(stand_in(seen.first()?)))))
            .collect();
        for (uid, pod) in unknown {
            info!(uid = %uid, "containers of a pod that is not desired; ending it");
            self.give(&uid, &pod, true);
        }
        if !self.adopted {
            self.adopted = true;
            self.clear_remains(&desired);
            let networked = self.sandboxes.values().filter(|sandbox| {
                !sandbox.ips.is_empty() && desired.contains_key(&sandbox.pod_uid)
            });
            let uids = networked.map(|sandbox| sandbox.pod_uid.clone()).collect();
            if let Some(tell) = self.tell_adopted.take() {
                // Nobody listens any more: this process ends.
                let _ = tell.send(uids);
            }
        }
        self.sandboxes.clear();
    }

    /// Sandboxes and files without containers that belong to no desired pod.
    fn clear_remains(&mut self, desired: &BTreeMap<String, Arc<Pod>>) {
        let mut uids = self.context.dirs.pod_uids();
        uids.extend(self.sandboxes.keys().cloned());
        uids.sort();
        uids.dedup();
        for uid in uids {
            if desired.contains_key(&uid) || self.workers.contains_key(&uid) {
                continue;
            }
            let pod = Arc::new(Pod {
                metadata: ObjectMeta {
                    uid: Some(uid.clone()),
                    ..ObjectMeta::default()
                },
                ..Pod::default()
            });
            self.give(&uid, &pod, true);
        }
    }

    fn give(&mut self, uid: &str, pod: &Arc<Pod>, removed: bool) {
        let input = self.input_of(uid, pod, removed);
        let resend = input.resend;
        let Some(tracked) = self.workers.get_mut(uid) else {
            self.start_worker(uid, input);
            return;
        };
        if tracked.over {
            if std::mem::replace(&mut tracked.told_over, resend) != resend {
                self.context.pod_gone(&PodId::of(pod));
            }
            return;
        }
        tracked.told_over = resend;
        let wake = std::mem::take(&mut tracked.wake);
        tracked.input.send_if_modified(|known| {
            let is_news = wake || known.differs(&input);
            *known = input;
            is_news
        });
    }

    fn input_of(&self, uid: &str, pod: &Arc<Pod>, removed: bool) -> Input {
        let verdicts = self.context.verdicts.lock();
        let verdict = verdicts
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .cloned();
        let networks = self.context.networks.lock();
        let network = networks
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .cloned();
        Input {
            pod: Arc::clone(pod),
            removed,
            seen: self.seen.get(uid).cloned().unwrap_or_default(),
            stamp: self.stamp,
            // Who waits for something that changes tries again.
            generation: self
                .generation
                .borrow()
                .wrapping_add(self.context.runtime.network_changes()),
            resend: *self.resend.borrow(),
            host_ip: self.node.host_ip().to_owned(),
            verdict,
            network,
            suspended: self.absence.is_over(self.stops.get(uid).copied()),
        }
    }

    fn start_worker(&mut self, uid: &str, input: Input) {
        let told_over = input.resend;
        let sender = watch::Sender::new(input);
        let acted = Arc::new(AtomicBool::new(false));
        let sandbox = self.sandboxes.get(uid).cloned();
        let worker = Worker::new(
            self.context.clone(),
            sender.subscribe(),
            acted.clone(),
            sandbox,
        );
        self.tasks.spawn(worker.run());
        self.workers.insert(
            uid.to_owned(),
            Tracked {
                input: sender,
                acted,
                wake: false,
                over: false,
                told_over,
            },
        );
    }

    fn ended(&mut self, uid: &str) {
        if let Some(tracked) = self.workers.get_mut(uid) {
            tracked.over = true;
        }
        self.seen.remove(uid);
    }
}

/// What pods ask for while the hub is away. What cannot be read is told once and counts as "keep".
fn stops(
    pods: &BTreeMap<String, Arc<Pod>>,
    before: &BTreeMap<String, Arc<Pod>>,
) -> BTreeMap<String, Duration> {
    let mut stops = BTreeMap::new();
    for (uid, pod) in pods {
        match disconnect::stop_after(pod) {
            Ok(after) => stops.extend(after.map(|after| (uid.clone(), after))),
            Err(reason) => {
                if before.get(uid).is_none_or(|old| !Arc::ptr_eq(old, pod)) {
                    let id = PodId::of(pod);
                    warn!(pod = %id.name, namespace = %id.namespace, annotation = disconnect::ON_DISCONNECT,
                        reason, "annotation not understood; the pod is kept while the hub is away");
                }
            }
        }
    }
    stops
}

/// What is known of a pod from the labels of its container.
fn stand_in(container: &Container) -> Pod {
    Pod {
        metadata: ObjectMeta {
            uid: Some(container.pod_uid.clone()),
            namespace: Some(container.pod_namespace.clone()),
            name: Some(container.pod_name.clone()),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    }
}
