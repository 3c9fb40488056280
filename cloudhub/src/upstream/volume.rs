//! Volumes whose data a node has removed, and tokens for its pods.

use apiserver::{ApiError, Reason};

use super::{Answer, Request, Upstream};
use crate::{
    kube::{resources, text},
    volumes::{self, plan::DATA_FINALIZER},
};

impl Upstream {
    /// The node says that the data of a deleted volume is gone: the volume may go too.
    pub(super) async fn volume_gone(&self, request: &Request<'_>, name: &str) -> Answer {
        let gone = async {
            let volume = self.kube.get(&resources::volumes(), "", name).await?;
            if volumes::node_of(&volume) != Some(request.node()) {
                let why = format!("its data does not lie on node '{}'", request.node());
                return Err(ApiError::forbidden("", "persistentvolumes", name, &why));
            }
            let options = request.document()?;
            if text(&options, "/preconditions/uid") != text(&volume, "/metadata/uid") {
                return Ok(());
            }
            let of = resources::volumes();
            volumes::release(&self.kube, &of, "", name, &[DATA_FINALIZER]).await
        };
        match gone.await {
            Ok(()) => Answer::Ok,
            Err(error) if error.reason == Reason::NotFound => Answer::Ok,
            Err(error) => Answer::Error(error),
        }
    }

    /// A token for a pod of the node (wire specification §5.1.3, `serviceaccounttoken`).
    pub(super) async fn issue_token(
        &self,
        request: &Request<'_>,
        namespace: &str,
        account: &str,
    ) -> Answer {
        let issued = async {
            let wish = request.document()?;
            self.accounts
                .issue_to_node(request.node(), namespace, account, &wish)
                .await
        };
        match issued.await {
            Ok(token) => Answer::Bare(token),
            Err(error) => Answer::Error(error),
        }
    }
}
