//! The node's MQTT topics, parsed by levels and formatted in one place.
//!
//! Source of every name: KubeEdge's device plane, `edge/pkg/devicetwin/dtcommon/common.go` and
//! `edge/pkg/eventbus/mqtt`. A device id is two levels, `<namespace>/<name>`; topics are split by
//! levels and never searched by substring, so a namespace called `dev` works.

use std::fmt;

/// Prefix of everything about one device.
const DEVICE: [&str; 3] = ["$hw", "events", "device"];
/// Prefix of everything about the node.
const NODE: [&str; 3] = ["$hw", "events", "node"];

/// The filters that cover every topic [`parse`] understands: what a client of an external broker
/// subscribes to (QoS 1), in KubeEdge's order.
pub const FILTERS: [&str; 6] = [
    "$hw/events/upload/#",
    "$hw/events/device/+/+/state/update",
    "$hw/events/device/+/+/twin/+",
    "$hw/events/node/+/membership/get",
    "SYS/dis/upload_records",
    "+/user/#",
];

/// A device: namespace and name, each one topic level.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceRef {
    /// Kubernetes namespace of the Device object.
    pub namespace: String,
    /// Name of the Device object.
    pub name: String,
}

impl DeviceRef {
    /// A reference from its two parts; `None` if a part cannot be a topic level.
    pub fn new(namespace: &str, name: &str) -> Option<Self> {
        (is_level(namespace) && is_level(name)).then(|| Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Parses `<namespace>/<name>`, the device id of every KubeEdge message.
    pub fn parse(id: &str) -> Option<Self> {
        let (namespace, name) = id.split_once('/')?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for DeviceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is asked of a device's twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TwinAction {
    /// `twin/update`: a device or a local program reports or sets values.
    Update,
    /// `twin/get`: asks for the whole twin.
    Get,
    /// `twin/cloud_updated`: the cloud's desired values. Not for network clients.
    CloudUpdated,
}

/// A publish the runtime acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// `$hw/events/device/<ns>/<name>/twin/{update,get,cloud_updated}`
    DeviceTwin {
        /// The device.
        device: DeviceRef,
        /// What is asked.
        action: TwinAction,
    },
    /// `$hw/events/device/<ns>/<name>/state/update`
    DeviceState {
        /// The device.
        device: DeviceRef,
    },
    /// `$hw/events/node/<node>/membership/get`; the node level is not checked (as in KubeEdge).
    MembershipGet {
        /// The node named in the request.
        node: String,
    },
    /// Raw bytes for the cloud's router.
    Upload {
        /// The topic, verbatim.
        topic: String,
    },
}

impl Inbound {
    /// Whether a network client may send this. Only `cloud_updated` is refused: any client could
    /// otherwise speak as the cloud.
    pub fn is_open_to_clients(&self) -> bool {
        match self {
            Self::DeviceTwin { action, .. } => match action {
                TwinAction::Update | TwinAction::Get => true,
                TwinAction::CloudUpdated => false,
            },
            Self::DeviceState { .. } | Self::MembershipGet { .. } | Self::Upload { .. } => true,
        }
    }
}

/// Parses the topic of a publish; `None` means plain MQTT traffic the runtime has no part in.
pub fn parse(topic: &str) -> Option<Inbound> {
    let upload = || {
        Some(Inbound::Upload {
            topic: topic.to_owned(),
        })
    };
    let levels = split(topic)?;
    match levels.as_slice() {
        ["$hw", "events", "upload", ..] | ["SYS", "dis", "upload_records"] => upload(),
        ["$hw", "events", "device", ns, name, "twin", action] => {
            let action = match *action {
                "update" => TwinAction::Update,
                "get" => TwinAction::Get,
                "cloud_updated" => TwinAction::CloudUpdated,
                _ => return None,
            };
            let device = DeviceRef::new(ns, name)?;
            Some(Inbound::DeviceTwin { device, action })
        }
        ["$hw", "events", "device", ns, name, "state", "update"] => Some(Inbound::DeviceState {
            device: DeviceRef::new(ns, name)?,
        }),
        ["$hw", "events", "node", node, "membership", "get"] if is_level(node) => {
            Some(Inbound::MembershipGet {
                node: (*node).to_owned(),
            })
        }
        // A leading `+` does not match a `$` topic (MQTT 3.1.1, 4.7.2).
        [first, "user", ..] if !first.starts_with('$') => upload(),
        _ => None,
    }
}

/// Whether only the runtime may publish to `topic`: results, documents, deltas, membership news
/// and the cloud's own updates. Under the device and node prefixes everything is closed except
/// the requests [`parse`] knows, so that a client cannot pass for the runtime.
pub fn is_runtime_only(topic: &str) -> bool {
    let mut levels = topic.split('/');
    let prefix = [levels.next(), levels.next(), levels.next()];
    let closed =
        prefix == DEVICE.map(Some) || prefix == NODE.map(Some) || prefix[0] == Some("$SYS");
    closed && !parse(topic).is_some_and(|inbound| inbound.is_open_to_clients())
}

/// At most ten levels are looked at: no topic of ours has more before its free part.
fn split(topic: &str) -> Option<Vec<&str>> {
    let has_wildcard = topic.bytes().any(|b| matches!(b, b'+' | b'#' | 0));
    (!topic.is_empty() && !has_wildcard).then(|| topic.splitn(10, '/').collect())
}

fn is_level(text: &str) -> bool {
    !text.is_empty() && !text.bytes().any(|b| matches!(b, b'/' | b'+' | b'#' | 0))
}

/// Topics the runtime publishes to, and the resource names of its messages to the cloud.
pub mod format {
    use super::DeviceRef;

    /// The answer to a `twin/update`.
    pub fn twin_result(device: &DeviceRef) -> String {
        format!("$hw/events/device/{device}/twin/update/result")
    }

    /// What an update changed, old and new.
    pub fn twin_document(device: &DeviceRef) -> String {
        format!("$hw/events/device/{device}/twin/update/document")
    }

    /// Desired values the device has not reported yet.
    pub fn twin_delta(device: &DeviceRef) -> String {
        format!("$hw/events/device/{device}/twin/update/delta")
    }

    /// The answer to a `twin/get`.
    pub fn twin_get_result(device: &DeviceRef) -> String {
        format!("$hw/events/device/{device}/twin/get/result")
    }

    /// The answer to a `state/update`.
    pub fn state_result(device: &DeviceRef) -> String {
        format!("$hw/events/device/{device}/state/update/result")
    }

    /// A device's attributes changed.
    pub fn device_updated(device: &DeviceRef) -> String {
        format!("$hw/events/device/{device}/updated")
    }

    /// Devices joined or left this node.
    pub fn membership_updated(node: &str) -> String {
        format!("$hw/events/node/{node}/membership/updated")
    }

    /// The answer to a `membership/get`.
    pub fn membership_get_result(node: &str) -> String {
        format!("$hw/events/node/{node}/membership/get/result")
    }

    /// Message resource of a twin report to the cloud.
    pub fn edge_updated_resource(device: &DeviceRef) -> String {
        format!("device/{device}/twin/edge_updated")
    }

    /// Message resource of a state report to the cloud.
    pub fn state_update_resource(device: &DeviceRef) -> String {
        format!("device/{device}/state/update")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn twin(namespace: &str, name: &str, action: TwinAction) -> Inbound {
        let device = DeviceRef::new(namespace, name).unwrap();
        Inbound::DeviceTwin { device, action }
    }

    fn upload(topic: &str) -> Inbound {
        Inbound::Upload {
            topic: topic.into(),
        }
    }

    #[test]
    fn topics_are_parsed_by_levels() {
        let state = DeviceRef::parse("ev/t1").map(|device| Inbound::DeviceState { device });
        let get = Some(Inbound::MembershipGet {
            node: "node".into(),
        });
        for (topic, expected, runtime_only) in [
            (
                "$hw/events/device/default/t1/twin/update",
                Some(twin("default", "t1", TwinAction::Update)),
                false,
            ),
            (
                "$hw/events/device/dev/t1/twin/update",
                Some(twin("dev", "t1", TwinAction::Update)),
                false,
            ),
            (
                "$hw/events/device/device/twin/twin/get",
                Some(twin("device", "twin", TwinAction::Get)),
                false,
            ),
            (
                "$hw/events/device/a/b/twin/cloud_updated",
                Some(twin("a", "b", TwinAction::CloudUpdated)),
                true,
            ),
            ("$hw/events/device/a/b/twin/other", None, true),
            ("$hw/events/device/t1/twin/update", None, true),
            ("$hw/events/device//t1/twin/update", None, true),
            ("$hw/events/device/a/b/twin/update/result", None, true),
            ("$hw/events/device/a/b/twin/update/document", None, true),
            ("$hw/events/device/a/b/twin/update/delta", None, true),
            ("$hw/events/device/a/b/twin/get/result", None, true),
            ("$hw/events/device/a/b/updated", None, true),
            ("$hw/events/device/ev/t1/state/update", state, false),
            ("$hw/events/device/ev/t1/state/update/result", None, true),
            ("$hw/events/node/node/membership/get", get, false),
            ("$hw/events/node/n/membership/updated", None, true),
            ("$hw/events/node/n/membership/get/result", None, true),
            ("$SYS/broker/uptime", None, true),
            (
                "$hw/events/upload/a/b",
                Some(upload("$hw/events/upload/a/b")),
                false,
            ),
            (
                "$hw/events/upload",
                Some(upload("$hw/events/upload")),
                false,
            ),
            (
                "SYS/dis/upload_records",
                Some(upload("SYS/dis/upload_records")),
                false,
            ),
            ("SYS/dis/upload_records/x", None, false),
            ("acme/user/temp", Some(upload("acme/user/temp")), false),
            ("acme/user", Some(upload("acme/user")), false),
            ("$acme/user/temp", None, false),
            ("plant/line/1", None, false),
            ("", None, false),
            ("$ke/events/device/default/t1/data/update", None, false),
        ] {
            assert_eq!(parse(topic), expected, "{topic}");
            assert_eq!(is_runtime_only(topic), runtime_only, "{topic}");
        }
    }

    #[test]
    fn what_the_runtime_publishes_is_closed_to_clients() {
        let device = DeviceRef::parse("default/t1").unwrap();
        for topic in [
            format::twin_result(&device),
            format::twin_document(&device),
            format::twin_delta(&device),
            format::twin_get_result(&device),
            format::state_result(&device),
            format::device_updated(&device),
            format::membership_updated("n"),
            format::membership_get_result("n"),
        ] {
            assert!(is_runtime_only(&topic), "{topic}");
            assert_eq!(parse(&topic), None, "{topic}");
        }
        assert_eq!(
            format::edge_updated_resource(&device),
            "device/default/t1/twin/edge_updated"
        );
    }

    proptest! {
        #[test]
        fn any_topic_is_parsed_without_panic(topic in "\\PC{0,80}") {
            let _ = (parse(&topic), is_runtime_only(&topic));
        }

        #[test]
        fn a_parsed_device_keeps_its_levels(ns in "[a-z$.-]{1,12}", name in "[a-z0-9.-]{1,12}") {
            let topic = format!("$hw/events/device/{ns}/{name}/twin/update");
            prop_assert_eq!(parse(&topic), Some(twin(&ns, &name, TwinAction::Update)));
        }
    }
}
