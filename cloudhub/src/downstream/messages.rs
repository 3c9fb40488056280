//! Objects as messages to a node (wire specification §5.2.2, §5.2.3).

use serde_json::{Value, json};
use wire::message::{Content, Message, Operation, Route};

use super::index::{NeededKind, PlacedKind};
use crate::clock;

/// Source of pods, ConfigMaps, Secrets and nodes.
pub const EDGE_CONTROLLER: &str = "edgecontroller";
/// Source of devices and models.
pub const DEVICE_CONTROLLER: &str = "devicecontroller";

/// A kind as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Travel {
    /// Kind in a path.
    pub path: &'static str,
    /// Who sends it.
    pub source: &'static str,
    /// API group, as in store keys.
    pub group: &'static str,
    /// Plural.
    pub plural: &'static str,
}

impl Travel {
    const POD: Self = Self {
        path: "pod",
        source: EDGE_CONTROLLER,
        group: "core",
        plural: "pods",
    };
    /// The node itself.
    pub const NODE: Self = Self {
        path: "node",
        source: EDGE_CONTROLLER,
        group: "core",
        plural: "nodes",
    };
    const VOLUME: Self = Self {
        path: "persistentvolume",
        source: EDGE_CONTROLLER,
        group: "core",
        plural: "persistentvolumes",
    };
    const DEVICE: Self = Self {
        path: "device",
        source: DEVICE_CONTROLLER,
        group: "devices.kubeedge.io",
        plural: "devices",
    };

    /// Of a placed kind.
    pub const fn placed(kind: PlacedKind) -> Self {
        match kind {
            PlacedKind::Pod => Self::POD,
            PlacedKind::Device => Self::DEVICE,
            PlacedKind::Volume => Self::VOLUME,
        }
    }

    /// Of a needed kind.
    pub const fn needed(kind: NeededKind) -> Self {
        match kind {
            NeededKind::ConfigMap => Self {
                path: "configmap",
                source: EDGE_CONTROLLER,
                group: "core",
                plural: "configmaps",
            },
            NeededKind::Secret => Self {
                path: "secret",
                source: EDGE_CONTROLLER,
                group: "core",
                plural: "secrets",
            },
            NeededKind::Volume => Self::VOLUME,
            NeededKind::Claim => Self {
                path: "persistentvolumeclaim",
                source: EDGE_CONTROLLER,
                group: "core",
                plural: "persistentvolumeclaims",
            },
            NeededKind::DeviceModel => Self {
                path: "devicemodel",
                source: DEVICE_CONTROLLER,
                group: "devices.kubeedge.io",
                plural: "devicemodels",
            },
        }
    }

    /// Path of one object; `id` is `namespace/name`.
    pub fn path_of(&self, id: &str) -> String {
        let (namespace, name) = id.split_once('/').unwrap_or(("null", id));
        format!("{namespace}/{}/{name}", self.path)
    }
}

/// Under which key an object is offered: a pod made anew under the same name does not replace the
/// deletion of the one before it.
pub fn offer_key(path: &str, uid: &str) -> String {
    if path.split('/').nth(1) == Some("pod") {
        format!("{path}#{uid}")
    } else {
        path.to_owned()
    }
}

/// An object on its way down, with the key it is offered under.
pub fn push(travel: Travel, id: &str, operation: &Operation, object: &Value) -> (String, Message) {
    let path = travel.path_of(id);
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let key = offer_key(&path, text("/metadata/uid"));
    let version = text("/metadata/resourceVersion").to_owned();
    let content = match object.pointer("/metadata/managedFields") {
        Some(_) => {
            let mut object = object.clone();
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            Content::json(&object)
        }
        None => Content::json(object),
    };
    let route = Route::new(travel.source, "resource", operation, path);
    let message = Message::new("", clock::unix_millis(), route, content.unwrap_or_default())
        .with_resource_version(version);
    (key, message)
}

/// The deletion of something of which only the name and uid are known.
pub fn orphan(path: &str, uid: &str) -> (String, Message) {
    let mut parts = path.splitn(3, '/');
    let namespace = parts.next().unwrap_or_default();
    let kind = parts.next().unwrap_or_default();
    let name = parts.next().unwrap_or_default();
    let source = if kind.starts_with("device") {
        DEVICE_CONTROLLER
    } else {
        EDGE_CONTROLLER
    };
    let object = json!({"metadata": {"name": name, "namespace": namespace, "uid": uid}});
    let route = Route::new(source, "resource", &Operation::Delete, path);
    let content = Content::json(&object).unwrap_or_default();
    (
        offer_key(path, uid),
        Message::new("", clock::unix_millis(), route, content),
    )
}

/// Devices that came to a plain node or left it.
pub fn membership(added: &[&Value], removed: &[&Value]) -> Message {
    let list = |devices: &[&Value]| match devices {
        [] => Value::Null,
        some => some.iter().map(|d| member(d)).collect(),
    };
    let body = json!({
        "event_id": uuid::Uuid::new_v4().to_string(),
        "timestamp": clock::unix_millis(),
        "added_devices": list(added),
        "removed_devices": list(removed),
    });
    twin_notice("membership", &body)
}

/// All devices of a plain node: it removes those that are not listed.
pub fn membership_detail(devices: &[Value]) -> Message {
    let body = json!({
        "event_id": uuid::Uuid::new_v4().to_string(),
        "timestamp": clock::unix_millis(),
        "devices": devices.iter().map(member).collect::<Vec<_>>(),
    });
    twin_notice("membership/detail", &body)
}

fn twin_notice(resource: &str, body: &Value) -> Message {
    let route = Route::new(DEVICE_CONTROLLER, "twin", &Operation::Update, resource);
    let id = uuid::Uuid::new_v4().to_string();
    Message::new(
        id,
        clock::unix_millis(),
        route,
        Content::json(body).unwrap_or_default(),
    )
}

fn member(device: &Value) -> Value {
    let text = |pointer| {
        device
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    let mut entry = json!({ "id": format!("{namespace}/{name}"), "name": name });
    let description = text("/metadata/labels/description");
    if !description.is_empty() {
        entry["description"] = description.into();
    }
    entry
}
