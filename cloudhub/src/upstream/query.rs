//! Objects that a node asks for.

use apiserver::{ApiError, Reason};
use wire::resource::Kind;

use super::{Answer, Request, Upstream};
use crate::{
    downstream::index::{NeededKind, PlacedKind},
    kube::resources,
};

impl Upstream {
    pub(super) async fn query_needed(
        &self,
        request: &Request<'_>,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Answer {
        let (needed, resource) = if *kind == Kind::Secret {
            (NeededKind::Secret, resources::secrets())
        } else if *kind == Kind::PersistentVolume {
            (NeededKind::Volume, resources::volumes())
        } else if *kind == Kind::PersistentVolumeClaim {
            (NeededKind::Claim, resources::claims())
        } else {
            (NeededKind::ConfigMap, resources::configmaps())
        };
        let id = match namespace {
            "" => format!("null/{name}"),
            _ => format!("{namespace}/{name}"),
        };
        let result = if self.downstream.is_needed(request.node(), needed, &id) {
            self.kube.get(&resource, namespace, name).await
        } else {
            let why = format!(
                "no relationship found between node '{}' and this object",
                request.node()
            );
            Err(ApiError::forbidden("", &resource.plural, name, &why))
        };
        match result {
            Ok(object) => Answer::Bare(object),
            // A plain edge stores every answer as if it were the object: it gets none, asks
            // again, and is sent the object when there is one (wire specification §10.3).
            Err(error) if request.is_plain() && error.reason == Reason::NotFound => Answer::None,
            Err(error) => Answer::Error(error),
        }
    }

    pub(super) async fn query_device(
        &self,
        request: &Request<'_>,
        namespace: &str,
        name: &str,
    ) -> Answer {
        let id = format!("{namespace}/{name}");
        if !self
            .downstream
            .is_placed(request.node(), PlacedKind::Device, &id)
        {
            let why = format!("device is not placed on node '{}'", request.node());
            let group = crate::keys::DEVICES_GROUP;
            return Answer::Error(ApiError::forbidden(group, "devices", name, &why));
        }
        match self.kube.get(&resources::devices(), namespace, name).await {
            Ok(device) => Answer::Bare(device),
            Err(error) => Answer::Error(error),
        }
    }
}
