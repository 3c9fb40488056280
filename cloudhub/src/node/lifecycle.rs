//! Conditions and taints of nodes by what the hub hears.
//!
//! A node is Ready when it says so and is heard. One that is not heard has all its conditions set
//! to Unknown, as the node controller of Kubernetes does, and gets a NoSchedule taint. Its pods are
//! **not** evicted: on an edge, "not heard" usually means that the link is down (design D14).

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use apiserver::{ApiError, Reason, store::StoreError};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::lease::Leases;
use crate::{
    clock,
    config::Session,
    events::Recorder,
    follow::is_over,
    keys::{ObjectKey, REGISTRY},
    kube::{Kube, resources, text},
    session::{Presence, Registry},
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Conditions that repel new pods while they hold, as in Kubernetes.
const PRESSURES: [(&str, &str); 3] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];
/// What kubectl and others look for.
const UNKNOWN_REASON: &str = "NodeStatusUnknown";
const UNKNOWN_MESSAGE: &str = "Kubelet stopped posting node status.";
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// How often absences are looked at, while any node is absent and not yet marked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often leases of connected nodes are renewed.
const RENEW_EVERY: Duration = Duration::from_secs(super::lease::WRITE_EVERY_SECS + 1);

/// The Ready condition as last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    True,
    False,
    Unknown,
}

impl Ready {
    fn of(node: &Value) -> Self {
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|c| c["type"] == "Ready");
        match ready.map(|c| text(c, "/status")) {
            Some("True") => Self::True,
            Some("Unknown") => Self::Unknown,
            _ => Self::False,
        }
    }

    /// The taint that goes with it.
    const fn taint(self) -> Option<&'static str> {
        match self {
            Self::True => None,
            Self::False => Some(NOT_READY),
            Self::Unknown => Some(UNREACHABLE),
        }
    }
}

/// The taints that go with a node's conditions. One that is not known repels nobody.
fn taints_for(node: &Value) -> Vec<&'static str> {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let holds = |kind: &str| {
        let mut all = conditions.into_iter().flatten();
        all.any(|c| c["type"] == kind && c["status"] == "True")
    };
    let pressures = PRESSURES.into_iter().filter(|(kind, _)| holds(kind));
    let ready = Ready::of(node).taint();
    ready
        .into_iter()
        .chain(pressures.map(|(_, taint)| taint))
        .collect()
}

/// The task.
pub struct Lifecycle {
    /// The API.
    pub kube: Kube,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Leases.
    pub leases: Arc<Leases>,
    /// Events about nodes.
    pub recorder: Arc<Recorder>,
    /// How long is too long.
    pub limits: Session,
}

impl Lifecycle {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), anyhow::Error> {
        loop {
            if let ControlFlow::Break(end) = is_over(self.follow(&stop).await, &stop) {
                return end;
            }
        }
    }

    async fn follow(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let prefix = format!("{REGISTRY}core/nodes/");
        let (objects, revision) = self.kube.list_raw(&prefix).await?;
        let mut nodes: BTreeMap<String, Ready> = BTreeMap::new();
        for (key, object) in &objects {
            if let Some(key) = ObjectKey::parse(key) {
                nodes.insert(key.name.to_owned(), Ready::of(object));
                self.keep_taint(key.name, object).await;
            }
        }
        let mut watcher = self.kube.api().store().watch(&prefix, revision).await?;
        let mut changes = self.registry.changes();
        let mut renew = tokio::time::interval(RENEW_EVERY);
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let absent = self.absent(&nodes);
            // All branches may be cancelled: nothing is taken that is not acted on.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                events = watcher.next() => for event in events? {
                    let Some(key) = ObjectKey::parse(&event.key) else { continue };
                    let Some(object) = event.object() else {
                        nodes.remove(key.name);
                        self.leases.forget(key.name);
                        continue;
                    };
                    if nodes.insert(key.name.to_owned(), Ready::of(&object)).is_none() {
                        self.renew(key.name).await;
                    }
                    self.keep_taint(key.name, &object).await;
                },
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                _ = renew.tick() => {
                    for session in self.registry.all() {
                        if nodes.contains_key(&session.node) {
                            self.renew(&session.node).await;
                        }
                    }
                }
                () = tokio::time::sleep(LOOK_EVERY), if !absent.is_empty() => {
                    for node in self.overdue(absent) {
                        tracing::warn!(node, "node is not heard; its conditions are unknown");
                        self.mark_unknown(&node).await;
                    }
                }
            }
        }
    }

    /// Nodes that are not connected and not marked yet.
    fn absent(&self, nodes: &BTreeMap<String, Ready>) -> Vec<String> {
        let now = Instant::now();
        let here = |node: &str| self.registry.presence(node, now) == Presence::Connected;
        nodes
            .iter()
            .filter(|(node, ready)| **ready != Ready::Unknown && !here(node))
            .map(|(node, _)| node.clone())
            .collect()
    }

    fn overdue(&self, absent: Vec<String>) -> Vec<String> {
        let now = Instant::now();
        let grace = Duration::from_secs(self.limits.gone_secs.min(self.limits.silent_secs));
        let gone = |node: &String| match self.registry.presence(node, now) {
            Presence::Connected => false,
            Presence::Away(since) => since >= grace,
        };
        absent.into_iter().filter(gone).collect()
    }

    async fn renew(&self, node: &str) {
        if self.registry.presence(node, Instant::now()) != Presence::Connected {
            return;
        }
        if let Err(error) = self.leases.renew(&self.kube, node).await {
            tracing::warn!(node, %error, "lease could not be renewed");
        }
    }

    async fn mark_unknown(&self, name: &str) {
        let now = clock::rfc3339_now();
        let marked = self
            .kube
            .change(&resources::nodes(), "", name, |node| {
                let mut node = node.clone();
                if self.registry.presence(name, Instant::now()) == Presence::Connected {
                    // It came back this moment.
                    return Ok(node);
                }
                set_unknown(&mut node, &now);
                let wanted = taints_for(&node);
                set_taints(&mut node, &wanted, &now);
                Ok(node)
            })
            .await;
        if let Ok(node) = &marked
            && Ready::of(node) == Ready::Unknown
        {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder
                .record(node, "Normal", "NodeNotReady", &message)
                .await;
        }
        report(name, marked);
    }

    /// Makes the taints fit the conditions.
    async fn keep_taint(&self, name: &str, node: &Value) {
        let now = clock::rfc3339_now();
        if !set_taints(&mut node.clone(), &taints_for(node), &now) {
            return;
        }
        let changed = self
            .kube
            .change(&resources::nodes(), "", name, |node| {
                let mut node = node.clone();
                let wanted = taints_for(&node);
                set_taints(&mut node, &wanted, &now);
                Ok(node)
            })
            .await;
        report(name, changed);
    }
}

fn report(node: &str, done: Result<Value, ApiError>) {
    match done {
        Ok(_) => {}
        Err(error) if error.reason == Reason::NotFound => {}
        Err(error) => tracing::warn!(node, %error, "node could not be changed"),
    }
}

fn set_unknown(node: &mut Value, now: &str) {
    if !node["status"].is_object() {
        node["status"] = json!({});
    }
    let status = &mut node["status"];
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else {
        return;
    };
    for kind in CONDITIONS {
        let at = conditions
            .iter()
            .position(|c| c["type"] == kind)
            .unwrap_or_else(|| {
                conditions.push(json!({ "type": kind, "lastHeartbeatTime": null }));
                conditions.len() - 1
            });
        let Some(condition) = conditions.get_mut(at) else {
            continue;
        };
        if condition["status"] == "Unknown" {
            continue;
        }
        condition["status"] = "Unknown".into();
        condition["reason"] = UNKNOWN_REASON.into();
        condition["message"] = UNKNOWN_MESSAGE.into();
        condition["lastTransitionTime"] = now.into();
    }
}

/// Has exactly the wanted ones of our taints; true if that changed anything.
fn set_taints(node: &mut Value, wanted: &[&str], now: &str) -> bool {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let before = node["spec"]["taints"].clone();
    let mut taints: Vec<Value> = before.as_array().cloned().unwrap_or_default();
    taints.retain(|taint| {
        let key = text(taint, "/key");
        let is_ours = matches!(key, NOT_READY | UNREACHABLE)
            || PRESSURES.iter().any(|(_, pressure)| *pressure == key);
        !is_ours || wanted.contains(&key)
    });
    for wanted in wanted {
        if !taints.iter().any(|t| text(t, "/key") == *wanted) {
            taints.push(json!({ "key": wanted, "effect": "NoSchedule", "timeAdded": now }));
        }
    }
    let same = before
        .as_array()
        .map_or(taints.is_empty(), |b| *b == taints);
    if same {
        return false;
    }
    if let Some(spec) = node["spec"].as_object_mut() {
        if taints.is_empty() {
            spec.remove("taints");
        } else {
            spec.insert("taints".into(), taints.into());
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_unknown_and_keeps_other_taints() {
        let mut node = json!({
            "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"},
                                {"key": NOT_READY, "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "EdgeReady"}]},
        });
        assert_eq!(Ready::of(&node), Ready::True);
        let settle = |node: &mut Value| {
            let wanted = taints_for(node);
            set_taints(node, &wanted, "t")
        };
        assert!(settle(&mut node));
        assert!(!settle(&mut node), "settled");
        let short = json!({"type": "MemoryPressure", "status": "True"});
        let conditions = node["status"]["conditions"].as_array_mut().unwrap();
        conditions.push(short);
        assert!(settle(&mut node));
        let taints = node["spec"]["taints"].as_array().unwrap().clone();
        assert_eq!(taints[1]["key"], "node.kubernetes.io/memory-pressure");
        set_unknown(&mut node, "t1");
        assert_eq!(Ready::of(&node), Ready::Unknown);
        assert!(
            settle(&mut node),
            "unreachable, and nothing known of its memory"
        );
        assert_eq!(node["spec"]["taints"].as_array().unwrap().len(), 2);
        let conditions = node["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 4);
        assert!(conditions.iter().all(|c| c["message"] == UNKNOWN_MESSAGE));
        let before = node.clone();
        set_unknown(&mut node, "t2");
        assert_eq!(node, before, "the time of the transition stays");
    }
}
