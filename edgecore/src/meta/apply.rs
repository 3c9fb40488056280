//! One pushed message inside one transaction.

use k8s_openapi::api::core::v1::Pod;
use rusqlite::Connection;
use serde_json::Value;
use wire::message::{Message, Operation};
use wire::resource::{Kind, NULL_NAMESPACE, ResourcePath};
use wire::rules::Routes;

use super::objects::{self, Key, Object};
use super::{Sealer, devices, routes};
use crate::clock::UnixMillis;
use crate::document;
use crate::store::StoreError;
use crate::twin::LocalPublish;

/// What applying a message changed. After the commit: acknowledge, bump the generation if
/// `changed`, publish, wake the link if `queued`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// A pod, a ConfigMap or a Secret is not what it was.
    pub changed: bool,
    /// A device or its model is not what it was.
    pub devices_changed: bool,
    /// For local MQTT clients.
    pub publishes: Vec<LocalPublish>,
    /// An outbox row was written.
    pub queued: bool,
    /// What rules want from this node now, when that was told.
    pub routes: Option<Routes>,
}

pub(super) fn refused(reason: impl Into<String>) -> StoreError {
    StoreError::Refused(reason.into())
}

/// Applies a push: insert and update are upserts (an older version of the same object is
/// ignored), delete compares the uid and is idempotent (protocol §8.4, §10.2). `Refused` means
/// that the message cannot be applied, now or later; nothing was changed.
pub fn apply(
    tx: &Connection,
    sealer: &Sealer,
    node: &str,
    message: &Message,
    now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    apply_if(tx, sealer, node, message, now_ms, Versions::MustRise)
}

/// As [`apply`], for pushes of a hub that keeps the order of an object's versions and knows what
/// the node holds: the last is the one that counts, also when its version is lower. A hub that was
/// restored from a backup counts on from there, and what it says then must not be ignored.
pub fn apply_in_order(
    tx: &Connection,
    sealer: &Sealer,
    node: &str,
    message: &Message,
    now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    apply_if(tx, sealer, node, message, now_ms, Versions::MayFall)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Versions {
    MustRise,
    MayFall,
}

fn apply_if(
    tx: &Connection,
    sealer: &Sealer,
    node: &str,
    message: &Message,
    now_ms: UnixMillis,
    versions: Versions,
) -> Result<Applied, StoreError> {
    if let Some(routes) = routes::apply(tx, message)? {
        return Ok(Applied {
            routes: Some(routes),
            ..Applied::default()
        });
    }
    let operation = message.route.operation();
    match ResourcePath::parse(&message.route.resource) {
        ResourcePath::Object {
            namespace,
            kind,
            name: Some(name),
        } if message.route.group != "user" => {
            let namespace = namespace.as_deref().unwrap_or(NULL_NAMESPACE);
            let key = Key::new(&kind, namespace, &name);
            match operation {
                Operation::Insert | Operation::Update => {
                    upsert(tx, sealer, node, &kind, key, message, now_ms, versions)
                }
                Operation::Delete => delete(tx, &kind, &key, message, now_ms),
                Operation::Query
                | Operation::Patch
                | Operation::Upload
                | Operation::Response
                | Operation::Error
                | Operation::Keepalive
                | Operation::Get
                | Operation::Ping
                | Operation::Batch
                | Operation::Inventory
                | Operation::Synced
                | Operation::Other(_) => Err(refused(format!(
                    "operation `{}` on {} is not understood",
                    operation.as_str(),
                    key.path()
                ))),
            }
        }
        ResourcePath::Membership => {
            devices::membership(tx, message.content.document().as_bytes(), now_ms)
        }
        ResourcePath::DeviceTwin {
            namespace, name, ..
        } => devices::desired_from_hub(tx, &namespace, &name, message, now_ms),
        path @ (ResourcePath::Object { .. }
        | ResourcePath::DeviceState { .. }
        | ResourcePath::MembershipDetail
        | ResourcePath::Node
        | ResourcePath::TwinConfirmation
        | ResourcePath::ClusterCa
        | ResourcePath::Other(_)) => from_router(message, &path),
    }
}

/// Group `user`: what an application in the cloud publishes to this node's MQTT clients
/// (protocol §5.2.4).
fn from_router(message: &Message, path: &ResourcePath) -> Result<Applied, StoreError> {
    let route = &message.route;
    let is_publish = route.group == "user"
        && route.source == "router_eventbus"
        && route.operation() == Operation::Other("publish".into());
    if !is_publish {
        return Err(refused(format!("`{path}` is not understood")));
    }
    let payload = message.content.document().into_owned().into_bytes();
    Ok(Applied {
        publishes: vec![LocalPublish {
            topic: route.resource.clone(),
            payload,
        }],
        ..Applied::default()
    })
}

#[expect(
    clippy::too_many_arguments,
    reason = "what a push is made of, once, between two functions of this file"
)]
fn upsert(
    tx: &Connection,
    sealer: &Sealer,
    node: &str,
    kind: &Kind,
    key: Key,
    message: &Message,
    now_ms: UnixMillis,
    versions: Versions,
) -> Result<Applied, StoreError> {
    let document: Value = message
        .content
        .decode()
        .map_err(|error| refused(format!("{}: {error}", key.path())))?;
    if !document.is_object() {
        return Err(refused(format!("{} is no object", key.path())));
    }
    let meta = |member: &str| {
        document
            .pointer(&format!("/metadata/{member}"))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let header = &message.header.resource_version;
    let object = Object {
        uid: meta("uid"),
        resource_version: if header.is_empty() {
            meta("resourceVersion")
        } else {
            header.clone()
        },
        json: message.content.document().as_bytes().to_vec(),
        key,
    };
    if *kind == Kind::Pod && !is_our_pod(&object, node)? {
        return Ok(Applied::default());
    }
    if let Some((uid, version)) = objects::version(tx, &object.key)?
        && uid == object.uid
        && is_known(&object.resource_version, &version, versions)
    {
        return Ok(Applied::default());
    }
    objects::put(tx, sealer, &object)?;
    let mut applied = if *kind == Kind::Device {
        devices::upserted(tx, &document, now_ms)?
    } else {
        Applied::default()
    };
    applied.changed = is_edgeds(kind);
    applied.devices_changed = is_mappers(kind);
    Ok(applied)
}

/// A pod that cannot be read would look absent later, and what runs would be stopped: it is
/// refused here instead. A pod bound elsewhere is not ours (protocol §5.3).
fn is_our_pod(object: &Object, node: &str) -> Result<bool, StoreError> {
    let pod: Pod = document::read(&object.json)
        .map_err(|error| refused(format!("{}: {error}", object.key.path())))?;
    let bound = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
    Ok(bound.is_empty() || bound == node)
}

/// Whether the version that comes need not be stored.
fn is_known(incoming: &str, stored: &str, versions: Versions) -> bool {
    match versions {
        Versions::MustRise => is_not_newer(incoming, stored),
        Versions::MayFall => incoming == stored && !incoming.is_empty(),
    }
}

/// Resource versions are decimal; anything else is opaque and taken as newer.
fn is_not_newer(incoming: &str, stored: &str) -> bool {
    match (incoming.parse::<u64>(), stored.parse::<u64>()) {
        (Ok(incoming), Ok(stored)) => incoming <= stored,
        _ => false,
    }
}

fn is_mappers(kind: &Kind) -> bool {
    matches!(kind, Kind::Device | Kind::DeviceModel)
}

fn is_edgeds(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Pod
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::PersistentVolume
            | Kind::PersistentVolumeClaim
    )
}

fn delete(
    tx: &Connection,
    kind: &Kind,
    key: &Key,
    message: &Message,
    now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    let document: Value = message.content.decode().unwrap_or(Value::Null);
    let uid = document
        .pointer("/metadata/uid")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let Some((stored, _)) = objects::version(tx, key)? else {
        // A device may be there all the same, by its membership.
        return if *kind == Kind::Device {
            devices::removed(tx, &key.namespace, &key.name, now_ms)
        } else {
            Ok(Applied::default())
        };
    };
    if !uid.is_empty() && !stored.is_empty() && uid != stored {
        return Ok(Applied::default());
    }
    objects::remove(tx, key)?;
    let mut applied = if *kind == Kind::Device {
        devices::removed(tx, &key.namespace, &key.name, now_ms)?
    } else {
        Applied::default()
    };
    applied.changed = is_edgeds(kind);
    applied.devices_changed = is_mappers(kind);
    Ok(applied)
}
