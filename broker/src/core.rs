//! Router, storage and pipelines together: submit, commit, resolve.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, oneshot};

use crate::access::{Access, ConnectRequest, Grant, Refused};
use crate::limits::{BUSY_RETRY, COMMITS_IN_FLIGHT_MAX, LOGINS_MAX, Limits};
use crate::message::{Message, Qos};
use crate::pipeline::{Commit, Failure, Pipeline, Request, Slots};
use crate::proto::encode::{self, Ack};
use crate::proto::{Connect, Version, reason};
use crate::record::Moment;
use crate::router::{DueWill, NOBODY, Router};
use crate::stats::Counters;
use crate::storage::{Batch, Busy, Done, Op, Publish, Storage, StorageError};
use crate::sys;

/// A batch the storage had no room for, with its callback.
pub(crate) type Parked = Box<(Batch, Done)>;

pub(crate) struct Core {
    pub(crate) limits: Limits,
    access: Arc<dyn Access>,
    logins: Semaphore,
    pub(crate) counters: Arc<Counters>,
    storage: Arc<dyn Storage>,
    router: Mutex<Router>,
    commits: AtomicUsize,
    /// Publishes of the embedding program that wait in the inlet.
    pub(crate) inlet_waiting: AtomicUsize,
    /// A timer was added.
    pub(crate) timers_changed: Notify,
    /// Somebody subscribed to `$SYS`.
    pub(crate) sys_wanted: Notify,
    started: Instant,
}

impl Core {
    pub(crate) fn new(
        limits: Limits,
        storage: Arc<dyn Storage>,
        access: Arc<dyn Access>,
        router: Router,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            limits,
            access,
            logins: Semaphore::new(LOGINS_MAX),
            counters,
            storage,
            router: Mutex::new(router),
            commits: AtomicUsize::new(0),
            inlet_waiting: AtomicUsize::new(0),
            timers_changed: Notify::new(),
            sys_wanted: Notify::new(),
            started: Instant::now(),
        }
    }

    pub(crate) fn router(&self) -> MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks who the client is and what it may do.
    pub(crate) async fn admit(
        &self,
        connect: &Connect,
        certificate: Option<String>,
        peer: SocketAddr,
    ) -> Result<Grant, Refused> {
        let access = Arc::clone(&self.access);
        let (client, username) = (connect.client.clone(), connect.username.clone());
        let password = connect.password.clone();
        let is_slow = password.is_some();
        let ask = move || {
            access.connect(&ConnectRequest {
                client: &client,
                username: username.as_deref(),
                password: password.as_deref(),
                certificate: certificate.as_deref(),
                peer,
            })
        };
        if !is_slow {
            return ask();
        }
        let Ok(_permit) = self.logins.acquire().await else {
            return Err(Refused::NotAuthorized);
        };
        tokio::task::spawn_blocking(ask)
            .await
            .unwrap_or(Err(Refused::NotAuthorized))
    }

    /// Whether a message of this topic goes to the embedding program.
    pub(crate) fn wants(&self, topic: &str) -> bool {
        self.storage.wants(topic)
    }

    /// Takes a slot and commits the batch, or resolves at once when there is nothing to commit.
    /// A batch that comes back has its slot; it must be offered to [`Self::commit`] again before
    /// anything else is submitted on this pipeline.
    pub(crate) fn submit(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        request: Request,
        bytes: usize,
        batch: Batch,
    ) -> Option<Parked> {
        if batch.is_empty() {
            let mut slots = pipeline.lock();
            slots.add(request, bytes, Some(Commit::Ok));
            self.resolve(pipeline, &mut slots);
            return None;
        }
        self.submit_commit(pipeline, request, bytes, batch)
    }

    /// Like [`Self::submit`], but waits for the storage even with nothing to commit.
    pub(crate) fn submit_commit(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        request: Request,
        bytes: usize,
        mut batch: Batch,
    ) -> Option<Parked> {
        self.router().take_stale(&mut batch.ops);
        let number = pipeline.lock().add(request, bytes, None);
        let owner = Arc::clone(pipeline);
        let chain = batch.chain.clone();
        let done = self.counted(move |core, result| {
            if let Err(error) = &result {
                core.counters.commit_failed();
                match (chain, error) {
                    (Some(chain), StorageError::Refused) => chain.refused(),
                    (Some(chain), StorageError::Full | StorageError::Failed(_)) => chain.break_off(),
                    (None, _) => {}
                }
                tracing::debug!(client = %owner.client(), %error, "commit failed; nothing is acknowledged");
            }
            let mut slots = owner.lock();
            slots.set(number, Commit::from(&result));
            core.resolve(&owner, &mut slots);
            drop(slots);
            owner.wake();
        });
        self.commit(Box::new((batch, done)))
    }

    /// Commits operations that nobody waits for; takes no slot.
    pub(crate) fn submit_ops(self: &Arc<Self>, ops: Vec<Op>) -> Option<Parked> {
        let done = self.counted(|core, result| core.told(&result));
        let batch = Batch {
            ops,
            ..Batch::default()
        };
        self.commit(Box::new((batch, done)))
    }

    /// Offers a batch to the storage; it comes back when there is no room now.
    pub(crate) fn commit(self: &Arc<Self>, parked: Parked) -> Option<Parked> {
        if self.commits.fetch_add(1, Ordering::AcqRel) >= COMMITS_IN_FLIGHT_MAX {
            self.commits.fetch_sub(1, Ordering::AcqRel);
            return Some(parked);
        }
        let (batch, done) = *parked;
        match self.storage.commit(batch, done) {
            Ok(()) => None,
            Err(Busy(back)) => {
                self.commits.fetch_sub(1, Ordering::AcqRel);
                Some(back)
            }
        }
    }

    /// A callback that counts its commit as over.
    fn counted(
        self: &Arc<Self>,
        then: impl FnOnce(&Core, Result<(), StorageError>) + Send + 'static,
    ) -> Done {
        let core = Arc::clone(self);
        Box::new(move |result| {
            core.commits.fetch_sub(1, Ordering::AcqRel);
            then(&core, result);
        })
    }

    /// Resolves every slot at the front whose commit is known.
    fn resolve(&self, pipeline: &Arc<Pipeline>, slots: &mut Slots) {
        while let Some((request, commit)) = slots.pop_resolved() {
            if commit == Commit::Refused
                && slots.failed.is_none()
                && request.hears_refusal(pipeline)
            {
                self.resolve_refused(pipeline, slots, request);
                continue;
            }
            let failure = match (commit, slots.failed) {
                // A publish that came after one that was not kept, and needed no commit itself.
                (Commit::Ok, Some(failure)) if request.is_in_chain() => Some(failure.code),
                (Commit::Ok, _) => None,
                (Commit::Full | Commit::Refused, _) => Some(reason::QUOTA),
                (Commit::Failed, _) => Some(reason::UNSPECIFIED),
            };
            match failure {
                None => self.resolve_ok(pipeline, slots, request),
                Some(code) => self.resolve_failed(pipeline, slots, request, code),
            }
        }
    }

    fn resolve_ok(&self, pipeline: &Pipeline, slots: &mut Slots, request: Request) {
        let version = pipeline.version();
        match request {
            Request::Publish { plan, ack } => {
                let mut router = self.router();
                if let Some((Ack::Pubrec, id)) = ack {
                    router.received_stored(pipeline.key(), id, true);
                }
                router.deliver(plan);
                drop(router);
                if let Some((kind, id)) = ack {
                    encode::ack(&mut slots.out, version, kind, id, reason::SUCCESS);
                }
            }
            Request::Repeated { id } => {
                if self.router().received(pipeline.key(), id) == Some(true) {
                    encode::ack(&mut slots.out, version, Ack::Pubrec, id, reason::SUCCESS);
                } else {
                    slots.fail(Failure::silent(reason::UNSPECIFIED));
                }
            }
            Request::Ack { kind, id, code } => {
                encode::ack(&mut slots.out, version, kind, id, code);
            }
            Request::Connack {
                is_present,
                assigned_client,
                expiry_secs,
            } => {
                let ack = encode::Connack {
                    session_present: is_present,
                    assigned_client: assigned_client.as_deref(),
                    expiry_secs,
                };
                encode::connack(&mut slots.out, version, &self.limits, &ack);
                slots.is_welcomed = true;
            }
            Request::Suback { id, codes, granted } => {
                encode::suback(&mut slots.out, version, id, &codes);
                let mut router = self.router();
                router.send_retained(pipeline.key(), &granted, Instant::now());
                if router.has_sys_listeners() {
                    let stats = self.counters.read(router.held());
                    let now = sys::messages(&stats, self.uptime_secs());
                    router.send_unkept(pipeline.key(), &granted, now);
                    drop(router);
                    self.sys_wanted.notify_one();
                }
            }
            Request::Unsuback { id, codes } => {
                encode::unsuback(&mut slots.out, version, id, &codes);
            }
        }
    }

    /// The client hears that this message was not taken, and goes on.
    fn resolve_refused(&self, pipeline: &Pipeline, slots: &mut Slots, request: Request) {
        if let Request::Publish {
            plan,
            ack: Some((kind, id)),
        } = request
        {
            let mut router = self.router();
            router.abandon(&plan);
            if kind == Ack::Pubrec {
                router.received_stored(pipeline.key(), id, false);
            }
            drop(router);
            encode::ack(&mut slots.out, pipeline.version(), kind, id, reason::QUOTA);
        }
    }

    fn resolve_failed(&self, pipeline: &Pipeline, slots: &mut Slots, request: Request, code: u8) {
        let version = pipeline.version();
        match request {
            Request::Publish { plan, ack } => {
                let mut router = self.router();
                router.abandon(&plan);
                if let Some((Ack::Pubrec, id)) = ack {
                    router.received_stored(pipeline.key(), id, false);
                }
                drop(router);
                match (ack, version) {
                    // What comes later on this connection is not answered at all: the client
                    // sends it again, after the one that is refused here if it likes.
                    (Some((kind, id)), Version::V5) => {
                        if slots.failed.is_none() {
                            encode::ack(&mut slots.out, version, kind, id, code);
                        }
                        slots.fail(Failure {
                            code,
                            is_open: true,
                        });
                    }
                    (Some(_), Version::V311) => slots.fail(Failure::silent(code)),
                    (None, _) => self.counters.dropped(),
                }
            }
            Request::Suback { id, codes, granted } => {
                let filters: Vec<String> = granted.into_iter().map(|(e, _)| e.filter).collect();
                // The row is not there either; the next change writes the whole session.
                self.router()
                    .unsubscribe(pipeline.key(), &filters, &mut Vec::new());
                let codes = vec![code; codes.len()];
                encode::suback(&mut slots.out, version, id, &codes);
            }
            Request::Connack { .. } => {
                self.router().session_not_stored(pipeline.key());
                encode::connack_refused(&mut slots.out, version, code);
                slots.fail(Failure::silent(code));
            }
            Request::Repeated { .. } | Request::Ack { .. } | Request::Unsuback { .. } => {
                slots.fail(Failure::silent(code));
            }
        }
    }

    /// Publishes for somebody who is not connected (any more): a will, the embedding program.
    /// `ops` become durable with it.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        message: Message,
        client: Option<Arc<str>>,
        ops: Vec<Op>,
    ) {
        while !pipeline.lock().has_room(self.limits.receive_maximum) {
            pipeline.woken().await;
        }
        let message = Arc::new(message);
        let mut batch = Batch {
            ops,
            ..Batch::default()
        };
        let plan = self
            .router()
            .plan(Arc::clone(&message), NOBODY, Moment::now(), &mut batch.ops);
        if let Some(client) = client
            && self.wants(&message.topic)
        {
            batch.publish = Some(Publish {
                client,
                message: Arc::clone(&message),
            });
        }
        let request = Request::Publish { plan, ack: None };
        let parked = self.submit(pipeline, request, message.bytes(), batch);
        self.insist(parked).await;
    }

    pub(crate) async fn publish_will(self: &Arc<Self>, pipeline: &Arc<Pipeline>, due: DueWill) {
        let mut message = due.will.message;
        message.expires = expires(due.will.expiry_secs);
        let void = due.will.row.map(|id| Op::WillDelete { id });
        let ops = void.into_iter().collect();
        self.publish(pipeline, message, Some(due.client), ops).await;
    }

    /// Offers a batch until the storage takes it.
    pub(crate) async fn insist(self: &Arc<Self>, mut parked: Option<Parked>) {
        while let Some(again) = parked {
            parked = self.commit(again);
            if parked.is_some() {
                tokio::time::sleep(BUSY_RETRY).await;
            }
        }
    }

    /// Commits operations that nobody waits for. A failure leaves rows that are deleted or
    /// overwritten later.
    pub(crate) async fn commit_ops(self: &Arc<Self>, mut ops: Vec<Op>) {
        self.router().take_stale(&mut ops);
        if ops.is_empty() {
            return;
        }
        let done = self.counted(|core, result| core.told(&result));
        let batch = Batch {
            ops,
            ..Batch::default()
        };
        self.insist(Some(Box::new((batch, done)))).await;
    }

    pub(crate) fn uptime_secs(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Waits until everything submitted so far is reported.
    pub(crate) async fn settle(self: &Arc<Self>) {
        let mut ops = Vec::new();
        self.router().take_stale(&mut ops);
        if ops.is_empty() && self.commits.load(Ordering::Acquire) == 0 {
            return;
        }
        let (reply, answer) = oneshot::channel();
        let done = self.counted(|core, result| {
            core.told(&result);
            // Nobody waits any more when the program is going down hard.
            let _ = reply.send(());
        });
        let batch = Batch {
            ops,
            ..Batch::default()
        };
        self.insist(Some(Box::new((batch, done)))).await;
        // An error means that the storage stopped; there is nothing left to wait for.
        let _ = answer.await;
    }

    fn told(&self, result: &Result<(), StorageError>) {
        if let Err(error) = result {
            self.counters.commit_failed();
            tracing::debug!(%error, "the broker's rows were not cleaned up; a restart does");
        }
    }
}

/// When a message with this Message Expiry Interval ends.
pub(crate) fn expires(secs: Option<u32>) -> Option<Instant> {
    secs.map(|secs| Instant::now() + Duration::from_secs(u64::from(secs)))
}

/// What acknowledges a publish of this QoS.
pub(crate) fn ack_of(qos: Qos) -> Option<Ack> {
    match qos {
        Qos::AtMostOnce => None,
        Qos::AtLeastOnce => Some(Ack::Puback),
        Qos::ExactlyOnce => Some(Ack::Pubrec),
    }
}
