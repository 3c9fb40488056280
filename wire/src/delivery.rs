//! How a message must be carried, decided once and for every kind.

use crate::message::{Message, Operation};
use crate::resource::{Kind, ResourcePath};

/// What the sender owes the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Kept until the peer acknowledged it by id, sent again otherwise.
    Acked,
    /// Only the newest value per object matters; kept until answered.
    Latest,
    /// Sent once if the link is up.
    BestEffort,
}

/// Upstream (edge → cloud) delivery class. No wildcard arm on our own kinds: a new kind does not
/// compile until somebody decides.
pub fn upstream(path: &ResourcePath) -> Delivery {
    match path {
        ResourcePath::DeviceTwin { .. } | ResourcePath::DeviceState { .. } => Delivery::Acked,
        ResourcePath::Object { kind, .. } => of_kind(kind),
        ResourcePath::Membership
        | ResourcePath::MembershipDetail
        | ResourcePath::Node
        | ResourcePath::TwinConfirmation
        | ResourcePath::ClusterCa => Delivery::BestEffort,
        // Topics of uploads: what a device published at QoS 1 must arrive.
        ResourcePath::Other(_) => Delivery::Acked,
    }
}

fn of_kind(kind: &Kind) -> Delivery {
    match kind {
        Kind::PodStatus | Kind::PodPatch | Kind::NodeStatus | Kind::NodePatch | Kind::Node => {
            Delivery::Latest
        }
        Kind::Lease | Kind::Event => Delivery::BestEffort,
        Kind::Pod
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::ServiceAccountToken
        | Kind::PersistentVolume
        | Kind::PersistentVolumeClaim
        | Kind::VolumeAttachment
        | Kind::CertificateSigningRequest
        | Kind::Device
        | Kind::DeviceModel
        | Kind::ServiceAccountAccess
        | Kind::Volume
        | Kind::Other(_) => Delivery::Acked,
    }
}

/// Whether a plain KubeEdge edge acknowledges this downstream message: pushes of objects in group
/// `resource` are; answers, `membership` and group `user` are not (protocol §6.1).
pub fn downstream_is_acked(message: &Message) -> bool {
    let push = matches!(
        message.route.operation(),
        Operation::Insert | Operation::Update | Operation::Delete
    );
    push && message.header.parent_id.is_empty()
        && message.route.group == "resource"
        && matches!(
            ResourcePath::parse(&message.route.resource),
            ResourcePath::Object { .. }
        )
}
