//! Events that the hub makes itself, and the end of all events.

use std::{sync::Arc, time::Duration};

use apiserver::{
    ApiError,
    store::{Store, StoreError, Txn},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    keys::REGISTRY,
    kube::{Kube, resources, text},
};

/// How often old events are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// Removals in one transaction.
const PRUNE_OPS_MAX: usize = 100;

/// Writes events about objects.
pub struct Recorder(Kube);

impl Recorder {
    /// Writes through this API.
    pub fn new(kube: Kube) -> Self {
        Self(kube)
    }

    /// Records one event; a failure is logged, never passed on.
    pub async fn record(&self, about: &Value, kind: &str, reason: &str, message: &str) {
        if let Err(error) = self.write(about, kind, reason, message).await {
            tracing::warn!(reason, %error, "event could not be recorded");
        }
    }

    /// Records one event.
    pub async fn write(
        &self,
        about: &Value,
        kind: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), ApiError> {
        let namespace = text(about, "/metadata/namespace");
        let namespace = if namespace.is_empty() {
            "default"
        } else {
            namespace
        };
        let name = text(about, "/metadata/name");
        let now = clock::rfc3339_now();
        let stamp = Timestamp::now().as_nanosecond();
        let mut event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": format!("{name}.{stamp:x}"), "namespace": namespace },
            "involvedObject": {
                "apiVersion": about.get("apiVersion").cloned().unwrap_or_else(|| "v1".into()),
                "kind": about.get("kind").cloned().unwrap_or_else(|| "Pod".into()),
                "name": name,
                "namespace": text(about, "/metadata/namespace"),
                "uid": text(about, "/metadata/uid"),
                "resourceVersion": text(about, "/metadata/resourceVersion"),
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": { "component": "cloudhub" },
            "reportingComponent": "cloudhub",
            "reportingInstance": "",
        });
        if text(&event, "/involvedObject/namespace").is_empty()
            && let Some(involved) = event["involvedObject"].as_object_mut()
        {
            involved.remove("namespace");
        }
        self.0
            .create(&resources::events(), namespace, event)
            .await
            .map(drop)
    }
}

/// Removes events older than `ttl_secs`, until `stop`.
pub async fn prune(
    store: Arc<dyn Store>,
    kube: Kube,
    ttl_secs: u64,
    stop: CancellationToken,
) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(PRUNE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if let Err(error) = prune_once(&*store, &kube, ttl_secs).await {
            if matches!(error, StoreError::Stopped) {
                return Ok(());
            }
            tracing::warn!(%error, "old events could not be removed");
        }
    }
}

async fn prune_once(store: &dyn Store, kube: &Kube, ttl_secs: u64) -> Result<(), StoreError> {
    let now = i64::try_from(clock::unix_secs()).unwrap_or(i64::MAX);
    let ttl = i64::try_from(ttl_secs).unwrap_or(i64::MAX);
    let (events, _) = kube.list_raw(&format!("{REGISTRY}core/events/")).await?;
    let old = events.into_iter().filter(|(_, event)| {
        let at = [
            "/lastTimestamp",
            "/eventTime",
            "/metadata/creationTimestamp",
        ]
        .into_iter()
        .find_map(|pointer| text(event, pointer).parse::<Timestamp>().ok());
        // An event without any time cannot be old.
        at.is_some_and(|at| now.saturating_sub(at.as_second()) > ttl)
    });
    let keys: Vec<String> = old.map(|(key, _)| key).collect();
    for chunk in keys.chunks(PRUNE_OPS_MAX) {
        let txn = chunk
            .iter()
            .fold(Txn::new(), |txn, key| txn.delete(key.as_str()));
        store.txn(txn).await?;
    }
    Ok(())
}
