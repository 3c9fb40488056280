//! What mappers say of their devices, in the twin's terms: the inside of the device mapper
//! interface. Every function runs in the caller's transaction, like the MQTT side.
//!
//! Differences to KubeEdge (device plane 3.4): missing parts are accepted; what a mapper echoes as
//! the desired value it has seen is an acknowledgement, and is never a wish itself; its times are
//! kept beside the node's.

use std::collections::BTreeMap;

use device_twin::{Change, Device, DeviceId, Event, Rejected};
use rusqlite::Connection;

use super::{Outcome, change, rows};
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

/// The mapper did not take the device's desired values: those that are pending are refused.
///
/// # Errors
/// Of the store; worth another try.
pub fn mapper_refused(
    tx: &Connection,
    namespace: &str,
    name: &str,
    reason: &str,
    now: UnixMillis,
) -> Result<Result<Outcome, Rejected>, StoreError> {
    let Some(device) = load(tx, namespace, name)? else {
        return Ok(Err(Rejected::unknown_device()));
    };
    let is_pending = |p: &device_twin::Property| p.sync() == Some(device_twin::SyncState::Pending);
    let refused = Change {
        refused: Some(reason.to_owned()),
        ..Change::default()
    };
    let changes: BTreeMap<_, _> = device
        .live_properties()
        .filter(|(_, property)| is_pending(property))
        .map(|(name, _)| (name.clone(), Some(refused.clone())))
        .collect();
    if changes.is_empty() {
        return Ok(Ok(Outcome::default()));
    }
    let event = Event::Update {
        event_id: String::new(),
        changes,
    };
    told(tx, namespace, name, event, now)
}

/// The desired values that stand on this node, whoever set them: what a mapper is to be sent in
/// place of those in the Device object. `None`: no such device.
///
/// # Errors
/// Of the store.
pub fn desired_values(
    tx: &Connection,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, StoreError> {
    Ok(load(tx, namespace, name)?.map(|device| {
        let desired = device.live_properties().filter_map(|(name, property)| {
            let value = &property.desired.as_ref()?.value;
            (!value.is_empty()).then(|| (name.clone(), value.clone()))
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
