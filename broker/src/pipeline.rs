//! What one connection has asked for and not been answered yet, in order of arrival.
//!
//! Each request that needs an answer or a place in the order takes a slot. A slot is resolved when
//! its commit is reported, and slots leave from the front only: messages are routed and
//! acknowledgements sent in the order in which they came (MQTT 5 §4.6), however many commits are
//! in flight. The pipeline outlives its connection until the last commit is reported.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use crate::limits::RECEIVE_BYTES_MAX;
use crate::proto::encode::Ack;
use crate::proto::{SubscribeEntry, Version};
use crate::router::Plan;
use crate::storage::{Chain, StorageError};
use crate::trie::SessionKey;

/// What a slot is for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Route a message, then acknowledge it.
    Publish {
        plan: Plan,
        ack: Option<(Ack, u16)>,
    },
    /// A QoS 2 publish repeated while its first commit is in flight.
    Repeated {
        id: u16,
    },
    /// Answer with a packet of two or three bytes.
    Ack {
        kind: Ack,
        id: u16,
        code: u8,
    },
    Connack {
        is_present: bool,
        assigned_client: Option<Arc<str>>,
        expiry_secs: Option<u32>,
    },
    Suback {
        id: u16,
        codes: Vec<u8>,
        granted: Vec<(SubscribeEntry, bool)>,
    },
    Unsuback {
        id: u16,
        codes: Vec<u8>,
    },
}

impl Request {
    /// Whether the client can be told that this was refused, without its connection.
    pub(crate) fn hears_refusal(&self, pipeline: &Pipeline) -> bool {
        self.is_in_chain() && pipeline.version == Version::V5
    }

    /// Whether it is a publish whose place in the order counts.
    pub(crate) fn is_in_chain(&self) -> bool {
        matches!(self, Self::Publish { ack: Some(_), .. })
    }
}

/// How a slot's commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    Ok,
    Full,
    Refused,
    Failed,
}

impl From<&Result<(), StorageError>> for Commit {
    fn from(result: &Result<(), StorageError>) -> Self {
        match result {
            Ok(()) => Self::Ok,
            Err(StorageError::Full) => Self::Full,
            Err(StorageError::Refused) => Self::Refused,
            Err(StorageError::Failed(_)) => Self::Failed,
        }
    }
}

#[derive(Debug)]
struct Slot {
    commit: Option<Commit>,
    bytes: usize,
    request: Request,
}

/// The slots and what their resolution has to say to the client.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    waiting: VecDeque<Slot>,
    /// Number of the first slot.
    first: u64,
    bytes: usize,
    /// Encoded answers, not yet taken by the connection.
    pub(crate) out: BytesMut,
    /// The CONNACK is among the answers: messages may follow it, and none may go before (MQTT 5 §3.2).
    pub(crate) is_welcomed: bool,
    /// The connection has to end without answering further.
    pub(crate) failed: Option<Failure>,
}

/// Why a connection may not be answered any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// Whether the client may hear the reason once more, with DISCONNECT.
    pub(crate) is_open: bool,
}

impl Failure {
    /// The end without another packet.
    pub(crate) fn silent(code: u8) -> Self {
        Self {
            code,
            is_open: false,
        }
    }
}

impl Slots {
    pub(crate) fn add(&mut self, request: Request, bytes: usize, commit: Option<Commit>) -> u64 {
        let number = self.first + u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        self.bytes += bytes;
        self.waiting.push_back(Slot {
            commit,
            bytes,
            request,
        });
        number
    }

    pub(crate) fn set(&mut self, number: u64, commit: Commit) {
        let slot = number
            .checked_sub(self.first)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| self.waiting.get_mut(at));
        if let Some(slot) = slot {
            slot.commit = Some(commit);
        }
    }

    /// The front slot, once its commit is known.
    pub(crate) fn pop_resolved(&mut self) -> Option<(Request, Commit)> {
        let commit = self.waiting.front()?.commit?;
        let slot = self.waiting.pop_front()?;
        self.first += 1;
        self.bytes = self.bytes.saturating_sub(slot.bytes);
        Some((slot.request, commit))
    }

    /// Ends the answers; the first failure counts.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failed.get_or_insert(failure);
    }

    pub(crate) fn has_room(&self, slots_max: u16) -> bool {
        self.waiting.len() < usize::from(slots_max) && self.bytes < RECEIVE_BYTES_MAX
    }
}

/// See the module. Shared by the connection's task, the storage's callbacks and the router.
#[derive(Debug)]
pub(crate) struct Pipeline {
    version: Version,
    client: Arc<str>,
    key: std::sync::OnceLock<SessionKey>,
    notify: Notify,
    /// Reason to end the connection; 0 is none.
    end: AtomicU8,
    /// Acknowledged publishes of this connection.
    chain: Chain,
    slots: Mutex<Slots>,
}

impl Pipeline {
    pub(crate) fn new(version: Version, client: Arc<str>) -> Self {
        Self {
            version,
            client,
            key: std::sync::OnceLock::new(),
            notify: Notify::new(),
            end: AtomicU8::new(0),
            chain: Chain::new(version == Version::V5),
            slots: Mutex::default(),
        }
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    pub(crate) fn client(&self) -> Arc<str> {
        Arc::clone(&self.client)
    }

    pub(crate) fn set_key(&self, key: SessionKey) {
        // Set once, right after the connect; a second value would be the same.
        let _ = self.key.set(key);
    }

    pub(crate) fn key(&self) -> SessionKey {
        self.key.get().copied().unwrap_or(crate::router::NOBODY)
    }

    /// Lock order: slots before router, never the other way.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }

    /// Asks the connection to end; the first reason counts.
    pub(crate) fn end(&self, code: u8) {
        let _ = self
            .end
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        self.wake();
    }

    pub(crate) fn ended(&self) -> Option<u8> {
        match self.end.load(Ordering::Acquire) {
            0 => None,
            code => Some(code),
        }
    }
}
