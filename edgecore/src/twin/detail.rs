//! A device with everything that is known of it, for a person on the node; and desired values set
//! by one.

use std::collections::BTreeMap;

use device_twin::{Change, DeviceId, Event, Property, Rejected};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::{Outcome, change, rows};
use crate::clock::UnixMillis;
use crate::store::StoreError;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDetail {
    pub namespace: String,
    pub name: String,
    pub description: String,
    /// As last reported; empty before the first report.
    pub state: String,
    pub last_online_ms: Option<UnixMillis>,
    pub properties: Vec<PropertyDetail>,
}

/// A value, when it was written, and how often by the hub and by the edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub value: String,
    pub at_ms: UnixMillis,
    pub cloud_version: i64,
    pub edge_version: i64,
}

/// One property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PropertyDetail {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub reported: Option<Part>,
    pub desired: Option<Part>,
    /// `hub` or `edge`; empty if nothing is desired.
    pub desired_by: String,
    /// `pending`, `acknowledged` or `refused`; empty if nothing is desired.
    pub sync: String,
    /// The value that was refused, and why.
    pub refused: String,
    pub reason: String,
}

fn part(
    stamped: Option<&device_twin::Stamped>,
    version: Option<device_twin::Version>,
) -> Option<Part> {
    let version = version.unwrap_or_default();
    stamped.map(|stamped| Part {
        value: stamped.value.clone(),
        at_ms: stamped.at_ms,
        cloud_version: version.cloud,
        edge_version: version.edge,
    })
}

fn property((name, property): (&String, &Property)) -> PropertyDetail {
    let refusal = property.refused.clone();
    let desired_by = match (&property.desired, property.set_here_at) {
        (None, _) => "",
        (Some(_), Some(_)) => "edge",
        (Some(_), None) => "hub",
    };
    PropertyDetail {
        name: name.clone(),
        kind: property.kind.as_str().to_owned(),
        reported: part(property.reported.as_ref(), property.reported_version),
        desired: part(property.desired.as_ref(), property.desired_version),
        desired_by: desired_by.to_owned(),
        sync: property
            .sync()
            .map_or_else(String::new, |sync| sync.as_str().to_owned()),
        refused: refusal
            .as_ref()
            .map_or_else(String::new, |r| r.value.clone()),
        reason: refusal.map_or_else(String::new, |r| r.reason),
    }
}

/// Everything about one device; `None` if this node does not have it.
///
/// # Errors
/// Of the store.
pub fn detail(tx: &Connection, id: &DeviceId) -> Result<Option<DeviceDetail>, StoreError> {
    Ok(rows::load(tx, id)?.map(|device| DeviceDetail {
        namespace: device.id.namespace.clone(),
        name: device.id.name.clone(),
        description: device.description.clone(),
        state: device.state.clone(),
        last_online_ms: device.last_online_ms,
        properties: device.live_properties().map(property).collect(),
    }))
}

/// Sets desired values from here, as a local program does over MQTT; an empty value gives the
/// edge's wish up. The hub is told; what it wishes later is weighed by the conflict rule.
///
/// # Errors
/// Of the store.
pub fn set_desired(
    tx: &Connection,
    id: &DeviceId,
    values: BTreeMap<String, String>,
    now: UnixMillis,
) -> Result<Result<Outcome, Rejected>, StoreError> {
    let Some(device) = rows::load(tx, id)? else {
        return Ok(Err(Rejected::unknown_device()));
    };
    let changes = values.into_iter().map(|(name, value)| {
        let change = Change {
            desired: Some(value),
            ..Change::default()
        };
        (name, Some(change))
    });
    let event = Event::Update {
        event_id: String::new(),
        changes: changes.collect(),
    };
    let mut outcome = Outcome::default();
    let decided = change(tx, &device, event, now, &mut outcome)?;
    Ok(decided.map(|()| outcome))
}
