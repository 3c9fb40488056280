//! Events. They are never answered (wire specification §5.1.4).

use apiserver::{ApiError, PatchKind, Reason};
use serde_json::Value;
use wire::message::Operation;

use super::{Answer, Request, Upstream};
use crate::{
    downstream::index::PlacedKind,
    kube::{resources, text},
};

pub(super) fn not_stored(request: &Request<'_>, error: &ApiError) {
    tracing::warn!(node = %request.node(), %error, "event of a node not stored");
}

impl Upstream {
    pub(super) async fn event(
        &self,
        request: &Request<'_>,
        operation: &Operation,
        namespace: &str,
        name: &str,
    ) -> Answer {
        if let Err(error) = self.store_event(request, operation, namespace, name).await {
            not_stored(request, &error);
        }
        Answer::None
    }

    pub(super) async fn store_event(
        &self,
        request: &Request<'_>,
        operation: &Operation,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let document = request.document()?;
        let events = resources::events();
        // A create or update goes by the name in the event, not by the path's.
        let target = if *operation == Operation::Patch {
            name
        } else {
            text(&document, "/metadata/name")
        };
        match self.kube.get(&events, namespace, target).await {
            Ok(stored) => self.own_event(request, &stored).await?,
            Err(error) if error.reason == Reason::NotFound => {}
            Err(error) => return Err(error),
        }
        if *operation == Operation::Patch {
            let patch: Value = serde_json::from_str(text(&document, "/patchData"))
                .map_err(|e| ApiError::new(Reason::BadRequest, format!("patch: {e}")))?;
            if patch.get("involvedObject").is_some() {
                self.own_event(request, &patch).await?;
            }
            let done = self
                .kube
                .patch(&events, namespace, name, PatchKind::Strategic, patch)
                .await;
            return match (done, document.get("event")) {
                // Its first occurrence never arrived.
                (Err(error), Some(event)) if error.reason == Reason::NotFound => {
                    self.own_event(request, event).await?;
                    self.kube
                        .create(&events, namespace, event.clone())
                        .await
                        .map(drop)
                }
                (done, _) => done.map(drop),
            };
        }
        self.own_event(request, &document).await?;
        match self.kube.create(&events, namespace, document.clone()).await {
            Err(error) if error.reason == Reason::AlreadyExists => self
                .kube
                .update(&events, namespace, document)
                .await
                .map(drop),
            done => done.map(drop),
        }
    }

    /// The event must be about the node, or about a pod of it or one that is gone: a node neither
    /// speaks for others nor overwrites what others said.
    async fn own_event(&self, request: &Request<'_>, event: &Value) -> Result<(), ApiError> {
        let about = |member| text(event, &format!("/involvedObject/{member}"));
        let name = about("name");
        let is_own = match about("kind") {
            "Node" => name == request.node(),
            "Pod" => {
                let pod = self
                    .kube
                    .get(&resources::pods(), about("namespace"), name)
                    .await;
                match pod {
                    Ok(pod) => {
                        // Another pod of that name has taken the place of the node's.
                        let uid = about("uid");
                        let is_other = !uid.is_empty() && uid != text(&pod, "/metadata/uid");
                        is_other || request.own_pod(&pod).is_ok()
                    }
                    Err(error) if error.reason == Reason::NotFound => true,
                    Err(error) => return Err(error),
                }
            }
            "Device" => {
                let id = format!("{}/{name}", about("namespace"));
                self.downstream
                    .is_placed(request.node(), PlacedKind::Device, &id)
            }
            _ => false,
        };
        if is_own {
            return Ok(());
        }
        let why = format!("node \"{}\" may not report about another", request.node());
        Err(ApiError::forbidden(
            "",
            "events",
            text(event, "/metadata/name"),
            &why,
        ))
    }
}
