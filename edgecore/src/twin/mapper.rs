//! What mappers say of their devices, in the twin's terms: the inside of the device mapper
//! interface. Every function runs in the caller's transaction, like the MQTT side.
//!
//! Differences to KubeEdge (device plane 3.4): missing parts are accepted; what a mapper echoes as
//! the desired value it has seen is an acknowledgement, and is never a wish itself; its times are
//! kept beside the node's.

use std::collections::{BTreeMap, BTreeSet};

use device_twin::{
    Change, Delivery, Device, DeviceId, Event, Property, Rejected, SyncState, cut_reason,
};
use rusqlite::Connection;
use serde_json::Value;

use super::{Outcome, change, complaint, rows};
use crate::clock::UnixMillis;
use crate::store::StoreError;

/// One property as a mapper reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapperTwin {
    pub name: String,
    /// `observedDesired.value`; empty counts as missing, as protobuf cannot tell.
    pub observed: Option<String>,
    /// `reported.value`
    pub reported: Option<String>,
    /// `reported.metadata.timestamp`: when the device had the value by the mapper's clock, Unix
    /// milliseconds.
    pub reported_at_ms: Option<i64>,
    /// `reported.metadata.type`; one that is not known here counts as missing.
    pub kind: Option<String>,
}

/// What a mapper reads from its device. `Err` is for the mapper: nothing was stored.
///
/// # Errors
/// Of the store; worth another try.
pub fn mapper_reported(
    tx: &Connection,
    namespace: &str,
    name: &str,
    twins: Vec<MapperTwin>,
    now: UnixMillis,
) -> Result<Result<Outcome, Rejected>, StoreError> {
    let changes = twins.into_iter().map(|twin| {
        let given = |value: Option<String>| value.filter(|text| !text.is_empty());
        let change = Change {
            reported: twin.reported,
            reported_at_ms: twin.reported_at_ms,
            observed: given(twin.observed),
            kind: given(twin.kind)
                .map(|kind| kind.to_ascii_lowercase())
                .filter(|kind| device_twin::Kind::is_known(kind)),
            ..Change::default()
        };
        (twin.name, Some(change))
    });
    let event = Event::Update {
        event_id: String::new(),
        changes: changes.collect(),
    };
    told(tx, namespace, name, event, now)
}

/// The state of a device, as its mapper sees it. `disconnected`, which the stock framework sends,
/// is `offline`.
///
/// # Errors
/// Of the store; worth another try.
pub fn mapper_state(
    tx: &Connection,
    namespace: &str,
    name: &str,
    state: &str,
    now: UnixMillis,
) -> Result<Result<Outcome, Rejected>, StoreError> {
    let state = if state.eq_ignore_ascii_case("disconnected") {
        "offline".to_owned()
    } else {
        state.to_owned()
    };
    told(tx, namespace, name, Event::State { state }, now)
}

/// The mapper did not take the device: its desired values are refused until one does.
///
/// # Errors
/// Of the store; worth another try.
pub fn mapper_refused(
    tx: &Connection,
    namespace: &str,
    name: &str,
    reason: &str,
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    deliveries(tx, namespace, name, now, |_| {
        Some(Delivery::Refused(reason.to_owned()))
    })
}

/// The mapper took the device, except for the properties `withheld` from it, for these reasons.
///
/// # Errors
/// Of the store; worth another try.
pub fn mapper_took(
    tx: &Connection,
    namespace: &str,
    name: &str,
    withheld: &BTreeMap<String, String>,
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    deliveries(tx, namespace, name, now, |property| {
        let reason = withheld.get(property).cloned();
        Some(reason.map_or(Delivery::Taken, Delivery::Refused))
    })
}

/// No mapper is told of the properties `withheld` of a device, for these reasons: their desired
/// values are refused, and an event at the Device says why, once for each text. Nothing withheld
/// ends the complaint.
///
/// # Errors
/// Of the store; worth another try.
pub fn not_served(
    tx: &Connection,
    object: &Value,
    withheld: &BTreeMap<String, String>,
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    let at = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let (namespace, name) = (at("/metadata/namespace"), at("/metadata/name"));
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    let mut outcome = deliveries(tx, namespace, name, now, |property| {
        withheld.get(property).cloned().map(Delivery::Refused)
    })?;
    let wrong: BTreeSet<&String> = withheld.values().collect();
    let wrong: Vec<String> = wrong.into_iter().cloned().collect();
    complaint::tell(tx, object, &complaint::MAPPING, &wrong, now, &mut outcome)?;
    Ok(outcome)
}

/// Whether some desired value of a device did not get as far as the device.
///
/// # Errors
/// Of the store.
pub fn is_undelivered(tx: &Connection, namespace: &str, name: &str) -> Result<bool, StoreError> {
    let device = load(tx, namespace, name)?;
    let mut properties = device.iter().flat_map(Device::live_properties);
    Ok(properties.any(|(_, property)| {
        let refused = property.refused.as_ref();
        refused.is_some_and(|refused| refused.is_undelivered)
    }))
}

/// Notes what became of the desired values of a device, where that is news. One that the device
/// has, or has refused itself, stays as it is. A device that is not known has none.
fn deliveries(
    tx: &Connection,
    namespace: &str,
    name: &str,
    now: UnixMillis,
    delivery_of: impl Fn(&str) -> Option<Delivery>,
) -> Result<Outcome, StoreError> {
    let Some(device) = load(tx, namespace, name)? else {
        return Ok(Outcome::default());
    };
    let is_news = |property: &Property, delivery: &Delivery| match (property.sync(), delivery) {
        (Some(SyncState::Pending), Delivery::Refused(_)) => true,
        (Some(SyncState::Refused(before)), Delivery::Refused(reason)) => {
            before.is_undelivered && before.reason != cut_reason(reason)
        }
        (Some(SyncState::Refused(before)), Delivery::Taken) => before.is_undelivered,
        (Some(SyncState::Pending), Delivery::Taken) | (None | Some(SyncState::Acknowledged), _) => {
            false
        }
    };
    let changes: BTreeMap<_, _> = device
        .live_properties()
        .filter_map(|(name, property)| {
            let delivery = delivery_of(name).filter(|delivery| is_news(property, delivery))?;
            let change = Change {
                delivery: Some(delivery),
                ..Change::default()
            };
            Some((name.clone(), Some(change)))
        })
        .collect();
    if changes.is_empty() {
        return Ok(Outcome::default());
    }
    let event = Event::Update {
        event_id: String::new(),
        changes,
    };
    let mut outcome = Outcome::default();
    match change(tx, &device, event, now, &mut outcome)? {
        Ok(()) => Ok(outcome),
        Err(rejected) => {
            tracing::warn!(
                namespace,
                name,
                reason = rejected.reason,
                "what became of desired values was refused"
            );
            Ok(Outcome::default())
        }
    }
}

/// The desired values that stand on this node, whoever set them, empty where none does: what a
/// mapper is to be sent in place of those in the Device object, which may have been refused.
/// `None`: no such device.
///
/// # Errors
/// Of the store.
pub fn desired_values(
    tx: &Connection,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, StoreError> {
    Ok(load(tx, namespace, name)?.map(|device| {
        let desired = device.live_properties().map(|(name, property)| {
            let value = property.desired.as_ref().map(|desired| &desired.value);
            (name.clone(), value.cloned().unwrap_or_default())
        });
        desired.collect()
    }))
}

fn load(tx: &Connection, namespace: &str, name: &str) -> Result<Option<Device>, StoreError> {
    match DeviceId::new(namespace, name) {
        Some(id) => rows::load(tx, &id),
        None => Ok(None),
    }
}

fn told(
    tx: &Connection,
    namespace: &str,
    name: &str,
    event: Event,
    now: UnixMillis,
) -> Result<Result<Outcome, Rejected>, StoreError> {
    let Some(device) = load(tx, namespace, name)? else {
        return Ok(Err(Rejected::unknown_device()));
    };
    let mut outcome = Outcome::default();
    let decided = change(tx, &device, event, now, &mut outcome)?;
    Ok(decided.map(|()| outcome))
}
