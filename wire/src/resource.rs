//! Resource paths, parsed once (protocol §4.2).
//!
//! On the wire a path never names the node: the hub strips `node/<n>/` before sending and takes
//! the node from the certificate when receiving. Classification is by position, never by
//! substring: a ConfigMap named `membership-x` is a ConfigMap.

use std::fmt;

/// The literal that stands for "no namespace".
pub const NULL_NAMESPACE: &str = "null";

/// Kinds of objects that travel, by their name in a path (protocol §4.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A pod.
    Pod,
    /// A pod status, as KubeEdge's older edges send it.
    PodStatus,
    /// A strategic merge patch on a pod's status.
    PodPatch,
    /// A node.
    Node,
    /// A node status, as KubeEdge's older edges send it.
    NodeStatus,
    /// A strategic merge patch on a node's status.
    NodePatch,
    /// A node's lease.
    Lease,
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
    /// A token request of a service account.
    ServiceAccountToken,
    /// An event.
    Event,
    /// A persistent volume.
    PersistentVolume,
    /// A claim on a persistent volume.
    PersistentVolumeClaim,
    /// A volume attachment.
    VolumeAttachment,
    /// A certificate signing request.
    CertificateSigningRequest,
    /// A device (v1beta1).
    Device,
    /// A device model (v1beta1).
    DeviceModel,
    /// An access policy of a service account.
    ServiceAccountAccess,
    /// A CSI volume call.
    Volume,
    /// Any other kind, by the name in the path.
    Other(String),
}

/// Names as they stand in paths, one row a kind.
const KINDS: &[(&str, Kind)] = &[
    ("pod", Kind::Pod),
    ("podstatus", Kind::PodStatus),
    ("podpatch", Kind::PodPatch),
    ("node", Kind::Node),
    ("nodestatus", Kind::NodeStatus),
    ("nodepatch", Kind::NodePatch),
    ("lease", Kind::Lease),
    ("configmap", Kind::ConfigMap),
    ("secret", Kind::Secret),
    ("serviceaccounttoken", Kind::ServiceAccountToken),
    ("event", Kind::Event),
    ("persistentvolume", Kind::PersistentVolume),
    ("persistentvolumeclaim", Kind::PersistentVolumeClaim),
    ("volumeattachment", Kind::VolumeAttachment),
    ("certificatesigningrequest", Kind::CertificateSigningRequest),
    ("device", Kind::Device),
    ("devicemodel", Kind::DeviceModel),
    ("serviceaccountaccess", Kind::ServiceAccountAccess),
    ("volume", Kind::Volume),
];

impl Kind {
    /// Never fails: an unknown name is [`Kind::Other`].
    pub fn parse(text: &str) -> Self {
        KINDS
            .iter()
            .find(|(name, _)| *name == text)
            .map_or_else(|| Self::Other(text.to_owned()), |(_, kind)| kind.clone())
    }

    /// The name in a path.
    pub fn as_str(&self) -> &str {
        if let Self::Other(name) = self {
            return name;
        }
        KINDS
            .iter()
            .find(|(_, kind)| kind == self)
            .map_or("", |(name, _)| name)
    }
}

/// A parsed resource path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResourcePath {
    /// `<ns>/<kind>/<name>`, or `<ns>/<kind>` for a collection. `namespace` is `None` for the
    /// literal `null`.
    Object {
        /// `None` for cluster-scoped objects.
        namespace: Option<String>,
        /// What it is.
        kind: Kind,
        /// `None` for a collection.
        name: Option<String>,
    },
    /// `device/<ns>/<name>/twin/<action>`
    DeviceTwin {
        /// Namespace of the device.
        namespace: String,
        /// Name of the device.
        name: String,
        /// `edge_updated` or `cloud_updated`.
        action: String,
    },
    /// `device/<ns>/<name>/state/update`
    DeviceState {
        /// Namespace of the device.
        namespace: String,
        /// Name of the device.
        name: String,
    },
    /// `membership`
    Membership,
    /// `membership/detail`
    MembershipDetail,
    /// `node`: the keepalive.
    Node,
    /// `twin`: the confirmation of a report.
    TwinConfirmation,
    /// `k8s/ca.crt`
    ClusterCa,
    /// Anything else: topics, URLs, task paths.
    Other(String),
}

impl ResourcePath {
    /// Parses by position. Never fails: what has no known shape is [`ResourcePath::Other`].
    pub fn parse(text: &str) -> Self {
        let other = || Self::Other(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return other();
        }
        match parts.as_slice() {
            ["node"] => Self::Node,
            ["twin"] => Self::TwinConfirmation,
            ["membership"] => Self::Membership,
            ["membership", "detail"] => Self::MembershipDetail,
            ["k8s", "ca.crt"] => Self::ClusterCa,
            ["device", namespace, name, "twin", action] => Self::DeviceTwin {
                namespace: (*namespace).to_owned(),
                name: (*name).to_owned(),
                action: (*action).to_owned(),
            },
            ["device", namespace, name, "state", "update"] => Self::DeviceState {
                namespace: (*namespace).to_owned(),
                name: (*name).to_owned(),
            },
            [namespace, kind] => Self::object(namespace, Kind::parse(kind), None),
            [namespace, kind, name] => Self::object(namespace, Kind::parse(kind), Some(name)),
            _ => other(),
        }
    }

    /// An object's path; the namespace `null` becomes `None`.
    pub fn object(namespace: &str, kind: Kind, name: Option<&str>) -> Self {
        Self::Object {
            namespace: (namespace != NULL_NAMESPACE).then(|| namespace.to_owned()),
            kind,
            name: name.map(ToOwned::to_owned),
        }
    }
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object {
                namespace,
                kind,
                name,
            } => {
                let namespace = namespace.as_deref().unwrap_or(NULL_NAMESPACE);
                write!(f, "{namespace}/{}", kind.as_str())?;
                name.as_ref().map_or(Ok(()), |name| write!(f, "/{name}"))
            }
            Self::DeviceTwin {
                namespace,
                name,
                action,
            } => {
                write!(f, "device/{namespace}/{name}/twin/{action}")
            }
            Self::DeviceState { namespace, name } => {
                write!(f, "device/{namespace}/{name}/state/update")
            }
            Self::Membership => f.write_str("membership"),
            Self::MembershipDetail => f.write_str("membership/detail"),
            Self::Node => f.write_str("node"),
            Self::TwinConfirmation => f.write_str("twin"),
            Self::ClusterCa => f.write_str("k8s/ca.crt"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_by_position() {
        let object = |ns, kind, name| ResourcePath::object(ns, kind, name);
        for (text, expected) in [
            ("default/pod/p1", object("default", Kind::Pod, Some("p1"))),
            (
                "null/node/edge-1",
                object("null", Kind::Node, Some("edge-1")),
            ),
            (
                "default/podstatus",
                object("default", Kind::PodStatus, None),
            ),
            (
                "default/configmap/membership-x",
                object("default", Kind::ConfigMap, Some("membership-x")),
            ),
            (
                "twin/pod/podlist-1",
                object("twin", Kind::Pod, Some("podlist-1")),
            ),
            ("membership/detail", ResourcePath::MembershipDetail),
            ("k8s/ca.crt", ResourcePath::ClusterCa),
            (
                "device/dev/twin/twin/edge_updated",
                ResourcePath::DeviceTwin {
                    namespace: "dev".into(),
                    name: "twin".into(),
                    action: "edge_updated".into(),
                },
            ),
            ("a//b", ResourcePath::Other("a//b".into())),
            ("", ResourcePath::Other(String::new())),
        ] {
            let parsed = ResourcePath::parse(text);
            assert_eq!(parsed, expected, "{text}");
            assert_eq!(parsed.to_string(), text, "{text}");
        }
    }
}
