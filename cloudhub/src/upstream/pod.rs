//! Pods: statuses, the end of a deletion, mirror pods.

use apiserver::{ApiError, DeleteOptions, Reason};
use serde_json::{Value, json};

use super::{Answer, Request, Upstream, object_answer};
use crate::{
    downstream::{index::pod_needs, messages},
    kube::{resources, text},
};

/// Marks a mirror of a static pod.
const MIRROR: &str = "/metadata/annotations/kubernetes.io~1config.mirror";

/// What of the API a pod refers to, for people (Kubernetes: `HasAPIObjectReference`).
fn reference(namespace: &str, pod: &Value) -> Option<String> {
    if let Some(need) = pod_needs(namespace, pod).first() {
        return Some(format!(
            "secrets or configmaps: {:?} \"{}\"",
            need.kind, need.id
        ));
    }
    for member in ["serviceAccountName", "serviceAccount"] {
        let account = text(pod, &format!("/spec/{member}"));
        if !account.is_empty() {
            return Some(format!("service accounts: \"{account}\""));
        }
    }
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
    for volume in volumes.into_iter().flatten() {
        if volume.get("persistentVolumeClaim").is_some() {
            return Some("persistentvolumeclaims".to_owned());
        }
        let sources = volume.pointer("/projected/sources");
        let sources = sources.and_then(Value::as_array).into_iter().flatten();
        if sources
            .clone()
            .any(|s| s.get("serviceAccountToken").is_some())
        {
            return Some("service accounts: a projected token".to_owned());
        }
    }
    None
}

impl Upstream {
    async fn own(
        &self,
        request: &Request<'_>,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<Value, ApiError> {
        let pod = self.kube.get(&resources::pods(), namespace, name).await?;
        request.own_pod(&pod)?;
        let is = text(&pod, "/metadata/uid");
        match uid {
            Some(uid) if !uid.is_empty() && uid != is => Err(ApiError::conflict(
                "",
                "pods",
                name,
                &format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {is}"
                ),
            )),
            _ => Ok(pod),
        }
    }

    pub(super) async fn patch_pod(
        &self,
        request: &Request<'_>,
        namespace: &str,
        name: &str,
    ) -> Answer {
        let patch = async {
            let patch = request.document()?;
            let uid = text(&patch, "/metadata/uid");
            let pod = self.own(request, namespace, name, Some(uid)).await?;
            let Some(status) = patch.get("status") else {
                return Ok(pod);
            };
            // With the uid: between the look and the write another pod may take the name.
            let body =
                json!({ "metadata": { "uid": text(&pod, "/metadata/uid") }, "status": status });
            self.kube
                .patch_status(&resources::pods(), namespace, name, body)
                .await
        };
        object_answer(patch.await)
    }

    pub(super) async fn query_pod(
        &self,
        request: &Request<'_>,
        namespace: &str,
        name: &str,
    ) -> Answer {
        match self.own(request, namespace, name, None).await {
            Ok(pod) => Answer::Bare(pod),
            Err(error) => Answer::Error(error),
        }
    }

    pub(super) async fn delete_pod(
        &self,
        request: &Request<'_>,
        namespace: &str,
        name: &str,
    ) -> Answer {
        let delete = async {
            // A bare string is the uid (wire specification §5.1.2).
            let mut options = match request.message.content.text() {
                Some(uid) if !uid.trim_start().starts_with('{') => DeleteOptions {
                    uid: Some(uid),
                    ..DeleteOptions::default()
                },
                _ => DeleteOptions::parse(&request.document()?)?,
            };
            options.grace_secs = Some(0);
            let pod = self
                .own(request, namespace, name, options.uid.as_deref())
                .await?;
            // This pod and no other that takes its name meanwhile.
            options.uid = Some(text(&pod, "/metadata/uid").to_owned());
            self.kube
                .delete(&resources::pods(), namespace, name, options)
                .await
        };
        match delete.await {
            Ok(_) => Answer::Ok,
            // Gone, or made anew: what the node had is no more.
            Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => Answer::Ok,
            Err(error) => Answer::Error(error),
        }
    }

    pub(super) async fn create_mirror(&self, request: &Request<'_>, namespace: &str) -> Answer {
        let create = async {
            let mut pod = request.document()?;
            request.own_pod(&pod)?;
            if text(&pod, MIRROR).is_empty() {
                let why = format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"{}\" can \
                     only create mirror pods",
                    request.node()
                );
                return Err(ApiError::forbidden(
                    "",
                    "pods",
                    text(&pod, "/metadata/name"),
                    &why,
                ));
            }
            // Else a node could make a pod that refers to any Secret, and then ask for that; or one
            // of any ServiceAccount, and then ask for its token.
            if let Some(what) = reference(namespace, &pod) {
                let why = format!("mirror pods cannot reference {what}");
                let name = text(&pod, "/metadata/name");
                return Err(ApiError::forbidden("", "pods", name, &why));
            }
            self.own_by_node(request.node(), &mut pod).await?;
            self.kube.create(&resources::pods(), namespace, pod).await
        };
        object_answer(create.await)
    }

    /// A mirror belongs to its node (Kubernetes' NodeRestriction asks the same), and to nobody else
    /// whatever the node wrote.
    async fn own_by_node(&self, node: &str, pod: &mut Value) -> Result<(), ApiError> {
        let owner = self.kube.get(&resources::nodes(), "", node).await?;
        if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert(
                "ownerReferences".to_owned(),
                json!([{
                    "apiVersion": "v1", "kind": "Node", "name": node,
                    "uid": text(&owner, "/metadata/uid"), "controller": true,
                }]),
            );
            metadata.remove("finalizers");
        }
        Ok(())
    }

    /// KubeEdge's older edges: one `{"UID","Name","Status"}` or a list of them.
    pub(super) async fn pod_status(
        &self,
        request: &Request<'_>,
        namespace: &str,
        name: &str,
    ) -> Answer {
        let document = match request.document() {
            Ok(document) => document,
            Err(error) => return Answer::Error(error),
        };
        let reports = document
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![document]);
        for report in reports {
            let name = if name.is_empty() {
                text(&report, "/Name")
            } else {
                name
            };
            let uid = text(&report, "/UID");
            let update = async {
                let pod = self.own(request, namespace, name, Some(uid)).await?;
                let uid = text(&pod, "/metadata/uid");
                let body = json!({ "metadata": { "uid": uid }, "status": report.get("Status") });
                self.kube
                    .patch_status(&resources::pods(), namespace, name, body)
                    .await
            };
            match update.await {
                Ok(_) => {}
                Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => {
                    // Unknown here: the node is told to remove it.
                    let path = format!("{namespace}/pod/{name}");
                    let (key, message) = messages::orphan(&path, uid);
                    request.session.offer(key, message);
                }
                Err(error) => return Answer::Error(error),
            }
        }
        Answer::Ok
    }
}
