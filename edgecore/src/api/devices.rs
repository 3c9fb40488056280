//! Devices over the local API: everything about one, desired values, and the history.
//!
//! `GET /devices/<namespace>/<name>` · `POST /devices/<namespace>/<name>/desired` with a JSON
//! object of texts · `GET /history/<namespace>/<name>/<property>?last=N&since=MS&until=MS`. A
//! property's name may hold slashes.

use std::collections::BTreeMap;

use device_twin::{Code, DeviceId};
use http::{Method, StatusCode};

use super::server::Sources;
use crate::clock;
use crate::store::StoreError;
use crate::twin::{self, HistoryQuery, Outcome};

/// Readings answered if the question names no number.
const LAST: u32 = 100;

/// Status and body of an answer.
pub(super) type Answered = (StatusCode, String);

/// Whether the path is one of these.
pub(super) fn is_ours(path: &str) -> bool {
    path.starts_with("/devices/") || path.starts_with("/history/")
}

/// Answers a question about devices. `body` is empty with a GET.
pub(super) async fn answer(
    sources: &Sources,
    method: &Method,
    path: &str,
    query: &str,
    body: &[u8],
) -> Answered {
    let answered = match (method, path.split_once("/desired")) {
        (&Method::GET, _) if path.starts_with("/history/") => history(sources, path, query).await,
        (&Method::GET, None) => detail(sources, path).await,
        (&Method::POST, Some((path, ""))) => set(sources, path, body).await,
        _ => return unknown("GET /devices/<namespace>/<name>, POST …/desired, GET /history/…"),
    };
    answered.unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn unknown(known: &str) -> Answered {
    (StatusCode::NOT_FOUND, format!("known: {known}"))
}

fn no_device(id: &DeviceId) -> Answered {
    let message = format!("this node has no device {id}; `edgecore status` lists those it has");
    (StatusCode::NOT_FOUND, message)
}

fn device(path: &str) -> Option<DeviceId> {
    DeviceId::parse(path.strip_prefix("/devices/")?)
}

fn json(value: &impl serde::Serialize) -> Answered {
    match serde_json::to_string(value) {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn detail(sources: &Sources, path: &str) -> Result<Answered, StoreError> {
    let Some(id) = device(path) else {
        return Ok(unknown("GET /devices/<namespace>/<name>"));
    };
    let asked = id.clone();
    let found = sources
        .store
        .read(move |tx| twin::detail(tx, &asked))
        .await?;
    Ok(found.map_or_else(|| no_device(&id), |detail| json(&detail)))
}

async fn set(sources: &Sources, path: &str, body: &[u8]) -> Result<Answered, StoreError> {
    let Some(id) = device(path) else {
        return Ok(unknown("POST /devices/<namespace>/<name>/desired"));
    };
    let values: BTreeMap<String, String> = match serde_json::from_slice(body) {
        Ok(values) => values,
        Err(error) => return Ok((StatusCode::BAD_REQUEST, error.to_string())),
    };
    let asked = id.clone();
    let decided = sources
        .store
        .write(move |tx| twin::set_desired(tx, &asked, values, clock::unix_millis()))
        .await?;
    match decided {
        Ok(outcome) => {
            after_commit(sources, outcome);
            detail(sources, path).await
        }
        Err(rejected) if rejected.code == Code::NotFound => Ok(no_device(&id)),
        Err(rejected) => Ok((StatusCode::BAD_REQUEST, rejected.reason)),
    }
}

/// The device hears of it, then the hub.
fn after_commit(sources: &Sources, outcome: Outcome) {
    if let Some(bus) = &sources.bus {
        for publish in outcome.publishes {
            bus.publish(publish);
        }
    }
    if outcome.queued {
        sources.hub.outbox_wake().notify_one();
    }
}

async fn history(sources: &Sources, path: &str, query: &str) -> Result<Answered, StoreError> {
    let parts = path.strip_prefix("/history/").unwrap_or_default();
    let mut parts = parts.splitn(3, '/');
    let (namespace, name) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let (Some(id), Some(property)) = (DeviceId::new(namespace, name), parts.next()) else {
        return Ok(unknown("GET /history/<namespace>/<name>/<property>"));
    };
    let mut asked = HistoryQuery {
        last: LAST,
        since_ms: None,
        until_ms: None,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((key, Ok(number))) = pair.split_once('=').map(|(k, v)| (k, v.parse::<i64>()))
        else {
            return Ok((
                StatusCode::BAD_REQUEST,
                format!("`{pair}` is not KEY=NUMBER"),
            ));
        };
        match key {
            "last" => asked.last = u32::try_from(number).unwrap_or(0),
            "since" => asked.since_ms = Some(number),
            "until" => asked.until_ms = Some(number),
            _ => return Ok((StatusCode::BAD_REQUEST, format!("`{key}` is not known"))),
        }
    }
    let (device, property) = (id.clone(), property.to_owned());
    let readings = sources.store.read(move |tx| {
        let is_known = twin::document(tx, &device.namespace, &device.name)?.is_some();
        let readings = twin::history(tx, &device, &property, asked)?;
        Ok(is_known.then_some(readings))
    });
    Ok(readings
        .await?
        .map_or_else(|| no_device(&id), |readings| json(&readings)))
}
