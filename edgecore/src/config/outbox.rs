//! `outpost.outboxBytesMax`, `outpost.streams`: what may wait for the hub.

use serde::Deserialize;

use super::ConfigError;
use super::keys::{BYTES_MAX, Keys, wrong};
use super::schema::{Field, field};
use crate::outbox::{Policy, PolicyError, RULES_MAX, Rule};

/// Several of the largest messages a device can send.
const OUTBOX_BYTES_MIN: u64 = 1 << 20;

pub(super) const FIELDS: &[Field] = &[
    field(
        "outpost.outboxBytesMax",
        "\"256Mi\"",
        "what waits for the hub may take this much disk; then the oldest rows give way (`evicted` in the ledger)",
    ),
    field(
        "outpost.streams",
        "[]",
        "what waits for the hub, by stream; the first that matches counts: match (twin/<ns>/<device>, state/<ns>/<device>, upload/<topic>, with + and #), priority 0-9, ttl (24h), bytes (4Mi), whenFull (dropOldest, refuse, keepNewest)",
    ),
];

/// One of `outpost.streams`; the values are checked with their place in the message.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StreamRule {
    #[serde(rename = "match")]
    pattern: String,
    priority: Option<u8>,
    ttl: Option<String>,
    bytes: Option<String>,
    when_full: Option<String>,
}

pub(super) fn bytes_max(keys: &Keys) -> Result<u64, ConfigError> {
    keys.bytes("outpost.outboxBytesMax", OUTBOX_BYTES_MIN..=BYTES_MAX)
}

/// The first that matches a stream counts.
pub(super) fn streams(keys: &Keys) -> Result<Vec<Rule>, ConfigError> {
    const PATH: &str = "outpost.streams";
    let rules: Vec<StreamRule> = keys.get(PATH)?;
    if rules.len() > RULES_MAX {
        return Err(wrong(PATH, format!("at most {RULES_MAX} rules")));
    }
    let mut checked = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let at = |error: PolicyError| wrong(format!("{PATH}[{index}]"), error.to_string());
        let mut policy = Policy::default();
        let priority = rule.priority.map(|priority| priority.to_string());
        for (key, value) in [
            ("priority", priority.as_ref()),
            ("ttl", rule.ttl.as_ref()),
            ("bytes", rule.bytes.as_ref()),
            ("whenFull", rule.when_full.as_ref()),
        ] {
            if let Some(value) = value {
                policy.set(key, value).map_err(at)?;
            }
        }
        checked.push(Rule::new(&rule.pattern, policy).map_err(at)?);
    }
    Ok(checked)
}
