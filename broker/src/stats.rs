//! Counters for operators.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A reading of the broker's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections now.
    pub clients: usize,
    /// Sessions now, connected or not.
    pub sessions: usize,
    /// Messages published by clients.
    pub messages_in: u64,
    /// Messages sent to clients.
    pub messages_out: u64,
    /// Messages that did not reach a subscriber: its queue was full, or they expired.
    pub messages_dropped: u64,
    /// Publishes and connects refused by access rules.
    pub refused: u64,
    /// Commits that failed; nothing of them was acknowledged.
    pub commits_failed: u64,
    /// Connections ended because of what the client sent.
    pub protocol_errors: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) clients: AtomicUsize,
    messages_in: AtomicU64,
    messages_out: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    commits_failed: AtomicU64,
    protocol_errors: AtomicU64,
}

impl Counters {
    pub(crate) fn received(&self) {
        self.messages_in.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn sent(&self) {
        self.messages_out.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn commit_failed(&self) {
        self.commits_failed.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn protocol_error(&self) {
        self.protocol_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, sessions: usize) -> Stats {
        Stats {
            clients: self.clients.load(Ordering::Relaxed),
            sessions,
            messages_in: self.messages_in.load(Ordering::Relaxed),
            messages_out: self.messages_out.load(Ordering::Relaxed),
            messages_dropped: self.dropped.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            commits_failed: self.commits_failed.load(Ordering::Relaxed),
            protocol_errors: self.protocol_errors.load(Ordering::Relaxed),
        }
    }
}
