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

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// First delay after a second crash (kubelet: `backOffPeriod`, 10 s).
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Longest delay between two starts (kubelet: `MaxContainerBackOff`, 5 min).
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long starts its back-off anew (kubelet: twice the longest delay).
pub const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(600);
/// A KILL that had no visible effect is repeated after this (a process in uninterruptible sleep).
pub const KILL_AGAIN_AFTER: Duration = Duration::from_secs(10);

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
}

/// The part of a desired pod that decides what happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub delete: bool,
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
    /// Ask it to end; KILL follows after the grace.
    Stop {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Crash {
    delay: Duration,
    restart_at: Instant,
}

/// What the worker remembers between two steps. Lost with the daemon, and nothing depends on it
/// but timing.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    crashes: BTreeMap<String, Crash>,
    /// Newest attempt whose exit has been counted.
    counted: BTreeMap<String, u32>,
    started: BTreeMap<String, (u32, Instant)>,
    signalled: BTreeMap<String, Instant>,
    killed: BTreeMap<String, Instant>,
    holds: BTreeMap<Key, Instant>,
    busy: BTreeSet<String>,
}

impl Memory {
    /// Takes note of exits: the first is followed by a restart at once, later ones by a delay.
    pub fn observe(&mut self, saw: &Observed, now: Instant) {
        for seen in &saw.containers {
            if !matches!(seen.state, SeenState::Exited { .. }) {
                continue;
            }
            if self
                .counted
                .get(&seen.name)
                .is_some_and(|attempt| *attempt >= seen.attempt)
            {
                continue;
            }
            self.counted.insert(seen.name.clone(), seen.attempt);
            // Not started by this process: exits of an earlier life (a reboot) are no crash loop.
            let started = self
                .started
                .get(&seen.name)
                .filter(|(attempt, _)| *attempt == seen.attempt)
                .map(|(_, at)| *at);
            let delay = match (self.crashes.get(&seen.name), started) {
                (Some(crash), Some(at)) if now.duration_since(at) < BACKOFF_RESET_AFTER => {
                    (crash.delay * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX)
                }
                _ => Duration::ZERO,
            };
            let restart_at = now + delay;
            self.crashes
                .insert(seen.name.clone(), Crash { delay, restart_at });
        }
        let ids: BTreeSet<&str> = saw.containers.iter().map(|c| c.id.as_str()).collect();
        self.signalled.retain(|id, _| ids.contains(id.as_str()));
        self.killed.retain(|id, _| ids.contains(id.as_str()));
    }

    /// The container was started.
    pub fn started(&mut self, name: &str, attempt: u32, now: Instant) {
        self.started.insert(name.to_owned(), (attempt, now));
        self.holds.remove(&Key::Start(name.to_owned()));
    }

    /// The stop signal was sent; KILL is due at `deadline`.
    pub fn signalled(&mut self, id: &str, deadline: Instant) {
        self.signalled.insert(id.to_owned(), deadline);
    }

    /// KILL was sent.
    pub fn killed(&mut self, id: &str, now: Instant) {
        self.killed.insert(id.to_owned(), now);
    }

    /// Do not try this again before `until`.
    pub fn hold(&mut self, key: Key, until: Instant) {
        self.holds.insert(key, until);
    }

    /// Whatever was held may be tried now (the world changed).
    pub fn release(&mut self, key: &Key) {
        self.holds.remove(key);
    }

    /// Something for this container (an image pull) is under way elsewhere.
    pub fn set_busy(&mut self, name: &str, busy: bool) {
        if busy {
            self.busy.insert(name.to_owned());
        } else {
            self.busy.remove(name);
        }
    }

    /// Forgets what was under way; the names.
    pub fn clear_busy(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.busy)
    }

    /// The delay this container waits for, if it waits now.
    pub fn backing_off(&self, name: &str, now: Instant) -> Option<Duration> {
        self.crashes
            .get(name)
            .filter(|crash| crash.restart_at > now)
            .map(|crash| crash.delay)
    }

    fn held(&self, key: &Key, now: Instant) -> Option<Instant> {
        self.holds.get(key).copied().filter(|until| *until > now)
    }
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

/// Decides what comes next.
pub fn step(phase: Phase, want: &Desired, saw: &Observed, memory: &Memory, now: Instant) -> Step {
    let phase = match phase {
        Phase::Syncing | Phase::Ending { .. } if want.delete => Phase::Terminating {
            since: now,
            deadline: now + want.grace,
        },
        // A shorter grace (a forced delete) moves the deadline forward, never back.
        Phase::Terminating { since, deadline } => Phase::Terminating {
            since,
            deadline: deadline.min(since + want.grace),
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
            deadline: now + grace,
        },
        _ => phase,
    };
    let phase = match phase {
        Phase::Syncing => {
            plan.sync(want);
            Phase::Syncing
        }
        Phase::Ending { deadline, .. } => {
            plan.end_running(deadline);
            phase
        }
        Phase::Terminating { deadline, .. } => plan.terminate(phase, deadline),
        Phase::Terminated => Phase::Terminated,
    };
    Step {
        phase,
        actions: plan.actions,
        wake: plan.wake,
    }
}

/// Whether every main container ended for good: a verdict that comes now has nothing to end.
pub fn is_over(want: &Desired, saw: &Observed) -> bool {
    let mut mains = want.containers.iter().filter(|c| c.role == Role::Main);
    want.finished || mains.all(|wanted| is_done(want, wanted, current(saw, &wanted.name)))
}

fn is_done(want: &Desired, wanted: &WantContainer, seen: Option<&SeenContainer>) -> bool {
    seen.is_some_and(|seen| {
        matches!(seen.state, SeenState::Exited { ok }
            if seen.hash == wanted.hash && !restarts(want.restart, wanted.role, ok))
    })
}

fn current<'a>(saw: &'a Observed, name: &str) -> Option<&'a SeenContainer> {
    let mine = saw.containers.iter().filter(|seen| seen.name == name);
    mine.max_by_key(|seen| seen.attempt)
}

struct Plan<'a> {
    saw: &'a Observed,
    memory: &'a Memory,
    now: Instant,
    actions: Vec<Action>,
    wake: Option<Instant>,
}

impl Plan<'_> {
    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    fn current(&self, name: &str) -> Option<&SeenContainer> {
        current(self.saw, name)
    }

    fn sync(&mut self, want: &Desired) {
        self.drop_leftovers(want);
        let main_runs = want.containers.iter().any(|wanted| {
            wanted.role == Role::Main
                && self
                    .current(&wanted.name)
                    .is_some_and(|seen| seen.state == SeenState::Running)
        });
        let done = is_over(want, self.saw);
        let mut gate_open = true;
        for wanted in &want.containers {
            match wanted.role {
                Role::Init => {
                    if !main_runs && !done && gate_open {
                        gate_open = self.sync_init(want, wanted);
                    }
                }
                Role::Sidecar if done => self.stop_if_running(&wanted.name),
                Role::Sidecar => {
                    if gate_open || main_runs {
                        self.sync_one(want, wanted);
                        gate_open &= self
                            .current(&wanted.name)
                            .is_some_and(|seen| seen.state == SeenState::Running);
                    }
                }
                Role::Main if want.finished => self.stop_if_running(&wanted.name),
                Role::Main if gate_open || main_runs => self.sync_one(want, wanted),
                // An init container has to run (again); what may still run is left alone.
                Role::Main => {}
            }
        }
    }

    /// Containers the pod no longer names, and records older than the one before the newest.
    fn drop_leftovers(&mut self, want: &Desired) {
        let mut names: BTreeMap<&str, Vec<&SeenContainer>> = BTreeMap::new();
        for seen in &self.saw.containers {
            names.entry(&seen.name).or_default().push(seen);
        }
        for (name, mut seen) in names {
            seen.sort_by_key(|c| std::cmp::Reverse(c.attempt));
            let wanted = want.containers.iter().any(|wanted| wanted.name == name);
            // The newest tells the state, the one before it the last state.
            let keep = if wanted { 2 } else { 0 };
            for (index, container) in seen.into_iter().enumerate() {
                let running = container.state == SeenState::Running;
                if running && (!wanted || index > 0) {
                    self.stop(container);
                } else if !running && index >= keep {
                    self.remove(container);
                }
            }
        }
    }

    /// Whether the containers behind this one may start.
    fn sync_init(&mut self, want: &Desired, wanted: &WantContainer) -> bool {
        if let Some(seen) = self.current(&wanted.name)
            && seen.state == (SeenState::Exited { ok: true })
        {
            return true;
        }
        self.sync_one(want, wanted);
        false
    }

    fn sync_one(&mut self, want: &Desired, wanted: &WantContainer) {
        let Some(seen) = self.current(&wanted.name) else {
            let attempt = self
                .memory
                .started
                .get(&wanted.name)
                .map_or(0, |(attempt, _)| attempt.saturating_add(1));
            return self.start(want, wanted, attempt);
        };
        let changed = seen.hash != wanted.hash;
        match seen.state {
            SeenState::Created => self.start(want, wanted, seen.attempt),
            SeenState::Running if changed => {
                let seen = seen.clone();
                self.stop(&seen);
            }
            SeenState::Running => {}
            SeenState::Exited { ok } => {
                let attempt = seen.attempt.saturating_add(1);
                if changed {
                    self.start(want, wanted, attempt);
                } else if restarts(want.restart, wanted.role, ok) {
                    match self.memory.crashes.get(&wanted.name) {
                        Some(crash) if crash.restart_at > self.now => {
                            self.wake_at(crash.restart_at);
                        }
                        _ => self.start(want, wanted, attempt),
                    }
                }
            }
        }
    }

    fn start(&mut self, want: &Desired, wanted: &WantContainer, attempt: u32) {
        if want.finished || self.memory.busy.contains(&wanted.name) {
            return;
        }
        if let Some(until) = self.memory.held(&Key::Start(wanted.name.clone()), self.now) {
            return self.wake_at(until);
        }
        self.actions.push(Action::Start {
            name: wanted.name.clone(),
            attempt,
        });
    }

    fn stop_if_running(&mut self, name: &str) {
        if let Some(seen) = self.current(name).cloned()
            && seen.state == SeenState::Running
        {
            self.stop(&seen);
        }
    }

    fn stop(&mut self, seen: &SeenContainer) {
        match self.memory.signalled.get(&seen.id).copied() {
            None => {
                if let Some(until) = self.memory.held(&Key::Container(seen.id.clone()), self.now) {
                    return self.wake_at(until);
                }
                self.actions.push(Action::Stop {
                    id: seen.id.clone(),
                    name: seen.name.clone(),
                });
            }
            Some(deadline) if deadline > self.now => self.wake_at(deadline),
            Some(_) => self.kill(seen),
        }
    }

    fn kill(&mut self, seen: &SeenContainer) {
        let again = self
            .memory
            .killed
            .get(&seen.id)
            .map(|at| *at + KILL_AGAIN_AFTER);
        let held = self.memory.held(&Key::Container(seen.id.clone()), self.now);
        match again.into_iter().chain(held).max() {
            Some(at) if at > self.now => self.wake_at(at),
            _ => self.actions.push(Action::Kill {
                id: seen.id.clone(),
                name: seen.name.clone(),
            }),
        }
    }

    fn remove(&mut self, seen: &SeenContainer) {
        match self.memory.held(&Key::Container(seen.id.clone()), self.now) {
            Some(until) => self.wake_at(until),
            None => self.actions.push(Action::Remove {
                id: seen.id.clone(),
            }),
        }
    }

    /// Ends what runs; whether something does.
    fn end_running(&mut self, deadline: Instant) -> bool {
        let saw = self.saw;
        let mut running = false;
        for seen in &saw.containers {
            if seen.state != SeenState::Running {
                continue;
            }
            running = true;
            if deadline <= self.now {
                self.kill(seen);
            } else if self.memory.signalled.contains_key(&seen.id) {
                self.wake_at(deadline);
            } else {
                self.stop(seen);
            }
        }
        running
    }

    fn terminate(&mut self, phase: Phase, deadline: Instant) -> Phase {
        let saw = self.saw;
        if self.end_running(deadline) {
            return phase;
        }
        for seen in &saw.containers {
            self.remove(seen);
        }
        if !saw.containers.is_empty() {
            return phase;
        }
        match self.memory.held(&Key::Cleanup, self.now) {
            Some(until) => self.wake_at(until),
            None => self.actions.push(Action::Cleanup),
        }
        phase
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
