//! What the broker needs to be durable, and an implementation in memory.
//!
//! The broker decides what is to be kept; the storage keeps it and says when it is safe. Rows are
//! opaque to the storage: it needs keys and blobs only.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Message;

/// Why a commit did not happen. The broker then acknowledges nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// No room: the client is told 0x97 (MQTT 5) and closed.
    #[error("the storage is full")]
    Full,
    /// This message is not taken, whatever becomes of others: an MQTT 5 client is told 0x97 and goes
    /// on, a 3.1.1 client is closed.
    #[error("the storage refuses this message")]
    Refused,
    /// Anything else: 0x80 or closed.
    #[error("the storage failed: {0}")]
    Failed(String),
}

/// One change of the broker's own state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates or replaces a persistent session. States of a client rise, compared as bytes: one
    /// that is below what is kept was overtaken on its way and changes nothing.
    SessionPut { client: Arc<str>, state: Vec<u8> },
    /// Removes a session whose state is below `before`, with its queue rows of ids below
    /// `rows_before` and its received packet ids.
    SessionDelete {
        client: Arc<str>,
        before: Vec<u8>,
        rows_before: u64,
    },
    /// Creates or replaces a queued message; `id` rises for ever and gives the order.
    QueuePut {
        id: u64,
        client: Arc<str>,
        message: Vec<u8>,
    },
    /// Removes queued messages; unknown ids are fine.
    QueueRemove { ids: Vec<u64> },
    /// Creates or replaces the retained message of a topic.
    RetainedPut { topic: Box<str>, message: Vec<u8> },
    /// Removes the retained message of a topic.
    RetainedDelete { topic: Box<str> },
    /// Keeps the will of a connection; `id` rises for ever.
    WillPut {
        id: u64,
        client: Arc<str>,
        will: Vec<u8>,
    },
    /// Forgets it: it was published, or will not be. Unknown ids are fine.
    WillDelete { id: u64 },
    /// Remembers a QoS 2 packet id received from a client.
    ReceivedAdd { client: Arc<str>, packet_id: u16 },
    /// Forgets it.
    ReceivedRemove { client: Arc<str>, packet_id: u16 },
}

/// An application message on its way through the broker.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Who published it.
    pub client: Arc<str>,
    /// What was published.
    pub message: Arc<Message>,
}

/// The acknowledged publishes of one connection, which become durable in order and without a gap.
///
/// A device sends again what was not acknowledged, oldest first. Were a later publish kept when an
/// earlier one was not, the program would see the later one before the earlier.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    is_broken: Arc<AtomicBool>,
    hears_refusals: bool,
}

impl Chain {
    /// `hears_refusals`: the client's protocol can say that one message was refused.
    pub(crate) fn new(hears_refusals: bool) -> Self {
        Self {
            is_broken: Arc::default(),
            hears_refusals,
        }
    }

    /// Nothing that comes later on this chain may be kept.
    pub fn break_off(&self) {
        self.is_broken.store(true, Ordering::Release);
    }

    /// A batch was refused ([`StorageError::Refused`]). The client is told and will not send it
    /// again by itself; one that cannot be told has to connect again, and the chain ends.
    pub fn refused(&self) {
        if !self.hears_refusals {
            self.break_off();
        }
    }

    /// Whether an earlier batch of the chain was not kept.
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }
}

/// One unit of durability: all of it is kept, or none.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Changes of the broker's own state, in order.
    pub ops: Vec<Op>,
    /// The message itself, when [`Storage::wants`] its topic: to be handled in the same transaction.
    pub publish: Option<Publish>,
    /// What the batch is part of, if its order matters.
    pub chain: Option<Chain>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.publish.is_none()
    }
}

/// Told once the batch is durable, or that it is not. Cheap, never blocks; any thread.
pub type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// The storage has no room in its queue now; nothing was taken. The batch comes back and is offered
/// again.
pub struct Busy(pub Box<(Batch, Done)>);

/// What was kept before.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Client and state of each session.
    pub sessions: Vec<(String, Vec<u8>)>,
    /// Id, client and message of each queued message, by rising id.
    pub queue: Vec<(u64, String, Vec<u8>)>,
    /// Topic and message of each retained message.
    pub retained: Vec<(String, Vec<u8>)>,
    /// Client and packet id of each QoS 2 packet id received.
    pub received: Vec<(String, u16)>,
    /// Id, client and will of each connection that did not end, by rising id.
    pub wills: Vec<(u64, String, Vec<u8>)>,
}

/// Result of [`Storage::load`].
pub type LoadFuture<'a> = Pin<Box<dyn Future<Output = Result<Loaded, StorageError>> + Send + 'a>>;

/// Keeps the broker's state. One storage belongs to one broker.
pub trait Storage: Send + Sync + 'static {
    /// Everything committed so far; called once, before any commit.
    fn load(&self) -> LoadFuture<'_>;

    /// Whether messages of this topic are handed over as [`Batch::publish`].
    fn wants(&self, topic: &str) -> bool;

    /// Takes a batch and calls `done` when it is durable. Batches become durable in the order in
    /// which they were taken, and `done` is called in that order. Never blocks.
    ///
    /// A batch whose [`Chain`] is broken is not kept; one that fails breaks its chain, or says that
    /// it was refused, before any later batch is looked at.
    fn commit(&self, batch: Batch, done: Done) -> Result<(), Busy>;
}

/// Keeps everything in memory: for tests and for brokers that need to forget.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    rows: Arc<Mutex<Rows>>,
}

#[derive(Clone, Debug, Default)]
struct Rows {
    sessions: BTreeMap<String, Vec<u8>>,
    queue: BTreeMap<u64, (String, Vec<u8>)>,
    retained: BTreeMap<String, Vec<u8>>,
    received: BTreeSet<(String, u16)>,
    wills: BTreeMap<u64, (String, Vec<u8>)>,
    commits: u64,
}

impl MemoryStorage {
    /// Number of batches taken so far.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// A storage of its own with what is kept now, as a crash would leave it.
    #[must_use]
    pub fn copy(&self) -> Self {
        let rows = self.lock().clone();
        Self {
            rows: Arc::new(Mutex::new(rows)),
        }
    }

    /// Number of wills kept.
    pub fn wills(&self) -> usize {
        self.lock().wills.len()
    }

    /// Number of queued messages kept.
    pub fn queued(&self) -> usize {
        self.lock().queue.len()
    }

    /// Applies a batch.
    pub fn apply(&self, batch: Batch) {
        let mut rows = self.lock();
        rows.commits += 1;
        for op in batch.ops {
            rows.apply(op);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    fn apply(&mut self, op: Op) {
        match op {
            Op::SessionPut { client, state } => {
                let kept = self.sessions.entry(client.to_string()).or_default();
                if *kept < state {
                    *kept = state;
                }
            }
            Op::SessionDelete {
                client,
                before,
                rows_before,
            } => {
                if self.sessions.get(&*client).is_some_and(|s| *s < before) {
                    self.sessions.remove(&*client);
                }
                self.queue
                    .retain(|id, (owner, _)| **owner != *client || *id >= rows_before);
                self.received.retain(|(owner, _)| **owner != *client);
            }
            Op::QueuePut {
                id,
                client,
                message,
            } => {
                self.queue.insert(id, (client.to_string(), message));
            }
            Op::QueueRemove { ids } => {
                for id in ids {
                    self.queue.remove(&id);
                }
            }
            Op::RetainedPut { topic, message } => {
                self.retained.insert(topic.into(), message);
            }
            Op::RetainedDelete { topic } => {
                self.retained.remove(&*topic);
            }
            Op::WillPut { id, client, will } => {
                self.wills.insert(id, (client.to_string(), will));
            }
            Op::WillDelete { id } => {
                self.wills.remove(&id);
            }
            Op::ReceivedAdd { client, packet_id } => {
                self.received.insert((client.to_string(), packet_id));
            }
            Op::ReceivedRemove { client, packet_id } => {
                self.received.remove(&(client.to_string(), packet_id));
            }
        }
    }
}

impl Storage for MemoryStorage {
    fn load(&self) -> LoadFuture<'_> {
        let rows = self.lock();
        let loaded = Loaded {
            sessions: rows
                .sessions
                .iter()
                .map(|(c, s)| (c.clone(), s.clone()))
                .collect(),
            queue: rows
                .queue
                .iter()
                .map(|(id, (c, m))| (*id, c.clone(), m.clone()))
                .collect(),
            retained: rows
                .retained
                .iter()
                .map(|(t, m)| (t.clone(), m.clone()))
                .collect(),
            received: rows.received.iter().cloned().collect(),
            wills: rows
                .wills
                .iter()
                .map(|(id, (c, w))| (*id, c.clone(), w.clone()))
                .collect(),
        };
        Box::pin(std::future::ready(Ok(loaded)))
    }

    fn wants(&self, _topic: &str) -> bool {
        false
    }

    fn commit(&self, batch: Batch, done: Done) -> Result<(), Busy> {
        self.apply(batch);
        done(Ok(()));
        Ok(())
    }
}
