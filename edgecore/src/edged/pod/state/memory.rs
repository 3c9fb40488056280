//! What a worker remembers between two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{BACKOFF_FIRST, BACKOFF_MAX, BACKOFF_RESET_AFTER, Key, Observed, SeenState};

/// How far ending a container has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) asked: Instant,
    /// Its preStop hook is under way.
    pub(super) hook: bool,
    pub(super) signalled: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crash {
    delay: Duration,
    pub(super) restart_at: Instant,
}

/// What the worker remembers between two steps. Lost with the daemon, and nothing depends on it
/// but timing.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub(super) crashes: BTreeMap<String, Crash>,
    /// Newest attempt whose exit has been counted.
    counted: BTreeMap<String, u32>,
    pub(super) started: BTreeMap<String, (u32, Instant)>,
    pub(super) stops: BTreeMap<String, Stop>,
    pub(super) killed: BTreeMap<String, Instant>,
    pub(super) released: bool,
    holds: BTreeMap<Key, Instant>,
    pub(super) busy: BTreeSet<String>,
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
        self.stops.retain(|id, _| ids.contains(id.as_str()));
        self.killed.retain(|id, _| ids.contains(id.as_str()));
        self.holds
            .retain(|key, _| !matches!(key, Key::Container(id) if !ids.contains(id.as_str())));
    }

    /// The container was started.
    pub fn started(&mut self, name: &str, attempt: u32, now: Instant) {
        self.started.insert(name.to_owned(), (attempt, now));
        self.holds.remove(&Key::Start(name.to_owned()));
    }

    /// Ending the container has begun; with its preStop hook, if `hook`.
    pub fn stopping(&mut self, id: &str, hook: bool, now: Instant) {
        let stop = Stop {
            asked: now,
            hook,
            signalled: None,
        };
        self.stops.entry(id.to_owned()).or_insert(stop);
    }

    /// The preStop hook is over, however it ended.
    pub fn hook_over(&mut self, id: &str) {
        if let Some(stop) = self.stops.get_mut(id) {
            stop.hook = false;
        }
    }

    /// The stop signal was sent.
    pub fn signalled(&mut self, id: &str, now: Instant) {
        self.stopping(id, false, now);
        if let Some(stop) = self.stops.get_mut(id) {
            stop.signalled.get_or_insert(now);
        }
    }

    /// KILL was sent.
    pub fn killed(&mut self, id: &str, now: Instant) {
        self.killed.insert(id.to_owned(), now);
    }

    /// The pod holds nothing of the node any more, and nothing of it starts again.
    pub fn released(&mut self) {
        self.released = true;
        self.holds.remove(&Key::Cleanup);
    }

    pub fn is_released(&self) -> bool {
        self.released
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

    #[cfg(test)]
    pub(super) fn last_delay(&self, name: &str) -> Duration {
        self.crashes
            .get(name)
            .map_or(Duration::ZERO, |crash| crash.delay)
    }

    pub(super) fn held(&self, key: &Key, now: Instant) -> Option<Instant> {
        self.holds.get(key).copied().filter(|until| *until > now)
    }
}
