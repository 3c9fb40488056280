//! How requests of rules went, into the status of each Rule: at most one write a second and rule.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{control::STATUS_EVERY, control::write, rules};
use crate::{
    events::Recorder,
    kube::{Kube, text},
};

/// Since the last write.
#[derive(Debug)]
struct Tally {
    /// What an event needs to know of the rule.
    rule: Value,
    succeeded: u64,
    failed: u64,
    error: String,
}

/// Counts for whoever serves requests; clones are the same counts. One entry a rule, until it is
/// written.
#[derive(Debug, Clone, Default)]
pub struct Tallies(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    counts: Mutex<BTreeMap<String, Tally>>,
    counted: Notify,
}

impl Tallies {
    /// Counts one request of `rule`.
    pub(super) fn count(&self, rule: &Value, outcome: Result<(), String>) {
        let uid = text(rule, "/metadata/uid").to_owned();
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = counts.entry(uid).or_insert_with(|| Tally {
            rule: json!({
                "apiVersion": rule["apiVersion"], "kind": rule["kind"],
                "metadata": rule["metadata"],
            }),
            succeeded: 0,
            failed: 0,
            error: String::new(),
        });
        match outcome {
            Ok(()) => tally.succeeded += 1,
            Err(error) => {
                tally.failed += 1;
                tally.error = error;
            }
        }
        drop(counts);
        self.0.counted.notify_one();
    }

    /// Writes what was counted, until `stop`.
    pub async fn run(
        self,
        kube: Kube,
        recorder: Arc<Recorder>,
        stop: CancellationToken,
    ) -> Result<(), anyhow::Error> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.0.counted.notified() => {}
            }
            let counts = {
                let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *counts)
            };
            for tally in counts.into_values() {
                add(&kube, &recorder, &tally).await;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(STATUS_EVERY) => {}
            }
        }
    }
}

async fn add(kube: &Kube, recorder: &Recorder, tally: &Tally) {
    let at = |pointer| text(&tally.rule, pointer);
    let (namespace, name) = (at("/metadata/namespace"), at("/metadata/name"));
    // A rule that is gone needs no count.
    let Ok(now) = kube.get(&rules(), namespace, name).await else {
        return;
    };
    if text(&now, "/metadata/uid") != at("/metadata/uid") {
        return;
    }
    let count = |member: &str| {
        let pointer = format!("/status/{member}");
        now.pointer(&pointer).and_then(Value::as_u64).unwrap_or(0)
    };
    let mut status = json!({
        "successMessages": count("successMessages") + tally.succeeded,
        "failMessages": count("failMessages") + tally.failed,
    });
    if !tally.error.is_empty() {
        status["errors"] = json!([tally.error]);
        if text(&now, "/status/errors/0") != tally.error {
            recorder
                .record(&tally.rule, "Warning", "RuleFailed", &tally.error)
                .await;
        }
    }
    write(kube, &now, &status).await;
}
