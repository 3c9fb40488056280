//! Where pushed objects meet the twins: the same transaction.

use rusqlite::Connection;
use serde_json::Value;
use wire::message::Message;

use super::Applied;
use crate::clock::UnixMillis;
use crate::store::StoreError;

pub(super) fn upserted(
    _tx: &Connection,
    _device: &Value,
    _now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    Ok(Applied::default())
}

pub(super) fn removed(
    _tx: &Connection,
    _namespace: &str,
    _name: &str,
    _now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    Ok(Applied::default())
}

pub(super) fn membership(
    _tx: &Connection,
    _body: &[u8],
    _now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    Ok(Applied::default())
}

pub(super) fn desired_from_hub(
    _tx: &Connection,
    _namespace: &str,
    _name: &str,
    _message: &Message,
    _now_ms: UnixMillis,
) -> Result<Applied, StoreError> {
    Ok(Applied::default())
}
