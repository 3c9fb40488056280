//! When probes are due and what their results come to (`kubelet/prober/worker.go`). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::super::state::{Cause, Fault, Health};

/// A container without `initialDelaySeconds` is first asked after this: what has just been started
/// would refuse, and then not be asked for a whole period.
const FIRST_DELAY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As in events.
    pub(in super::super) const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Timing {
    pub(in super::super) initial_delay: Duration,
    pub(in super::super) period: Duration,
    pub(in super::super) timeout: Duration,
    pub(in super::super) success: u32,
    pub(in super::super) failure: u32,
    /// Between TERM and KILL after a failure, instead of the pod's.
    pub(in super::super) grace: Option<Duration>,
}

/// What one probe came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Outcome {
    Success,
    Failure(String),
    /// The container could not be asked; changes nothing.
    Error(String),
}

/// What is known of a container that an earlier process looked after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Known {
    pub(in super::super) started: bool,
    pub(in super::super) ready: bool,
}

#[derive(Clone, Debug)]
struct Prober {
    kind: Kind,
    timing: Timing,
    /// What holds until a threshold is reached.
    good: bool,
    last: Option<bool>,
    run: u32,
    due: Instant,
    asked: Option<Instant>,
    /// Asked no more: this container has failed, or has started up.
    over: bool,
}

#[derive(Clone, Debug)]
struct Tracked {
    hooked: bool,
    fault: Option<Fault>,
    probers: Vec<Prober>,
}

/// The probes of the containers of one pod that run.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Probes {
    containers: BTreeMap<String, Tracked>,
}

impl Probes {
    /// Begins with a container that was started at `begun`. With `known` it was started by an
    /// earlier process: its postStart hook is over, and it is what it was known to be until asked.
    /// `spread` is the part of a period that passes before such a container is asked.
    pub(in super::super) fn begin(
        &mut self,
        id: &str,
        timings: &[(Kind, Timing)],
        hooked: bool,
        begun: Instant,
        known: Option<(Known, f64)>,
        now: Instant,
    ) {
        let started = known.is_some_and(|(known, _)| known.started);
        let ready = known.is_some_and(|(known, _)| known.ready);
        let probers = timings.iter().map(|&(kind, timing)| {
            let first = if timing.initial_delay.is_zero() {
                FIRST_DELAY
            } else {
                timing.initial_delay
            };
            let due = match known {
                Some((_, spread)) if ready => now + timing.period.mul_f64(spread.clamp(0.0, 1.0)),
                _ => (begun + first).max(now),
            };
            Prober {
                kind,
                timing,
                good: match kind {
                    Kind::Startup => started,
                    Kind::Liveness => true,
                    Kind::Readiness => ready,
                },
                last: None,
                run: 0,
                due,
                asked: None,
                over: kind == Kind::Startup && started,
            }
        });
        let tracked = Tracked {
            hooked,
            fault: None,
            probers: probers.collect(),
        };
        self.containers.insert(id.to_owned(), tracked);
    }

    /// Forgets every container that is not among these.
    pub(in super::super) fn retain(&mut self, running: &BTreeSet<&str>) {
        self.containers
            .retain(|id, _| running.contains(id.as_str()));
    }

    pub(in super::super) fn knows(&self, id: &str) -> bool {
        self.containers.contains_key(id)
    }

    /// The postStart hook is over; a failed one ends the container.
    pub(in super::super) fn hook_over(&mut self, id: &str, ok: bool) {
        if let Some(tracked) = self.containers.get_mut(id) {
            tracked.hooked = true;
            if !ok {
                tracked.fault.get_or_insert(Fault {
                    cause: Cause::PostStart,
                    grace: None,
                });
            }
        }
    }

    /// When the next probe is due. A pod that ends is only asked whether it is ready.
    pub(in super::super) fn due(&self, ending: bool) -> Option<Instant> {
        let all = self.containers.values().flat_map(|tracked| {
            let open = tracked.open(ending);
            tracked.probers.iter().filter(move |p| open(p.kind, p))
        });
        all.map(|prober| prober.due).min()
    }

    /// The probes that are due, which count as asked from now on.
    pub(in super::super) fn take_due(&mut self, now: Instant, ending: bool) -> Vec<(String, Kind)> {
        let mut taken = Vec::new();
        for (id, tracked) in &mut self.containers {
            let open = tracked.open(ending);
            for prober in &mut tracked.probers {
                if open(prober.kind, prober) && prober.due <= now {
                    prober.asked = Some(now);
                    taken.push((id.clone(), prober.kind));
                }
            }
        }
        taken
    }

    /// Takes note of a result; whether it changed anything.
    pub(in super::super) fn finished(
        &mut self,
        id: &str,
        kind: Kind,
        outcome: &Outcome,
        now: Instant,
    ) -> bool {
        let Some(tracked) = self.containers.get_mut(id) else {
            return false;
        };
        let Some(prober) = tracked.probers.iter_mut().find(|p| p.kind == kind) else {
            return false;
        };
        let asked = prober.asked.take().unwrap_or(now);
        prober.due = (asked + prober.timing.period).max(now);
        let ok = match outcome {
            Outcome::Success => true,
            Outcome::Failure(_) => false,
            Outcome::Error(_) => return false,
        };
        prober.run = match prober.last {
            Some(last) if last == ok => prober.run.saturating_add(1),
            _ => 1,
        };
        prober.last = Some(ok);
        let needed = if ok {
            prober.timing.success
        } else {
            prober.timing.failure
        };
        if prober.run < needed {
            return false;
        }
        let changed = prober.good != ok;
        prober.good = ok;
        let cause = match (kind, ok) {
            (Kind::Startup, true) => {
                prober.over = true;
                // Kubelet asks for readiness at once when a container has started up.
                tracked.hasten(now);
                return changed;
            }
            (Kind::Readiness, _) | (Kind::Liveness, true) => return changed,
            (Kind::Startup, false) => Cause::Startup,
            (Kind::Liveness, false) => Cause::Liveness,
        };
        prober.over = true;
        let grace = prober.timing.grace;
        let fresh = tracked.fault.is_none();
        tracked.fault.get_or_insert(Fault { cause, grace });
        changed || fresh
    }

    /// What is known of a running container.
    pub(in super::super) fn health(&self, id: &str) -> Health {
        let Some(tracked) = self.containers.get(id) else {
            return Health::default();
        };
        let good = |kind| {
            let mut mine = tracked.probers.iter().filter(|p| p.kind == kind);
            mine.all(|prober| prober.good)
        };
        let started = tracked.hooked && good(Kind::Startup);
        Health {
            hooked: tracked.hooked,
            started,
            ready: started && good(Kind::Readiness),
            fault: tracked.fault,
        }
    }
}

impl Tracked {
    /// Which probes may be asked now.
    fn open(&self, ending: bool) -> impl Fn(Kind, &Prober) -> bool + use<> {
        let hooked = self.hooked;
        let mut startups = self.probers.iter().filter(|p| p.kind == Kind::Startup);
        let started = startups.all(|prober| prober.good);
        move |kind, prober| {
            let turn = match kind {
                Kind::Startup => !ending,
                Kind::Liveness => !ending && started,
                Kind::Readiness => started,
            };
            hooked && turn && !prober.over && prober.asked.is_none()
        }
    }

    fn hasten(&mut self, now: Instant) {
        for prober in &mut self.probers {
            if prober.kind == Kind::Readiness {
                prober.due = now;
            }
        }
    }
}

#[cfg(test)]
#[path = "track_tests.rs"]
mod tests;
