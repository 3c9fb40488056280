//! The node itself: registration, status, lease.

use apiserver::{ApiError, PatchKind, Reason};
use serde_json::{Value, json};
use wire::message::Operation;

use super::{Answer, Request, Upstream, object_answer};
use crate::{
    clock,
    kube::{resources, text},
};

/// Labels that only administrators may set (NodeRestriction).
const RESTRICTED_LABEL: &str = "node-restriction.kubernetes.io/";

/// Members of metadata that the server writes.
const SERVER_MEMBERS: &[&str] = &[
    "creationTimestamp",
    "resourceVersion",
    "uid",
    "generation",
    "managedFields",
];

impl Upstream {
    pub(super) async fn register_node(&self, request: &Request<'_>, name: &str) -> Answer {
        object_answer(self.register(request, name).await)
    }

    async fn register(&self, request: &Request<'_>, name: &str) -> Result<Value, ApiError> {
        request.own_node(name)?;
        let mut node = request.document()?;
        if !node.is_object() {
            return Err(ApiError::new(Reason::BadRequest, "a node is an object"));
        }
        stamp_heartbeats(&mut node);
        let status = node.get("status").cloned().unwrap_or_else(|| json!({}));
        clean_labels(&mut node);
        node["apiVersion"] = "v1".into();
        node["kind"] = "Node".into();
        if !node["metadata"].is_object() {
            node["metadata"] = json!({});
        }
        node["metadata"]["name"] = name.into();
        if let Some(metadata) = node["metadata"].as_object_mut() {
            for member in SERVER_MEMBERS {
                metadata.remove(*member);
            }
        }
        let created = self.kube.create(&resources::nodes(), "", node).await?;
        tracing::info!(node = name, "node registered");
        // The status of a create may have been dropped, as for most kinds.
        if text(&created, "/status/nodeInfo/kubeletVersion").is_empty()
            && status.as_object().is_some_and(|s| !s.is_empty())
        {
            let body = json!({ "status": status });
            return self
                .kube
                .patch_status(&resources::nodes(), "", name, body)
                .await;
        }
        Ok(created)
    }

    pub(super) async fn query_node(&self, request: &Request<'_>, name: &str) -> Answer {
        if let Err(error) = request.own_node(name) {
            return Answer::Error(error);
        }
        match self.kube.get(&resources::nodes(), "", name).await {
            Ok(node) => Answer::Bare(node),
            Err(error) => Answer::Error(error),
        }
    }

    /// Only labels and annotations are taken (wire specification §5.1.1).
    pub(super) async fn update_node(&self, request: &Request<'_>, name: &str) -> Answer {
        let update = async {
            request.own_node(name)?;
            let mut node = request.document()?;
            clean_labels(&mut node);
            // A `null` would take all of them away, also those of administrators.
            let map = |pointer| match node.pointer(pointer) {
                Some(map) if map.is_object() => map.clone(),
                _ => json!({}),
            };
            let body = json!({"metadata": {
                "labels": map("/metadata/labels"),
                "annotations": map("/metadata/annotations"),
            }});
            self.kube
                .patch(&resources::nodes(), "", name, PatchKind::Merge, body)
                .await
        };
        match update.await {
            Ok(_) => Answer::Ok,
            Err(error) => Answer::Error(error),
        }
    }

    pub(super) async fn patch_node(&self, request: &Request<'_>, name: &str) -> Answer {
        let patch = async {
            request.own_node(name)?;
            let mut patch = request.document()?;
            stamp_heartbeats(&mut patch);
            match patch.get("status") {
                Some(status) => {
                    let body = json!({ "status": status });
                    self.kube
                        .patch_status(&resources::nodes(), "", name, body)
                        .await
                }
                None => self.kube.get(&resources::nodes(), "", name).await,
            }
        };
        object_answer(patch.await)
    }

    /// KubeEdge's older edges: a Node, or `{"UID","Status","ExtendResources"}`.
    pub(super) async fn node_status(&self, request: &Request<'_>, name: &str) -> Answer {
        let update = async {
            request.own_node(name)?;
            let document = request.document()?;
            let status = document.get("status").or_else(|| document.get("Status"));
            let body = json!({ "status": status.cloned().unwrap_or(json!({})) });
            self.kube
                .patch_status(&resources::nodes(), "", name, body)
                .await
        };
        match update.await {
            Ok(_) => Answer::Ok,
            Err(error) => Answer::Error(error),
        }
    }

    /// Leases are held in memory and written rarely: see [`crate::node::lease`].
    pub(super) async fn lease(
        &self,
        request: &Request<'_>,
        operation: &Operation,
        name: &str,
    ) -> Answer {
        let answer = async {
            request.own_node(name)?;
            if *operation == Operation::Query {
                let found = self.leases.get(&self.kube, name).await?;
                return found
                    .ok_or_else(|| ApiError::not_found("coordination.k8s.io", "leases", name));
            }
            if !matches!(operation, Operation::Insert | Operation::Update) {
                return Err(ApiError::new(
                    Reason::BadRequest,
                    "a lease is queried or renewed",
                ));
            }
            let lease = request.document()?;
            self.leases.put(&self.kube, name, &lease).await
        };
        object_answer(answer.await)
    }
}

fn clean_labels(node: &mut Value) {
    if let Some(labels) = node
        .pointer_mut("/metadata/labels")
        .and_then(Value::as_object_mut)
    {
        labels.retain(|name, _| !name.starts_with(RESTRICTED_LABEL));
    }
}

/// Our own edges report a condition when it changes and leave the time of the last heartbeat out;
/// it is the time at which the hub heard it.
fn stamp_heartbeats(object: &mut Value) {
    let conditions = object.pointer_mut("/status/conditions");
    for condition in conditions
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(condition) = condition.as_object_mut()
            && condition
                .get("lastHeartbeatTime")
                .is_none_or(Value::is_null)
        {
            condition.insert("lastHeartbeatTime".into(), clock::rfc3339_now().into());
        }
    }
}
