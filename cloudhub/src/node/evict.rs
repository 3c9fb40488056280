//! Pods of a node that vanished (design D14). By default nothing happens to them: "not heard"
//! usually means that the link is down, and the pods run on. A pod that says so is deleted after
//! its time: by `outpost.dev/evict-after: <duration>`, or by a NoExecute toleration of
//! `node.kubernetes.io/unreachable` with `tolerationSeconds` other than the 300 that Kubernetes'
//! admission writes into every pod that says nothing. The pod keeps its name until the node has
//! ended it or somebody deletes it with force, as in Kubernetes: the node may still run it.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc, time::Duration};

use apiserver::{DeleteOptions, Reason, store::StoreError};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

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

#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaving {
    node: String,
    uid: String,
    after_secs: u64,
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
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(self.grace) => {}
        }
        loop {
            if let ControlFlow::Break(end) = is_over(self.follow(&stop).await, &stop) {
                return end;
            }
        }
    }

    async fn follow(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let prefix = |plural: &str| format!("{REGISTRY}core/{plural}/");
        let (objects, nodes_revision) = self.kube.list_raw(&prefix("nodes")).await?;
        let (pods, revision) = self.kube.list_raw(&prefix("pods")).await?;
        let mut gone: BTreeMap<String, u64> = BTreeMap::new();
        let mut leaving: BTreeMap<String, Leaving> = BTreeMap::new();
        for (key, object) in &objects {
            take_node(&mut gone, key, Some(object));
        }
        for (key, object) in &pods {
            take_pod(&mut leaving, key, Some(object));
        }
        let store = Arc::clone(self.kube.api().store());
        let mut pod_watch = store.watch(&prefix("pods"), revision).await?;
        let mut node_watch = store.watch(&prefix("nodes"), nodes_revision).await?;
        loop {
            let now = clock::unix_secs();
            let mut next: Option<u64> = None;
            for (id, pod) in leaving.clone() {
                let Some(since) = gone.get(&pod.node) else {
                    continue;
                };
                let away = now.saturating_sub(*since);
                if away < pod.after_secs {
                    let left = pod.after_secs - away;
                    next = Some(next.map_or(left, |next| next.min(left)));
                } else if self.evict(&id, &pod).await {
                    leaving.remove(&id);
                } else {
                    next = Some(RETRY.as_secs());
                }
            }
            let timer = async {
                match next {
                    Some(secs) => tokio::time::sleep(Duration::from_secs(secs)).await,
                    None => std::future::pending().await,
                }
            };
            // All branches may be cancelled: watchers keep their position.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                events = pod_watch.next() => for event in events? {
                    take_pod(&mut leaving, &event.key, event.object().as_deref());
                },
                events = node_watch.next() => for event in events? {
                    take_node(&mut gone, &event.key, event.object().as_deref());
                },
                () = timer => {}
            }
        }
    }

    /// Deletes the pod, with a word on why; false if that is to be tried again.
    async fn evict(&self, id: &str, pod: &Leaving) -> bool {
        let (namespace, name) = id.split_once('/').unwrap_or_default();
        let message = format!(
            "Node {} is not heard; the pod asked to be deleted after {} s",
            pod.node, pod.after_secs
        );
        let told = self
            .kube
            .change(&resources::pods(), namespace, name, |object| {
                let mut object = object.clone();
                if text(&object, "/metadata/uid") == pod.uid {
                    object["status"]["reason"] = "NodeLost".into();
                    object["status"]["message"] = message.as_str().into();
                }
                Ok(object)
            })
            .await;
        if let Ok(object) = &told {
            self.recorder
                .record(object, "Warning", "NodeLost", &message)
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
                tracing::info!(pod = id, node = %pod.node, "pod of a node that is not heard is deleted");
                true
            }
            Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => true,
            Err(error) => {
                tracing::warn!(pod = id, %error, "pod of a node that is not heard could not be deleted");
                false
            }
        }
    }
}

fn take_node(gone: &mut BTreeMap<String, u64>, key: &str, object: Option<&Value>) {
    let Some(parsed) = ObjectKey::parse(key) else {
        return;
    };
    match object.and_then(unknown_since) {
        Some(since) => gone.insert(parsed.name.to_owned(), since),
        None => gone.remove(parsed.name),
    };
}

fn take_pod(leaving: &mut BTreeMap<String, Leaving>, key: &str, object: Option<&Value>) {
    let Some(parsed) = ObjectKey::parse(key) else {
        return;
    };
    let id = parsed.id();
    let wants = object.and_then(|pod| {
        let node = text(pod, "/spec/nodeName");
        let is_mirror = pod
            .pointer("/metadata/annotations/kubernetes.io~1config.mirror")
            .is_some();
        let is_over = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        let is_leaving = pod.pointer("/metadata/deletionTimestamp").is_some();
        if node.is_empty() || is_mirror || is_over || is_leaving {
            return None;
        }
        let after_secs = match evict_after(pod) {
            Ok(after) => after?,
            Err(reason) => {
                if !leaving.contains_key(&id) {
                    tracing::warn!(
                        pod = id,
                        annotation = EVICT_AFTER,
                        reason,
                        "annotation not understood; the pod is kept"
                    );
                }
                return None;
            }
        };
        Some(Leaving {
            node: node.to_owned(),
            uid: text(pod, "/metadata/uid").to_owned(),
            after_secs,
        })
    });
    match wants {
        Some(wants) => leaving.insert(id, wants),
        None => leaving.remove(&id),
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
        let mut leaving = BTreeMap::new();
        let mut object = pod(&json!({EVICT_AFTER: "90s"}), &json!([]));
        take_pod(&mut leaving, &key, Some(&object));
        assert_eq!(leaving["default/web"].after_secs, 90);
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        take_pod(&mut leaving, &key, Some(&object));
        assert!(leaving.is_empty());
        let mirror = json!({EVICT_AFTER: "90s", "kubernetes.io/config.mirror": "x"});
        take_pod(&mut leaving, &key, Some(&pod(&mirror, &json!([]))));
        assert!(leaving.is_empty());
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
