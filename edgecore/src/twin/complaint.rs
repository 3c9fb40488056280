//! What cannot be used of a Device object is told where it was written: as an event at the Device,
//! through the outbox, once for each text.

use rusqlite::{Connection, OptionalExtension};
use serde_json::{Value, json};
use wire::extension::EVENTS_STREAM;
use wire::message::{Content, Message, Operation, Route};

use super::{Outcome, convert::rfc3339, fresh_id};
use crate::clock::UnixMillis;
use crate::outbox;
use crate::store::StoreError;

/// What a complaint is about; one of each is open at a device.
pub(super) struct Subject {
    /// Where the last text is kept.
    fact: &'static str,
    /// Of the event.
    reason: &'static str,
}

/// Annotations of the Device.
pub(super) const ANNOTATIONS: Subject = Subject {
    fact: "complaint",
    reason: "AnnotationNotUsable",
};

/// What keeps a mapper from serving it.
pub(super) const MAPPING: Subject = Subject {
    fact: "unserved",
    reason: "NotServed",
};

impl Subject {
    fn fact(&self, namespace: &str, name: &str) -> String {
        format!("{}/{namespace}/{name}", self.fact)
    }
}

/// Longest text of an event (Kubernetes' own bound).
const TEXT_CHARS_MAX: usize = 1024;

/// Tells what is wrong with `object`, or that nothing is any more.
pub(super) fn tell(
    tx: &Connection,
    object: &Value,
    subject: &Subject,
    wrong: &[String],
    now: UnixMillis,
    outcome: &mut Outcome,
) -> Result<(), StoreError> {
    let at = |member: &str| {
        let value = object.pointer(&format!("/metadata/{member}"));
        value.and_then(Value::as_str).unwrap_or_default()
    };
    let (namespace, name) = (at("namespace"), at("name"));
    let fact = subject.fact(namespace, name);
    let told: Option<String> = tx
        .prepare_cached("SELECT value FROM facts WHERE name = ?1")?
        .query_row([&fact], |row| row.get(0))
        .optional()?;
    let text: String = wrong.join("; ").chars().take(TEXT_CHARS_MAX).collect();
    if told.as_deref().unwrap_or_default() == text {
        return Ok(());
    }
    if text.is_empty() {
        tx.execute("DELETE FROM facts WHERE name = ?1", [&fact])?;
        return Ok(());
    }
    tracing::warn!(
        device = name,
        namespace,
        error = text,
        "a device says what cannot be used"
    );
    tx.execute(
        "INSERT INTO facts (name, value) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        [&fact, &text],
    )?;
    let id = fresh_id();
    let event = format!("{name}.{id}");
    let body = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": event, "namespace": namespace},
        "involvedObject": {
            "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
            "namespace": namespace, "name": name, "uid": at("uid"),
        },
        "reason": subject.reason, "message": text, "type": "Warning", "count": 1,
        "firstTimestamp": rfc3339(Some(now)), "lastTimestamp": rfc3339(Some(now)),
        "source": {"component": "edgecore"},
    });
    let content = Content::json(&body).unwrap_or_default();
    let resource = format!("{namespace}/event/{event}");
    let route = Route::new("edged", "meta", &Operation::Insert, resource.clone());
    let message = Message::new(id, now, route, content);
    outbox::append_about(tx, EVENTS_STREAM, &resource, &message.encode(), now)?;
    outcome.queued = true;
    Ok(())
}

/// The device is gone.
pub(super) fn forget(tx: &Connection, namespace: &str, name: &str) -> Result<(), StoreError> {
    for subject in [ANNOTATIONS, MAPPING] {
        let fact = subject.fact(namespace, name);
        tx.execute("DELETE FROM facts WHERE name = ?1", [fact])?;
    }
    Ok(())
}
