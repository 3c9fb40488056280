//! Which devices this node has: the cloud's Device objects and its membership messages. Both tell
//! the same; whichever comes first creates the device.

use std::collections::{BTreeMap, BTreeSet};

use device_twin::{Conflict, Device, DeviceId, Event, MembershipEvent, Rejected, Wanted, plan};
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;
use wire::message::{Content, Message, Operation, Route};
use wire::topic::format;
use wire::twin::{
    self, BaseMessage, MembershipDetail, MembershipDetailRequest, MembershipUpdate, decode, encode,
};

use super::{Outcome, change, complaint, convert, fresh_id, history, rows};
use crate::clock::UnixMillis;
use crate::outbox;
use crate::store::StoreError;

/// Remembers this node's name, which the membership topics carry. Called once at start.
pub fn set_node(tx: &Connection, node: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO facts (name, value) VALUES ('node_name', ?1)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        [node],
    )?;
    Ok(())
}

/// Remembers which desired value stands when cloud and edge both set one and the Device does not
/// say. Called once at start.
pub fn set_conflict(tx: &Connection, rule: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO facts (name, value) VALUES ('twin_conflict', ?1)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        [rule],
    )?;
    Ok(())
}

/// Takes a Device object of the cloud: creates the device if it is new and sets its desired
/// values, which reach the device as a delta. Taking the same object again changes nothing.
pub fn device_upserted(
    tx: &Connection,
    object: &Value,
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let namespace = text("/metadata/namespace").unwrap_or("default");
    let Some(id) = text("/metadata/name").and_then(|name| DeviceId::new(namespace, name)) else {
        tracing::warn!("device object without a usable name was ignored");
        return Ok(outcome);
    };
    let description = text("/metadata/labels/description").map(str::to_owned);
    let annotation = object
        .pointer("/metadata/annotations")
        .and_then(|all| all.get(outbox::ANNOTATION))
        .and_then(Value::as_str);
    let mut wrong = Vec::new();
    if let Err(error) = outbox::set_device_policy(tx, namespace, &id.name, annotation)? {
        let name = outbox::ANNOTATION;
        wrong.push(format!(
            "annotation {name}: {error}; the policy before stays"
        ));
    }
    let rules = Rules::of(tx, object, &mut wrong)?;
    complaint::tell(
        tx,
        object,
        &complaint::ANNOTATIONS,
        &wrong,
        now,
        &mut outcome,
    )?;
    let Some(device) = ensure(tx, &id, description, BTreeMap::new(), now, &mut outcome)? else {
        return Ok(outcome);
    };
    let event = Event::Desired {
        object_uid: text("/metadata/uid").unwrap_or_default().to_owned(),
        version: version_of(object),
        values: desired_values(object, &rules),
    };
    apply_cloud(tx, &device, event, now, &mut outcome)?;
    Ok(outcome)
}

/// Forgets a device. What it reported before is still delivered from the outbox.
pub fn device_removed(
    tx: &Connection,
    namespace: &str,
    name: &str,
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    if let Some(id) = DeviceId::new(namespace, name) {
        complaint::forget(tx, namespace, name)?;
        remove(tx, &id, now, &mut outcome)?;
    }
    Ok(outcome)
}

/// Takes a `membership` (some joined, some left) or `membership/detail` (the full list) body. A
/// device that is known keeps its twin. Doing it twice changes nothing. A full list that names
/// somebody in an unusable way removes nobody.
pub fn membership(tx: &Connection, body: &[u8], now: UnixMillis) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    if std::str::from_utf8(body).is_err() {
        // Go's rules would make other names of what is no text.
        tracing::warn!("membership message is no text");
        return Ok(outcome);
    }
    let (detail, update) = match (
        decode::<MembershipDetail>(body),
        decode::<MembershipUpdate>(body),
    ) {
        (Ok(detail), Ok(update)) => (detail, update),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "membership message not understood");
            return Ok(outcome);
        }
    };
    let is_detail = detail.devices.is_some();
    let listed = detail.devices.or(update.added_devices).unwrap_or_default();
    let mut named: BTreeMap<DeviceId, twin::Device> = BTreeMap::new();
    let mut is_whole = true;
    for device in listed {
        if let Some(id) = DeviceId::parse(&device.id) {
            named.insert(id, device);
        } else {
            is_whole = false;
            tracing::warn!(device = device.id, "membership names an unusable device id");
        }
    }
    let ids: BTreeSet<_> = named.keys().cloned().collect();
    let removed = update.removed_devices.unwrap_or_default();
    let event = if is_detail {
        MembershipEvent::Detail { devices: ids }
    } else {
        MembershipEvent::Update {
            added: ids,
            removed: removed
                .iter()
                .filter_map(|device| DeviceId::parse(&device.id))
                .collect(),
        }
    };
    let gone = plan(&rows::ids(tx)?, &event).remove;
    for id in gone.into_iter().filter(|_| is_whole || !is_detail) {
        remove(tx, &id, now, &mut outcome)?;
    }
    for (id, device) in named {
        let description = Some(device.description).filter(|text| !text.is_empty());
        let attributes = device.attributes.unwrap_or_default();
        let known = ensure(tx, &id, description, attributes, now, &mut outcome)?;
        // Without a twin there is nothing to sync; KubeEdge publishes a spurious 400 here.
        if let (Some(known), Some(twin)) = (known, device.twin) {
            let event = convert::sync(fresh_id(), twin);
            apply_cloud(tx, &known, event, now, &mut outcome)?;
        }
    }
    Ok(outcome)
}

/// What a node asks the cloud after connecting: its full device list. KubeEdge's cloud ignores
/// the question.
pub fn membership_detail_request(node: &str, now: UnixMillis) -> Message {
    let body = MembershipDetailRequest {
        event_type: "group_membership_event".to_owned(),
        event_id: fresh_id(),
        group_id: node.to_owned(),
        operation: "detail".to_owned(),
        timestamp: now,
    };
    let text = String::from_utf8(encode(&body)).unwrap_or_default();
    let route = Route::new("twin", "resource", &Operation::Get, "membership/detail");
    Message::new(fresh_id(), now, route, Content::string(&text))
}

/// Answers `membership/get`. The node level of the request is not checked (as in KubeEdge).
pub(super) fn handle_get(
    tx: &Connection,
    asked_node: &str,
    payload: &[u8],
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    let node = node_name(tx)?.unwrap_or_else(|| asked_node.to_owned());
    let topic = format::membership_get_result(&node);
    match decode::<BaseMessage>(payload) {
        Ok(request) => {
            let body = MembershipDetail {
                event_id: request.event_id,
                timestamp: now,
                devices: Some(rows::all(tx)?.iter().map(convert::member).collect()),
            };
            outcome.publish(topic, &body);
        }
        Err(_) => outcome.refuse(topic, String::new(), Rejected::unreadable(), now),
    }
    Ok(outcome)
}

/// The device, created if it is new, with description and attributes as the cloud has them.
fn ensure(
    tx: &Connection,
    id: &DeviceId,
    description: Option<String>,
    attributes: BTreeMap<String, Option<twin::MsgAttr>>,
    now: UnixMillis,
    outcome: &mut Outcome,
) -> Result<Option<Device>, StoreError> {
    let (device, is_new) = match rows::load(tx, id)? {
        Some(device) => (device, false),
        None => (Device::new(id.clone()), true),
    };
    if is_new {
        rows::insert(tx, &device)?;
    }
    let mut told = Outcome::default();
    let event = Event::Described {
        description,
        attributes: convert::attributes_from(attributes),
    };
    apply_cloud(tx, &device, event, now, &mut told)?;
    let device = rows::load(tx, id)?;
    if let (true, Some(device)) = (is_new, &device) {
        publish_membership(tx, Some(device), None, now, outcome)?;
    }
    outcome.append(told);
    Ok(device)
}

fn remove(
    tx: &Connection,
    id: &DeviceId,
    now: UnixMillis,
    outcome: &mut Outcome,
) -> Result<(), StoreError> {
    let Some(device) = rows::load(tx, id)? else {
        return Ok(());
    };
    rows::delete(tx, id)?;
    history::forget(tx, id)?;
    publish_membership(tx, None, Some(&device), now, outcome)
}

/// One message a device; the unused list is `null`.
fn publish_membership(
    tx: &Connection,
    added: Option<&Device>,
    removed: Option<&Device>,
    now: UnixMillis,
    outcome: &mut Outcome,
) -> Result<(), StoreError> {
    let Some(node) = node_name(tx)? else {
        return Ok(());
    };
    let list = |device: &Device| vec![convert::member(device)];
    let body = MembershipUpdate {
        event_id: fresh_id(),
        timestamp: now,
        added_devices: added.map(list),
        removed_devices: removed.map(list),
    };
    outcome.publish(format::membership_updated(&node), &body);
    Ok(())
}

/// What the cloud says is never answered on a device topic; a refusal is logged.
fn apply_cloud(
    tx: &Connection,
    device: &Device,
    event: Event,
    now: UnixMillis,
    outcome: &mut Outcome,
) -> Result<(), StoreError> {
    if let Err(rejected) = change(tx, device, event, now, outcome)? {
        tracing::warn!(device = %device.id, reason = rejected.reason, "twin refused what the cloud sent");
    }
    Ok(())
}

fn node_name(tx: &Connection) -> Result<Option<String>, StoreError> {
    let name = tx
        .prepare_cached("SELECT value FROM facts WHERE name = 'node_name'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(name)
}

/// The object's place in the cloud's history: its resource version, which unlike the generation
/// goes on when an object is made anew.
fn version_of(object: &Value) -> i64 {
    let version = object.pointer("/metadata/resourceVersion");
    let version = version.and_then(Value::as_str).and_then(|v| v.parse().ok());
    let generation = object.pointer("/metadata/generation");
    version
        .or_else(|| generation.and_then(Value::as_i64))
        .unwrap_or(0)
}

/// Annotation of a Device: `cloud`, `edge` or `newest`, and `PROPERTY=RULE` for single
/// properties, separated by commas.
const CONFLICT: &str = "/metadata/annotations/outpost.dev~1conflict";
/// Annotation that the hub puts on what it sends: `{property: Unix milliseconds}` of the last
/// change of each desired value.
const DESIRED_AT: &str = "/metadata/annotations/outpost.dev~1desired-at";

/// Which desired value stands, and when the cloud's were written.
struct Rules {
    rest: Conflict,
    single: BTreeMap<String, Conflict>,
    at_ms: BTreeMap<String, i64>,
}

impl Rules {
    /// What cannot be read is left out, and said in `wrong`.
    fn of(tx: &Connection, object: &Value, wrong: &mut Vec<String>) -> Result<Self, StoreError> {
        let configured: Option<String> = tx
            .prepare_cached("SELECT value FROM facts WHERE name = 'twin_conflict'")?
            .query_row([], |row| row.get(0))
            .optional()?;
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
        let mut rules = Self {
            rest: configured
                .and_then(|rule| Conflict::parse(&rule))
                .unwrap_or_default(),
            single: BTreeMap::new(),
            at_ms: text(DESIRED_AT)
                .and_then(|json| serde_json::from_str(json).ok())
                .unwrap_or_default(),
        };
        let annotation = text(CONFLICT).filter(|text| !text.is_empty());
        for part in annotation.into_iter().flat_map(|t| t.split(',')) {
            let (name, rule) = match part.split_once('=') {
                Some((name, rule)) => (Some(name.trim()), rule.trim()),
                None => (None, part.trim()),
            };
            match (Conflict::parse(rule), name) {
                (Some(rule), Some(name)) => {
                    rules.single.insert(name.to_owned(), rule);
                }
                (Some(rule), None) => rules.rest = rule,
                (None, _) => {
                    wrong.push(format!(
                        "annotation outpost.dev/conflict knows cloud, edge, newest, not \"{rule}\""
                    ));
                }
            }
        }
        Ok(rules)
    }
}

/// `spec.properties[].desired`; an empty value is how Go writes one that was not given.
fn desired_values(object: &Value, rules: &Rules) -> BTreeMap<String, Wanted> {
    let properties = object.pointer("/spec/properties").and_then(Value::as_array);
    let wanted = |property: &Value| {
        let name = property.get("name")?.as_str()?;
        let value = property.pointer("/desired/value")?.as_str()?;
        let kind = property.pointer("/desired/metadata/type");
        let wanted = Wanted {
            value: value.to_owned(),
            kind: kind.and_then(Value::as_str).map(str::to_owned),
            at_ms: rules.at_ms.get(name).copied(),
            rule: rules.single.get(name).copied().unwrap_or(rules.rest),
        };
        (!value.is_empty()).then(|| (name.to_owned(), wanted))
    };
    properties
        .into_iter()
        .flatten()
        .filter_map(wanted)
        .collect()
}
