//! Events. They are never answered (wire specification §5.1.4).

use apiserver::{ApiError, PatchKind, Reason};
use serde_json::Value;
use wire::message::Operation;

use super::{Answer, Request, Upstream};
use crate::kube::{resources, text};

impl Upstream {
    pub(super) async fn event(
        &self,
        request: &Request<'_>,
        operation: &Operation,
        namespace: &str,
        name: &str,
    ) -> Answer {
        if let Err(error) = self.store_event(request, operation, namespace, name).await {
            tracing::warn!(node = %request.node(), error = %error, "event of a node not stored");
        }
        Answer::None
    }

    async fn store_event(
        &self,
        request: &Request<'_>,
        operation: &Operation,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let document = request.document()?;
        let events = resources::events();
        if *operation == Operation::Patch {
            let patch: Value = serde_json::from_str(text(&document, "/patchData"))
                .map_err(|e| ApiError::new(Reason::BadRequest, format!("patch: {e}")))?;
            let done = self
                .kube
                .patch(&events, namespace, name, PatchKind::Strategic, patch)
                .await;
            return match (done, document.get("event")) {
                // Its first occurrence never arrived.
                (Err(error), Some(event)) if error.reason == Reason::NotFound => self
                    .kube
                    .create(&events, namespace, event.clone())
                    .await
                    .map(drop),
                (done, _) => done.map(drop),
            };
        }
        let about = text(&document, "/involvedObject/kind");
        if about == "Node" && text(&document, "/involvedObject/name") != request.node() {
            let why = format!("node \"{}\" may not report about another", request.node());
            return Err(ApiError::forbidden("", "events", name, &why));
        }
        match self.kube.create(&events, namespace, document.clone()).await {
            Err(error) if error.reason == Reason::AlreadyExists => self
                .kube
                .update(&events, namespace, document)
                .await
                .map(drop),
            done => done.map(drop),
        }
    }
}
