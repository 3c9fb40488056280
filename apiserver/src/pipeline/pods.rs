//! What only pods have: admission, binding, eviction (kube-api.md §4.4, §6).

use serde_json::{Value, json};

use super::{At, DeleteOptions, Pipeline, WriteOptions, meta};
use crate::defaults;
use crate::status::{self, ApiError, Reason};

/// What a namespace says of pods whose account says nothing.
const AUTOMOUNT: &str = "/metadata/annotations/outpost.dev~1automount-service-account-token";

impl Pipeline {
    /// Fills in what kube-apiserver's admission plugins fill in; the service account must exist.
    pub(super) async fn admit_pod(&self, namespace: &str, pod: &mut Value) -> Result<(), ApiError> {
        if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut)
            && let Some(account) = spec.get("serviceAccount").cloned()
        {
            // The older name of the same field.
            spec.entry("serviceAccountName").or_insert(account);
        }
        defaults::pod_admission(pod);
        let account = meta::text(pod, "/spec/serviceAccountName");
        let key = format!("/registry/core/serviceaccounts/{namespace}/{account}");
        let Some(found) = self.store.get(&key).await? else {
            let why = format!(
                "error looking up service account {namespace}/{account}: serviceaccount \
                 \"{account}\" not found"
            );
            return Err(ApiError::forbidden("", "pods", meta::name(pod), &why));
        };
        let account = serde_json::from_slice(&found.value).map_err(ApiError::internal)?;
        let key = format!("/registry/core/namespaces/{namespace}");
        let namespace = match self.store.get(&key).await? {
            Some(found) => serde_json::from_slice(&found.value).map_err(ApiError::internal)?,
            None => Value::Null,
        };
        let by_default = meta::text(&namespace, AUTOMOUNT) == "true";
        defaults::pod_account(pod, &account, by_default);
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
