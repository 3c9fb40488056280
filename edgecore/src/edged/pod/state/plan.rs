//! The decisions themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{
    Action, Desired, GRACE_MIN, KILL_AGAIN_AFTER, Key, Memory, Observed, Phase, Role,
    SeenContainer, SeenState, WantContainer, Why, later, restarts,
};

/// Whether every main container ended for good, or can never start because an init container
/// failed: a verdict that comes now has nothing to end.
pub fn is_over(want: &Desired, saw: &Observed) -> bool {
    let done = |wanted: &WantContainer| is_done(want, wanted, current(saw, &wanted.name));
    let of = |role: Role| want.containers.iter().filter(move |c| c.role == role);
    let runs = |wanted: &WantContainer| current(saw, &wanted.name).is_some_and(SeenContainer::runs);
    let init_failed = of(Role::Init).any(|wanted| {
        let failed = SeenState::Exited { ok: false };
        done(wanted) && current(saw, &wanted.name).is_some_and(|seen| seen.state == failed)
    });
    want.finished || of(Role::Main).all(done) || (init_failed && !of(Role::Main).any(runs))
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

pub(super) struct Plan<'a> {
    pub(super) saw: &'a Observed,
    pub(super) memory: &'a Memory,
    pub(super) now: Instant,
    pub(super) actions: Vec<Action>,
    pub(super) wake: Option<Instant>,
}

impl Plan<'_> {
    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    fn current(&self, name: &str) -> Option<&SeenContainer> {
        current(self.saw, name)
    }

    pub(super) fn sync(&mut self, want: &Desired) {
        self.drop_leftovers(want);
        if want.suspended {
            for wanted in &want.containers {
                self.end(want, &wanted.name);
            }
            return;
        }
        let main_runs = want.containers.iter().any(|wanted| {
            wanted.role == Role::Main && self.current(&wanted.name).is_some_and(SeenContainer::runs)
        });
        // Once over, always over: what it would start with was given back (kubelet: a pod never leaves
        // a terminal phase, whatever becomes of its specification).
        let done = self.memory.released || is_over(want, self.saw);
        if done {
            self.release();
        }
        let mut gate_open = true;
        let mut hooks_over = true;
        for wanted in &want.containers {
            match wanted.role {
                Role::Init => {
                    if !main_runs && !done && gate_open {
                        gate_open = self.sync_init(want, wanted);
                    }
                }
                Role::Sidecar if done => self.end(want, &wanted.name),
                Role::Sidecar => {
                    if gate_open || main_runs {
                        self.sync_one(want, wanted);
                        gate_open &= self
                            .current(&wanted.name)
                            .is_some_and(|seen| seen.runs() && seen.health.started);
                    }
                }
                Role::Main if want.finished => self.end(want, &wanted.name),
                Role::Main if done => {}
                Role::Main if gate_open || main_runs => {
                    // Kubelet starts the next one when the postStart hook before it is over.
                    let seen = self.current(&wanted.name);
                    let waits = seen.is_some_and(|seen| seen.runs() && !seen.health.hooked);
                    let planned = self.actions.len();
                    if hooks_over || seen.is_some_and(SeenContainer::runs) {
                        self.sync_one(want, wanted);
                    }
                    let begins = wanted.post_start && self.actions.len() > planned;
                    hooks_over &= !(waits || begins);
                }
                // An init container has to run (again); what may still run is left alone.
                Role::Main => {}
            }
        }
    }

    /// Nothing runs and nothing will: what the pod holds of the node is given back, but for what
    /// there is to look at.
    pub(super) fn release(&mut self) {
        if self.memory.released || self.saw.containers.iter().any(SeenContainer::runs) {
            return;
        }
        match self.memory.held(&Key::Cleanup, self.now) {
            Some(until) => self.wake_at(until),
            None => self.actions.push(Action::Release),
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
                let running = container.runs();
                if running && (!wanted || index > 0) {
                    self.replace(want, container, Why::Changed, None);
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
                .map_or(0, |(attempt, _)| attempt.saturating_add(1))
                .max(wanted.attempts);
            return self.start(want, wanted, attempt);
        };
        let changed = seen.hash != wanted.hash;
        match seen.state {
            SeenState::Created => self.start(want, wanted, seen.attempt),
            SeenState::Running if changed => {
                let seen = seen.clone();
                self.replace(want, &seen, Why::Changed, None);
            }
            SeenState::Running => {
                if let Some(fault) = seen.health.fault {
                    let seen = seen.clone();
                    self.replace(want, &seen, Why::Fault(fault.cause), fault.grace);
                }
            }
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

    /// Ends one container of a pod that is kept.
    fn replace(&mut self, want: &Desired, seen: &SeenContainer, why: Why, grace: Option<Duration>) {
        let asked = self.memory.stops.get(&seen.id).map(|stop| stop.asked);
        let deadline = later(asked.unwrap_or(self.now), grace.unwrap_or(want.grace));
        self.stop(seen, why, deadline, true);
    }

    /// Ends a container of a pod that is over, in its turn.
    fn end(&mut self, want: &Desired, name: &str) {
        if let Some(seen) = self.current(name).cloned()
            && seen.runs()
        {
            let asked = self.memory.stops.get(&seen.id).map(|stop| stop.asked);
            let deadline = later(asked.unwrap_or(self.now), want.grace);
            let turn = self.is_turn(want, &seen);
            self.stop(&seen, Why::PodEnds, deadline, turn);
        }
    }

    /// Sidecars end after the main containers, the one that was started last first
    /// (`kuberuntime_termination_order.go`).
    fn is_turn(&self, want: &Desired, seen: &SeenContainer) -> bool {
        let position = |name: &str| want.containers.iter().position(|c| c.name == name);
        let role = |name: &str| {
            position(name)
                .and_then(|at| want.containers.get(at))
                .map(|c| c.role)
        };
        if role(&seen.name) != Some(Role::Sidecar) {
            return true;
        }
        let own = position(&seen.name);
        let mut others = self.saw.containers.iter();
        !others.any(|other| {
            other.runs()
                && match role(&other.name) {
                    Some(Role::Sidecar) => position(&other.name) > own,
                    Some(Role::Main | Role::Init) | None => true,
                }
        })
    }

    fn stop(&mut self, seen: &SeenContainer, why: Why, deadline: Instant, turn: bool) {
        let (id, name) = (seen.id.clone(), seen.name.clone());
        let stop = self.memory.stops.get(&id).copied();
        if let Some(at) = stop.and_then(|stop| stop.signalled) {
            let kill_at = deadline.max(at + GRACE_MIN);
            if kill_at > self.now {
                self.wake_at(kill_at);
            } else {
                self.kill(seen);
            }
            return;
        }
        if let Some(until) = self.memory.held(&Key::Container(id.clone()), self.now) {
            return self.wake_at(until);
        }
        match stop {
            None => {
                self.actions.push(Action::Stop {
                    id,
                    name,
                    why,
                    deadline,
                });
            }
            Some(stop) if (stop.hook || !turn) && deadline > self.now => self.wake_at(deadline),
            Some(_) => self.actions.push(Action::Signal { id, name }),
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
    pub(super) fn end_running(&mut self, want: &Desired, deadline: Instant, at_once: bool) -> bool {
        let saw = self.saw;
        let mut running = false;
        for seen in saw.containers.iter().filter(|seen| seen.runs()) {
            running = true;
            if at_once {
                if !self.memory.stops.contains_key(&seen.id) {
                    self.actions.push(Action::Stop {
                        id: seen.id.clone(),
                        name: seen.name.clone(),
                        why: Why::PodEnds,
                        deadline: self.now,
                    });
                }
                self.kill(seen);
            } else {
                let turn = self.is_turn(want, seen);
                self.stop(seen, Why::PodEnds, deadline, turn);
            }
        }
        running
    }

    pub(super) fn terminate(&mut self, want: &Desired, phase: Phase, deadline: Instant) -> Phase {
        let saw = self.saw;
        if self.end_running(want, deadline, false) {
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
