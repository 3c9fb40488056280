//! Binds pods without a node to a Ready one.
//!
//! Looks at nodeSelector, required node affinity by label expressions, `spec.unschedulable`, taints,
//! readiness and requests, and spreads by the number of pods. Woken by changes of pods and nodes only.

mod fit;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use apiserver::{
    ApiError, Reason,
    store::{Event, StoreError},
};
pub(crate) use fit::fits_volume;
use fit::{Load, NodeFacts, choose};
use requests::Requests;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    events::Recorder,
    follow::is_over,
    keys::{ObjectKey, REGISTRY},
    kube::{Kube, resources, text},
    volumes::{Binder, Refusal},
};

/// Pause after a failure of the store before the pods that wait are looked at again.
const RETRY: Duration = Duration::from_secs(5);

/// The task.
pub struct Scheduler {
    kube: Kube,
    binder: Binder,
    recorder: Arc<Recorder>,
    nodes: BTreeMap<String, NodeFacts>,
    /// Node and requests of each bound pod that is not over.
    bound: BTreeMap<String, (String, Requests)>,
    waiting: BTreeSet<String>,
    /// Something changed that may let a pod be placed.
    dirty: bool,
    /// A pod could not be read or written; no change will tell when it can be again.
    again_at: Option<Instant>,
    /// Why each pod waits; told once.
    told: BTreeMap<String, String>,
}

impl Scheduler {
    /// Puts the parts together.
    pub fn new(kube: Kube, recorder: Arc<Recorder>) -> Self {
        Self {
            binder: Binder::new(kube.clone()),
            kube,
            recorder,
            nodes: BTreeMap::new(),
            bound: BTreeMap::new(),
            waiting: BTreeSet::new(),
            dirty: true,
            again_at: None,
            told: BTreeMap::new(),
        }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), anyhow::Error> {
        loop {
            if let ControlFlow::Break(end) = is_over(self.follow(&stop).await, &stop) {
                return end;
            }
        }
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        let prefix = |plural: &str| format!("{REGISTRY}core/{plural}/");
        let (nodes, nodes_revision) = self.kube.list_raw(&prefix("nodes")).await?;
        let (pods, revision) = self.kube.list_raw(&prefix("pods")).await?;
        self.nodes.clear();
        self.bound.clear();
        self.waiting.clear();
        for (key, object) in &nodes {
            self.take(key, Some(object));
        }
        for (key, object) in &pods {
            self.take(key, Some(object));
        }
        let store = Arc::clone(self.kube.api().store());
        let mut pod_watch = store.watch(&prefix("pods"), revision).await?;
        let mut node_watch = store.watch(&prefix("nodes"), nodes_revision).await?;
        let mut claim_watch = store
            .watch(&prefix("persistentvolumeclaims"), revision)
            .await?;
        let mut volume_watch = store.watch(&prefix("persistentvolumes"), revision).await?;
        self.dirty = true;
        loop {
            if std::mem::take(&mut self.dirty) {
                self.schedule().await;
            }
            let again_at = self.again_at;
            let again = clock::reached(again_at);
            // All branches may be cancelled: watchers keep their position.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = again => {
                    self.again_at = None;
                    self.dirty = true;
                }
                events = pod_watch.next() => self.take_all(&events?),
                events = node_watch.next() => self.take_all(&events?),
                // What a pod waits for may be a claim, or the volume of one.
                events = claim_watch.next() => self.dirty |= !events?.is_empty(),
                events = volume_watch.next() => self.dirty |= !events?.is_empty(),
            }
        }
    }

    fn take_all(&mut self, events: &[Arc<Event>]) {
        for event in events {
            self.take(&event.key, event.object().as_deref());
        }
    }

    fn take(&mut self, key: &str, object: Option<&Value>) {
        let Some(parsed) = ObjectKey::parse(key) else {
            return;
        };
        if parsed.plural == "nodes" {
            let now = object.map(NodeFacts::of);
            self.dirty |= now.as_ref() != self.nodes.get(parsed.name);
            match now {
                Some(facts) => self.nodes.insert(parsed.name.to_owned(), facts),
                None => self.nodes.remove(parsed.name),
            };
            return;
        }
        let id = parsed.id();
        let over = |pod: &Value| matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        let node = object
            .map_or("", |pod| text(pod, "/spec/nodeName"))
            .to_owned();
        if node.is_empty() || object.is_none_or(over) {
            // Its place may be what another pod waits for.
            self.dirty |= self.bound.remove(&id).is_some();
        } else {
            let asked = object.map(Requests::of).unwrap_or_default();
            self.bound.insert(id.clone(), (node.clone(), asked));
        }
        let waits = object.is_some_and(|pod| {
            node.is_empty()
                && !over(pod)
                && pod.pointer("/metadata/deletionTimestamp").is_none()
                && pod.pointer("/spec/schedulingGates/0").is_none()
                && matches!(text(pod, "/spec/schedulerName"), "" | "default-scheduler")
        });
        if waits {
            self.dirty |= self.waiting.insert(id);
        } else {
            self.waiting.remove(&id);
            self.told.remove(&id);
        }
    }

    async fn schedule(&mut self) {
        for id in self.waiting.clone() {
            let (namespace, name) = id.split_once('/').unwrap_or_default();
            let pod = match self.kube.get(&resources::pods(), namespace, name).await {
                Ok(pod) => pod,
                Err(error) => {
                    self.failed(&id, &error);
                    continue;
                }
            };
            if !text(&pod, "/spec/nodeName").is_empty() {
                continue;
            }
            let mut loads: BTreeMap<&str, Load> = BTreeMap::new();
            for (node, asked) in self.bound.values() {
                let load = loads.entry(node.as_str()).or_default();
                load.pods += 1;
                load.requests.add(asked);
            }
            let wishes = match self.binder.wishes(&pod).await {
                Ok(wishes) => wishes,
                Err(refusal) => {
                    self.refused(&id, &pod, &refusal).await;
                    continue;
                }
            };
            match choose(&pod, &self.nodes, &loads, &wishes) {
                Ok(node) => {
                    let node = node.to_owned();
                    match self.binder.bind_for(&pod, &node).await {
                        Ok(()) => self.bind(&id, &pod, &node).await,
                        Err(refusal) => self.refused(&id, &pod, &refusal).await,
                    }
                }
                Err(why) => self.tell(&id, &pod, why).await,
            }
        }
    }

    /// A claim keeps the pod from being placed.
    async fn refused(&mut self, id: &str, pod: &Value, refusal: &Refusal) {
        match refusal {
            Refusal::Waits(why) => {
                let nodes = self.nodes.len();
                let why = format!("0/{nodes} nodes are available: {why}.");
                self.tell(id, pod, why).await;
            }
            Refusal::Api(error) => self.failed(id, error),
        }
    }

    /// Something could not be read or written. Where another writer was faster, or the object is
    /// gone, that is a change, and wakes the scheduler; anything else is tried again.
    fn failed(&mut self, id: &str, error: &ApiError) {
        if matches!(error.reason, Reason::NotFound | Reason::Conflict) {
            tracing::debug!(pod = id, %error, "pod not placed; it changed meanwhile");
            return;
        }
        tracing::warn!(pod = id, %error, "pod not placed; tried again");
        self.again_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    async fn bind(&mut self, id: &str, pod: &Value, node: &str) {
        let (namespace, name) = id.split_once('/').unwrap_or_default();
        let now = clock::rfc3339_now();
        let bound = self
            .kube
            .change(&resources::pods(), namespace, name, |pod| {
                if !text(pod, "/spec/nodeName").is_empty() {
                    return Err(ApiError::conflict(
                        "",
                        "pods/binding",
                        name,
                        "already assigned",
                    ));
                }
                let mut pod = pod.clone();
                pod["spec"]["nodeName"] = node.into();
                set_scheduled(
                    &mut pod,
                    json!({
                        "type": "PodScheduled", "status": "True",
                        "lastProbeTime": null, "lastTransitionTime": now,
                    }),
                );
                Ok(pod)
            })
            .await;
        match bound {
            Ok(_) => {
                // The watch will say so too; the next pod of this round must know already.
                let place = (node.to_owned(), Requests::of(pod));
                self.bound.insert(id.to_owned(), place);
                self.waiting.remove(id);
                self.told.remove(id);
                let message = format!("Successfully assigned {id} to {node}");
                self.recorder
                    .record(pod, "Normal", "Scheduled", &message)
                    .await;
            }
            Err(error) => self.failed(id, &error),
        }
    }

    /// Says why a pod waits, when the reason is new.
    async fn tell(&mut self, id: &str, pod: &Value, why: String) {
        if self.told.get(id) == Some(&why) {
            return;
        }
        let (namespace, name) = id.split_once('/').unwrap_or_default();
        let now = clock::rfc3339_now();
        let told = self
            .kube
            .change(&resources::pods(), namespace, name, |pod| {
                let mut pod = pod.clone();
                set_scheduled(
                    &mut pod,
                    json!({
                        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                        "message": why, "lastProbeTime": null, "lastTransitionTime": now,
                    }),
                );
                Ok(pod)
            })
            .await;
        if let Err(error) = told {
            tracing::debug!(pod = id, %error, "condition not written");
        }
        self.recorder
            .record(pod, "Warning", "FailedScheduling", &why)
            .await;
        self.told.insert(id.to_owned(), why);
    }
}

fn set_scheduled(pod: &mut Value, mut condition: Value) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let status = &mut pod["status"];
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else {
        return;
    };
    if let Some(old) = conditions.iter().find(|c| c["type"] == condition["type"])
        && old["status"] == condition["status"]
    {
        condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
    }
    conditions.retain(|c| c["type"] != condition["type"]);
    conditions.push(condition);
}
