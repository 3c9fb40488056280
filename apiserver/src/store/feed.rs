//! Recent changes in memory and the watchers that follow them; shared by the local stores.
//!
//! A watcher has no queue. It has a position, and reads forward from the ring when it is woken;
//! when it has fallen behind the ring, from the store's log; when it has fallen behind that, it
//! is told so. A watcher that nothing concerned is moved along with the newest revision, so that
//! a quiet watcher never expires.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Event, Revision, StoreError, Watcher};

/// Changes kept in memory. A watcher further behind reads the log.
const RING_EVENTS_MAX: usize = 1024;
/// Bytes of values kept in memory, counting before and after. What watchers have decoded comes on
/// top, at about five times the size.
const RING_BYTES_MAX: usize = 4 << 20;
/// Changes handed out per call.
const CHUNK_EVENTS_MAX: usize = 256;

/// A store's log on its slow medium.
#[async_trait]
pub(super) trait Backlog: Send + Sync {
    /// Changes after `after` of keys that begin with `prefix`, whole revisions only, and the
    /// revision up to which they are complete.
    async fn read(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError>;
}

#[derive(Debug)]
pub(super) struct Feed {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// The ring holds every change after this revision.
    floor: Revision,
    latest: Revision,
    watchers: HashMap<u64, Registration>,
    next_id: u64,
    closed: bool,
}

#[derive(Debug)]
struct Registration {
    prefix: Arc<str>,
    position: Revision,
    pending: bool,
    wake: Arc<Notify>,
}

enum Step {
    Wait,
    Got(Vec<Arc<Event>>),
    Behind(Revision),
    Closed,
}

impl Feed {
    pub(super) fn new(latest: Revision) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                ring: VecDeque::new(),
                ring_bytes: 0,
                floor: latest,
                latest,
                watchers: HashMap::new(),
                next_id: 0,
                closed: false,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn latest(&self) -> Revision {
        self.lock().latest
    }

    /// Tells of committed changes, in revision order. Called after the commit only.
    pub(super) fn publish(&self, events: Vec<Arc<Event>>, latest: Revision) {
        let mut inner = self.lock();
        inner.latest = latest;
        for watcher in inner.watchers.values_mut() {
            let concerned = watcher.pending
                || events.iter().any(|event| {
                    event.revision > watcher.position && event.key.starts_with(&*watcher.prefix)
                });
            if concerned {
                watcher.pending = true;
                watcher.wake.notify_one();
            } else {
                watcher.position = watcher.position.max(latest);
            }
        }
        for event in events {
            inner.ring_bytes += event.weight();
            inner.ring.push_back(event);
        }
        while inner.ring.len() > RING_EVENTS_MAX || inner.ring_bytes > RING_BYTES_MAX {
            let Some(oldest) = inner.ring.pop_front() else {
                break;
            };
            inner.ring_bytes = inner.ring_bytes.saturating_sub(oldest.weight());
            inner.floor = oldest.revision;
        }
    }

    /// Ends every watch: the store stops.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        for watcher in inner.watchers.values() {
            watcher.wake.notify_one();
        }
    }

    pub(super) fn watch(
        self: &Arc<Self>,
        prefix: &str,
        after: Revision,
        backlog: Arc<dyn Backlog>,
    ) -> FeedWatcher {
        let mut inner = self.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        let prefix: Arc<str> = prefix.into();
        let wake = Arc::new(Notify::new());
        let pending = after < inner.latest;
        inner.watchers.insert(
            id,
            Registration {
                prefix: Arc::clone(&prefix),
                position: after,
                pending,
                wake: Arc::clone(&wake),
            },
        );
        FeedWatcher {
            feed: Arc::clone(self),
            id,
            prefix,
            wake,
            backlog,
        }
    }

    fn step(&self, id: u64) -> Step {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.closed {
            return Step::Closed;
        }
        let Some(watcher) = inner.watchers.get_mut(&id) else {
            return Step::Closed;
        };
        if !watcher.pending {
            return Step::Wait;
        }
        if watcher.position < inner.floor {
            return Step::Behind(watcher.position);
        }
        let start = inner
            .ring
            .partition_point(|event| event.revision <= watcher.position);
        let mut got: Vec<Arc<Event>> = Vec::new();
        let mut position = watcher.position;
        for event in inner.ring.iter().skip(start) {
            // A revision is handed out whole, so that its position can be resumed from.
            if got.len() >= CHUNK_EVENTS_MAX && event.revision != position {
                watcher.position = position;
                return Step::Got(got);
            }
            if event.key.starts_with(&*watcher.prefix) {
                got.push(Arc::clone(event));
            }
            position = event.revision;
        }
        watcher.position = watcher.position.max(inner.latest);
        watcher.pending = false;
        if got.is_empty() {
            Step::Wait
        } else {
            Step::Got(got)
        }
    }

    fn advance(&self, id: u64, to: Revision) {
        let mut inner = self.lock();
        let latest = inner.latest;
        if let Some(watcher) = inner.watchers.get_mut(&id) {
            watcher.position = watcher.position.max(to);
            watcher.pending = watcher.position < latest;
        }
    }
}

pub(super) struct FeedWatcher {
    feed: Arc<Feed>,
    id: u64,
    prefix: Arc<str>,
    wake: Arc<Notify>,
    backlog: Arc<dyn Backlog>,
}

impl Drop for FeedWatcher {
    fn drop(&mut self) {
        self.feed.lock().watchers.remove(&self.id);
    }
}

#[async_trait]
impl Watcher for FeedWatcher {
    async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        loop {
            match self.feed.step(self.id) {
                Step::Got(events) => return Ok(events),
                Step::Closed => return Err(StoreError::Stopped),
                Step::Wait => self.wake.notified().await,
                Step::Behind(after) => {
                    let (events, upto) = self.backlog.read(&self.prefix, after).await?;
                    // No await between moving the position and returning: cancel-safe.
                    self.feed.advance(self.id, upto);
                    if !events.is_empty() {
                        return Ok(events);
                    }
                }
            }
        }
    }

    fn position(&self) -> Revision {
        let inner = self.feed.lock();
        inner.watchers.get(&self.id).map_or(0, |w| w.position)
    }
}
