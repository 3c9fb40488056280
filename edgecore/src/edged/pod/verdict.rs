//! Why this node ends a pod that is still wanted: it does not fit, it was evicted, its time is
//! over.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The pod's containers are ended and its status becomes `Failed` with this reason; nothing of it
/// is started again, also not after a restart of the daemon. The object itself stays until
/// somebody deletes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `status.reason`, e.g. `Evicted`, `OutOfmemory`, `DeadlineExceeded`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// Between TERM and KILL; zero kills at once.
    pub grace: Duration,
    /// Message of the condition `DisruptionTarget`: the pod ran well, and ends for the node's sake.
    #[serde(default)]
    pub disruption: Option<String>,
}
