//! What a mapper reports takes the way of an MQTT message: the same topics, one transaction. The
//! mapper learns what became of it; in KubeEdge the reply leaves before.

use std::collections::BTreeMap;

use ::dmi::v1beta1 as pb;
use rusqlite::Connection;
use serde_json::Value;
use wire::topic::{DeviceRef, Inbound, TwinAction, format};
use wire::twin::{
    MsgTwin, StateUpdate, TwinMessage, TwinValue, TypeMetadata, ValueMetadata, encode,
};

use crate::clock::UnixMillis;
use crate::store::StoreError;
use crate::twin::{self, Outcome};

/// Why a report, or a part of it, was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// As on MQTT: 400, 404.
    pub code: i64,
    pub reason: String,
}

/// Takes a status report. One property that does not fit does not take the others with it:
/// KubeEdge handles each by itself.
pub(super) fn status(
    tx: &Connection,
    device: &DeviceRef,
    twins: Vec<pb::Twin>,
    now: UnixMillis,
) -> Result<(Outcome, Option<Refusal>), StoreError> {
    let known = twin::document(tx, &device.namespace, &device.name)?;
    let has_desired = |name: &str| {
        known
            .as_ref()
            .and_then(|known| known.properties.get(name))
            .is_some_and(|property| property.desired.is_some())
    };
    let parts: BTreeMap<String, Option<MsgTwin>> = twins
        .into_iter()
        .map(|reported| {
            let has_desired = has_desired(&reported.property_name);
            (
                reported.property_name.clone(),
                Some(part(reported, has_desired)),
            )
        })
        .collect();
    let (outcome, refusal) = update(tx, device, parts.clone(), now)?;
    match refusal {
        Some(refusal) if refusal.code == 400 && parts.len() > 1 => {
            let mut told = Outcome::default();
            let mut first = None;
            for (name, part) in parts {
                let (one, refusal) =
                    update(tx, device, BTreeMap::from([(name.clone(), part)]), now)?;
                told.append(one);
                if let Some(refusal) = refusal {
                    first.get_or_insert(Refusal {
                        reason: format!("{name}: {}", refusal.reason),
                        ..refusal
                    });
                }
            }
            Ok((told, first))
        }
        refusal => Ok((outcome, refusal)),
    }
}

/// Takes a state report.
pub(super) fn state(
    tx: &Connection,
    device: &DeviceRef,
    state: String,
    now: UnixMillis,
) -> Result<(Outcome, Option<Refusal>), StoreError> {
    let body = StateUpdate {
        event_id: String::new(),
        timestamp: now,
        state,
    };
    let topic = Inbound::DeviceState {
        device: device.clone(),
    };
    let outcome = twin::handle_publish(tx, &topic, &encode(&body), now)?;
    let refusal = refusal(&outcome, &format::state_result(device));
    Ok((outcome, refusal))
}

fn update(
    tx: &Connection,
    device: &DeviceRef,
    parts: BTreeMap<String, Option<MsgTwin>>,
    now: UnixMillis,
) -> Result<(Outcome, Option<Refusal>), StoreError> {
    let body = TwinMessage {
        event_id: String::new(),
        timestamp: now,
        twin: Some(parts),
    };
    let topic = Inbound::DeviceTwin {
        device: device.clone(),
        action: TwinAction::Update,
    };
    let outcome = twin::handle_publish(tx, &topic, &encode(&body), now)?;
    let refusal = refusal(&outcome, &format::twin_result(device));
    Ok((outcome, refusal))
}

/// The refusal that was published for the device, if one was.
fn refusal(outcome: &Outcome, topic: &str) -> Option<Refusal> {
    let result = outcome.publishes.iter().find(|one| one.topic == topic)?;
    let told: Value = serde_json::from_slice(&result.payload).ok()?;
    let code = told["code"].as_i64().filter(|code| *code != 0)?;
    let reason = told["reason"].as_str().unwrap_or_default().to_owned();
    Some(Refusal { code, reason })
}

/// A reported property. Missing parts say nothing. What the mapper saw as desired counts only
/// where nobody else wished anything: a mapper that has not heard of the newest wish yet must not
/// take it back.
fn part(reported: pb::Twin, has_desired: bool) -> MsgTwin {
    let kind = reported.reported.as_ref().and_then(|value| {
        let kind = value.metadata.get("type")?.to_ascii_lowercase();
        is_known(&kind).then_some(TypeMetadata { kind })
    });
    let observed = reported
        .observed_desired
        .filter(|observed| !has_desired && !observed.value.is_empty());
    MsgTwin {
        expected: observed.map(value),
        actual: reported.reported.map(value),
        metadata: kind,
        ..MsgTwin::default()
    }
}

fn value(property: pb::TwinProperty) -> TwinValue {
    let timestamp = property
        .metadata
        .get("timestamp")
        .and_then(|text| text.parse().ok());
    TwinValue {
        value: Some(property.value),
        metadata: timestamp.map(|timestamp| ValueMetadata { timestamp }),
    }
}

/// Types that a twin has; a mapper's own names (`STREAM`) leave the type open.
fn is_known(kind: &str) -> bool {
    matches!(
        kind,
        "string" | "int" | "integer" | "float" | "double" | "boolean" | "bytes"
    )
}
