//! Where objects live: one ordered key space, one monotonic revision, compare-and-swap
//! transactions and a log that can be watched.
//!
//! The shape is etcd's, because everything the Kubernetes API promises about
//! `resourceVersion` is a promise about such a store. Nothing here or above may assume one
//! process or a local file: the next implementations are etcd and an existing cluster.
//!
//! Keys of API objects are `/registry/<group>/<plural>[/<namespace>]/<name>` (`core` for the
//! unnamed group). Every other prefix belongs to the program that embeds the API: its own facts can
//! change in the same transaction as an object (for example a device's status together with
//! the sequence number of the message that carried it).
//!
//! What it does not do: know about JSON, kinds or namespaces. Values are opaque bytes.

mod feed;
pub mod memory;
pub mod sqlite;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// The store's one counter: each committed transaction takes the next value. Starts at 1 in an
/// empty store, so that 0 never names a state (Kubernetes gives `resourceVersion=0` a meaning of
/// its own).
pub type Revision = u64;

/// Most operations one transaction may hold. etcd's default limit is 128.
pub const TXN_OPS_MAX: usize = 128;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A requirement of the transaction did not hold. Nothing was changed.
    #[error("key `{key}` is at revision {found:?}, not as required")]
    Conflict {
        /// The key whose requirement failed.
        key: String,
        /// The revision that the key is at now; `None` when it does not exist.
        found: Option<Revision>,
    },
    /// The revision asked for has been compacted away; list again.
    #[error("revision {asked} is compacted; the oldest known is {oldest}")]
    Expired {
        /// What was asked for.
        asked: Revision,
        /// The oldest revision that can still be served.
        oldest: Revision,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {asked} is in the future; the current one is {current}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// The transaction is malformed or beyond a bound.
    #[error("transaction refused: {0}")]
    Refused(String),
    /// No room left on the device. Retrying helps once there is room.
    #[error("the disk is full")]
    Full,
    /// The store failed underneath (disk, database).
    #[error("store failed: {0}")]
    Failed(String),
    /// The store is shutting down.
    #[error("the store has stopped")]
    Stopped,
}

/// One key as it is at some revision.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The full key.
    pub key: Arc<str>,
    /// The value; shared, never copied per reader.
    pub value: Bytes,
    /// Revision of the transaction that wrote this value.
    pub revision: Revision,
    /// Revision of the transaction that created the key.
    pub create_revision: Revision,
}

/// A condition that must hold for a transaction to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Require {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written at this revision.
    At(String, Revision),
    /// The key exists, at whatever revision.
    Exists(String),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes the key.
    Put(String, Bytes),
    /// Removes the key; nothing happens when it is absent.
    Delete(String),
}

impl Op {
    /// The key that the operation touches.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// Requirements and changes that commit together or not at all. A key may be changed once.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// All must hold.
    pub require: Vec<Require>,
    /// All are done, at one revision.
    pub ops: Vec<Op>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a requirement.
    #[must_use]
    pub fn require(mut self, require: Require) -> Self {
        self.require.push(require);
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put(key.into(), value.into()));
        self
    }

    /// Adds a removal.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete(key.into()));
        self
    }

    /// Joins another transaction to this one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.require.extend(other.require);
        self.ops.extend(other.ops);
        self
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.ops.len() > TXN_OPS_MAX {
            return Err(StoreError::Refused(format!(
                "{} operations, at most {TXN_OPS_MAX} are allowed",
                self.ops.len()
            )));
        }
        for (at, op) in self.ops.iter().enumerate() {
            if self.ops.iter().skip(at + 1).any(|o| o.key() == op.key()) {
                return Err(StoreError::Refused(format!(
                    "key `{}` is changed twice",
                    op.key()
                )));
            }
        }
        Ok(())
    }
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Keys that begin with this.
    pub prefix: String,
    /// Only keys after this one (exclusive): where the previous page ended.
    pub after: Option<String>,
    /// At most so many; 0 means all.
    pub limit: usize,
    /// As of this revision; `None` means now.
    pub at: Option<Revision>,
}

/// One page of keys in key order.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The page.
    pub entries: Vec<Entry>,
    /// The revision that the page shows.
    pub revision: Revision,
    /// How many keys follow the page.
    pub remaining: u64,
}

/// One key's change, as watchers see it.
#[derive(Debug)]
pub struct Event {
    /// Revision of the transaction.
    pub revision: Revision,
    /// The key that changed.
    pub key: Arc<str>,
    /// What it holds now; `None` when it was removed.
    pub value: Option<Entry>,
    /// What it held before; `None` when it was created.
    pub prev: Option<Entry>,
    decoded: OnceLock<Option<Arc<Value>>>,
    decoded_prev: OnceLock<Option<Arc<Value>>>,
}

impl Event {
    pub(crate) fn new(
        revision: Revision,
        key: Arc<str>,
        value: Option<Entry>,
        prev: Option<Entry>,
    ) -> Self {
        Self {
            revision,
            key,
            value,
            prev,
            decoded: OnceLock::new(),
            decoded_prev: OnceLock::new(),
        }
    }

    /// The object after the change, decoded once for all watchers; `metadata.resourceVersion` is
    /// set. `None` when the key was removed or holds no JSON object.
    pub fn object(&self) -> Option<Arc<Value>> {
        self.decoded
            .get_or_init(|| decode(self.value.as_ref()?, self.revision))
            .clone()
    }

    /// The object before the change, likewise, but carrying the revision *of the change*: this is
    /// what a watcher must be shown when the object is removed or leaves its selector.
    pub fn previous(&self) -> Option<Arc<Value>> {
        self.decoded_prev
            .get_or_init(|| decode(self.prev.as_ref()?, self.revision))
            .clone()
    }

    pub(crate) fn weight(&self) -> usize {
        let of = |entry: &Option<Entry>| entry.as_ref().map_or(0, |e| e.value.len());
        self.key.len() + of(&self.value) + of(&self.prev) + 128
    }
}

fn decode(entry: &Entry, revision: Revision) -> Option<Arc<Value>> {
    let mut value: Value = serde_json::from_slice(&entry.value).ok()?;
    set_resource_version(&mut value, revision);
    Some(Arc::new(value))
}

/// Writes the revision where clients look for it. Stored objects do not carry it.
pub fn set_resource_version(object: &mut Value, revision: Revision) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

/// A position in the log that moves forward.
#[async_trait]
pub trait Watcher: Send {
    /// The next changes, in revision order; waits until there is one. Changes of one revision
    /// come together. Cancel-safe: a dropped call loses nothing.
    ///
    /// `Expired` means that the watcher was too slow and must list again.
    async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError>;

    /// Everything up to this revision that concerns the watcher has been returned by `next`.
    fn position(&self) -> Revision;
}

/// A store of keys with one revision. See the module's description for the rules.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest value of a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// A page of keys, now or as of an earlier revision.
    async fn list(&self, query: ListQuery) -> Result<Listing, StoreError>;

    /// Commits or refuses. `Ok` means durable, and carries the transaction's revision. A
    /// transaction without operations changes nothing and returns the current revision.
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// Watches keys that begin with `prefix`, for changes after revision `after`.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watcher>, StoreError>;

    /// The newest revision.
    async fn revision(&self) -> Result<Revision, StoreError>;
}

/// The smallest string that is greater than every string beginning with `prefix`; `None` when
/// there is no such string.
pub(crate) fn prefix_end(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = match u32::from(last) {
            0xD7FF => Some('\u{E000}'),
            code => char::from_u32(code + 1),
        };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}
