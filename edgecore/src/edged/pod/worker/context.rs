//! What all workers share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore};

use super::super::convert::{self, PodId};
use super::super::verdict::Verdict;
use crate::clock::UnixMillis;
use crate::edged::PodSummary;
use crate::edged::capacity::Amounts;
use crate::edged::deps::{DesiredState, StatusSink};
use crate::edged::image_gc::Board;
use crate::edged::runtime::{NetworkHealth, Runtime};
use crate::edged::volumes::Dirs;

/// What all workers share.
pub(crate) struct Context {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) desired: Arc<dyn DesiredState>,
    pub(crate) sink: Arc<dyn StatusSink>,
    pub(crate) placement: convert::Placement,
    pub(crate) node_name: String,
    /// What pods may ask for in sum.
    pub(crate) allocatable: Amounts,
    pub(crate) dirs: Dirs,
    /// Commands of probes in containers at the same time.
    pub(crate) execs: Arc<Semaphore>,
    /// Sandboxes and containers being made at the same time.
    pub(crate) starts: Arc<Semaphore>,
    /// Orders listings of containers and actions on them.
    pub(crate) ticks: AtomicU64,
    pub(crate) images: Board,
    /// Asks the main loop to list the containers again.
    pub(crate) poke: Notify,
    pub(crate) board: Mutex<BTreeMap<String, PodSummary>>,
    /// Pods that this node ends although they are wanted, by uid.
    pub(crate) verdicts: Mutex<BTreeMap<String, Verdict>>,
    /// What was found of pods' networks at the start, by uid.
    pub(crate) networks: Mutex<BTreeMap<String, NetworkHealth>>,
    pub(crate) now_ms: Box<dyn Fn() -> UnixMillis + Send + Sync>,
}

impl Context {
    pub(crate) fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    /// Ends a pod that is still wanted; the first verdict on a pod stays.
    pub(crate) fn judge(&self, uid: &str, verdict: Verdict) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.entry(uid.to_owned()).or_insert(verdict);
        self.poke.notify_one();
    }

    /// Tells that a pod is gone; remains of which only the uid is known concern nobody.
    pub(crate) fn pod_gone(&self, id: &PodId) {
        if !id.name.is_empty() {
            self.sink.pod_gone(&id.namespace, &id.name, &id.uid);
        }
    }
}
