//! How a start went, and what is told of one that did not work.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::super::convert;
use super::super::state::{self, Key, Phase};
use super::super::status::Trouble;
use super::Worker;
use super::start::Failure;
use crate::edged::events::Severity;
use crate::edged::runtime::{Container as Seen, RuntimeError};

/// How long the API shows a failure itself before it shows that the next try is waited for.
const SHOWN_FOR: Duration = Duration::from_secs(2);

impl Worker {
    pub(super) async fn start(&mut self, name: &str, attempt: u32) {
        let result = self.try_start(name, attempt).await;
        let now = Instant::now();
        let key = Key::Start(name.to_owned());
        match result {
            Ok(container) => {
                self.seen.retain(|seen| seen.id != container.id);
                self.watch_new(&container, now);
                self.seen.push(container);
                self.memory.started(name, attempt, now);
                self.troubles.remove(name);
                self.flips.remove(name);
                self.on_change.remove(name);
                self.delays.remove(&key);
                self.note_action();
            }
            Err(Failure::Pulling) => self.memory.set_busy(name, true),
            Err(Failure::Runtime(error)) => {
                self.retry_later(key, &error);
                self.note_action();
            }
            Err(Failure::PullFailed(error)) => self.pull_failed(name, &error),
            Err(Failure::Unstarted { container, message }) => {
                self.unstarted_attempt(*container, message, now);
            }
            Err(Failure::Waiting {
                trouble,
                event,
                on_change,
                delay: (first, max),
            }) => {
                let message = match event {
                    "Failed" => format!("Error: {}", trouble.message),
                    _ => trouble.message.clone(),
                };
                // What the pod as a whole needs is told of the pod.
                let whole = matches!(event, "FailedMount" | "FailedCreatePodSandBox");
                let about = Some(name).filter(|_| !whole);
                self.event(Severity::Warning, event, about, &message);
                if event == trouble.reason {
                    let message = format!("Error: {event}");
                    self.event(Severity::Warning, "Failed", Some(name), &message);
                }
                self.set_trouble(name, trouble);
                if on_change {
                    self.on_change.insert(name.to_owned());
                }
                let delay = self.next_delay(&key, first, max);
                self.memory.hold(key, now + delay);
                self.note_action();
            }
        }
    }

    /// No process came of this attempt: it counts as one that ended at once, as with kubelet, whose
    /// containerd keeps the record of it.
    fn unstarted_attempt(&mut self, container: Seen, message: String, now: Instant) {
        let name = container.name.clone();
        let told = format!("Error: {message}");
        self.event(Severity::Warning, "Failed", Some(&name), &told);
        self.memory.started(&name, container.attempt, now);
        self.set_trouble(
            &name,
            Trouble {
                reason: "RunContainerError",
                message: message.clone(),
            },
        );
        self.flips.insert(name, (now + SHOWN_FOR, None));
        self.last_words.insert(container.id.clone(), message);
        self.seen.push(container.clone());
        self.unstarted.insert(container.id.clone(), container);
        self.note_action();
    }

    pub(super) fn set_trouble(&mut self, name: &str, trouble: Trouble) {
        if self.troubles.get(name) != Some(&trouble) {
            warn!(pod = %self.id.name, namespace = %self.id.namespace, container = name,
                reason = trouble.reason, message = %trouble.message, "container cannot be started yet");
        }
        self.flips.remove(name);
        self.troubles.insert(name.to_owned(), trouble);
    }

    fn pull_failed(&mut self, name: &str, error: &RuntimeError) {
        let image = convert::container(&self.pod, name).and_then(|c| c.image.clone());
        let image = image.unwrap_or_default();
        let key = Key::Start(name.to_owned());
        let delay = self.next_delay(&key, state::BACKOFF_FIRST, state::BACKOFF_MAX);
        let now = Instant::now();
        self.memory.hold(key, now + delay);
        if let RuntimeError::InvalidImageName { reference, reason } = error {
            let message = format!("Failed to apply default image tag \"{reference}\": {reason}");
            self.event(Severity::Warning, "InspectFailed", Some(name), &message);
            self.event(
                Severity::Warning,
                "Failed",
                Some(name),
                "Error: InvalidImageName",
            );
            return self.set_trouble(
                name,
                Trouble {
                    reason: "InvalidImageName",
                    message,
                },
            );
        }
        let message = format!("Failed to pull image \"{image}\": {error}");
        self.event(Severity::Warning, "Failed", Some(name), &message);
        // kubelet `pkg/kubelet/images/types.go`: the registry's silence has a reason of its own.
        let is_silent = matches!(error, RuntimeError::RegistryUnavailable { .. });
        let reason = if is_silent {
            "RegistryUnavailable"
        } else {
            "ErrImagePull"
        };
        self.event(
            Severity::Warning,
            "Failed",
            Some(name),
            &format!("Error: {reason}"),
        );
        self.set_trouble(
            name,
            Trouble {
                reason,
                message: error.to_string(),
            },
        );
        // The API shows the error itself first, and that it is waited for soon after.
        let later = Trouble {
            reason: "ImagePullBackOff",
            message: format!("Back-off pulling image \"{image}\": {reason}: {error}"),
        };
        self.flips
            .insert(name.to_owned(), (now + SHOWN_FOR, Some(later)));
    }

    /// Troubles whose time has come become what follows them; crash loops are told.
    pub(super) fn turn_troubles(&mut self, now: Instant) {
        let due: Vec<String> = self
            .flips
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let turned = self.flips.remove(&name).map(|(_, trouble)| trouble);
            if turned == Some(None) {
                self.troubles.remove(&name);
            }
            if let Some(Some(trouble)) = turned {
                let image = convert::container(&self.pod, &name).and_then(|c| c.image.clone());
                let message = format!("Back-off pulling image \"{}\"", image.unwrap_or_default());
                self.event(Severity::Normal, "BackOff", Some(&name), &message);
                self.event(
                    Severity::Warning,
                    "Failed",
                    Some(&name),
                    "Error: ImagePullBackOff",
                );
                self.troubles.insert(name, trouble);
            }
        }
        if self.phase != Phase::Syncing {
            return;
        }
        let waiting: Vec<(String, u32)> = self
            .seen
            .iter()
            .filter(|seen| self.memory.backing_off(&seen.name, now).is_some())
            .map(|seen| (seen.name.clone(), seen.attempt))
            .collect();
        for (name, attempt) in waiting {
            if self
                .told_backoff
                .get(&name)
                .is_some_and(|told| *told >= attempt)
            {
                continue;
            }
            let id = &self.id;
            let message = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                id.name, id.namespace, id.uid
            );
            self.event(Severity::Warning, "BackOff", Some(&name), &message);
            self.told_backoff.insert(name, attempt);
        }
    }
}
