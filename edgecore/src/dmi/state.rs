//! What the workers say of their mappers, for `edgecore status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A mapper in a few words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapperSummary {
    pub name: String,
    pub protocol: String,
    pub socket: String,
    /// Whether the last call reached it; `None` before the first.
    pub reachable: Option<bool>,
    /// Devices it serves.
    pub devices: usize,
    /// Devices and models it has not taken yet.
    pub pending: usize,
    /// Why something is pending; empty otherwise.
    pub reason: String,
}

/// Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Board(Arc<Mutex<BTreeMap<String, MapperSummary>>>);

impl Board {
    pub(super) fn set(&self, summary: MapperSummary) {
        self.lock().insert(summary.name.clone(), summary);
    }

    pub(super) fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    pub(super) fn is_reachable(&self, name: &str) -> bool {
        let board = self.lock();
        board
            .get(name)
            .is_some_and(|one| one.reachable == Some(true))
    }

    pub(super) fn all(&self) -> Vec<MapperSummary> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, MapperSummary>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
