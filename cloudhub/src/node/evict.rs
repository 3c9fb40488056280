//! Pods that have to leave their node: because of a NoExecute taint, or because the node vanished.
//!
//! A taint is somebody's word, so it is obeyed at once ([`taint`]), whether or not the node is
//! heard. Silence is not obeyed (design D14): "not heard" usually means that the link is down,
//! and the pods run on. A pod that says so is deleted after its time: by `outpost.dev/evict-after: <duration>`, or by a NoExecute toleration of
//! `node.kubernetes.io/unreachable` with `tolerationSeconds` other than the 300 that Kubernetes'
//! admission writes into every pod that says nothing. The pod keeps its name until the node has
//! ended it or somebody deletes it with force, as in Kubernetes: the node may still run it.

mod taint;

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc, time::Duration};

use apiserver::{DeleteOptions, Reason, store::StoreError};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::taint::{Taint, Toleration, leaves_at};
use crate::{
    clock,
    events::Recorder,
    follow::is_over,
    keys::{ObjectKey, REGISTRY},
    kube::{Kube, resources, text},
};

/// The annotation.
pub const EVICT_AFTER: &str = "outpost.dev/evict-after";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// `DefaultTolerationSeconds` of Kubernetes' admission.
const DEFAULT_SECS: u64 = 300;
const RETRY: Duration = Duration::from_secs(10);

/// The task.
pub struct Evictor {
    /// The API.
    pub kube: Kube,
    /// Events about pods.
    pub recorder: Arc<Recorder>,
    /// Nodes have so long to come back after a start of the hub, whatever was known of them before.
    pub grace: Duration,
}

/// What may make a pod leave.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    uid: String,
    /// After its node has been silent for so long.
    after_secs: Option<u64>,
    tolerations: Vec<Toleration>,
    bound_at: u64,
}

/// Why pods may have to leave a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Trouble {
    /// Unix seconds.
    silent_since: Option<u64>,
    taints: Vec<Taint>,
}

impl Trouble {
    fn is_none(&self) -> bool {
        self.silent_since.is_none() && self.taints.is_empty()
    }
}

/// Why a pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The seconds it asked for.
    Silent(u64),
    Taint,
}

/// Nodes that are in trouble, and all pods that may be concerned, by node and `namespace/name`.
#[derive(Debug, Default)]
struct View {
    nodes: BTreeMap<String, Trouble>,
    pods: BTreeMap<String, BTreeMap<String, Placed>>,
    /// Where each pod is.
    place: BTreeMap<String, String>,
}

impl View {
    /// Pods that leave sooner or later, and when. Silence counts from `heard_from` on.
    fn leaving(&self, heard_from: u64) -> Vec<(u64, Why, String, String)> {
        let mut found = Vec::new();
        for (node, trouble) in &self.nodes {
            for (id, pod) in self.pods.get(node).into_iter().flatten() {
                let silent = trouble.silent_since.zip(pod.after_secs);
                let silent = silent.map(|(since, secs)| {
                    let at = since.saturating_add(secs).max(heard_from);
                    (at, Why::Silent(secs))
                });
                let taint = leaves_at(&trouble.taints, &pod.tolerations, pod.bound_at);
                let taint = taint.map(|at| (at, Why::Taint));
                let first = silent.into_iter().chain(taint).min_by_key(|(at, _)| *at);
                found.extend(first.map(|(at, why)| (at, why, node.clone(), id.clone())));
            }
        }
        found
    }

    fn forget(&mut self, id: &str) {
        if let Some(node) = self.place.remove(id)
            && let Some(pods) = self.pods.get_mut(&node)
        {
            pods.remove(id);
            if pods.is_empty() {
                self.pods.remove(&node);
            }
        }
    }

    fn take_node(&mut self, key: &str, object: Option<&Value>, now: u64) {
        let Some(parsed) = ObjectKey::parse(key) else {
            return;
        };
        let before = self.nodes.remove(parsed.name).unwrap_or_default();
        let trouble = object.map(|node| Trouble {
            silent_since: unknown_since(node),
            taints: taint::taints(node, &before.taints, now),
        });
        if let Some(trouble) = trouble.filter(|trouble| !trouble.is_none()) {
            self.nodes.insert(parsed.name.to_owned(), trouble);
        }
    }

    fn take_pod(&mut self, key: &str, object: Option<&Value>) {
        let Some(parsed) = ObjectKey::parse(key) else {
            return;
        };
        let id = parsed.id();
        let was_known = self.place.contains_key(&id);
        self.forget(&id);
        let Some(pod) = object.filter(|pod| may_leave(pod)) else {
            return;
        };
        let after_secs = evict_after(pod).unwrap_or_else(|reason| {
            if !was_known {
                tracing::warn!(
                    pod = id,
                    annotation = EVICT_AFTER,
                    reason,
                    "annotation not understood; the pod is kept"
                );
            }
            None
        });
        let placed = Placed {
            uid: text(pod, "/metadata/uid").to_owned(),
            after_secs,
            tolerations: taint::tolerations(pod),
            bound_at: taint::bound_at(pod),
        };
        let node = text(pod, "/spec/nodeName").to_owned();
        self.place.insert(id.clone(), node.clone());
        self.pods.entry(node).or_default().insert(id, placed);
    }
}

/// Pods that end anyway, and mirrors of a node's own, are left alone.
fn may_leave(pod: &Value) -> bool {
    let is_mirror = pod
        .pointer("/metadata/annotations/kubernetes.io~1config.mirror")
        .is_some();
    let is_over = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
    let is_leaving = pod.pointer("/metadata/deletionTimestamp").is_some();
    !(text(pod, "/spec/nodeName").is_empty() || is_mirror || is_over || is_leaving)
}

/// Unix seconds since which the node is not heard.
fn unknown_since(node: &Value) -> Option<u64> {
    let conditions = node.pointer("/status/conditions")?.as_array()?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
    if text(ready, "/status") != "Unknown" {
        return None;
    }
    let at: jiff::Timestamp = text(ready, "/lastTransitionTime").parse().ok()?;
    u64::try_from(at.as_second()).ok()
}

/// After how long the pod wants to be deleted; the error is for people.
fn evict_after(pod: &Value) -> Result<Option<u64>, String> {
    let annotations = pod.pointer("/metadata/annotations");
    if let Some(asked) = annotations
        .and_then(|map| map.get(EVICT_AFTER))
        .and_then(Value::as_str)
    {
        let wrong = || format!("`{asked}` is no duration such as `90s` or `10m`");
        let duration: jiff::SignedDuration = asked.parse().map_err(|_| wrong())?;
        return u64::try_from(duration.as_secs())
            .map(Some)
            .map_err(|_| wrong());
    }
    let tolerations = pod.pointer("/spec/tolerations").and_then(Value::as_array);
    let asked = tolerations.into_iter().flatten().filter(|t| {
        text(t, "/key") == UNREACHABLE && matches!(text(t, "/effect"), "NoExecute" | "")
    });
    Ok(asked
        .filter_map(|t| t["tolerationSeconds"].as_i64())
        .map(|secs| u64::try_from(secs).unwrap_or(0))
        .filter(|secs| *secs != DEFAULT_SECS)
        .min())
}

impl Evictor {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), anyhow::Error> {
        let heard_from = clock::unix_secs().saturating_add(self.grace.as_secs());
        loop {
            if let ControlFlow::Break(end) = is_over(self.follow(heard_from, &stop).await, &stop) {
                return end;
            }
        }
    }

    async fn follow(&self, heard_from: u64, stop: &CancellationToken) -> Result<(), StoreError> {
        let prefix = |plural: &str| format!("{REGISTRY}core/{plural}/");
        let (objects, nodes_revision) = self.kube.list_raw(&prefix("nodes")).await?;
        let (pods, revision) = self.kube.list_raw(&prefix("pods")).await?;
        let mut view = View::default();
        for (key, object) in &objects {
            view.take_node(key, Some(object), clock::unix_secs());
        }
        for (key, object) in &pods {
            view.take_pod(key, Some(object));
        }
        drop((objects, pods));
        let store = Arc::clone(self.kube.api().store());
        let mut pod_watch = store.watch(&prefix("pods"), revision).await?;
        let mut node_watch = store.watch(&prefix("nodes"), nodes_revision).await?;
        loop {
            let now = clock::unix_secs();
            let mut next: Option<u64> = None;
            for (at, why, node, id) in view.leaving(heard_from) {
                let wait = if at > now {
                    at - now
                } else if self.evict(&view, why, &node, &id).await {
                    view.forget(&id);
                    continue;
                } else {
                    RETRY.as_secs()
                };
                next = Some(next.map_or(wait, |next| next.min(wait)));
            }
            let timer = clock::reached(next.map(|secs| Instant::now() + Duration::from_secs(secs)));
            // All branches may be cancelled: watchers keep their position.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                events = pod_watch.next() => for event in events? {
                    view.take_pod(&event.key, event.object().as_deref());
                },
                events = node_watch.next() => for event in events? {
                    view.take_node(&event.key, event.object().as_deref(), clock::unix_secs());
                },
                () = timer => {}
            }
        }
    }

    /// Deletes the pod, with a word on why; false if that is to be tried again.
    async fn evict(&self, view: &View, why: Why, node: &str, id: &str) -> bool {
        let Some(pod) = view.pods.get(node).and_then(|pods| pods.get(id)) else {
            return true;
        };
        let (namespace, name) = id.split_once('/').unwrap_or_default();
        let (severity, reason, message) = match why {
            Why::Silent(secs) => (
                "Warning",
                "NodeLost",
                format!("Node {node} is not heard; the pod asked to be deleted after {secs} s"),
            ),
            Why::Taint => (
                "Normal",
                "TaintManagerEviction",
                format!("Marking for deletion Pod {id}"),
            ),
        };
        let told = self
            .kube
            .change(&resources::pods(), namespace, name, |object| {
                let mut object = object.clone();
                if text(&object, "/metadata/uid") == pod.uid && may_leave(&object) {
                    mark(&mut object, why, &message);
                }
                Ok(object)
            })
            .await;
        if let Ok(object) = &told
            && may_leave(object)
        {
            self.recorder
                .record(object, severity, reason, &message)
                .await;
        }
        let options = DeleteOptions {
            uid: Some(pod.uid.clone()),
            ..DeleteOptions::default()
        };
        let deleted = self
            .kube
            .delete(&resources::pods(), namespace, name, options)
            .await;
        match deleted {
            Ok(_) => {
                tracing::info!(pod = id, node, reason, "pod is deleted for its node's sake");
                true
            }
            Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => true,
            Err(error) => {
                tracing::warn!(pod = id, %error, "pod could not be deleted for its node's sake");
                false
            }
        }
    }
}

/// What the pod's status says of it.
fn mark(pod: &mut Value, why: Why, message: &str) {
    match why {
        Why::Silent(_) => {
            pod["status"]["reason"] = "NodeLost".into();
            pod["status"]["message"] = message.into();
        }
        // As the taint-eviction controller words it.
        Why::Taint => {
            let condition = json!({
                "type": "DisruptionTarget", "status": "True",
                "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": clock::rfc3339_now(),
            });
            match pod["status"]["conditions"].as_array_mut() {
                Some(all) => {
                    all.retain(|c| c["type"] != "DisruptionTarget");
                    all.push(condition);
                }
                None => pod["status"]["conditions"] = json!([condition]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: &Value, tolerations: &Value) -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "annotations": annotations},
            "spec": {"nodeName": "edge-1", "tolerations": tolerations},
        })
    }

    #[test]
    fn only_who_asks_is_deleted() {
        let unreachable = |secs: Value| {
            json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": secs}])
        };
        for (annotations, tolerations, after) in [
            (json!({}), json!([]), None),
            (json!({EVICT_AFTER: "90s"}), json!([]), Some(90)),
            (
                json!({EVICT_AFTER: "10m"}),
                unreachable(json!(5)),
                Some(600),
            ),
            (json!({}), unreachable(json!(60)), Some(60)),
            (json!({}), unreachable(json!(0)), Some(0)),
            // Everybody has it.
            (json!({}), unreachable(json!(300)), None),
            // For ever.
            (json!({}), unreachable(Value::Null), None),
        ] {
            let pod = pod(&annotations, &tolerations);
            assert_eq!(evict_after(&pod), Ok(after), "{pod}");
        }
        assert!(evict_after(&pod(&json!({EVICT_AFTER: "soon"}), &json!([]))).is_err());
        assert!(evict_after(&pod(&json!({EVICT_AFTER: "-1s"}), &json!([]))).is_err());
    }

    #[test]
    fn pods_that_end_anyway_and_mirrors_are_left_alone() {
        let key = format!("{REGISTRY}core/pods/default/web");
        let mut view = View::default();
        let mut object = pod(&json!({EVICT_AFTER: "90s"}), &json!([]));
        view.take_pod(&key, Some(&object));
        assert_eq!(view.pods["edge-1"]["default/web"].after_secs, Some(90));
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        view.take_pod(&key, Some(&object));
        assert!(view.pods.is_empty() && view.place.is_empty());
        let mirror = json!({EVICT_AFTER: "90s", "kubernetes.io/config.mirror": "x"});
        view.take_pod(&key, Some(&pod(&mirror, &json!([]))));
        assert!(view.pods.is_empty());
    }

    #[test]
    fn silence_and_taints_each_have_their_time() {
        let mut view = View::default();
        let key = format!("{REGISTRY}core/pods/default/web");
        view.take_pod(&key, Some(&pod(&json!({EVICT_AFTER: "90s"}), &json!([]))));
        let node_key = format!("{REGISTRY}core/nodes/edge-1");
        let node = |status: &str, taints: Value| {
            json!({"spec": {"taints": taints}, "status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:01:00Z"}]}})
        };
        let leaving = |view: &View, heard_from| {
            let found = view
                .leaving(heard_from)
                .into_iter()
                .map(|(at, why, ..)| (at, why));
            found.collect::<Vec<_>>()
        };
        let taint = json!([{"key": "k", "effect": "NoExecute"}]);
        for (node, heard_from, expected) in [
            (node("True", json!([])), 0, vec![]),
            (node("Unknown", json!([])), 0, vec![(150, Why::Silent(90))]),
            (
                node("Unknown", json!([])),
                500,
                vec![(500, Why::Silent(90))],
            ),
            (node("True", taint.clone()), 500, vec![(70, Why::Taint)]),
            (node("Unknown", taint), 0, vec![(70, Why::Taint)]),
        ] {
            view.take_node(&node_key, Some(&node), 70);
            assert_eq!(leaving(&view, heard_from), expected, "{node}");
        }
        view.take_node(&node_key, None, 70);
        assert_eq!(leaving(&view, 0), vec![]);
    }

    #[test]
    fn a_node_is_gone_while_its_ready_is_unknown() {
        let node = |status: &str| {
            json!({"status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:01:00Z"}]}})
        };
        assert_eq!(unknown_since(&node("Unknown")), Some(60));
        assert_eq!(unknown_since(&node("True")), None);
    }
}
