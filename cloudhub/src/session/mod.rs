//! One session per connected node: a small task that drives [`wire::session::hub::HubSession`]
//! over the node's WebSocket.
//!
//! ```text
//! downstream ──push──→ Mailbox (latest per key) ─┐
//!                                                ├→ session task ⇄ socket
//! upstream, ledger ←── Request, Batch ───────────┘
//! ```
//!
//! A node's newer connection wins; the older is told so in its close frame. Liveness is the
//! session's: silence ends it, the [`Registry`] remembers since when a node is away.

mod drive;
mod registry;
mod socket;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
};

pub use drive::{Services, run};
pub use registry::{Presence, Registry};
pub use socket::{Socket, config as socket_config};
use tokio::sync::Notify;
use wire::{extension::Extensions, message::Message};

/// Why the hub ends a session; the text goes into the close frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// WebSocket close code.
    pub code: u16,
    /// At most 123 bytes.
    pub reason: String,
}

impl Close {
    /// 1001: the hub goes away.
    pub const AWAY: u16 = 1001;
    /// 1007: a message is not what it should be.
    pub const INVALID: u16 = 1007;
    /// 1008: not allowed.
    pub const POLICY: u16 = 1008;
    /// 1009: too big.
    pub const TOO_BIG: u16 = 1009;
    /// 1011: the hub failed.
    pub const FAILED: u16 = 1011;

    /// With a reason, cut to what a close frame can hold.
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        while reason.len() > 120 {
            reason.pop();
        }
        Self { code, reason }
    }
}

/// What others want the session to send. One message per key: the newest. So the bound is the
/// number of objects that concern the node.
#[derive(Debug, Default)]
struct Mailbox {
    order: VecDeque<String>,
    offers: HashMap<String, Message>,
    notices: Vec<Message>,
    /// Everything that concerns the node is among the offers, or was.
    is_synced: bool,
    close: Option<Close>,
}

/// Most notices (not acknowledged, not keyed) that wait; more are dropped, oldest first.
const NOTICES_MAX: usize = 256;

/// The others' side of a session.
#[derive(Debug)]
pub struct SessionHandle {
    /// The node.
    pub node: String,
    /// Rises with every connection of any node.
    pub generation: u64,
    /// What was negotiated.
    pub extensions: Extensions,
    /// Unix milliseconds of the last sign of life.
    heard_ms: AtomicI64,
    /// Objects refused by the node since one was taken.
    refused: AtomicU32,
    mailbox: Mutex<Mailbox>,
    wake: Notify,
}

impl SessionHandle {
    fn new(node: &str, generation: u64, extensions: Extensions, now_ms: i64) -> Self {
        Self {
            node: node.to_owned(),
            generation,
            extensions,
            heard_ms: AtomicI64::new(now_ms),
            refused: AtomicU32::new(0),
            mailbox: Mutex::default(),
            wake: Notify::new(),
        }
    }

    fn with<R>(&self, change: impl FnOnce(&mut Mailbox) -> R) -> R {
        change(&mut self.mailbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Offers an object, or its deletion; kept until acknowledged, newest per key.
    pub fn offer(&self, key: String, message: Message) {
        self.with(|mailbox| {
            if mailbox.offers.insert(key.clone(), message).is_none() {
                mailbox.order.push_back(key);
            }
        });
        self.wake.notify_one();
    }

    /// Sends something that is not acknowledged.
    pub fn notice(&self, message: Message) {
        self.with(|mailbox| {
            if mailbox.notices.len() >= NOTICES_MAX {
                mailbox.notices.remove(0);
            }
            mailbox.notices.push(message);
        });
        self.wake.notify_one();
    }

    /// Everything that concerns the node has been offered: it is told so when it has stored it.
    pub fn synced(&self) {
        self.with(|mailbox| mailbox.is_synced = true);
        self.wake.notify_one();
    }

    /// Ends the session; the first reason stays.
    pub fn close(&self, close: Close) {
        self.with(|mailbox| {
            mailbox.close.get_or_insert(close);
        });
        self.wake.notify_one();
    }

    /// Unix milliseconds of the last sign of life.
    pub fn heard_ms(&self) -> i64 {
        self.heard_ms.load(Ordering::Relaxed)
    }

    fn heard(&self, now_ms: i64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }
}
