//! eventbus → rest: what a node uploaded on a topic is sent to a URL, in order, one request each.
//!
//! The queue is the kept readings; the rule has its place in it, as a forwarder has. A request that
//! could not be made, or was answered with 408, 429 or 5xx, is made again, ever more rarely: the
//! endpoint has not taken it. Any other answer but 2xx is the endpoint's refusal of this message;
//! it counts as failed and the next one follows.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    control::{STATUS_EVERY, write},
    topic_fits,
};
use crate::{
    clock,
    events::Recorder,
    kube::{Kube, text},
    readings::{Kept, Readings, ReadingsError, Settled},
};

/// Uploads read at once.
const BATCH_MAX: usize = 256;
/// The first pause after a failure; each further one is twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// An endpoint that has not answered within this has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What one rule needs.
pub(super) struct Work {
    pub(super) kube: Kube,
    pub(super) recorder: Arc<Recorder>,
    pub(super) readings: Readings,
    pub(super) rule: Value,
    pub(super) node: String,
    pub(super) topic: String,
    pub(super) url: String,
}

/// How a rule goes.
struct Tally {
    succeeded: u64,
    failed: u64,
    error: String,
    /// When it was last written.
    at: Option<Instant>,
    dirty: bool,
}

/// What became of one request.
enum Outcome {
    Taken,
    Refused(String),
    Later(String),
}

impl Work {
    /// Runs until it is aborted, or the hub stops.
    pub(super) async fn run(self) {
        let count = |name: &str| {
            let pointer = format!("/status/{name}");
            self.rule.pointer(&pointer).and_then(Value::as_u64)
        };
        let mut tally = Tally {
            succeeded: count("successMessages").unwrap_or(0),
            failed: count("failMessages").unwrap_or(0),
            error: String::new(),
            at: None,
            dirty: false,
        };
        let client = match crate::outward::client(None) {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(%error, "no HTTP client for a rule");
                return;
            }
        };
        let mut newest = self.readings.newest();
        let mut pause = RETRY_FIRST;
        loop {
            newest.borrow_and_update();
            match self.step(&client, &mut tally).await {
                Ok(Step::More) => pause = RETRY_FIRST,
                Ok(Step::Nothing) => {
                    self.tell(&mut tally).await;
                    let due = tally.dirty.then(|| Instant::now() + STATUS_EVERY);
                    let wait = clock::reached(due);
                    tokio::select! {
                        changed = newest.changed() => if changed.is_err() { return },
                        () = wait => {}
                    }
                }
                Ok(Step::Later) => {
                    self.tell(&mut tally).await;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(ReadingsError::Closed) => return,
                Err(error) => {
                    tracing::warn!(url = self.url, %error, "uploads of a rule could not be read");
                    tokio::time::sleep(RETRY_MAX).await;
                }
            }
        }
    }

    async fn step(
        &self,
        client: &reqwest::Client,
        tally: &mut Tally,
    ) -> Result<Step, ReadingsError> {
        let name = format!("rule:{}", text(&self.rule, "/metadata/uid"));
        let cursor = self.readings.register(&name).await?.cursor;
        let batch = self.readings.after(cursor, BATCH_MAX).await?;
        let Some(last) = batch.last().map(|kept| kept.id) else {
            return Ok(Step::Nothing);
        };
        let advance = async |to| {
            self.readings
                .advance(&name, to, Settled::Delivered)
                .await
                .map(drop)
        };
        for kept in &batch {
            let is_upload = kept.property.is_empty() && kept.node == self.node;
            if !is_upload || !topic_fits(&self.topic, &kept.source) {
                continue;
            }
            match post(client, &self.url, kept).await {
                Outcome::Taken => tally.succeeded += 1,
                Outcome::Refused(error) => {
                    tally.failed += 1;
                    self.note(tally, error).await;
                }
                Outcome::Later(error) => {
                    advance(kept.id - 1).await?;
                    self.note(tally, error).await;
                    return Ok(Step::Later);
                }
            }
            tally.dirty = true;
            // Each by itself: what was taken is not sent again after a crash, but for the last.
            advance(kept.id).await?;
            self.tell(tally).await;
        }
        advance(last).await?;
        Ok(Step::More)
    }

    /// An error that is new is an event too.
    async fn note(&self, tally: &mut Tally, error: String) {
        tally.dirty = true;
        if tally.error != error {
            self.recorder
                .record(&self.rule, "Warning", "RuleFailed", &error)
                .await;
            tally.error = error;
        }
    }

    async fn tell(&self, tally: &mut Tally) {
        let early = tally.at.is_some_and(|at| at.elapsed() < STATUS_EVERY);
        if !tally.dirty || early {
            return;
        }
        let errors: Vec<&str> = Some(tally.error.as_str())
            .filter(|e| !e.is_empty())
            .into_iter()
            .collect();
        let status = json!({
            "successMessages": tally.succeeded, "failMessages": tally.failed, "errors": errors,
        });
        write(&self.kube, &self.rule, &status).await;
        tally.at = Some(Instant::now());
        tally.dirty = false;
    }
}

enum Step {
    More,
    Nothing,
    Later,
}

async fn post(client: &reqwest::Client, url: &str, kept: &Kept) -> Outcome {
    let request = client
        .post(url)
        .header("content-type", "application/octet-stream")
        .header("outpost-node", &kept.node)
        .header("outpost-message-id", kept.id.to_string())
        .timeout(ANSWER_WITHIN)
        .body(kept.value.clone());
    match request.send().await {
        Ok(answer) if answer.status().is_success() => Outcome::Taken,
        Ok(answer) => {
            let code = answer.status().as_u16();
            let error = format!("endpoint answered {code}");
            if matches!(code, 408 | 429 | 500..) {
                Outcome::Later(error)
            } else {
                Outcome::Refused(error)
            }
        }
        Err(error) => Outcome::Later(format!(
            "endpoint could not be reached: {}",
            error.without_url()
        )),
    }
}
