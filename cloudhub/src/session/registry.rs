//! Which nodes are connected, and since when the others are away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use wire::extension::Extensions;

use super::{Close, SessionHandle};

/// What the hub knows about a node's presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// A session stands.
    Connected,
    /// The last session ended this long ago.
    Away(Duration),
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    connected: HashMap<String, Arc<SessionHandle>>,
    departed: HashMap<String, Instant>,
}

/// All sessions by node.
#[derive(Debug)]
pub struct Registry {
    state: Mutex<State>,
    started: Instant,
    changed: watch::Sender<u64>,
}

impl Registry {
    /// Empty. Nodes not seen yet count as away since `started`.
    pub fn new(started: Instant) -> Self {
        Self {
            state: Mutex::default(),
            started,
            changed: watch::Sender::new(0),
        }
    }

    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A node has connected. An older session of the same node is closed.
    pub fn connect(&self, node: &str, extensions: Extensions, now_ms: i64) -> Arc<SessionHandle> {
        let (handle, older) = self.with(|state| {
            state.generation += 1;
            let handle = Arc::new(SessionHandle::new(
                node,
                state.generation,
                extensions,
                now_ms,
            ));
            state.departed.remove(node);
            (
                Arc::clone(&handle),
                state.connected.insert(node.to_owned(), handle),
            )
        });
        if let Some(older) = older {
            older.close(Close::new(
                Close::POLICY,
                "replaced by a newer connection of this node",
            ));
        }
        self.changed.send_modify(|n| *n += 1);
        handle
    }

    /// A session has ended. A newer one of the same node stays. True if the node is away now.
    pub fn disconnect(&self, handle: &SessionHandle, now: Instant) -> bool {
        let away = self.with(|state| {
            let current = state.connected.get(&handle.node);
            if current.is_none_or(|c| c.generation != handle.generation) {
                return false;
            }
            state.connected.remove(&handle.node);
            state.departed.insert(handle.node.clone(), now);
            true
        });
        self.changed.send_modify(|n| *n += 1);
        away
    }

    /// The session of a node.
    pub fn get(&self, node: &str) -> Option<Arc<SessionHandle>> {
        self.with(|state| state.connected.get(node).cloned())
    }

    /// All sessions.
    pub fn all(&self) -> Vec<Arc<SessionHandle>> {
        self.with(|state| state.connected.values().cloned().collect())
    }

    /// How many nodes are connected.
    pub fn len(&self) -> usize {
        self.with(|state| state.connected.len())
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the node is connected, or since when it is not.
    pub fn presence(&self, node: &str, now: Instant) -> Presence {
        self.with(|state| {
            if state.connected.contains_key(node) {
                return Presence::Connected;
            }
            let since = state.departed.get(node).copied().unwrap_or(self.started);
            Presence::Away(now.saturating_duration_since(since))
        })
    }

    /// Forgets a node that was deleted and is not connected.
    pub fn forget(&self, node: &str) {
        self.with(|state| state.departed.remove(node));
    }

    /// Changes whenever a node comes or goes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_connection_wins() {
        let t0 = Instant::now();
        let registry = Registry::new(t0);
        let second = Duration::from_secs(1);
        assert_eq!(registry.presence("e1", t0 + second), Presence::Away(second));
        let old = registry.connect("e1", Extensions::NONE, 0);
        let new = registry.connect("e1", Extensions::ALL, 0);
        assert!(old.with(|m| m.close.is_some()) && new.with(|m| m.close.is_none()));
        // The old session's end does not take the new one away.
        assert!(!registry.disconnect(&old, t0 + second));
        assert_eq!(registry.presence("e1", t0 + second), Presence::Connected);
        assert!(registry.disconnect(&new, t0 + second));
        assert_eq!(
            registry.presence("e1", t0 + 3 * second),
            Presence::Away(2 * second)
        );
        assert!(registry.is_empty());
    }
}
