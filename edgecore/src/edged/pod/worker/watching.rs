//! Hooks and probes of the pod's containers: started here, their results taken here. They run in
//! tasks of their own; the worker only keeps the one timer.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::task::JoinError;
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::super::probe::{self, Check, Kind, Known, Outcome};
use super::super::state::Phase;
use super::super::{convert, hooks};
use super::Worker;
use crate::edged::events::Severity;
use crate::edged::runtime::{Container as Seen, ContainerState};

/// Longest text of a probe's result in an event (`api/events/v1`: note).
const NOTE_CHARS_MAX: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    PostStart,
    PreStop,
}

/// A hook that is over: of which container, and how it went.
pub(super) type HookOver = (String, String, Moment, Result<(), String>);
/// A probe that is over.
pub(super) type Probed = (String, Kind, Outcome);

impl Worker {
    /// Begins to look after a container that this process has just started.
    pub(super) fn watch_new(&mut self, seen: &Seen, now: Instant) {
        let Some(container) = convert::container(&self.pod, &seen.name).cloned() else {
            return;
        };
        let timings = timings(&container);
        let hook = hooks::post_start(&container).map(|handler| hooks::read(&container, handler));
        if timings.is_empty() && hook.is_none() {
            return;
        }
        self.probes
            .begin(&seen.id, &timings, hook.is_none(), now, None, now);
        if let Some(hook) = hook {
            self.run_hook(seen, Moment::PostStart, hook, hooks::POST_START_MAX);
        }
    }

    /// Begins to look after containers that were started by an earlier process, and forgets those
    /// that do not run.
    pub(super) fn watch_adopted(&mut self, now: Instant) {
        let is_running = |seen: &&Seen| matches!(seen.state, ContainerState::Running { .. });
        let running: BTreeSet<&str> = self
            .seen
            .iter()
            .filter(is_running)
            .map(|seen| seen.id.as_str())
            .collect();
        self.probes.retain(&running);
        let now_ms = (self.context.now_ms)();
        for seen in self.seen.iter().filter(is_running) {
            if self.probes.knows(&seen.id) {
                continue;
            }
            let Some(container) = convert::container(&self.pod, &seen.name) else {
                continue;
            };
            let timings = timings(container);
            if timings.is_empty() {
                continue;
            }
            let ContainerState::Running { started_at_ms } = seen.state else {
                continue;
            };
            let age = u64::try_from(now_ms.saturating_sub(started_at_ms)).unwrap_or(0);
            let begun = now.checked_sub(Duration::from_millis(age)).unwrap_or(now);
            let known = self.known(seen);
            // Not all at once after a restart of the daemon.
            let spread = rand::random::<f64>();
            self.probes
                .begin(&seen.id, &timings, true, begun, Some((known, spread)), now);
        }
    }

    /// What the API was last told of this very container.
    fn known(&self, seen: &Seen) -> Known {
        let id = format!("containerd://{}", seen.id);
        let told = self.told.as_ref().or(self.pod.status.as_ref());
        let mut statuses = told.iter().flat_map(|status| {
            let inits = status.init_container_statuses.iter().flatten();
            inits.chain(status.container_statuses.iter().flatten())
        });
        let mine = statuses.find(|status| status.container_id.as_deref() == Some(id.as_str()));
        mine.map_or_else(Known::default, |status| Known {
            started: status.started == Some(true),
            ready: status.ready,
        })
    }

    /// Whether the pod is on its way out: it is then only asked whether it is ready.
    fn is_ending(&self) -> bool {
        self.phase != Phase::Syncing
    }

    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.probes.due(self.is_ending())
    }

    /// Sends out the probes that are due.
    pub(super) fn send_probes(&mut self, now: Instant) {
        for (id, kind) in self.probes.take_due(now, self.is_ending()) {
            let name = self.seen.iter().find(|seen| seen.id == id);
            let container = name.and_then(|seen| convert::container(&self.pod, &seen.name));
            let wanted = container.map(probe::wanted).unwrap_or_default();
            let Some(wanted) = wanted.into_iter().find(|wanted| wanted.kind == kind) else {
                continue;
            };
            let address = self.address();
            let context = self.context.clone();
            self.probing.spawn(async move {
                let outcome = match wanted.check {
                    Err(why) => Outcome::Error(why),
                    Ok(check) => {
                        // Never closed; were it, asking without a slot is right.
                        let _slot = match &check {
                            Check::Exec(_) => context.execs.clone().acquire_owned().await.ok(),
                            Check::Http(_) | Check::Tcp { .. } | Check::Grpc { .. } => None,
                        };
                        let timeout = wanted.timing.timeout;
                        probe::check::run(&*context.runtime, &id, &check, &address, timeout).await
                    }
                };
                (id, kind, outcome)
            });
        }
    }

    /// Takes a probe's result; whether it changed anything.
    pub(super) fn probed(&mut self, result: Result<Probed, JoinError>) -> bool {
        let (id, kind, outcome) = match result {
            Ok(result) => result,
            Err(error) => {
                error!(pod = %self.id.name, error = %error, "probe ended unexpectedly");
                return false;
            }
        };
        let name = self.seen.iter().find(|seen| seen.id == id);
        let Some(name) = name.map(|seen| seen.name.clone()) else {
            return false;
        };
        let word = kind.as_str();
        let message = match &outcome {
            Outcome::Success => None,
            Outcome::Failure(why) => Some(format!("{word} probe failed: {why}")),
            Outcome::Error(why) => Some(format!(
                "{word} probe errored and resulted in unknown state: {why}"
            )),
        };
        if let Some(message) = message {
            let message: String = message.chars().take(NOTE_CHARS_MAX).collect();
            self.event(Severity::Warning, "Unhealthy", Some(&name), &message);
        }
        let changed = self.probes.finished(&id, kind, &outcome, Instant::now());
        if changed {
            info!(pod = %self.id.name, namespace = %self.id.namespace, container = name,
                probe = word, good = outcome == Outcome::Success, "probe changed its result");
        }
        changed
    }

    /// Begins with the preStop hook, if there is one and time for it.
    pub(super) fn begin_pre_stop(&mut self, id: &str, name: &str, limit: Duration) -> bool {
        let container = convert::container(&self.pod, name);
        let hook = container.and_then(|c| Some(hooks::read(c, hooks::pre_stop(c)?)));
        let seen = self.seen.iter().find(|seen| seen.id == id).cloned();
        match (hook, seen) {
            (Some(hook), Some(seen)) if !limit.is_zero() => {
                self.run_hook(&seen, Moment::PreStop, hook, limit);
                true
            }
            _ => false,
        }
    }

    fn run_hook(
        &mut self,
        seen: &Seen,
        moment: Moment,
        hook: Result<hooks::Hook, String>,
        limit: Duration,
    ) {
        let (id, name) = (seen.id.clone(), seen.name.clone());
        let (context, address) = (self.context.clone(), self.address());
        self.hooks.spawn(async move {
            let result = match hook {
                Err(why) => Err(why),
                Ok(hook) => {
                    let running = hooks::run(&*context.runtime, &id, hook, &address, limit);
                    let result = tokio::time::timeout(limit, running).await;
                    result.unwrap_or_else(|_| Err("the grace period is over".to_owned()))
                }
            };
            (id, name, moment, result)
        });
    }

    /// Takes a hook's end.
    pub(super) fn hooked(&mut self, result: Result<HookOver, JoinError>) {
        let (id, name, moment, result) = match result {
            Ok(result) => result,
            Err(error) => {
                error!(pod = %self.id.name, error = %error, "hook ended unexpectedly");
                return;
            }
        };
        let still_runs = self
            .seen
            .iter()
            .any(|seen| seen.id == id && matches!(seen.state, ContainerState::Running { .. }));
        match moment {
            Moment::PostStart => self.probes.hook_over(&id, result.is_ok()),
            Moment::PreStop => self.memory.hook_over(&id),
        }
        let Err(why) = result else {
            return;
        };
        debug!(pod = %self.id.name, namespace = %self.id.namespace, container = name,
            error = why, "hook failed");
        // A hook that the container did not outlive says nothing of its own. What a hook wrote is
        // not told: it may hold what only the container is to know.
        if still_runs {
            let (reason, message) = match moment {
                Moment::PostStart => ("FailedPostStartHook", "PostStartHook failed"),
                Moment::PreStop => ("FailedPreStopHook", "PreStopHook failed"),
            };
            self.event(Severity::Warning, reason, Some(&name), message);
        }
    }

    /// Where the pod is reached from this node.
    fn address(&self) -> String {
        let ips = self.sandbox.as_ref().map(|sandbox| sandbox.ips.as_slice());
        let own = ips.and_then(|ips| ips.first()).cloned();
        own.unwrap_or_else(|| self.host_ip.clone())
    }
}

fn timings(container: &Container) -> Vec<(Kind, probe::Timing)> {
    let wanted = probe::wanted(container).into_iter();
    wanted.map(|wanted| (wanted.kind, wanted.timing)).collect()
}
