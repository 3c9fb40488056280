//! From what is left to what is short: which conditions hold, and for which threshold something
//! has to be given back now (`eviction/eviction_manager.go: synchronize`). Pure; time is given.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::threshold::{Config, Shortage, Signal, Threshold};
use crate::edged::node::Pressure;

/// What is left of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub available: i64,
    pub capacity: i64,
}

/// A signal that could not be read is not among them, and decides nothing.
pub type Observations = BTreeMap<Signal, Observation>;

/// A threshold for which something has to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starved {
    pub threshold: Threshold,
    pub observation: Observation,
}

/// What follows from an observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    pub pressure: Pressure,
    pub starved: Option<Starved>,
}

/// Remembers since when which threshold is met.
#[derive(Clone, Debug)]
pub struct Manager {
    config: Config,
    /// By position in the configuration: since when, and whether its grace was over.
    met: BTreeMap<usize, (Instant, bool)>,
    seen: BTreeMap<Shortage, Instant>,
}

impl Manager {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            met: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Takes what was seen at `now`.
    pub fn observe(&mut self, saw: &Observations, now: Instant) -> Outlook {
        let mut met = BTreeMap::new();
        let mut starved: Vec<Starved> = Vec::new();
        for (index, threshold) in self.config.thresholds.iter().enumerate() {
            let before = self.met.get(&index).copied();
            let Some(observation) = saw.get(&threshold.signal).copied() else {
                // Not read this time: neither begun nor over.
                met.extend(before.map(|before| (index, before)));
                continue;
            };
            let acting = before.is_some_and(|(_, acting)| acting);
            if !is_met(threshold, observation, acting) {
                continue;
            }
            let since = before.map_or(now, |(since, _)| since);
            let grace = threshold.grace.unwrap_or(Duration::ZERO);
            let over = now.saturating_duration_since(since) >= grace;
            met.insert(index, (since, over));
            self.seen.insert(threshold.signal.shortage(), now);
            if over {
                starved.push(Starved {
                    threshold: *threshold,
                    observation,
                });
            }
        }
        self.met = met;
        // Memory first: it is what cannot wait. Hard before soft.
        starved.sort_by_key(|s| (s.threshold.signal, !s.threshold.is_hard()));
        Outlook {
            pressure: self.pressure(now),
            starved: starved.first().copied(),
        }
    }

    fn pressure(&self, now: Instant) -> Pressure {
        let thresholds = &self.config.thresholds;
        let holds = |shortage: Shortage| {
            let met = self.met.keys().filter_map(|index| thresholds.get(*index));
            let now_met = met.into_iter().any(|t| t.signal.shortage() == shortage);
            let seen = self.seen.get(&shortage);
            now_met
                || seen
                    .is_some_and(|at| now.saturating_duration_since(*at) < self.config.transition)
        };
        Pressure {
            memory: holds(Shortage::Memory),
            disk: holds(Shortage::Disk),
            pids: holds(Shortage::Pids),
        }
    }
}

/// Whether it is short; once something had to be given back, until the minimum is.
fn is_met(threshold: &Threshold, saw: Observation, acting: bool) -> bool {
    let mut wanted = threshold.amount.of(saw.capacity);
    if acting && let Some(more) = threshold.reclaim {
        wanted = wanted.saturating_add(more.of(saw.capacity));
    }
    saw.available < wanted
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
