//! What values of properties may look like: KubeEdge's rule, or a wider one of the configuration.

use device_twin::{Event, ValueRule};
use rusqlite::{Connection, OptionalExtension};

use crate::store::StoreError;

const FACT: &str = "twin_values";

/// Remembers the rule. Called once at start.
pub fn set_values(tx: &Connection, rule: &ValueRule) -> Result<(), StoreError> {
    if *rule == ValueRule::default() {
        tx.execute("DELETE FROM facts WHERE name = ?1", [FACT])?;
        return Ok(());
    }
    let text =
        serde_json::to_string(rule).map_err(|error| StoreError::Refused(error.to_string()))?;
    tx.execute(
        "INSERT INTO facts (name, value) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (FACT, text),
    )?;
    Ok(())
}

/// The rule for this event. It is only looked up for what KubeEdge's refuses: the configuration's is
/// wider, and nearly all values are numbers.
pub(super) fn rule(tx: &Connection, event: &Event) -> Result<ValueRule, StoreError> {
    let theirs = ValueRule::default();
    let is_wide = match event {
        Event::Update { changes, .. } => changes
            .values()
            .flatten()
            .flat_map(|change| [&change.desired, &change.reported, &change.observed])
            .flatten()
            .any(|value| !theirs.allows(value)),
        Event::Sync { .. }
        | Event::Desired { .. }
        | Event::State { .. }
        | Event::Described { .. } => false,
    };
    if !is_wide {
        return Ok(theirs);
    }
    let kept: Option<String> = tx
        .prepare_cached("SELECT value FROM facts WHERE name = ?1")?
        .query_row([FACT], |row| row.get(0))
        .optional()?;
    let rule = kept.and_then(|text| serde_json::from_str(&text).ok());
    Ok(rule.unwrap_or(theirs))
}
