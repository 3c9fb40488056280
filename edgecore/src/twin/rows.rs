//! The `devices` table: one row a device, the document as JSON.

use device_twin::{Device, DeviceId};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use crate::store::StoreError;

/// A device in a few words, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceSummary {
    pub namespace: String,
    pub name: String,
    /// As last reported; empty before the first report.
    pub state: String,
    pub last_online_ms: Option<i64>,
    /// Properties that have not been removed.
    pub properties: usize,
    /// Properties whose desired value is not reported yet.
    pub pending: usize,
}

/// Every device, by namespace and name.
pub fn devices(tx: &Connection) -> Result<Vec<DeviceSummary>, StoreError> {
    let summary = |device: Device| DeviceSummary {
        properties: device.live_properties().count(),
        pending: device_twin::delta(&device).map_or(0, |delta| delta.missing.len()),
        namespace: device.id.namespace,
        name: device.id.name,
        state: device.state,
        last_online_ms: device.last_online_ms,
    };
    Ok(all(tx)?.into_iter().map(summary).collect())
}

pub(super) fn all(tx: &Connection) -> Result<Vec<Device>, StoreError> {
    let mut query = tx
        .prepare_cached("SELECT namespace, name, document FROM devices ORDER BY namespace, name")?;
    let rows = query.query_map([], |row| {
        let id = DeviceId {
            namespace: row.get(0)?,
            name: row.get(1)?,
        };
        Ok((id, row.get::<_, Vec<u8>>(2)?))
    })?;
    rows.map(|row| {
        let (id, bytes) = row?;
        Ok(read(&id, &bytes))
    })
    .collect()
}

pub(super) fn ids(tx: &Connection) -> Result<std::collections::BTreeSet<DeviceId>, StoreError> {
    let mut query = tx.prepare_cached("SELECT namespace, name FROM devices")?;
    let rows = query.query_map([], |row| {
        Ok(DeviceId {
            namespace: row.get(0)?,
            name: row.get(1)?,
        })
    })?;
    rows.collect::<Result<_, _>>().map_err(StoreError::from)
}

pub(super) fn load(tx: &Connection, id: &DeviceId) -> Result<Option<Device>, StoreError> {
    let bytes: Option<Vec<u8>> = tx
        .prepare_cached("SELECT document FROM devices WHERE namespace = ?1 AND name = ?2")?
        .query_row([&id.namespace, &id.name], |row| row.get(0))
        .optional()?;
    Ok(bytes.map(|bytes| read(id, &bytes)))
}

/// Replaces the document of a device that is there.
pub(super) fn save(tx: &Connection, device: &Device) -> Result<(), StoreError> {
    let document = write(device)?;
    tx.prepare_cached("UPDATE devices SET document = ?3 WHERE namespace = ?1 AND name = ?2")?
        .execute(params![device.id.namespace, device.id.name, document])?;
    Ok(())
}

/// Creates a device.
pub(super) fn insert(tx: &Connection, device: &Device) -> Result<(), StoreError> {
    let document = write(device)?;
    tx.prepare_cached("INSERT INTO devices (namespace, name, document) VALUES (?1, ?2, ?3)")?
        .execute(params![device.id.namespace, device.id.name, document])?;
    Ok(())
}

pub(super) fn delete(tx: &Connection, id: &DeviceId) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM devices WHERE namespace = ?1 AND name = ?2")?
        .execute([&id.namespace, &id.name])?;
    super::replay::forget(tx, id)
}

fn write(device: &Device) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(device)
        .map_err(|error| StoreError::Refused(format!("twin of `{}`: {error}", device.id)))
}

/// A document that cannot be read must not silence its device for ever: the device starts anew,
/// and its next report fills it again.
fn read(id: &DeviceId, bytes: &[u8]) -> Device {
    serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::error!(device = %id, %error, "stored twin is unreadable; starting an empty one");
        Device::new(id.clone())
    })
}
