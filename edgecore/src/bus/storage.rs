//! The broker's storage: its rows and the message's own work are one job of the store.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use broker::{Batch, Busy, Chain, Done, LoadFuture, Storage, StorageError};
use rusqlite::Connection;
use tokio::sync::{Notify, watch};
use wire::rules::Routes;

use super::{BusHandle, dispatch, inbound, rows};
use crate::clock;
use crate::outbox;
use crate::store::{Store, StoreError};
use crate::twin::Outcome;

/// Distinct statements a device event can need: broker rows, twin, outbox. More than the default
/// of 16, and each one reparsed would cost more than its work.
const STATEMENTS_KEPT: usize = 64;

pub(super) struct BusStorage {
    store: Store,
    link_wake: Arc<Notify>,
    routes: watch::Receiver<Arc<Routes>>,
    /// Set once, before the broker serves.
    handle: OnceLock<BusHandle>,
}

impl BusStorage {
    pub(super) fn new(
        store: Store,
        link_wake: Arc<Notify>,
        routes: watch::Receiver<Arc<Routes>>,
    ) -> Self {
        Self {
            store,
            link_wake,
            routes,
            handle: OnceLock::new(),
        }
    }

    pub(super) fn set_handle(&self, handle: BusHandle) {
        // A second handle would be a clone of the first.
        let _ = self.handle.set(handle);
    }
}

/// A job in the store's queue. Shared with the submitter, who takes it back when the queue is full.
struct Slot(Mutex<(Option<Batch>, Option<Done>)>);

impl Slot {
    fn batch(&self) -> Option<Batch> {
        self.lock().0.take()
    }

    fn done(&self) -> Option<Done> {
        self.lock().1.take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Batch>, Option<Done>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for BusStorage {
    fn load(&self) -> LoadFuture<'_> {
        Box::pin(async {
            let prepared = self.store.write(|tx| {
                tx.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
                Ok(())
            });
            prepared.await.map_err(|e| of_store(&e))?;
            self.store.read(rows::load).await.map_err(|e| of_store(&e))
        })
    }

    fn wants(&self, topic: &str) -> bool {
        inbound(topic, &self.routes.borrow()).is_some()
    }

    fn commit(&self, batch: Batch, done: Done) -> Result<(), Busy> {
        let chain = batch.chain.clone();
        let slot = Arc::new(Slot(Mutex::new((Some(batch), Some(done)))));
        let (job, report) = (Arc::clone(&slot), Arc::clone(&slot));
        let handle = self.handle.get().cloned();
        let link_wake = Arc::clone(&self.link_wake);
        let counting = self.store.clone();
        let routes = Arc::clone(&self.routes.borrow());
        let submitted = self.store.submit_fn(
            move |tx| {
                job.batch()
                    .map_or(Ok(Outcome::default()), |batch| chained(tx, &batch, &routes))
            },
            move |result| {
                let Some(done) = report.done() else { return };
                match result {
                    Ok(outcome) => {
                        done(Ok(()));
                        after_commit(outcome, handle.as_ref(), &link_wake);
                    }
                    Err(error) => {
                        count_refused(&counting, &error);
                        // The whole commit may have failed after every job had run.
                        let error = of_store(&error);
                        break_off(chain.as_ref(), &error);
                        done(Err(error));
                    }
                }
            },
        );
        match submitted {
            Ok(()) => Ok(()),
            Err(error) => {
                let (batch, done) = (slot.batch(), slot.done());
                match (error, batch, done) {
                    (StoreError::Busy, Some(batch), Some(done)) => {
                        Err(Busy(Box::new((batch, done))))
                    }
                    (error, _, Some(done)) => {
                        done(Err(of_store(&error)));
                        Ok(())
                    }
                    (_, _, None) => Ok(()),
                }
            }
        }
    }
}

/// A publish that a full stream refused shows in the ledger. Its own transaction was undone, so
/// this is another one; with a store that is busy the count is not worth waiting for.
pub(crate) fn count_refused(store: &Store, error: &StoreError) {
    if let StoreError::Quota { stream } = error {
        let stream = stream.clone();
        drop(store.submit_fn(move |tx| outbox::count_refused(tx, &stream), drop));
    }
}

/// Runs a batch, unless an earlier one of its chain failed. A failure shows to the very next job
/// of the same transaction.
fn chained(tx: &Connection, batch: &Batch, routes: &Routes) -> Result<Outcome, StoreError> {
    let chain = batch.chain.as_ref();
    if chain.is_some_and(Chain::is_broken) {
        return Err(StoreError::Refused(
            "an earlier message of this connection was not stored".into(),
        ));
    }
    work(tx, batch, routes).inspect_err(|error| break_off(chain, &of_store(error)))
}

fn break_off(chain: Option<&Chain>, error: &StorageError) {
    match (chain, error) {
        (Some(chain), StorageError::Refused) => chain.refused(),
        (Some(chain), _) => chain.break_off(),
        (None, _) => {}
    }
}

fn work(tx: &Connection, batch: &Batch, routes: &Routes) -> Result<Outcome, StoreError> {
    rows::apply(tx, &batch.ops)?;
    let Some(publish) = &batch.publish else {
        return Ok(Outcome::default());
    };
    match inbound(&publish.message.topic, routes) {
        Some(inbound) => dispatch(tx, &inbound, &publish.message.payload, clock::unix_millis()),
        None => Ok(Outcome::default()),
    }
}

/// What follows a commit: local clients first, then the link.
pub(crate) fn after_commit(outcome: Outcome, handle: Option<&BusHandle>, link_wake: &Notify) {
    if let Some(handle) = handle {
        for publish in outcome.publishes {
            handle.publish(publish);
        }
    }
    if outcome.queued {
        link_wake.notify_one();
    }
}

fn of_store(error: &StoreError) -> StorageError {
    match error {
        StoreError::Full => StorageError::Full,
        StoreError::Quota { .. } => StorageError::Refused,
        StoreError::Open { .. }
        | StoreError::Corrupt { .. }
        | StoreError::TooNew { .. }
        | StoreError::Sql(_)
        | StoreError::Busy
        | StoreError::Stopped
        | StoreError::Refused(_) => StorageError::Failed(error.to_string()),
    }
}
