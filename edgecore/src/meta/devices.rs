//! Where pushed objects meet the twins: the same transaction.

use rusqlite::Connection;
use serde_json::Value;
use wire::message::Message;
use wire::topic::{DeviceRef, Inbound, TwinAction};

use super::Applied;
use crate::clock::UnixMillis;
use crate::store::StoreError;
use crate::twin::{self, Outcome};

impl From<Outcome> for Applied {
    fn from(outcome: Outcome) -> Self {
        Self {
            changed: false,
            devices_changed: false,
            routes: None,
            publishes: outcome.publishes,
            queued: outcome.queued,
        }
    }
}

pub(super) fn upserted(
    tx: &Connection,
    device: &Value,
    now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    twin::device_upserted(tx, device, now_ms).map(Applied::from)
}

pub(super) fn removed(
    tx: &Connection,
    namespace: &str,
    name: &str,
    now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    twin::device_removed(tx, namespace, name, now_ms).map(Applied::from)
}

pub(super) fn membership(
    tx: &Connection,
    body: &[u8],
    now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    twin::membership(tx, body, now_ms).map(Applied::from)
}

/// `device/<ns>/<name>/twin/cloud_updated`: what clouds before v1.18 send instead of the Device
/// object.
pub(super) fn desired_from_hub(
    tx: &Connection,
    namespace: &str,
    name: &str,
    message: &Message,
    now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    let topic = Inbound::DeviceTwin {
        device: DeviceRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
        action: TwinAction::CloudUpdated,
    };
    let body = message.content.document();
    twin::handle_publish(tx, &topic, body.as_bytes(), now_ms).map(Applied::from)
}
