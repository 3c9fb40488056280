//! The hub's ledger, as `kubectl get --raw /outpost/v1/ledger/<node>` shows it.

use serde_json::Value;

/// How many messages of `stream` the hub has stored, ever.
pub fn received(ledger: &Value, stream: &str) -> u64 {
    ledger["streams"][stream].as_u64().unwrap_or(0)
}

/// Reported values of one property in the order in which the hub stored them.
pub fn values(ledger: &Value, stream: &str, property: &str) -> Vec<String> {
    let entries = ledger["entries"].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .filter(|entry| entry["stream"] == stream)
        .filter_map(|entry| entry["value"][property].as_str().map(ToOwned::to_owned))
        .collect()
}
