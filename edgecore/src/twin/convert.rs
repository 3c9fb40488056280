//! Between the wire's twin payloads and the library's terms: `expected` is desired, `actual` is
//! reported.

use std::collections::BTreeMap;

use device_twin::{
    Attribute, Change, Delta, Device, DeviceId, DocumentEntry, Event, Property, Stamped,
    SyncChange, SyncState, Version,
};
use jiff::Timestamp;
use wire::topic::DeviceRef;
use wire::twin::{
    self, AttributesUpdated, DeviceState, MsgAttr, MsgTwin, StateMessage, TwinDelta, TwinDoc,
    TwinDocument, TwinMessage, TwinSync, TwinValue, TwinVersion, TypeMetadata, ValueMetadata,
};

use crate::clock::UnixMillis;

/// The `twin` of a payload.
pub(super) type Twins = BTreeMap<String, Option<MsgTwin>>;

pub(super) fn id(device: &DeviceRef) -> DeviceId {
    DeviceId {
        namespace: device.namespace.clone(),
        name: device.name.clone(),
    }
}

pub(super) fn reference(id: &DeviceId) -> DeviceRef {
    DeviceRef {
        namespace: id.namespace.clone(),
        name: id.name.clone(),
    }
}

/// A local update. Versions and times of the sender are ignored (device plane 1.6).
pub(super) fn update(event_id: String, twins: Twins) -> Event {
    let changes = twins
        .into_iter()
        .map(|(name, twin)| (name, twin.map(change)))
        .collect();
    Event::Update { event_id, changes }
}

/// The cloud's sync. A property that is `null` says nothing.
pub(super) fn sync(event_id: String, twins: Twins) -> Event {
    let changes = twins
        .into_iter()
        .filter_map(|(name, twin)| {
            let twin = twin?;
            let sync = SyncChange {
                desired_version: twin.expected_version.map(version),
                reported_version: twin.actual_version.map(version),
                change: change(twin),
            };
            Some((name, sync))
        })
        .collect();
    Event::Sync { event_id, changes }
}

fn change(twin: MsgTwin) -> Change {
    Change {
        desired: twin.expected.and_then(|part| part.value),
        reported: twin.actual.and_then(|part| part.value),
        reported_at_ms: None,
        optional: twin.optional,
        kind: twin.metadata.map(|metadata| metadata.kind),
        observed: None,
        refused: twin
            .sync
            .filter(|sync| sync.state == "refused")
            .map(|sync| sync.reason),
        delivery: None,
    }
}

fn version(version: TwinVersion) -> Version {
    Version {
        cloud: version.cloud,
        edge: version.edge,
    }
}

fn wire_version(version: Version) -> TwinVersion {
    TwinVersion {
        cloud: version.cloud,
        edge: version.edge,
    }
}

fn wire_value(stamped: &Stamped) -> TwinValue {
    TwinValue {
        value: Some(stamped.value.clone()),
        metadata: Some(ValueMetadata {
            timestamp: stamped.at_ms,
            device_timestamp: stamped.device_at_ms.unwrap_or_default(),
        }),
    }
}

/// A property as local clients see it.
fn local(property: &Property) -> MsgTwin {
    MsgTwin {
        expected: property.desired.as_ref().map(wire_value),
        actual: property.reported.as_ref().map(wire_value),
        optional: Some(property.optional),
        metadata: Some(TypeMetadata {
            kind: property.kind.as_str().to_owned(),
        }),
        expected_version: None,
        actual_version: None,
        sync: None,
    }
}

/// How far the desired value has come.
fn wire_sync(property: &Property) -> Option<TwinSync> {
    let state = property.sync()?;
    let mut sync = TwinSync {
        state: state.as_str().to_owned(),
        ..TwinSync::default()
    };
    if let SyncState::Refused(refusal) = state {
        sync.reason.clone_from(&refusal.reason);
        sync.value.clone_from(&refusal.value);
    }
    Some(sync)
}

/// A property as the cloud sees it. The values of a removed one are empty objects, as KubeEdge
/// sends them.
fn versioned(property: &Property) -> MsgTwin {
    let mut twin = local(property);
    twin.expected_version = property.desired_version.map(wire_version);
    twin.actual_version = property.reported_version.map(wire_version);
    if property.is_deleted() {
        twin.expected = twin.expected_version.map(|_| TwinValue::default());
        twin.actual = twin.actual_version.map(|_| TwinValue::default());
    }
    twin
}

pub(super) fn result(
    event_id: String,
    changed: &BTreeMap<String, Option<Property>>,
    now: UnixMillis,
) -> TwinMessage {
    let twin = changed
        .iter()
        .map(|(name, property)| (name.clone(), property.as_ref().map(local)))
        .collect();
    TwinMessage {
        event_id,
        timestamp: now,
        twin: Some(twin),
    }
}

pub(super) fn whole_twin(device: &Device, event_id: String, now: UnixMillis) -> TwinMessage {
    let twin = device
        .live_properties()
        .map(|(name, property)| (name.clone(), Some(local(property))))
        .collect();
    TwinMessage {
        event_id,
        timestamp: now,
        twin: Some(twin),
    }
}

pub(super) fn report(
    event_id: String,
    properties: &BTreeMap<String, Property>,
    next: &Device,
    now: UnixMillis,
) -> TwinMessage {
    let twin = properties
        .iter()
        .map(|(name, property)| {
            let mut told = versioned(property);
            told.sync = next.properties.get(name).and_then(wire_sync);
            (name.clone(), Some(told))
        })
        .collect();
    TwinMessage {
        event_id,
        timestamp: now,
        twin: Some(twin),
    }
}

pub(super) fn document(
    event_id: String,
    entries: BTreeMap<String, DocumentEntry>,
    now: UnixMillis,
) -> TwinDocument {
    let twin = entries
        .into_iter()
        .map(|(name, entry)| {
            let doc = TwinDoc {
                last: entry.last.as_ref().map(local),
                current: entry.current.as_ref().map(local),
            };
            (name, doc)
        })
        .collect();
    TwinDocument {
        event_id,
        timestamp: now,
        twin,
    }
}

pub(super) fn delta(event_id: String, delta: Delta, now: UnixMillis) -> TwinDelta {
    let twin = delta
        .properties
        .iter()
        .map(|(name, property)| (name.clone(), local(property)))
        .collect();
    TwinDelta {
        event_id,
        timestamp: now,
        twin,
        delta: delta.missing,
    }
}

pub(super) fn state(
    event_id: String,
    device: &DeviceRef,
    state: String,
    last_online_ms: Option<i64>,
    now: UnixMillis,
) -> StateMessage {
    StateMessage {
        event_id,
        timestamp: now,
        device: DeviceState {
            name: device.name.clone(),
            state,
            last_online_time: rfc3339(last_online_ms),
        },
    }
}

/// RFC 3339 in whole seconds, UTC, as KubeEdge writes it; empty for never.
pub(super) fn rfc3339(at_ms: Option<i64>) -> String {
    at_ms
        .and_then(|ms| Timestamp::from_second(ms.div_euclid(1000)).ok())
        .map(|time| time.to_string())
        .unwrap_or_default()
}

/// A device in a membership list; its twin is not shown there.
pub(super) fn member(device: &Device) -> twin::Device {
    let attributes = device
        .attributes
        .iter()
        .map(|(name, attribute)| (name.clone(), Some(wire_attribute(attribute))))
        .collect();
    twin::Device {
        id: device.id.to_string(),
        name: device.id.name.clone(),
        description: device.description.clone(),
        state: device.state.clone(),
        last_online: rfc3339(device.last_online_ms),
        attributes: Some(attributes),
        twin: None,
    }
}

fn wire_attribute(attribute: &Attribute) -> MsgAttr {
    MsgAttr {
        value: attribute.value.clone(),
        optional: Some(attribute.optional),
        metadata: Some(TypeMetadata {
            kind: attribute.kind.clone(),
        }),
    }
}

/// Attributes as the cloud sends them; a missing type is `string` (KubeEdge
/// `dtmanager/device.go`).
pub(super) fn attributes_from(
    attributes: BTreeMap<String, Option<MsgAttr>>,
) -> BTreeMap<String, Option<Attribute>> {
    let attribute = |given: MsgAttr| Attribute {
        value: given.value,
        optional: given.optional.unwrap_or(true),
        kind: given
            .metadata
            .map(|metadata| metadata.kind)
            .filter(|kind| !kind.is_empty())
            .unwrap_or_else(|| "string".to_owned()),
    };
    attributes
        .into_iter()
        .map(|(name, given)| (name, given.map(attribute)))
        .collect()
}

pub(super) fn attributes(
    event_id: String,
    changed: BTreeMap<String, Option<Attribute>>,
    now: UnixMillis,
) -> AttributesUpdated {
    let attributes = changed
        .into_iter()
        .map(|(name, attribute)| (name, attribute.as_ref().map(wire_attribute)))
        .collect();
    AttributesUpdated {
        event_id,
        timestamp: now,
        attributes,
    }
}
