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
    /// Subscriptions now.
    pub subscriptions: usize,
    /// Retained messages now.
    pub retained: usize,
    /// Messages waiting for sessions now.
    pub queued: usize,
    /// Bytes of those messages.
    pub queued_bytes: usize,
    /// Messages published by clients.
    pub messages_in: u64,
    /// Messages sent to clients.
    pub messages_out: u64,
    /// Messages that did not reach a subscriber: its queue was full, or they expired.
    pub messages_dropped: u64,
    /// Bytes of the messages published by clients, topic included.
    pub bytes_in: u64,
    /// Bytes of the messages sent to clients.
    pub bytes_out: u64,
    /// Connections closed at accept: too many.
    pub turned_away: u64,
    /// Publishes and connects refused by access rules.
    pub refused: u64,
    /// Commits that failed; nothing of them was acknowledged.
    pub commits_failed: u64,
    /// Connections ended because of what the client sent.
    pub protocol_errors: u64,
}

/// What the router holds now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) sessions: usize,
    pub(crate) subscriptions: usize,
    pub(crate) retained: usize,
    pub(crate) queued: usize,
}

fn add(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) clients: AtomicUsize,
    /// Connections that are not let in yet.
    pub(crate) arrivals: AtomicUsize,
    /// Bytes waiting for all sessions together.
    pub(crate) queued_bytes: AtomicUsize,
    messages_in: AtomicU64,
    messages_out: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    turned_away: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    commits_failed: AtomicU64,
    protocol_errors: AtomicU64,
}

impl Counters {
    pub(crate) fn received(&self, bytes: usize) {
        self.messages_in.fetch_add(1, Ordering::Relaxed);
        add(&self.bytes_in, bytes);
    }
    pub(crate) fn sent(&self, bytes: usize) {
        self.messages_out.fetch_add(1, Ordering::Relaxed);
        add(&self.bytes_out, bytes);
    }
    pub(crate) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
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

    pub(crate) fn read(&self, held: Held) -> Stats {
        Stats {
            clients: self.clients.load(Ordering::Relaxed),
            sessions: held.sessions,
            subscriptions: held.subscriptions,
            retained: held.retained,
            queued: held.queued,
            queued_bytes: self.queued_bytes.load(Ordering::Relaxed),
            messages_in: self.messages_in.load(Ordering::Relaxed),
            messages_out: self.messages_out.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            turned_away: self.turned_away.load(Ordering::Relaxed),
            messages_dropped: self.dropped.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            commits_failed: self.commits_failed.load(Ordering::Relaxed),
            protocol_errors: self.protocol_errors.load(Ordering::Relaxed),
        }
    }
}
