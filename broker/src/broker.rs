//! The broker as a program sees it: load, serve, publish.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::connection::{self, Arrival, sleep_or_never};
use crate::core::Core;
use crate::limits::{ARRIVALS_MAX, CLOCK_LOOK, INLET_MESSAGES_MAX, Limits};
use crate::listener::Listener;
use crate::message::{Message, Qos};
use crate::pipeline::Pipeline;
use crate::proto::Version;
use crate::record::Moment;
use crate::router::{NOBODY, Router};
use crate::stats::{Counters, Stats};
use crate::storage::{Storage, StorageError};
use crate::{sys, topic};

/// Why a publish of the embedding program was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The broker is behind; trying again later can succeed.
    #[error("the broker's inlet is full")]
    Full,
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
    /// The topic has wildcards, is empty or too long.
    #[error("not a topic name")]
    Topic,
}

/// Publishes and reads counters from inside the process. Clones share one inlet. A handle does not
/// keep the broker or its storage alive, so that a storage may hold one.
#[derive(Clone)]
pub struct BrokerHandle {
    inlet: mpsc::Sender<Message>,
    core: Weak<Core>,
}

impl BrokerHandle {
    /// Publishes without waiting: routed at once when nothing of it has to be durable, else handed
    /// to the broker's task. It is not passed to [`Storage::commit`] as an application message:
    /// that is for clients' messages.
    ///
    /// # Errors
    /// `Full`: try again later; `Stopped` and `Topic`: do not.
    pub fn publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
        qos: Qos,
        retain: bool,
    ) -> Result<(), PublishError> {
        if !topic::is_valid_name(topic) {
            return Err(PublishError::Topic);
        }
        let message = Message::new(topic, payload, qos, retain);
        let core = self.core.upgrade().ok_or(PublishError::Stopped)?;
        let message = match route_at_once(&core, message) {
            Ok(()) => return Ok(()),
            Err(message) => message,
        };
        core.inlet_waiting.fetch_add(1, Ordering::AcqRel);
        self.inlet.try_send(message).map_err(|error| {
            core.inlet_waiting.fetch_sub(1, Ordering::AcqRel);
            match error {
                mpsc::error::TrySendError::Full(_) => {
                    core.counters.dropped();
                    PublishError::Full
                }
                mpsc::error::TrySendError::Closed(_) => PublishError::Stopped,
            }
        })
    }

    /// The counters now; zero when the broker is gone.
    pub fn stats(&self) -> Stats {
        self.core.upgrade().map_or_else(Stats::default, |core| {
            let held = core.router().held();
            core.counters.read(held)
        })
    }
}

impl std::fmt::Debug for BrokerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerHandle").finish_non_exhaustive()
    }
}

/// The message comes back when it needs a commit, or would overtake one that does.
fn route_at_once(core: &Core, message: Message) -> Result<(), Message> {
    if core.inlet_waiting.load(Ordering::Acquire) > 0 {
        return Err(message);
    }
    let message = Arc::new(message);
    let mut ops = Vec::new();
    let mut router = core.router();
    let plan = router.plan(Arc::clone(&message), NOBODY, Moment::now(), &mut ops);
    if ops.is_empty() {
        router.deliver(plan);
        return Ok(());
    }
    router.abandon(&plan);
    drop(router);
    drop(plan);
    Err(Arc::unwrap_or_clone(message))
}

/// A broker that is loaded and does not serve yet.
pub struct Broker {
    core: Arc<Core>,
    inlet: mpsc::Receiver<Message>,
    handle: BrokerHandle,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

impl Broker {
    /// Reads sessions, queued and retained messages back.
    ///
    /// # Errors
    /// Whatever the storage says; the broker cannot start without it.
    pub async fn load(
        limits: Limits,
        storage: Arc<dyn Storage>,
        access: Arc<dyn Access>,
    ) -> Result<Self, StorageError> {
        let loaded = storage.load().await?;
        let counters = Arc::new(Counters::default());
        let mut router = Router::new(limits.clone(), Arc::clone(&counters));
        let unreadable = router.load(loaded, Moment::now());
        if unreadable > 0 {
            tracing::warn!(rows = unreadable, "stored MQTT rows not readable; left out");
        }
        let core = Arc::new(Core::new(limits, storage, access, router, counters));
        if unreadable > 0 {
            // Before anybody can write a session of the same name.
            core.settle().await;
        }
        let (sender, inlet) = mpsc::channel(INLET_MESSAGES_MAX);
        let handle = BrokerHandle {
            inlet: sender,
            core: Arc::downgrade(&core),
        };
        Ok(Self {
            core,
            inlet,
            handle,
        })
    }

    /// A handle for the rest of the program.
    pub fn handle(&self) -> BrokerHandle {
        self.handle.clone()
    }

    /// Serves until `stop`; then clients are told, open commits are waited for, and it returns.
    pub async fn serve<L: Into<Listener>>(self, listeners: Vec<L>, stop: CancellationToken) {
        let Self {
            core,
            inlet,
            handle,
        } = self;
        drop(handle);
        let tasks = TaskTracker::new();
        for listener in listeners {
            tasks.spawn(accept(
                Arc::clone(&core),
                listener.into(),
                tasks.clone(),
                stop.clone(),
            ));
        }
        tasks.spawn(publish_inlet(Arc::clone(&core), inlet, stop.clone()));
        tasks.spawn(run_timers(Arc::clone(&core), stop.clone()));
        tasks.spawn(sys::run(Arc::clone(&core), stop.clone()));
        stop.cancelled().await;
        tasks.close();
        tasks.wait().await;
        core.settle().await;
    }
}

async fn accept(core: Arc<Core>, listener: Listener, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        // Both arms are cancel-safe: accept() loses no connection when dropped.
        let accepted = tokio::select! {
            accepted = listener.tcp.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = Place::arrive(&core) else {
                    tracing::debug!(%peer, "connection closed: too many clients");
                    continue;
                };
                let (core, stop) = (Arc::clone(&core), stop.clone());
                let arrival = Arrival {
                    stream,
                    peer,
                    upgrade: listener.upgrade.clone(),
                };
                tasks.spawn(async move {
                    let mut place = place;
                    connection::run(&core, arrival, || place.admit(), stop).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: others must end first.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection's place among all: first with those that nobody knows yet.
struct Place {
    core: Arc<Core>,
    is_admitted: bool,
}

impl Place {
    fn arrive(core: &Arc<Core>) -> Option<Self> {
        let counters = &core.counters;
        let (clients, arrivals) = (&counters.clients, &counters.arrivals);
        if clients.load(Ordering::Relaxed) >= core.limits.clients_max
            || arrivals.load(Ordering::Relaxed) >= ARRIVALS_MAX
        {
            counters.turned_away();
            return None;
        }
        arrivals.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            core: Arc::clone(core),
            is_admitted: false,
        })
    }

    fn admit(&mut self) {
        self.is_admitted = true;
        let counters = &self.core.counters;
        counters.arrivals.fetch_sub(1, Ordering::Relaxed);
        counters.clients.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counters = &self.core.counters;
        let held = if self.is_admitted {
            &counters.clients
        } else {
            &counters.arrivals
        };
        held.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn publish_inlet(
    core: Arc<Core>,
    mut inlet: mpsc::Receiver<Message>,
    stop: CancellationToken,
) {
    let pipeline = Arc::new(Pipeline::new(Version::V5, "".into()));
    loop {
        // recv() is cancel-safe.
        let message = tokio::select! {
            message = inlet.recv() => message,
            () = stop.cancelled() => return,
        };
        let Some(message) = message else { return };
        core.publish(&pipeline, message, None, Vec::new()).await;
        core.inlet_waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn run_timers(core: Arc<Core>, stop: CancellationToken) {
    let pipeline = Arc::new(Pipeline::new(Version::V5, "".into()));
    write_ends(&core).await;
    let mut clock_look = Instant::now() + CLOCK_LOOK;
    loop {
        let next = core.router().next_timer();
        let due = sleep_or_never(next);
        // All arms only wait; nothing is lost when they are dropped.
        tokio::select! {
            () = due => {}
            () = sleep_or_never(Some(clock_look)) => {
                write_ends(&core).await;
                clock_look = Instant::now() + CLOCK_LOOK;
                continue;
            }
            () = core.timers_changed.notified() => continue,
            () = stop.cancelled() => return,
        }
        let mut ops = Vec::new();
        let wills = core.router().fire_timers(Instant::now(), &mut ops);
        core.commit_ops(ops).await;
        for will in wills {
            core.publish_will(&pipeline, will).await;
        }
    }
}

async fn write_ends(core: &Arc<Core>) {
    loop {
        let mut ops = Vec::new();
        core.router().write_ends(Moment::now(), &mut ops);
        if ops.is_empty() {
            return;
        }
        core.commit_ops(ops).await;
    }
}
