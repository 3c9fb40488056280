//! Folds many reports into one write per device (device plane §2.7).
//!
//! Differences to KubeEdge, which are all additions: the first report of a property is stored with
//! its value; properties that the Device's spec does not name are kept too (a device that speaks
//! only MQTT has none there); `status.extensions.outpost` counts; a value that is older than the
//! one that is there is not applied (a plain edge sends unconfirmed reports again, in any order);
//! `status.extensions.outpostProperties` has versions and how far each desired value has come.

use std::collections::BTreeMap;

use apiserver::store::{Require, Store, StoreError, Txn};
use serde_json::{Map, Value, json};
use wire::{
    extension::Entry,
    message::Message,
    resource::ResourcePath,
    twin::{self, MsgTwin, StateMessage, TwinMessage, TwinValue, TwinVersion},
};

use super::{LogEntry, empty};
use crate::{
    clock,
    keys::{self, DEVICES_GROUP},
};

/// Most properties kept per device.
const TWINS_MAX: usize = 256;
/// Under `status.extensions`: what is known of each property beside its values.
const PROPERTIES: &str = "outpostProperties";
/// An uploaded text is kept up to this length.
const UPLOAD_BYTES_KEPT: usize = 1024;

/// A device whose status changes.
struct Device {
    status: Value,
    /// 0: the status object does not exist yet.
    revision: u64,
}

/// The changes of one transaction.
pub(super) struct Fold<'a> {
    node: &'a str,
    /// Of the node's numbers; `None` for a plain node, which has none.
    epoch: Option<&'a str>,
    store: &'a dyn Store,
    /// `None`: not a device of this node.
    devices: BTreeMap<(String, String), Option<Device>>,
}

impl<'a> Fold<'a> {
    pub(super) fn new(node: &'a str, epoch: Option<&'a str>, store: &'a dyn Store) -> Self {
        Self {
            node,
            epoch,
            store,
            devices: BTreeMap::new(),
        }
    }

    /// How many devices were touched.
    pub(super) fn devices(&self) -> usize {
        self.devices.len()
    }

    /// Applies one report; the log entry says what it carried, whether or not it was a device of
    /// this node.
    pub(super) async fn apply(
        &mut self,
        seq: u64,
        told: &Entry,
        count: u64,
    ) -> Result<LogEntry, StoreError> {
        let (message, epoch) = (&told.message, self.epoch);
        let mut entry = LogEntry {
            seq,
            stream: told.stream.clone(),
            id: message.header.id.clone(),
            at: message.header.timestamp,
            value: Value::Null,
            history: told.history,
        };
        match ResourcePath::parse(&message.route.resource) {
            ResourcePath::DeviceTwin {
                namespace, name, ..
            } => {
                if let Ok(report) = decode::<TwinMessage>(message) {
                    entry.id.clone_from(&report.event_id);
                    entry.at = report.timestamp;
                    entry.value = reported(&report);
                    if !told.history
                        && let Some(device) = self.device(&namespace, &name).await?
                    {
                        begin_epoch(&mut device.status, epoch);
                        merge_twins(&mut device.status, &report);
                        extend(&mut device.status, seq, count, &report.event_id);
                        note_epoch(&mut device.status, epoch);
                    }
                }
            }
            ResourcePath::DeviceState { namespace, name } => {
                if let Ok(report) = decode::<StateMessage>(message) {
                    entry.id.clone_from(&report.event_id);
                    entry.at = report.timestamp;
                    entry.value = report.device.state.clone().into();
                    if !told.history
                        && let Some(device) = self.device(&namespace, &name).await?
                    {
                        merge_state(&mut device.status, &report);
                    }
                }
            }
            ResourcePath::Object { .. }
            | ResourcePath::Membership
            | ResourcePath::MembershipDetail
            | ResourcePath::Node
            | ResourcePath::TwinConfirmation
            | ResourcePath::ClusterCa
            | ResourcePath::Other(_) => {
                entry.value = uploaded(message).into();
            }
        }
        Ok(entry)
    }

    /// The requirements and writes of all devices.
    pub(super) fn into_txn(self) -> Txn {
        let mut txn = empty();
        for ((namespace, name), device) in self.devices {
            let Some(device) = device else { continue };
            let key = keys::device_status(&namespace, &name);
            txn.require.push(match device.revision {
                0 => Require::Absent(key.clone()),
                at => Require::At(key.clone(), at),
            });
            txn = txn.put(key, device.status.to_string());
        }
        txn
    }

    /// Loads the device at first touch.
    async fn device(
        &mut self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<&mut Device>, StoreError> {
        let id = (namespace.to_owned(), name.to_owned());
        if !self.devices.contains_key(&id) {
            let loaded = self.load(namespace, name).await?;
            self.devices.insert(id.clone(), loaded);
        }
        Ok(self.devices.get_mut(&id).and_then(Option::as_mut))
    }

    async fn load(&self, namespace: &str, name: &str) -> Result<Option<Device>, StoreError> {
        let device = self.store.get(&keys::device(namespace, name)).await?;
        let device: Option<Value> = device.and_then(|e| serde_json::from_slice(&e.value).ok());
        let Some(device) = device else {
            tracing::debug!(
                node = self.node,
                namespace,
                name,
                "report of an unknown device"
            );
            return Ok(None);
        };
        if device.pointer("/spec/nodeName").and_then(Value::as_str) != Some(self.node) {
            tracing::warn!(
                node = self.node,
                namespace,
                name,
                "report of a device that belongs to another node; not applied"
            );
            return Ok(None);
        }
        Ok(Some(
            match self
                .store
                .get(&keys::device_status(namespace, name))
                .await?
            {
                Some(entry) => Device {
                    status: serde_json::from_slice(&entry.value)
                        .unwrap_or_else(|_| new_status(&device, namespace, name)),
                    revision: entry.revision,
                },
                None => Device {
                    status: new_status(&device, namespace, name),
                    revision: 0,
                },
            },
        ))
    }
}

/// A DeviceStatus for a Device, owned by it.
pub fn new_status(device: &Value, namespace: &str, name: &str) -> Value {
    let uid = device
        .pointer("/metadata/uid")
        .and_then(Value::as_str)
        .unwrap_or_default();
    json!({
        "apiVersion": format!("{DEVICES_GROUP}/v1beta1"),
        "kind": "DeviceStatus",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": clock::rfc3339_now(),
            "generation": 1,
            "ownerReferences": [{
                "apiVersion": format!("{DEVICES_GROUP}/v1beta1"), "kind": "Device",
                "name": name, "uid": uid,
            }],
        },
        "spec": {},
        "status": { "twins": [] },
    })
}

fn decode<T: serde::de::DeserializeOwned + Default>(message: &Message) -> Result<T, ()> {
    twin::decode(message.content.document().as_bytes()).map_err(|error| {
        tracing::warn!(
            resource = message.route.resource,
            error = %error,
            "report could not be read; counted, not applied"
        );
    })
}

/// `{property: value}` of what was reported.
fn reported(report: &TwinMessage) -> Value {
    let values = report.twin.iter().flatten().filter_map(|(name, twin)| {
        let value = twin.as_ref()?.actual.as_ref()?.value.as_ref()?;
        Some((name.clone(), Value::from(value.as_str())))
    });
    Value::Object(values.collect())
}

fn uploaded(message: &Message) -> String {
    let mut text = message.content.document().into_owned();
    let mut end = text.len().min(UPLOAD_BYTES_KEPT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// The member as an object, made if it is not one.
fn child<'v>(parent: &'v mut Value, name: &str) -> Option<&'v mut Map<String, Value>> {
    if !parent.is_object() {
        *parent = json!({});
    }
    let slot = parent
        .as_object_mut()?
        .entry(name)
        .or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut()
}

fn part(value: &TwinValue, kind: Option<&str>) -> Value {
    let mut metadata = Map::new();
    if let Some(of_value) = &value.metadata {
        let at = of_value.timestamp;
        metadata.insert("timestamp".into(), at.to_string().into());
        let device_at = of_value.device_timestamp;
        if device_at != 0 {
            metadata.insert("deviceTimestamp".into(), device_at.to_string().into());
        }
    }
    if let Some(kind) = kind.filter(|k| !k.is_empty()) {
        metadata.insert("type".into(), kind.into());
    }
    json!({ "value": value.value.clone().unwrap_or_default(), "metadata": metadata })
}

/// A node that was set up anew counts its versions from the start, maybe with a clock that is years
/// behind: neither says that a report is old. Within an epoch the node's own order does, and an
/// older epoch does not come after a newer one.
fn begin_epoch(object: &mut Value, epoch: Option<&str>) {
    let known = object.pointer("/status/extensions/outpost/epoch");
    let known = known.and_then(Value::as_str);
    if epoch.is_none() || known == epoch {
        return;
    }
    let at = format!("/status/extensions/{PROPERTIES}");
    let properties = object.pointer_mut(&at).and_then(Value::as_object_mut);
    for facts in properties.into_iter().flat_map(Map::values_mut) {
        if let Some(facts) = facts.as_object_mut() {
            facts.remove("reported");
            facts.remove("desired");
        }
    }
}

fn note_epoch(object: &mut Value, epoch: Option<&str>) {
    let outpost = object.pointer_mut("/status/extensions/outpost");
    if let (Some(epoch), Some(Value::Object(outpost))) = (epoch, outpost) {
        outpost.insert("epoch".to_owned(), epoch.into());
    }
}

fn merge_twins(object: &mut Value, report: &TwinMessage) {
    let Some(status) = child(object, "status") else {
        return;
    };
    let mut known = status
        .get_mut("extensions")
        .and_then(|extensions| extensions.get_mut(PROPERTIES))
        .and_then(Value::as_object_mut)
        .map(std::mem::take)
        .unwrap_or_default();
    let slot = status.entry("twins").or_insert_with(|| json!([]));
    if !slot.is_array() {
        *slot = json!([]);
    }
    let Value::Array(twins) = slot else { return };
    for (name, twin) in report.twin.iter().flatten() {
        // `"name": null` crashed KubeEdge's hub (wire specification §8.2, C13).
        let Some(twin) = twin else { continue };
        let mut facts = match known.remove(name) {
            Some(Value::Object(facts)) => facts,
            _ => Map::new(),
        };
        merge_twin(twins, &mut facts, name, twin, report.timestamp);
        if !facts.is_empty() && known.len() < TWINS_MAX {
            known.insert(name.clone(), Value::Object(facts));
        }
    }
    if !known.is_empty()
        && let Some(Value::Object(extensions)) =
            Some(status.entry("extensions").or_insert_with(|| json!({})))
    {
        extensions.insert(PROPERTIES.to_owned(), Value::Object(known));
    }
}

/// Whether a value is older than the one with the version that is known. A node that was set up
/// anew counts from the start again: what it reports is known by its later time.
fn is_stale(known: Option<&Value>, version: Option<TwinVersion>, at_ms: i64) -> bool {
    let (Some(known), Some(version)) = (known, version) else {
        return false;
    };
    let number = |name| known.get(name).and_then(Value::as_i64).unwrap_or(0);
    let is_behind = version.edge < number("edge") || version.cloud < number("cloud");
    is_behind && at_ms <= number("at")
}

/// Takes a value's version in, unless the value is stale.
fn is_news(
    facts: &mut Map<String, Value>,
    part: &str,
    version: Option<TwinVersion>,
    value: Option<&TwinValue>,
    told_ms: i64,
) -> bool {
    let at_ms = value
        .and_then(|value| value.metadata.as_ref())
        .map_or(told_ms, |metadata| metadata.timestamp);
    if is_stale(facts.get(part), version, at_ms) {
        return false;
    }
    if let Some(version) = version {
        let fact = json!({ "cloud": version.cloud, "edge": version.edge, "at": at_ms });
        facts.insert(part.to_owned(), fact);
    }
    true
}

/// How far the desired value has come, as the edge tells it; a plain edge does not.
fn merge_sync(facts: &mut Map<String, Value>, twin: &MsgTwin) {
    let told = [
        ("sync", twin.sync.as_ref().map(|sync| &sync.state)),
        ("reason", twin.sync.as_ref().map(|sync| &sync.reason)),
        ("refused", twin.sync.as_ref().map(|sync| &sync.value)),
    ];
    for (name, text) in told {
        match text.filter(|text| !text.is_empty()) {
            Some(text) => facts.insert(name.to_owned(), text.as_str().into()),
            None => facts.remove(name),
        };
    }
}

fn merge_twin(
    twins: &mut Vec<Value>,
    facts: &mut Map<String, Value>,
    name: &str,
    twin: &MsgTwin,
    told_ms: i64,
) {
    let kind = twin.metadata.as_ref().map(|m| m.kind.as_str());
    let is_new = |facts: &mut _, part, version, value: Option<&TwinValue>| {
        value.is_none() || is_news(facts, part, version, value, told_ms)
    };
    let has_reported = is_new(facts, "reported", twin.actual_version, twin.actual.as_ref());
    let has_desired = is_new(
        facts,
        "desired",
        twin.expected_version,
        twin.expected.as_ref(),
    );
    if has_reported && has_desired {
        merge_sync(facts, twin);
    }
    let (reports, desires) = (twin.actual.is_some(), twin.expected.is_some());
    let has_news = reports && has_reported || desires && has_desired;
    if (reports || desires) && !has_news {
        return;
    }
    let at = twins.iter().position(|t| t["propertyName"] == name);
    if kind == Some("deleted") {
        if let Some(at) = at {
            twins.remove(at);
        }
        return;
    }
    let at = match at {
        Some(at) => at,
        None if twins.len() < TWINS_MAX => {
            twins.push(json!({ "propertyName": name }));
            twins.len() - 1
        }
        None => return,
    };
    let Some(Value::Object(entry)) = twins.get_mut(at) else {
        return;
    };
    let given = |value: &&TwinValue| value.value.is_some();
    if let Some(actual) = twin.actual.as_ref().filter(given).filter(|_| has_reported) {
        entry.insert("reported".into(), part(actual, kind));
    }
    if let Some(expected) = twin.expected.as_ref().filter(given).filter(|_| has_desired) {
        entry.insert("observedDesired".into(), part(expected, kind));
    }
}

fn merge_state(object: &mut Value, report: &StateMessage) {
    let Some(status) = child(object, "status") else {
        return;
    };
    if !report.device.state.is_empty() {
        status.insert("state".into(), report.device.state.clone().into());
    }
    if !report.device.last_online_time.is_empty() {
        status.insert(
            "lastOnlineTime".into(),
            report.device.last_online_time.clone().into(),
        );
    }
}

fn extend(object: &mut Value, seq: u64, count: u64, id: &str) {
    let Some(status) = object.get_mut("status") else {
        return;
    };
    let Some(extensions) = child(status, "extensions") else {
        return;
    };
    extensions.insert(
        "outpost".into(),
        json!({ "received": count, "lastSequence": seq, "lastEventId": id }),
    );
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
