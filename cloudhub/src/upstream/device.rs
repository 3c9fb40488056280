//! Reports about devices and uploads, as plain peers send them one by one. Our own edges send them
//! in batches, which go to the ledger without coming here.

use apiserver::{ApiError, Reason};
use wire::message::Content;

use super::{Answer, Request, Upstream};
use crate::{
    clock,
    downstream::{
        index::PlacedKind,
        messages::{self, DEVICE_CONTROLLER},
    },
    kube::resources,
};

impl Upstream {
    pub(super) async fn device_report(
        &self,
        request: &Request<'_>,
        what: &str,
        namespace: &str,
        name: &str,
    ) -> Answer {
        if let Err(error) = self
            .intake
            .keep_plain(request.node(), request.message)
            .await
        {
            // Not confirmed: it comes again.
            tracing::error!(node = %request.node(), %error, "readings not stored");
            return Answer::None;
        }
        let stream = format!("{what}/{namespace}/{name}");
        match self
            .ledger
            .commit_plain(request.node(), stream, request.message)
            .await
        {
            Ok(()) => request.confirm(),
            Err(error) => {
                // Not confirmed: it comes again.
                tracing::error!(node = %request.node(), %error, "report not stored");
                Answer::None
            }
        }
    }

    pub(super) async fn upload(&self, request: &Request<'_>) -> Answer {
        let topic = &request.message.route.resource;
        if topic.is_empty() || topic.len() > 1024 {
            return Answer::Error(ApiError::new(
                Reason::BadRequest,
                "upload without a usable topic",
            ));
        }
        if let Err(error) = self
            .intake
            .keep_plain(request.node(), request.message)
            .await
        {
            tracing::error!(node = %request.node(), %error, "upload not kept");
        }
        let stream = format!("upload/{topic}");
        if let Err(error) = self
            .ledger
            .commit_plain(request.node(), stream, request.message)
            .await
        {
            tracing::error!(node = %request.node(), %error, "upload not stored");
        }
        Answer::None
    }

    /// The confirmation clears the edge's entry; the list follows as a message of its own
    /// (device plane, Appendix A).
    pub(super) async fn membership(&self, request: &Request<'_>) -> Answer {
        let mut devices = Vec::new();
        for id in self.downstream.placed(request.node(), PlacedKind::Device) {
            let (namespace, name) = id.split_once('/').unwrap_or_default();
            if let Ok(device) = self.kube.get(&resources::devices(), namespace, name).await {
                devices.push(device);
            }
        }
        request
            .session
            .notice(messages::membership_detail(&devices));
        request.confirm()
    }
}

impl Request<'_> {
    /// `OK`, group and resource `twin` (wire specification §5.1.5).
    fn confirm(&self) -> Answer {
        let id = uuid::Uuid::new_v4().to_string();
        let content = Content::string("OK");
        let mut reply = self
            .message
            .reply(id, clock::unix_millis(), DEVICE_CONTROLLER, content);
        "twin".clone_into(&mut reply.route.group);
        "twin".clone_into(&mut reply.route.resource);
        Answer::Message(Box::new(reply))
    }
}
