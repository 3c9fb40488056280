//! One of a kind at a time: locks by key, and pulls that many wait for but one does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::{OwnedMutexGuard, watch};

use crate::edged::runtime::{Image, OnProgress, PullProgress, RuntimeError};

/// Locks that exist while somebody holds or awaits them. containerd refuses a second writer of a
/// blob, and two unpackings of a layer do the work twice.
#[derive(Default)]
pub(super) struct KeyLocks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl KeyLocks {
    pub(super) async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        self.of(key).lock_owned().await
    }

    /// The lock if nobody has it.
    pub(super) fn try_lock(&self, key: &str) -> Option<OwnedMutexGuard<()>> {
        self.of(key).try_lock_owned().ok()
    }

    /// Whether somebody holds or awaits a lock whose key begins so.
    pub(super) fn is_held(&self, prefix: &str) -> bool {
        let locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks
            .iter()
            .any(|(key, lock)| key.starts_with(prefix) && lock.strong_count() > 0)
    }

    fn of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// An error that each of many waiters gets a copy of.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Unavailable { address: String, reason: String },
    Invalid { reference: String, reason: String },
    Pull { reference: String, reason: String },
    Registry { reference: String, reason: String },
    Other { step: &'static str, reason: String },
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::Unavailable { address, source } => Self::Unavailable {
                address,
                reason: source.to_string(),
            },
            RuntimeError::InvalidImageName { reference, reason } => {
                Self::Invalid { reference, reason }
            }
            RuntimeError::Pull { reference, reason } => Self::Pull { reference, reason },
            RuntimeError::RegistryUnavailable { reference, reason } => {
                Self::Registry { reference, reason }
            }
            other @ (RuntimeError::ImageNotPresent { .. }
            | RuntimeError::Create { .. }
            | RuntimeError::Start { .. }
            | RuntimeError::Exec { .. }
            | RuntimeError::Network { .. }
            | RuntimeError::NotFound { .. }
            | RuntimeError::Timeout { .. }
            | RuntimeError::Other { .. }) => Self::Other {
                step: "image pull",
                reason: other.to_string(),
            },
        }
    }
}

impl From<Failure> for RuntimeError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unavailable { address, reason } => Self::Unavailable {
                address,
                source: reason.into(),
            },
            Failure::Invalid { reference, reason } => Self::InvalidImageName { reference, reason },
            Failure::Pull { reference, reason } => Self::Pull { reference, reason },
            Failure::Registry { reference, reason } => {
                Self::RegistryUnavailable { reference, reason }
            }
            Failure::Other { step, reason } => Self::Other { step, reason },
        }
    }
}

type Work = BoxFuture<'static, Result<Image, Failure>>;

/// Pulls under way, by what is pulled and with which credentials: who brings others must be
/// judged by the registry himself.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<String, Flight>>);

struct Flight {
    work: WeakShared<Work>,
    progress: watch::Receiver<PullProgress>,
}

/// A place in a flight. When the last one is dropped the pull stops; what it brought stays.
pub(super) struct Seat {
    work: Shared<Work>,
    progress: watch::Receiver<PullProgress>,
}

impl Flights {
    /// Joins the flight of `key`, or begins it.
    pub(super) fn board(
        &self,
        key: &str,
        begin: impl FnOnce(watch::Sender<PullProgress>) -> Work,
    ) -> Seat {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key)
            && let Some(work) = flight.work.upgrade()
            && work.peek().is_none()
        {
            return Seat {
                work,
                progress: flight.progress.clone(),
            };
        }
        let (told, progress) = watch::channel(PullProgress::default());
        let work = begin(told).shared();
        flights.retain(|_, flight| flight.work.upgrade().is_some());
        if let Some(weak) = work.downgrade() {
            let flight = Flight {
                work: weak,
                progress: progress.clone(),
            };
            flights.insert(key.to_owned(), flight);
        }
        Seat { work, progress }
    }
}

impl Seat {
    /// Waits for the landing, telling progress meanwhile.
    pub(super) async fn ride(mut self, tell: Option<&OnProgress>) -> Result<Image, RuntimeError> {
        let Some(tell) = tell else {
            return self.work.await.map_err(Into::into);
        };
        let mut work = self.work;
        let mut telling = true;
        loop {
            // Cancel-safe: a shared future by reference, a watch.
            tokio::select! {
                done = &mut work => return done.map_err(Into::into),
                changed = self.progress.changed(), if telling => match changed {
                    Ok(()) => tell(*self.progress.borrow_and_update()),
                    Err(_) => telling = false,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_ask_and_one_pulls() {
        let flights = Flights::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(false);
        let seats: Vec<Seat> = (0..30)
            .map(|_| {
                let (begun, mut gate) = (Arc::clone(&begun), gate.clone());
                flights.board("a", move |_| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    async move {
                        gate.wait_for(|open| *open).await.ok();
                        Ok(Image::default())
                    }
                    .boxed()
                })
            })
            .collect();
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        open.send(true).unwrap();
        for seat in seats {
            seat.ride(None).await.unwrap();
        }
        // Landed: the next one begins anew.
        let seat = flights.board("a", |_| async { Ok(Image::default()) }.boxed());
        seat.ride(None).await.unwrap();
    }

    #[tokio::test]
    async fn a_pull_that_nobody_awaits_stops_and_the_first_may_leave() {
        let flights = Flights::default();
        let (alive, watcher) = watch::channel(());
        let (open, mut gate) = watch::channel(false);
        let begin = move |_| {
            async move {
                gate.wait_for(|open| *open).await.ok();
                drop(alive);
                Ok(Image::default())
            }
            .boxed()
        };
        let first = flights.board("a", begin);
        let second = flights.board("a", |_| unreachable!("joined"));
        drop(first);
        assert!(watcher.has_changed().is_ok(), "somebody still waits");
        drop(second);
        assert!(watcher.has_changed().is_err(), "nobody waits any more");
        drop(open);
    }

    #[tokio::test]
    async fn a_lock_is_for_its_key() {
        let locks = KeyLocks::default();
        let a = locks.lock("a").await;
        let _b = locks.lock("b").await;
        assert!(locks.lock("a").now_or_never().is_none());
        assert!(locks.try_lock("a").is_none() && locks.is_held("a"));
        drop(a);
        assert!(!locks.is_held("a"));
        assert!(locks.lock("a").now_or_never().is_some());
    }
}
