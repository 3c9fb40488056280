//! The store in memory, for tests and programs that need no durability. Keeps all history.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::feed::{Backlog, Feed};
use super::{
    Entry, Event, ListQuery, Listing, Op, Require, Revision, Store, StoreError, Txn, Watcher,
};

/// Changes remembered; older ones are forgotten, like a compaction.
const HISTORY_EVENTS_MAX: usize = 20_000;

#[derive(Debug, Default)]
struct Data {
    revision: Revision,
    floor: Revision,
    current: BTreeMap<Arc<str>, Entry>,
    history: std::collections::VecDeque<Arc<Event>>,
}

#[derive(Debug)]
struct Shared {
    data: Mutex<Data>,
    feed: Arc<Feed>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's description. Clones share the data.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                data: Mutex::new(Data {
                    revision: 1,
                    floor: 1,
                    ..Data::default()
                }),
                feed: Feed::new(1),
            }),
        }
    }

    /// Forgets history before `floor`, as a compaction does.
    pub fn compact(&self, floor: Revision) {
        let mut data = self.shared.lock();
        data.floor = floor.max(data.floor).min(data.revision);
        let floor = data.floor;
        data.history.retain(|e| e.revision > floor);
    }
}

impl Data {
    fn check(&self, txn: &Txn) -> Result<(), StoreError> {
        txn.check()?;
        for require in &txn.require {
            let (Require::Absent(key) | Require::At(key, _) | Require::Exists(key)) = require;
            let found = self.current.get(key.as_str()).map(|e| e.revision);
            let holds = match require {
                Require::Absent(_) => found.is_none(),
                Require::At(_, revision) => found == Some(*revision),
                Require::Exists(_) => found.is_some(),
            };
            if !holds {
                return Err(StoreError::Conflict {
                    key: key.clone(),
                    found,
                });
            }
        }
        Ok(())
    }

    fn apply(&mut self, txn: &Txn) -> Vec<Arc<Event>> {
        self.revision += 1;
        let revision = self.revision;
        let mut events = Vec::new();
        for op in &txn.ops {
            let key: Arc<str> = op.key().into();
            let prev = self.current.get(&key).cloned();
            let value = match op {
                Op::Put(_, value) => {
                    let entry = Entry {
                        key: Arc::clone(&key),
                        value: value.clone(),
                        revision,
                        create_revision: prev.as_ref().map_or(revision, |p| p.create_revision),
                    };
                    self.current.insert(Arc::clone(&key), entry.clone());
                    Some(entry)
                }
                Op::Delete(_) => {
                    if self.current.remove(&key).is_none() {
                        continue;
                    }
                    None
                }
            };
            events.push(Arc::new(Event::new(revision, key, value, prev)));
        }
        self.history.extend(events.iter().cloned());
        while self.history.len() > HISTORY_EVENTS_MAX {
            if let Some(oldest) = self.history.pop_front() {
                self.floor = oldest.revision;
            }
        }
        events
    }

    fn expired(&self, asked: Revision) -> Result<(), StoreError> {
        if asked < self.floor {
            return Err(StoreError::Expired {
                asked,
                oldest: self.floor,
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Backlog for Shared {
    async fn read(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let data = self.lock();
        data.expired(after)?;
        let events = data
            .history
            .iter()
            .filter(|e| e.revision > after && e.key.starts_with(prefix))
            .cloned()
            .collect();
        Ok((events, data.revision))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.shared.lock().current.get(key).cloned())
    }

    async fn list(&self, query: ListQuery) -> Result<Listing, StoreError> {
        let data = self.shared.lock();
        let revision = query.at.unwrap_or(data.revision);
        if revision > data.revision {
            return Err(StoreError::Future {
                asked: revision,
                current: data.revision,
            });
        }
        data.expired(revision)?;
        let mut view = data.current.clone();
        for event in data.history.iter().rev() {
            if event.revision <= revision {
                break;
            }
            match &event.prev {
                Some(prev) => view.insert(Arc::clone(&event.key), prev.clone()),
                None => view.remove(&event.key),
            };
        }
        let after = query.after.as_deref().unwrap_or_default();
        let mut found = view
            .into_values()
            .filter(|e| e.key.starts_with(&query.prefix) && &*e.key > after);
        let limit = if query.limit == 0 {
            usize::MAX
        } else {
            query.limit
        };
        let entries: Vec<Entry> = found.by_ref().take(limit).collect();
        let remaining = found.count() as u64;
        Ok(Listing {
            entries,
            revision,
            remaining,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        let mut data = self.shared.lock();
        data.check(&txn)?;
        if txn.ops.is_empty() {
            return Ok(data.revision);
        }
        let events = data.apply(&txn);
        // Published under the lock, so that watchers see revisions in order.
        self.shared.feed.publish(events, data.revision);
        Ok(data.revision)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watcher>, StoreError> {
        self.shared.lock().expired(after)?;
        let backlog: Arc<dyn Backlog> = Arc::<Shared>::clone(&self.shared);
        Ok(Box::new(self.shared.feed.watch(prefix, after, backlog)))
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.lock().revision)
    }
}
