//! What rules in the cloud want from this node: topics that are uploaded, and what local
//! applications may call through the ServiceBus. Kept, so that a node that starts without its hub
//! takes what its devices publish.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension};
use wire::message::Message;
use wire::rules::Routes;

use super::apply::refused;
use crate::store::StoreError;

/// Topics, and URLs, of one node. More are not taken: each publish is compared with every topic.
const ROUTES_MAX: usize = 256;
/// Longest topic or URL.
const ROUTE_BYTES_MAX: usize = 2048;

const FACT: &str = "rule_routes";

/// As last told.
pub(super) fn load(tx: &Connection) -> Result<Routes, StoreError> {
    let kept: Option<String> = tx
        .query_row("SELECT value FROM facts WHERE name = ?1", [FACT], |row| {
            row.get(0)
        })
        .optional()?;
    // Written by `apply` alone; one that cannot be read is told again with the next connection.
    Ok(kept
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default())
}

/// Takes a message about routes; `None`: it is about something else.
pub(super) fn apply(tx: &Connection, message: &Message) -> Result<Option<Routes>, StoreError> {
    if Routes::default().after(message).is_none() {
        return Ok(None);
    }
    let before = load(tx)?;
    let Some(after) = before.after(message) else {
        return Ok(None);
    };
    let told = after.map_err(|error| refused(format!("routes: {error}")))?;
    let routes = Routes {
        topics: bounded(told.topics, |topic| {
            broker::topic::is_valid_filter(topic) && !topic.starts_with('$')
        }),
        urls: bounded(told.urls, |_| true),
    };
    if routes != before {
        let text = serde_json::to_string(&routes).map_err(|error| refused(error.to_string()))?;
        tx.execute(
            "INSERT INTO facts (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (FACT, text),
        )?;
    }
    Ok(Some(routes))
}

/// What is too much or no topic is left out: refused, it would come again for ever, and the others
/// with it.
fn bounded(told: BTreeSet<String>, is_usable: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let count = told.len();
    let kept: BTreeSet<String> = told
        .into_iter()
        .filter(|one| !one.is_empty() && one.len() <= ROUTE_BYTES_MAX && is_usable(one))
        .take(ROUTES_MAX)
        .collect();
    if kept.len() < count {
        tracing::warn!(
            told = count,
            kept = kept.len(),
            "some of what rules want from this node cannot be served"
        );
    }
    kept
}
