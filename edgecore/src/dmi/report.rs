//! What a mapper reports, in one transaction. The mapper learns what became of it; in KubeEdge the
//! reply leaves before.

use ::dmi::v1beta1 as pb;
use device_twin::{Code, Rejected};
use rusqlite::Connection;
use wire::topic::DeviceRef;

use crate::clock::UnixMillis;
use crate::store::StoreError;
use crate::twin::{self, MapperTwin, Outcome};

/// What a report did, and why a part of it was refused.
pub(super) type Taken = (Outcome, Option<Rejected>);

/// Takes a status report. One property that does not fit does not take the others with it:
/// KubeEdge handles each by itself.
pub(super) fn status(
    tx: &Connection,
    device: &DeviceRef,
    twins: Vec<pb::Twin>,
    now: UnixMillis,
) -> Result<Taken, StoreError> {
    let twins: Vec<MapperTwin> = twins.into_iter().map(part).collect();
    let reported = |twins| twin::mapper_reported(tx, &device.namespace, &device.name, twins, now);
    let refused = match reported(twins.clone())? {
        Ok(outcome) => return Ok((outcome, None)),
        Err(refused) => refused,
    };
    if refused.code != Code::BadRequest || twins.len() < 2 {
        return Ok((Outcome::default(), Some(refused)));
    }
    let mut told = Outcome::default();
    let mut first = None;
    for twin in twins {
        let name = twin.name.clone();
        match reported(vec![twin])? {
            Ok(outcome) => told.append(outcome),
            Err(refused) => {
                first.get_or_insert(Rejected {
                    reason: format!("{name}: {}", refused.reason),
                    ..refused
                });
            }
        }
    }
    Ok((told, first))
}

/// Takes a state report.
pub(super) fn state(
    tx: &Connection,
    device: &DeviceRef,
    state: &str,
    now: UnixMillis,
) -> Result<Taken, StoreError> {
    let told = twin::mapper_state(tx, &device.namespace, &device.name, state, now)?;
    Ok(match told {
        Ok(outcome) => (outcome, None),
        Err(refused) => (Outcome::default(), Some(refused)),
    })
}

/// A reported property. Missing parts say nothing.
fn part(twin: pb::Twin) -> MapperTwin {
    let metadata = |key: &str| twin.reported.as_ref()?.metadata.get(key).cloned();
    let time = metadata("timestamp").and_then(|text| text.parse().ok());
    MapperTwin {
        kind: metadata("type"),
        reported_at_ms: time.filter(|at| *at > 0),
        reported: twin.reported.map(|reported| reported.value),
        observed: twin.observed_desired.map(|observed| observed.value),
        name: twin.property_name,
    }
}
