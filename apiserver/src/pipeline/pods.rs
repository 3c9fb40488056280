//! What only pods have: admission, binding, eviction (kube-api.md §4.4, §6).

use serde_json::{Value, json};

use super::{At, DeleteOptions, Pipeline, WriteOptions, meta};
use crate::status::{self, ApiError, Reason};

/// How long a pod stays on a node that does not answer, if it says nothing itself
/// (admission plugin DefaultTolerationSeconds).
const UNREACHABLE_SECS: u32 = 300;

impl Pipeline {
    /// A new pod has run nowhere.
    pub(super) fn begin_pod(object: &mut Value) {
        let qos = object
            .pointer("/status/qosClass")
            .cloned()
            .unwrap_or_else(|| qos_class(object).into());
        object["status"] = json!({"phase": "Pending", "qosClass": qos});
    }

    /// Fills in what kube-apiserver's admission plugins fill in.
    pub(super) async fn admit_pod(&self, namespace: &str, pod: &mut Value) -> Result<(), ApiError> {
        let name = meta::name(pod).to_owned();
        let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
            return Ok(());
        };
        let account = spec
            .get("serviceAccountName")
            .or_else(|| spec.get("serviceAccount"))
            .and_then(Value::as_str)
            .filter(|s| !s.is_empty())
            .unwrap_or("default")
            .to_owned();
        spec.insert("serviceAccountName".into(), account.clone().into());
        spec.insert("serviceAccount".into(), account.clone().into());
        spec.entry("enableServiceLinks").or_insert(true.into());
        spec.entry("priority").or_insert(0.into());
        spec.entry("preemptionPolicy")
            .or_insert("PreemptLowerPriority".into());
        tolerate_lost_nodes(spec);
        let key = format!("/registry/core/serviceaccounts/{namespace}/{account}");
        if self.store.get(&key).await?.is_none() {
            let why = format!(
                "error looking up service account {namespace}/{account}: serviceaccount \
                 \"{account}\" not found"
            );
            return Err(ApiError::forbidden("", "pods", &name, &why));
        }
        Ok(())
    }

    /// POST pods/x/binding.
    pub(crate) async fn bind(
        &self,
        at: At<'_>,
        binding: &Value,
        options: WriteOptions,
    ) -> Result<Value, ApiError> {
        let node = meta::text(binding, "/target/name").to_owned();
        let now = meta::rfc3339(self.now());
        if node.is_empty() {
            return Err(ApiError::invalid_field(
                "",
                "Binding",
                at.name,
                "FieldValueRequired",
                "target.name",
                "Required value",
            ));
        }
        let said_uid = meta::uid(binding).to_owned();
        self.change(at, options, |pod| {
            let bound = meta::text(pod, "/spec/nodeName");
            if !bound.is_empty() {
                let why = format!("pod {} is already assigned to node \"{bound}\"", at.name);
                return Err(ApiError::conflict("", "pods/binding", at.name, &why));
            }
            if meta::is_terminating(pod) {
                let why = format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    at.name
                );
                return Err(ApiError::conflict("", "pods/binding", at.name, &why));
            }
            if !said_uid.is_empty() && said_uid != meta::uid(pod) {
                return Err(uid_differs(&said_uid, meta::uid(pod)));
            }
            let mut pod = pod.clone();
            pod["spec"]["nodeName"] = node.clone().into();
            set_condition(
                &mut pod,
                json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
                       "lastTransitionTime": now}),
            );
            Ok(pod)
        })
        .await?;
        Ok(status::created())
    }

    /// POST pods/x/eviction. Disruption budgets are not served, so nothing blocks it.
    pub(crate) async fn evict(&self, at: At<'_>, eviction: &Value) -> Result<Value, ApiError> {
        let said = meta::name(eviction);
        if !said.is_empty() && said != at.name {
            return Err(ApiError::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let options = DeleteOptions::parse(eviction.get("deleteOptions").unwrap_or(&Value::Null))?;
        self.delete(at, options).await?;
        Ok(status::created())
    }
}

fn uid_differs(said: &str, is: &str) -> ApiError {
    ApiError::new(
        Reason::Conflict,
        format!("Precondition failed: UID in precondition: {said}, UID in object meta: {is}"),
    )
}

/// Replaces the condition of that type, or adds it.
fn set_condition(object: &mut Value, condition: Value) {
    let status = &mut object["status"];
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.retain(|c| c["type"] != condition["type"]);
        conditions.push(condition);
    }
}

fn tolerate_lost_nodes(spec: &mut serde_json::Map<String, Value>) {
    let list = spec.entry("tolerations").or_insert(json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let Some(tolerations) = list.as_array_mut() else {
        return;
    };
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = tolerations.iter().any(|t| {
            let has_key = t["key"] == key || meta::text(t, "/key").is_empty();
            has_key && matches!(meta::text(t, "/effect"), "" | "NoExecute")
        });
        if !tolerated {
            tolerations.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                                    "tolerationSeconds": UNREACHABLE_SECS}),
            );
        }
    }
}

/// Guaranteed: every container has equal requests and limits of cpu and memory. BestEffort: none
/// has any. Burstable: the rest.
fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in ["/spec/containers", "/spec/initContainers"] {
        let containers = pod.pointer(list).and_then(Value::as_array);
        for container in containers.into_iter().flatten() {
            for resource in ["cpu", "memory"] {
                let limit = &container["resources"]["limits"][resource];
                let request = &container["resources"]["requests"][resource];
                any |= !limit.is_null() || !request.is_null();
                guaranteed &= !limit.is_null() && (request.is_null() || request == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
