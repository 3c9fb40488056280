//! What the workers say of their mappers, for `edgecore status`.

use std::collections::BTreeMap;

use tokio::sync::watch;

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
pub(super) struct Board(watch::Sender<BTreeMap<String, MapperSummary>>);

impl Board {
    pub(super) fn set(&self, summary: MapperSummary) {
        self.0.send_modify(|board| {
            board.insert(summary.name.clone(), summary);
        });
    }

    pub(super) fn forget(&self, name: &str) {
        self.0.send_modify(|board| {
            board.remove(name);
        });
    }

    pub(super) fn is_reachable(&self, name: &str) -> bool {
        let board = self.0.borrow();
        board
            .get(name)
            .is_some_and(|one| one.reachable == Some(true))
    }

    pub(super) fn all(&self) -> Vec<MapperSummary> {
        self.0.borrow().values().cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn watch(&self) -> watch::Receiver<BTreeMap<String, MapperSummary>> {
        self.0.subscribe()
    }
}
