//! Events about devices whose state changed, or that refused what was desired of them, for
//! `kubectl describe device` and `kubectl get events`.
//!
//! What is followed are the DeviceStatus objects; an event is about the Device. A device that
//! flaps is told at most once in [`QUIET`], with how often it changed: the last state is always
//! told in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use apiserver::store::{ListQuery, Store, StoreError};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    events::Recorder,
    follow::is_over,
    keys::{self, DEVICES_GROUP, ObjectKey, REGISTRY},
    kube::text,
};

/// Least time between two events about one device.
const QUIET: Duration = Duration::from_secs(10);

/// Properties of one device whose refusals are told.
const REFUSALS_MAX: usize = 16;

/// What is known about one device.
#[derive(Debug, Default)]
struct Known {
    /// The state of the last event; empty before the first.
    told: String,
    /// The state now.
    state: String,
    /// Changes since the last event.
    changes: u64,
    /// What the device refuses, by property: value and reason.
    refused: BTreeMap<String, (String, String)>,
    /// Those of them that are to be told.
    refusals: BTreeSet<String>,
    /// When the last event was.
    at: Option<Instant>,
}

/// A change to be told.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    State {
        from: String,
        to: String,
        times: u64,
    },
    Refused {
        property: String,
        value: String,
        reason: String,
    },
}

/// All devices: decides what is told and when.
#[derive(Debug, Default)]
struct States {
    devices: BTreeMap<String, Known>,
    /// Those with something to tell.
    changed: BTreeSet<String>,
}

impl States {
    /// What was before anything was followed is not told.
    fn first(&mut self, device: String, status: &Value) {
        let state = text(status, "/status/state");
        let known = Known {
            told: state.to_owned(),
            state: state.to_owned(),
            refused: refused(status),
            ..Known::default()
        };
        self.devices.insert(device, known);
    }

    fn note(&mut self, device: &str, status: &Value) {
        let known = self.devices.entry(device.to_owned()).or_default();
        let state = text(status, "/status/state");
        if !state.is_empty() && known.state != state {
            state.clone_into(&mut known.state);
            known.changes += 1;
            self.changed.insert(device.to_owned());
        }
        let refused = refused(status);
        if refused != known.refused {
            let is_new = |(name, why): &(&String, &_)| known.refused.get(*name) != Some(*why);
            let new: Vec<String> = refused
                .iter()
                .filter(is_new)
                .map(|(name, _)| name.clone())
                .collect();
            known.refusals.retain(|name| refused.contains_key(name));
            known.refusals.extend(new);
            known.refused = refused;
            if !known.refusals.is_empty() {
                self.changed.insert(device.to_owned());
            }
        }
    }

    fn forget(&mut self, device: &str) {
        self.devices.remove(device);
        self.changed.remove(device);
    }

    /// Takes the changes that may be told now, and says when to look again.
    fn due(&mut self, now: Instant) -> (Vec<(String, Change)>, Option<Instant>) {
        let mut changes = Vec::new();
        let mut next: Option<Instant> = None;
        for device in std::mem::take(&mut self.changed) {
            let Some(known) = self.devices.get_mut(&device) else {
                continue;
            };
            if let Some(free) = known.at.map(|at| at + QUIET).filter(|free| *free > now) {
                next = Some(next.map_or(free, |n| n.min(free)));
                self.changed.insert(device);
                continue;
            }
            let times = std::mem::take(&mut known.changes);
            known.at = Some(now);
            for property in std::mem::take(&mut known.refusals) {
                if let Some((value, reason)) = known.refused.get(&property).cloned() {
                    let change = Change::Refused {
                        property,
                        value,
                        reason,
                    };
                    changes.push((device.clone(), change));
                }
            }
            if times > 0 {
                let from = std::mem::replace(&mut known.told, known.state.clone());
                let to = known.state.clone();
                changes.push((device, Change::State { from, to, times }));
            }
        }
        (changes, next)
    }
}

impl Change {
    /// Type, reason and message of the event.
    fn event(&self) -> (&'static str, &'static str, String) {
        let (from, to, times) = match self {
            Self::State { from, to, times } => (from.as_str(), to, *times),
            Self::Refused {
                property,
                value,
                reason,
            } => {
                let why = if reason.is_empty() {
                    "without a reason"
                } else {
                    reason
                };
                let message = format!("desired value \"{value}\" of {property} is refused: {why}");
                return ("Warning", "DesiredRefused", message);
            }
        };
        let well = matches!(to.to_lowercase().as_str(), "online" | "ok");
        let kind = if well { "Normal" } else { "Warning" };
        let from = if from.is_empty() { "unknown" } else { from };
        let mut message = format!("state changed from {from} to {to}");
        if times > 1 {
            message.push_str(&format!(" ({times} changes since the last event)"));
        }
        (kind, "StateChanged", message)
    }
}

/// What a device refuses, as its node tells it ([`crate::ledger`]).
fn refused(status: &Value) -> BTreeMap<String, (String, String)> {
    let properties = status.pointer("/status/extensions/outpostProperties");
    let properties = properties.and_then(Value::as_object).into_iter().flatten();
    properties
        .filter(|(_, facts)| facts["sync"] == "refused")
        .take(REFUSALS_MAX)
        .map(|(name, facts)| {
            let of = |member| text(facts, member).to_owned();
            (name.clone(), (of("/refused"), of("/reason")))
        })
        .collect()
}

/// Runs until `stop`.
pub async fn run(
    store: Arc<dyn Store>,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
) -> Result<(), anyhow::Error> {
    loop {
        if let ControlFlow::Break(end) = is_over(follow(&*store, &recorder, &stop).await, &stop) {
            return end;
        }
    }
}

async fn follow(
    store: &dyn Store,
    recorder: &Recorder,
    stop: &CancellationToken,
) -> Result<(), StoreError> {
    let prefix = format!("{REGISTRY}{DEVICES_GROUP}/devicestatuses/");
    let query = ListQuery {
        prefix: prefix.clone(),
        ..ListQuery::default()
    };
    let listing = store.list(query).await?;
    let mut states = States::default();
    for entry in &listing.entries {
        let status: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        if let Some(key) = ObjectKey::parse(&entry.key) {
            states.first(key.id(), &status);
        }
    }
    let mut watcher = store.watch(&prefix, listing.revision).await?;
    loop {
        let (changes, next) = states.due(Instant::now());
        for (device, change) in changes {
            tell(store, recorder, &device, &change).await?;
        }
        let wait = clock::reached(next);
        // All may be cancelled: the watcher keeps its position.
        let events = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = wait => continue,
            events = watcher.next() => events?,
        };
        for event in events {
            let Some(key) = ObjectKey::parse(&event.key) else {
                continue;
            };
            match event.object() {
                Some(status) => states.note(&key.id(), &status),
                None => states.forget(&key.id()),
            }
        }
    }
}

async fn tell(
    store: &dyn Store,
    recorder: &Recorder,
    device: &str,
    change: &Change,
) -> Result<(), StoreError> {
    let (namespace, name) = device.split_once('/').unwrap_or_default();
    let Some(entry) = store.get(&keys::device(namespace, name)).await? else {
        return Ok(());
    };
    let object: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
    let (kind, reason, message) = change.event();
    recorder.record(&object, kind, reason, &message).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(state: &str) -> Value {
        json!({"status": {"state": state}})
    }

    #[test]
    fn a_refusal_is_told_once_with_its_reason() {
        let t0 = Instant::now();
        let mut states = States::default();
        states.first("d/a".into(), &said("online"));
        let refusing = |value: &str, reason: &str| {
            json!({"status": {"state": "online", "extensions": {"outpostProperties": {
                "rate": {"sync": "refused", "refused": value, "reason": reason},
                "level": {"sync": "acknowledged"}}}}})
        };
        states.note("d/a", &refusing("900", "too fast"));
        let (told, _) = states.due(t0);
        assert_eq!(told.len(), 1);
        assert_eq!(
            told[0].1.event(),
            (
                "Warning",
                "DesiredRefused",
                "desired value \"900\" of rate is refused: too fast".into()
            )
        );
        states.note("d/a", &refusing("900", "too fast"));
        assert_eq!(states.due(t0), (Vec::new(), None), "the same again");
        states.note("d/a", &refusing("901", ""));
        assert_eq!(states.due(t0), (Vec::new(), Some(t0 + QUIET)));
        // Taken back before it was told.
        states.note("d/a", &said("online"));
        assert_eq!(states.due(t0 + QUIET), (Vec::new(), None));
    }

    #[test]
    fn a_flapping_device_is_told_rarely_and_its_last_state_always() {
        let t0 = Instant::now();
        let mut states = States::default();
        states.first("d/a".into(), &said("online"));
        assert_eq!(states.due(t0), (Vec::new(), None), "nothing changed");
        states.note("d/a", &said("offline"));
        let (told, _) = states.due(t0);
        let change = &told[0].1;
        assert_eq!(
            change.event(),
            (
                "Warning",
                "StateChanged",
                "state changed from online to offline".into()
            )
        );
        for n in 0..99 {
            states.note("d/a", &said(if n % 2 == 0 { "online" } else { "offline" }));
            assert_eq!(states.due(t0), (Vec::new(), Some(t0 + QUIET)));
        }
        let (told, next) = states.due(t0 + QUIET);
        assert_eq!(next, None);
        let (kind, _, message) = told[0].1.event();
        assert_eq!(kind, "Normal");
        assert_eq!(
            message,
            "state changed from offline to online (99 changes since the last event)"
        );
        // A new device, and one that goes before it was told.
        states.note("d/b", &said("ok"));
        states.note("d/c", &said("ok"));
        states.forget("d/c");
        let (told, _) = states.due(t0 + QUIET);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].1.event().2, "state changed from unknown to ok");
    }
}
