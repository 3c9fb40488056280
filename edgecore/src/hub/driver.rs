//! The shell around [`EdgeSession`] that does not touch the socket: store jobs, outbox, news,
//! requests. Works the same connected or not.

mod rows;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use wire::extension::Extensions;
use wire::message::{Message, Operation};
use wire::session::Ids;
use wire::session::edge::{EdgeSession, Event};

use super::handle::{Ask, Inbox, RequestError};
use super::link::Publisher;
use super::plain::Lease;
use super::register::{self, Registration};
use crate::clock;
use crate::edged::DesiredState;
use crate::meta::{self, Applied, MetaHandle};
use crate::outbox;
use crate::servicebus::Calls;
use crate::store::{Store, StoreError};

/// Pushes being stored at once; more make the socket wait, and TCP carries the pressure on.
const PUSHES_MAX: usize = 64;
/// Completions of store jobs: every push in flight, one deletion, room to spare.
const DONE_MAX: usize = 2 * PUSHES_MAX;
/// After a deletion that failed.
const DELETE_RETRY_AFTER: Duration = Duration::from_secs(10);
/// A hub of ours that does not say when it has told everything (`synced`) has done so when it takes
/// our inventory and then pushes nothing for this long.
const QUIET_AFTER: Duration = Duration::from_secs(5);
/// Between two looks for what is too old and for losses that the hub was not told.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// A store job that ended.
#[derive(Debug)]
pub(super) enum Done {
    Applied {
        message: Box<Message>,
        outcome: Result<Applied, StoreError>,
    },
    Deleted {
        up_to: u64,
        outcome: Result<u64, StoreError>,
    },
    /// What was too old is gone, what was lost is in the outbox.
    Tidied { has_rows: bool },
}

/// A backlog that is being told.
#[derive(Debug, Default)]
struct History {
    told: outbox::Told,
    /// When the next rows may leave.
    next: Option<Instant>,
}

pub(super) struct Driver {
    pub session: EdgeSession,
    pub inbox: Inbox,
    pub registration: Registration,
    pub lease: Lease,
    node: Arc<str>,
    store: Store,
    meta: MetaHandle,
    publish: Publisher,
    calls: Calls,
    done: mpsc::Sender<Done>,
    pub completions: mpsc::Receiver<Done>,
    pushes: usize,
    /// Rows up to here were handed to the session.
    cursor: u64,
    /// The outbox may have rows after the cursor.
    pub more_rows: bool,
    /// The hub has everything up to here; the rows are to be deleted.
    delivered: u64,
    deleted: u64,
    deleting: bool,
    delete_at: Option<Instant>,
    /// The last deletion failed.
    delete_trouble: bool,
    /// `None`: there is no backlog, or all of it was told.
    history: Option<History>,
    history_rate: u32,
    tidy_at: Option<Instant>,
    /// Pushes refused since one was stored.
    refused: u32,
    /// When a store that was lost counts as filled again; `None` while it is whole.
    complete_at: Option<Instant>,
    /// The hub has said that the store holds everything; to be noted.
    synced: bool,
    /// Keys of deletions told to the hub: forgotten when it has answered.
    farewells: BTreeSet<String>,
    waiting: HashMap<String, oneshot::Sender<Result<Message, RequestError>>>,
    /// The hub is ours: its pushes of one object come in order.
    in_order: bool,
    /// Set by `LinkDead`: the socket must be closed.
    pub link_dead: bool,
}

impl Driver {
    pub(super) fn new(
        node: &str,
        epoch: &str,
        inbox: Inbox,
        store: Store,
        meta: MetaHandle,
        publish: Publisher,
        history_rate: u32,
    ) -> Self {
        let ids = Ids::new(uuid::Uuid::new_v4().to_string());
        let (done, completions) = mpsc::channel(DONE_MAX);
        Self {
            session: EdgeSession::new(ids, epoch),
            inbox,
            registration: Registration::default(),
            lease: Lease::default(),
            node: node.into(),
            store,
            meta,
            publish,
            calls: Calls::disabled(),
            done,
            completions,
            pushes: 0,
            cursor: 0,
            more_rows: true,
            delivered: 0,
            deleted: 0,
            deleting: false,
            delete_at: None,
            delete_trouble: false,
            history: None,
            history_rate,
            tidy_at: None,
            refused: 0,
            complete_at: None,
            synced: false,
            farewells: BTreeSet::new(),
            waiting: HashMap::new(),
            in_order: false,
            link_dead: false,
        }
    }

    /// Who takes calls to services of this node.
    pub(super) fn with_calls(mut self, calls: Calls) -> Self {
        self.calls = calls;
        self
    }

    /// Whether the socket may be read: the store keeps up.
    pub(super) fn may_read(&self) -> bool {
        self.pushes < PUSHES_MAX
    }

    /// A connection stands: everything that the hub should know is told again.
    pub(super) fn handle_connected(&mut self, extensions: Extensions, now: Instant) {
        let is_plain = !extensions.ping;
        self.link_dead = false;
        self.more_rows = true;
        self.in_order = !is_plain;
        self.tidy_at = (!is_plain).then_some(now + TIDY_EVERY);
        self.synced = false;
        // A plain hub never tells again what it believes the node to hold (protocol §6.2).
        let is_guessed = !is_plain && !extensions.synced;
        self.complete_at = (is_guessed && !self.meta.is_complete()).then_some(now + QUIET_AFTER);
        self.registration.reset();
        self.lease.reset(is_plain, now);
        let mut news = self.inbox.shared.news();
        news.fresh = news.latest.keys().cloned().collect();
        news.node_fresh = false;
    }

    /// Moves everything that waits into the session and acts on its events, until neither is left.
    pub(super) async fn pump(&mut self, now: Instant) {
        self.session.set_wall_time(clock::unix_millis());
        self.take_news(now);
        while let Some(event) = self.session.poll_event() {
            self.handle_event(event, now);
        }
        self.forget_farewells();
        self.delete_delivered(now);
        self.tidy(now);
        let is_quiet = self.complete_at.is_some_and(|at| at <= now) && self.pushes == 0;
        let is_told = std::mem::take(&mut self.synced) && !self.meta.is_complete();
        if is_quiet || is_told {
            self.complete_at = None;
            match self.meta.set_complete().await {
                Ok(()) => tracing::info!("the store is filled again"),
                Err(error) => tracing::warn!(%error, "the store could not be marked as filled"),
            }
        }
        let pulled = match self.pull_rows().await {
            Ok(()) if self.may_release(now) => self.release_history(now).await,
            pulled => pulled,
        };
        if let Err(error) = pulled {
            tracing::warn!(%error, "outbox cannot be read; what it holds is sent later");
        }
    }

    fn take_news(&mut self, now: Instant) {
        if !self.session.is_connected() {
            return;
        }
        let mut news = self.inbox.shared.news();
        if let Some(object) = &news.node {
            if let Some(request) = self.registration.request(&self.node, object, now) {
                // Refused only with too many requests in flight: then the deadline of one of
                // them brings us back here.
                if self.session.request(request, now).is_err() {
                    self.registration.reset();
                }
                news.node_fresh = false;
            } else if news.node_fresh && self.registration.is_registered() {
                let patch = register::status_patch(&self.node, object);
                news.node_fresh = self
                    .session
                    .set_latest(register::STATUS_KEY, patch)
                    .is_err();
            }
        }
        while let Some(key) = news.fresh.pop_first() {
            let Some(message) = news.latest.get(&key) else {
                continue;
            };
            let is_farewell = message.route.operation() == Operation::Delete;
            if self.session.set_latest(&key, message.clone()).is_err() {
                tracing::warn!(key, "session is full; a status is not reported");
            } else if is_farewell {
                self.farewells.insert(key);
            }
        }
        while let Some(message) = news.passing.pop_front() {
            self.session.best_effort(message);
        }
        drop(news);
        if let Some(renewal) = self.lease.renewal(&self.node, clock::unix_millis(), now) {
            self.session.best_effort(renewal);
        }
    }

    /// A pod that is gone here and at the hub has no news any more. Without this every pod that
    /// ever ran would be told again on each connection, until no new one could be told at all.
    fn forget_farewells(&mut self) {
        if self.farewells.is_empty() {
            return;
        }
        let (session, shared) = (&self.session, &self.inbox.shared);
        self.farewells.retain(|key| {
            if session.is_telling(key) {
                return true;
            }
            let mut news = shared.news();
            if !news.fresh.contains(key) {
                news.latest.remove(key);
            }
            false
        });
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Delivered { up_to } => self.delivered = self.delivered.max(up_to),
            Event::DeliveredOne { seq } => self.finish_row(seq, outbox::delivered_one),
            Event::GaveUp { seq } => {
                tracing::warn!(
                    seq,
                    "the hub never confirmed a message; it counts as expired"
                );
                self.finish_row(seq, outbox::expired_one);
            }
            Event::Push(message) if wire::rules::is_call(&message) => {
                if let Err(reply) = self.calls.take(*message) {
                    self.session.best_effort(*reply);
                }
            }
            Event::Push(message) => self.store_push(&message),
            Event::Reply { to, message } => {
                if self.registration.handle_reply(&to, Some(&message), now) {
                    self.mark_node_fresh();
                } else if let Some(waiter) = self.waiting.remove(&to) {
                    // The asker may have gone; its reply is then nobody's.
                    drop(waiter.send(Ok(*message)));
                }
            }
            Event::RequestFailed { to } => {
                if !self.registration.handle_reply(&to, None, now)
                    && let Some(waiter) = self.waiting.remove(&to)
                {
                    drop(waiter.send(Err(RequestError::Lost)));
                }
            }
            // The hub heard our acknowledgement of each: all of it is stored.
            Event::Synced => self.synced = true,
            Event::LinkDead => self.link_dead = true,
        }
    }

    /// The hub has just told that the node exists: the status may have changed since it was made.
    fn mark_node_fresh(&mut self) {
        if self.registration.is_registered()
            && let Some(object) = &self.inbox.shared.news().node
        {
            let patch = register::status_patch(&self.node, object);
            if self
                .session
                .set_latest(register::STATUS_KEY, patch)
                .is_err()
            {
                tracing::warn!("session is full; the node status is not reported");
            }
        }
    }

    fn store_push(&mut self, message: &Message) {
        let (sealer, node) = (self.meta.sealer(), Arc::clone(&self.node));
        let work = message.clone();
        let done = self.done.clone();
        let back = Box::new(message.clone());
        let apply = if self.in_order {
            meta::apply_in_order
        } else {
            meta::apply
        };
        let submitted = self.store.submit_fn(
            move |tx| apply(tx, &sealer, &node, &work, clock::unix_millis()),
            move |outcome| {
                let message = back;
                // Bounded by PUSHES_MAX, so there is room unless the link task is gone.
                drop(done.try_send(Done::Applied { message, outcome }));
            },
        );
        match submitted {
            Ok(()) => self.pushes += 1,
            Err(error) => self.session.refuse(message, &error.to_string()),
        }
    }

    /// A store job ended.
    pub(super) fn handle_done(&mut self, done: Done) {
        match done {
            Done::Applied { message, outcome } => {
                self.pushes = self.pushes.saturating_sub(1);
                if let Some(at) = &mut self.complete_at {
                    *at = clock::monotonic() + QUIET_AFTER;
                }
                match outcome {
                    Ok(applied) => {
                        self.refused = 0;
                        self.session.ack(&message);
                        if applied.changed {
                            self.meta.bump();
                        }
                        if applied.devices_changed {
                            self.meta.bump_devices();
                        }
                        if let Some(routes) = applied.routes {
                            self.meta.set_routes(routes);
                        }
                        if !applied.publishes.is_empty() {
                            (self.publish)(applied.publishes);
                        }
                        self.more_rows |= applied.queued;
                    }
                    Err(error) => {
                        self.refused = self.refused.saturating_add(1);
                        // The hub sends it again every few seconds: told ever more rarely.
                        if self.refused.is_power_of_two() {
                            tracing::warn!(
                                msg_id = message.header.id,
                                resource = message.route.resource,
                                refused = self.refused,
                                %error,
                                "push was not stored; the hub is told"
                            );
                        }
                        self.session.refuse(&message, &error.to_string());
                    }
                }
            }
            Done::Tidied { has_rows } => self.more_rows |= has_rows,
            Done::Deleted { up_to, outcome } => {
                self.deleting = false;
                match outcome {
                    Ok(_) => {
                        self.deleted = self.deleted.max(up_to);
                        self.delete_trouble = false;
                    }
                    Err(error) => {
                        // A full disk may last: neither tried nor told with every round.
                        self.delete_at = Some(clock::monotonic() + DELETE_RETRY_AFTER);
                        if !std::mem::replace(&mut self.delete_trouble, true) {
                            tracing::warn!(%error, "delivered rows were not deleted; tried again until they are");
                        }
                    }
                }
            }
        }
    }

    /// Takes a request from somebody in this process.
    pub(super) fn handle_ask(&mut self, ask: Ask, now: Instant) {
        let refused = if self.session.is_connected() {
            RequestError::Busy
        } else {
            RequestError::Offline
        };
        match self.session.request(ask.message, now) {
            Ok(id) => {
                self.waiting.insert(id, ask.reply);
            }
            Err(_full) => drop(ask.reply.send(Err(refused))),
        }
    }

    /// When something here is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let connected = self.session.is_connected();
        [
            self.session.poll_timeout(),
            self.registration.due().filter(|_| connected),
            self.lease.due().filter(|_| connected),
            self.delete_at,
            self.complete_at.filter(|_| connected),
            self.tidy_at.filter(|_| connected),
            self.history
                .as_ref()
                .and_then(|history| history.next)
                .filter(|_| self.has_room_for_history()),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
