//! What the rest of the daemon holds of the link.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use wire::extension::Extensions;
use wire::limits;
use wire::message::Message;

use crate::clock;

/// Requests handed over and not yet taken by the link. Full: `Busy`.
const ASKS_MAX: usize = 32;

/// Where the link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPhase {
    /// No hub is configured.
    Disabled,
    Connecting,
    Connected,
    /// Waiting for the next attempt.
    Offline,
}

impl LinkPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Offline => "offline",
        }
    }
}

/// The link, for status and for whoever waits for it.
#[derive(Clone, Debug)]
pub struct LinkState {
    pub phase: LinkPhase,
    /// Why it is not connected; empty while it is.
    pub reason: String,
    /// Since when it is (not) connected; attempts in between do not count.
    pub since: Instant,
    pub extensions: Extensions,
    /// Connections since start.
    pub connects: u64,
}

impl LinkState {
    fn new(phase: LinkPhase) -> Self {
        Self {
            phase,
            reason: String::new(),
            since: clock::monotonic(),
            extensions: Extensions::NONE,
            connects: 0,
        }
    }

    /// Whether a session stands.
    pub fn is_connected(&self) -> bool {
        self.phase == LinkPhase::Connected
    }
}

/// Why a request has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    #[error("no hub is configured")]
    Disabled,
    #[error("the hub is not connected")]
    Offline,
    #[error("too many requests wait for the hub")]
    Busy,
    #[error("the hub did not answer, or the link broke")]
    Lost,
}

/// A request and who waits for its reply.
#[derive(Debug)]
pub(super) struct Ask {
    pub message: Message,
    pub reply: oneshot::Sender<Result<Message, RequestError>>,
}

/// Newest values per key and events, until the link takes them.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Every value that the hub should know, kept to be told again after a reconnect.
    pub latest: BTreeMap<String, Message>,
    /// Keys whose value the session has not been given.
    pub fresh: BTreeSet<String>,
    /// To be sent once, now.
    pub passing: VecDeque<Message>,
    /// Kubernetes Events that are not in the outbox yet.
    pub events: VecDeque<Message>,
    pub node: Option<Value>,
    /// The node object is not what the link last saw.
    pub node_fresh: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    news: Mutex<News>,
    wake: Notify,
    events: Notify,
    outbox: Arc<Notify>,
    connected: watch::Sender<bool>,
    /// `modules.edged.reportEvent: false`: events of pods stay in the log.
    is_silent: AtomicBool,
}

impl Shared {
    pub(super) fn news(&self) -> MutexGuard<'_, News> {
        // The section holds no invariant across panics: maps and flags only.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.send_replace(connected);
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The outbox got rows since the last call.
    pub(super) async fn outbox_woken(&self) {
        self.outbox.notified().await;
    }
}

fn push_bounded(queue: &mut VecDeque<Message>, message: Message) {
    if queue.len() >= limits::BEST_EFFORT_MAX {
        queue.pop_front();
    }
    queue.push_back(message);
}

/// Handle to the link; clones share it. No method blocks.
#[derive(Clone, Debug)]
pub struct HubHandle {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    link: watch::Receiver<LinkState>,
}

/// The link's own end.
#[derive(Debug)]
pub(super) struct Inbox {
    pub shared: Arc<Shared>,
    pub asks: mpsc::Receiver<Ask>,
    pub link: watch::Sender<LinkState>,
}

pub(super) fn channel(phase: LinkPhase) -> (HubHandle, Inbox) {
    let shared = Arc::new(Shared {
        news: Mutex::default(),
        wake: Notify::new(),
        events: Notify::new(),
        outbox: Arc::default(),
        connected: watch::Sender::new(false),
        is_silent: AtomicBool::new(false),
    });
    let (asks, inbox) = mpsc::channel(ASKS_MAX);
    let (sender, link) = watch::channel(LinkState::new(phase));
    let handle = HubHandle {
        shared: Arc::clone(&shared),
        asks,
        link,
    };
    let inbox = Inbox {
        shared,
        asks: inbox,
        link: sender,
    };
    (handle, inbox)
}

#[cfg(test)]
impl HubHandle {
    /// A link that stands, behind which `answer` is.
    pub(crate) fn answering(
        mut answer: impl FnMut(Message) -> Result<Message, RequestError> + Send + 'static,
    ) -> Self {
        let (handle, mut inbox) = channel(LinkPhase::Connected);
        tokio::spawn(async move {
            while let Some(ask) = inbox.asks.recv().await {
                drop(ask.reply.send(answer(ask.message)));
            }
        });
        handle
    }
}

impl HubHandle {
    /// For a node without a hub: statuses stay in memory, requests fail.
    pub fn disabled() -> Self {
        channel(LinkPhase::Disabled).0
    }

    /// The link's state, and a way to wait for it to change.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.link.clone()
    }

    /// Whether the link stands, and a way to wait for that to change.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.shared.connected.subscribe()
    }

    /// Notify this after a commit that wrote an outbox row.
    pub fn outbox_wake(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.outbox)
    }

    /// Sets the newest value under `key`; it is sent until answered, and again after every
    /// reconnect. Beyond [`limits::LATEST_KEYS_MAX`] keys a new one is refused with a log line.
    pub fn set_latest(&self, key: &str, message: Message) {
        let mut news = self.shared.news();
        if !news.latest.contains_key(key) && news.latest.len() >= limits::LATEST_KEYS_MAX {
            drop(news);
            tracing::warn!(key, "too many statuses; this one is not reported");
            return;
        }
        news.latest.insert(key.to_owned(), message);
        news.fresh.insert(key.to_owned());
        drop(news);
        self.shared.wake.notify_one();
    }

    /// Whether [`Self::event`] sends anything.
    pub fn report_events(&self, report: bool) {
        self.shared.is_silent.store(!report, Ordering::Relaxed);
    }

    /// Takes an Event for the outbox ([`super::keep_events`]); the oldest goes when more than
    /// [`limits::BEST_EFFORT_MAX`] wait to be written.
    pub fn event(&self, message: Message) {
        if self.shared.is_silent.load(Ordering::Relaxed) {
            return;
        }
        push_bounded(&mut self.shared.news().events, message);
        self.shared.events.notify_one();
    }

    /// Resolves when there may be events to take.
    pub(super) async fn events_waiting(&self) {
        self.shared.events.notified().await;
    }

    pub(super) fn take_events(&self) -> Vec<Message> {
        self.shared.news().events.drain(..).collect()
    }

    /// Events that could not be written wait in front of those that came since.
    pub(super) fn put_back(&self, events: Vec<Message>) {
        let mut news = self.shared.news();
        for event in events.into_iter().rev() {
            if news.events.len() >= limits::BEST_EFFORT_MAX {
                break;
            }
            news.events.push_front(event);
        }
        drop(news);
        self.shared.events.notify_one();
    }

    /// Sends once, now: what a caller waits for at the other end is nothing to him after a
    /// reconnect. False: there is no link.
    pub fn send_now(&self, message: Message) -> bool {
        if !*self.shared.connected.borrow() {
            return false;
        }
        push_bounded(&mut self.shared.news().passing, message);
        self.shared.wake.notify_one();
        true
    }

    pub(super) fn set_node(&self, node: Value) {
        let mut news = self.shared.news();
        news.node = Some(node);
        news.node_fresh = true;
        drop(news);
        self.shared.wake.notify_one();
    }

    /// Asks the hub and waits for the reply, at most [`limits::REPLY_WITHIN`]. Cancel-safe: a
    /// dropped future loses only the reply.
    pub async fn request(&self, message: Message) -> Result<Message, RequestError> {
        match self.link.borrow().phase {
            LinkPhase::Disabled => return Err(RequestError::Disabled),
            LinkPhase::Connecting | LinkPhase::Offline => return Err(RequestError::Offline),
            LinkPhase::Connected => {}
        }
        let (reply, answer) = oneshot::channel();
        self.asks
            .try_send(Ask { message, reply })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => RequestError::Busy,
                mpsc::error::TrySendError::Closed(_) => RequestError::Offline,
            })?;
        answer.await.unwrap_or(Err(RequestError::Lost))
    }
}
