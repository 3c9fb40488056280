//! What a pod needs next, decided from what is wanted, what was seen and what time it is. Pure:
//! the worker acts, observes and calls again.
//!
//! ```text
//!           delete                 nothing runs, nothing left
//! Syncing ─────────▶ Terminating ──────────────────────────▶ Terminated
//!    │ verdict            ▲ delete
//!    └────────▶ Ending ───┘
//! ```
//!
//! The phases only go forward: once out of `Syncing` nothing is ever started again.

mod memory;
mod plan;

use std::time::Duration;

use tokio::time::Instant;

pub use memory::Memory;
use plan::Plan;
pub use plan::is_over;

/// First delay after a second crash (kubelet: `backOffPeriod`, 10 s).
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Longest delay between two starts (kubelet: `MaxContainerBackOff`, 5 min).
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long starts its back-off anew (kubelet: twice the longest delay).
pub const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(600);
/// A KILL that had no visible effect is repeated after this (a process in uninterruptible sleep).
pub const KILL_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Every container has at least this long between TERM and KILL, whatever its grace
/// (`kuberuntime_container.go: minimumGracePeriodInSeconds`). Only a verdict without grace kills at
/// once.
pub const GRACE_MIN: Duration = Duration::from_secs(2);

/// Where the pod is in its life on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Syncing,
    /// This node ends a pod that is still wanted; what ended stays to be looked at.
    Ending {
        since: Instant,
        deadline: Instant,
    },
    Terminating {
        since: Instant,
        deadline: Instant,
    },
    Terminated,
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// When a container runs in relation to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the next one.
    Init,
    /// An init container with `restartPolicy: Always`: stays up beside the main ones.
    Sidecar,
    Main,
}

/// One container as the pod asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantContainer {
    pub name: String,
    pub hash: String,
    pub role: Role,
    /// Attempts the API knows of: counting goes on from there when the runtime forgot them.
    pub attempts: u32,
    /// It has a postStart hook.
    pub post_start: bool,
}

/// What the node found wrong with a container that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Startup,
    Liveness,
    PostStart,
}

/// A container that runs is ended for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub cause: Cause,
    /// Instead of the pod's.
    pub grace: Option<Duration>,
}

/// What hooks and probes say about a container that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Its postStart hook is over.
    pub hooked: bool,
    /// And its startup probe has succeeded.
    pub started: bool,
    /// And so does its readiness probe.
    pub ready: bool,
    pub fault: Option<Fault>,
}

impl Default for Health {
    /// A container without hooks and probes.
    fn default() -> Self {
        Self {
            hooked: true,
            started: true,
            ready: true,
            fault: None,
        }
    }
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The pod ends, or its sidecars do after it.
    PodEnds,
    /// The pod asks for another one, or names it no longer.
    Changed,
    Fault(Cause),
}

/// The part of a desired pod that decides what happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub delete: bool,
    /// Nothing is to run for now; what ran goes on later (`outpost.dev/on-disconnect`).
    pub suspended: bool,
    pub grace: Duration,
    pub restart: RestartPolicy,
    /// The API already has `Succeeded` or `Failed`: final, even if the records here were lost.
    pub finished: bool,
    /// The node ends the pod, with this grace.
    pub verdict: Option<Duration>,
    /// Init containers and sidecars in their order, then the main ones.
    pub containers: Vec<WantContainer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenState {
    Created,
    Running,
    Exited { ok: bool },
}

/// One container as the runtime has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenContainer {
    pub id: String,
    pub name: String,
    pub hash: String,
    pub attempt: u32,
    pub state: SeenState,
    /// Means something while it runs.
    pub health: Health,
}

impl SeenContainer {
    fn runs(&self) -> bool {
        self.state == SeenState::Running
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub containers: Vec<SeenContainer>,
}

/// What an action that must not be repeated at once is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Starting the container of this name.
    Start(String),
    /// Stopping, killing or removing the container of this id.
    Container(String),
    Cleanup,
}

/// One thing for the worker to do. All of them may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the container, making the sandbox first where none stands.
    Start {
        name: String,
        attempt: u32,
    },
    /// Tell that it is ended, and begin with its preStop hook. Its grace ends at `deadline`.
    Stop {
        id: String,
        name: String,
        why: Why,
        deadline: Instant,
    },
    /// Send the stop signal; KILL follows after the grace.
    Signal {
        id: String,
        name: String,
    },
    Kill {
        id: String,
        name: String,
    },
    /// Delete a container that does not run.
    Remove {
        id: String,
    },
    /// The pod is over but stays to be looked at: give back what else it holds of the node.
    Release,
    /// No container is left: remove sandbox, volumes and files.
    Cleanup,
}

/// The decision: perform `actions` in order, then look again at `wake` at the latest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub phase: Phase,
    pub actions: Vec<Action>,
    pub wake: Option<Instant>,
}

/// Whether a container that ended this way is started again by this policy.
pub fn restarts(policy: RestartPolicy, role: Role, ok: bool) -> bool {
    match (role, policy) {
        (Role::Sidecar, _) => true,
        (Role::Init, RestartPolicy::Never) => false,
        (Role::Init, RestartPolicy::Always | RestartPolicy::OnFailure) => !ok,
        (Role::Main, RestartPolicy::Always) => true,
        (Role::Main, RestartPolicy::OnFailure) => !ok,
        (Role::Main, RestartPolicy::Never) => false,
    }
}

/// A grace may be as long as its number allows (`terminationGracePeriodSeconds` is an `int64`), an
/// [`Instant`] not: this long is for ever.
pub const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A moment that long after `at`.
fn later(at: Instant, by: Duration) -> Instant {
    at + by.min(FOREVER)
}

/// Decides what comes next.
pub fn step(phase: Phase, want: &Desired, saw: &Observed, memory: &Memory, now: Instant) -> Step {
    let phase = match phase {
        Phase::Syncing if want.delete => Phase::Terminating {
            since: now,
            deadline: later(now, want.grace),
        },
        Phase::Ending { deadline, .. } if want.delete => Phase::Terminating {
            since: now,
            deadline: deadline.min(later(now, want.grace)),
        },
        // A shorter grace (a forced delete) moves the deadline forward, never back.
        Phase::Terminating { since, deadline } => Phase::Terminating {
            since,
            deadline: deadline.min(later(since, want.grace)),
        },
        Phase::Syncing | Phase::Ending { .. } | Phase::Terminated => phase,
    };
    let mut plan = Plan {
        saw,
        memory,
        now,
        actions: Vec::new(),
        wake: None,
    };
    let phase = match (phase, want.verdict) {
        (Phase::Syncing, Some(grace)) => Phase::Ending {
            since: now,
            deadline: later(now, grace),
        },
        _ => phase,
    };
    let phase = match phase {
        Phase::Syncing => {
            plan.sync(want);
            Phase::Syncing
        }
        Phase::Ending { since, deadline } => {
            if !plan.end_running(want, deadline, deadline <= since) {
                plan.release();
            }
            phase
        }
        Phase::Terminating { deadline, .. } => plan.terminate(want, phase, deadline),
        Phase::Terminated => Phase::Terminated,
    };
    Step {
        phase,
        actions: plan.actions,
        wake: plan.wake,
    }
}

#[cfg(test)]
#[path = "state_tests/mod.rs"]
mod tests;
