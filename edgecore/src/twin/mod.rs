//! DeviceTwin: the device-twin library applied inside the store's transaction.
//!
//! Every function here takes the open transaction and a time and returns an [`Outcome`]: what to
//! publish to local clients *after* the commit. What the cloud must learn is already in the
//! outbox, in the same transaction, one row for each accepted event: none is merged or dropped.
//!
//! What is refused is answered on the device's own topics; KubeEdge answers malformed bodies on
//! `$hw/events/device//twin/update/result`, where nobody listens.

mod complaint;
mod convert;
mod detail;
mod history;
mod mapper;
mod members;
#[cfg(test)]
pub(crate) mod payload_tests;
mod replay;
mod rows;
#[cfg(test)]
mod tests;
mod values;

use device_twin::{Device, DeviceId, Effect, Event, Rejected, apply_by, check};
use rusqlite::Connection;
use serde::Serialize;
use uuid::Uuid;
use wire::message::{Content, Message, Operation, Route};
use wire::topic::{DeviceRef, Inbound, TwinAction, format};
use wire::twin::{BaseMessage, ErrorMessage, MsgTwin, StateUpdate, TwinMessage, decode, encode};

use crate::clock::UnixMillis;
use crate::outbox;
use crate::store::StoreError;

use replay::Replay;

pub use detail::{DeviceDetail, Part, PropertyDetail, detail, set_desired};
pub(crate) use history::open_totals as open_history_totals;
pub use history::{
    HistoryBounds, HistoryQuery, READINGS_MAX, Reading, history, set_history_bounds,
};
pub use mapper::{
    MapperTwin, desired_values, is_undelivered, mapper_refused, mapper_reported, mapper_state,
    mapper_took, not_served,
};
pub use members::{
    device_removed, device_upserted, membership, membership_detail_request, set_conflict, set_node,
};
pub use rows::{DeviceSummary, devices};
pub use values::set_values;

/// A message for local MQTT clients, published after the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPublish {
    pub topic: String,
    pub payload: Vec<u8>,
}

/// What is left to do once the transaction is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For local clients, in order.
    pub publishes: Vec<LocalPublish>,
    /// Whether the outbox got a row: wake the link.
    pub queued: bool,
}

impl Outcome {
    fn publish(&mut self, topic: String, body: &impl Serialize) {
        let payload = encode(body);
        self.publishes.push(LocalPublish { topic, payload });
    }

    fn refuse(&mut self, topic: String, event_id: String, rejected: Rejected, now: UnixMillis) {
        let body = ErrorMessage {
            event_id,
            timestamp: now,
            code: rejected.code.as_i64(),
            reason: rejected.reason,
        };
        self.publish(topic, &body);
    }

    /// Does after `self` what `other` asks.
    pub fn append(&mut self, other: Self) {
        self.publishes.extend(other.publishes);
        self.queued |= other.queued;
    }
}

/// Acts on a publish of a local client. Whether the client may send it was decided before
/// ([`Inbound::is_open_to_clients`]); the cloud's legacy `cloud_updated` message comes here too.
/// Uploads are not ours and do nothing.
pub fn handle_publish(
    tx: &Connection,
    topic: &Inbound,
    payload: &[u8],
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    match topic {
        Inbound::DeviceTwin { device, action } => match action {
            TwinAction::Update => handle_update(tx, device, payload, now, convert::update),
            TwinAction::CloudUpdated => handle_update(tx, device, payload, now, convert::sync),
            TwinAction::Get => handle_get(tx, device, payload, now),
        },
        Inbound::DeviceState { device } => handle_state(tx, device, payload, now),
        Inbound::MembershipGet { node } => members::handle_get(tx, node, payload, now),
        Inbound::Upload { .. } => Ok(Outcome::default()),
    }
}

/// The stored twin of a device.
pub fn document(
    tx: &Connection,
    namespace: &str,
    name: &str,
) -> Result<Option<Device>, StoreError> {
    match DeviceId::new(namespace, name) {
        Some(id) => rows::load(tx, &id),
        None => Ok(None),
    }
}

fn handle_update(
    tx: &Connection,
    device: &DeviceRef,
    payload: &[u8],
    now: UnixMillis,
    to_event: fn(String, convert::Twins) -> Event,
) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    let mut replay = None;
    let (event_id, decided) = match decode::<TwinMessage>(payload) {
        Err(error) => {
            tracing::debug!(%device, %error, "twin update not understood");
            (String::new(), Err(Rejected::unreadable()))
        }
        Ok(message) => {
            let event_id = message.event_id.clone();
            replay = Replay::of(tx, &convert::id(device), &event_id, payload)?;
            if replay.as_ref().is_some_and(Replay::is_repeat) {
                let nothing = TwinMessage {
                    event_id,
                    timestamp: now,
                    twin: Some(convert::Twins::default()),
                };
                outcome.publish(format::twin_result(device), &nothing);
                return Ok(outcome);
            }
            let event = match message.twin {
                Some(twin) => Ok(to_event(message.event_id, twin)),
                None => Err(Rejected::no_twin()),
            };
            (event_id, event)
        }
    };
    let rejected = match decided {
        Ok(event) => match rows::load(tx, &convert::id(device))? {
            Some(old) => change(tx, &old, event, now, &mut outcome)?,
            None => check(&event, &values::rule(tx, &event)?).and(Err(Rejected::unknown_device())),
        },
        Err(rejected) => Err(rejected),
    };
    match (rejected, replay) {
        (Err(rejected), _) => {
            outcome.refuse(format::twin_result(device), event_id, rejected, now);
        }
        (Ok(()), Some(replay)) => replay.remember(tx, &convert::id(device))?,
        (Ok(()), None) => {}
    }
    Ok(outcome)
}

fn handle_get(
    tx: &Connection,
    device: &DeviceRef,
    payload: &[u8],
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    let topic = format::twin_get_result(device);
    let Ok(request) = decode::<BaseMessage>(payload) else {
        outcome.refuse(topic, String::new(), Rejected::unreadable(), now);
        return Ok(outcome);
    };
    if let Some(found) = rows::load(tx, &convert::id(device))? {
        outcome.publish(topic, &convert::whole_twin(&found, request.event_id, now));
    } else {
        let rejected = Rejected {
            reason: format!("Device {device} not found while getting twin"),
            ..Rejected::unknown_device()
        };
        outcome.refuse(topic, request.event_id, rejected, now);
    }
    Ok(outcome)
}

/// KubeEdge says nothing to an unknown state or device; here both are answered, so that a device
/// learns that nobody heard it.
fn handle_state(
    tx: &Connection,
    device: &DeviceRef,
    payload: &[u8],
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    let topic = format::state_result(device);
    let Ok(request) = decode::<StateUpdate>(payload) else {
        outcome.refuse(topic, String::new(), Rejected::unreadable(), now);
        return Ok(outcome);
    };
    let event = Event::State {
        state: request.state,
    };
    let decided = match rows::load(tx, &convert::id(device))? {
        Some(old) => change(tx, &old, event, now, &mut outcome)?,
        None => Err(Rejected::unknown_device()),
    };
    if let Err(rejected) = decided {
        outcome.refuse(topic, request.event_id, rejected, now);
    }
    Ok(outcome)
}

/// Applies an event: stores the next state and the outbox rows, and collects the publishes. A
/// refusal stores nothing.
fn change(
    tx: &Connection,
    old: &Device,
    event: Event,
    now: UnixMillis,
    outcome: &mut Outcome,
) -> Result<Result<(), Rejected>, StoreError> {
    let rule = values::rule(tx, &event)?;
    let decision = match apply_by(old, event, now, &rule) {
        Ok(decision) => decision,
        Err(rejected) => return Ok(Err(rejected)),
    };
    if decision.next != *old {
        rows::save(tx, &decision.next)?;
    }
    let device = convert::reference(&old.id);
    for effect in decision.effects {
        perform(tx, &device, &decision.next, effect, now, outcome)?;
    }
    Ok(Ok(()))
}

fn perform(
    tx: &Connection,
    device: &DeviceRef,
    next: &Device,
    effect: Effect,
    now: UnixMillis,
    outcome: &mut Outcome,
) -> Result<(), StoreError> {
    match effect {
        Effect::Result { event_id, changed } => {
            let body = convert::result(event_id, &changed, now);
            outcome.publish(format::twin_result(device), &body);
        }
        Effect::Document { event_id, entries } => {
            let event_id = if event_id.is_empty() {
                fresh_id()
            } else {
                event_id
            };
            let body = convert::document(event_id, entries, now);
            outcome.publish(format::twin_document(device), &body);
        }
        Effect::Delta(delta) => {
            let body = convert::delta(fresh_id(), delta, now);
            outcome.publish(format::twin_delta(device), &body);
        }
        Effect::Report { properties } => {
            history::record(tx, &convert::id(device), &properties)?;
            let body = convert::report(fresh_id(), &properties, next, now);
            let content = Content::json(&body).unwrap_or_default();
            let resource = format::edge_updated_resource(device);
            let row = (format!("twin/{device}"), about(&body));
            queue(tx, &row, resource, content, now)?;
            outcome.queued = true;
        }
        Effect::State {
            state,
            last_online_ms,
        } => {
            let body = convert::state(fresh_id(), device, state, last_online_ms, now);
            outcome.publish(format::state_result(device), &body);
            // The cloud gets the same body as a string that holds JSON (protocol 4.3).
            let text = String::from_utf8(encode(&body)).unwrap_or_default();
            let resource = format::state_update_resource(device);
            let content = Content::string(&text);
            let row = (format!("state/{device}"), String::new());
            queue(tx, &row, resource, content, now)?;
            outcome.queued = true;
        }
        Effect::Attributes { changed } => {
            let body = convert::attributes(fresh_id(), changed, now);
            outcome.publish(format::device_updated(device), &body);
        }
        Effect::DesiredRefused { name, reason } => {
            tracing::warn!(%device, property = name, reason, "desired value of the cloud was not taken");
        }
    }
    Ok(())
}

/// Which parts of which properties a report holds.
fn about(report: &TwinMessage) -> String {
    let mut about = String::new();
    for (name, twin) in report.twin.iter().flatten() {
        let has = |part: fn(&MsgTwin) -> bool| twin.as_ref().is_some_and(part);
        about.push_str(name);
        about.push(if has(|t| t.actual.is_some()) {
            '+'
        } else {
            '-'
        });
        about.push(if has(|t| t.expected.is_some()) {
            '+'
        } else {
            '-'
        });
    }
    about
}

/// One message for the cloud, on disk with the change that caused it; on which stream, and what it
/// tells about.
fn queue(
    tx: &Connection,
    (stream, about): &(String, String),
    resource: String,
    content: Content,
    now: UnixMillis,
) -> Result<(), StoreError> {
    let route = Route::new("twin", "resource", &Operation::Update, resource);
    let message = Message::new(fresh_id(), now, route, content);
    outbox::append_about(tx, stream, about, &message.encode(), now)?;
    Ok(())
}

fn fresh_id() -> String {
    Uuid::new_v4().to_string()
}
