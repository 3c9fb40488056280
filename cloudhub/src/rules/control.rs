//! Starts and stops what rules ask for, and writes their status.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use apiserver::{PatchKind, store::StoreError};
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{GROUP, Way, book, rules, upload};
use crate::{
    events::Recorder,
    follow::is_over,
    keys::REGISTRY,
    kube::{Kube, text},
    readings::Readings,
};

/// Most rules that take uploads; each reads them all.
const UPLOAD_RULES_MAX: usize = 64;
/// How a rule's error begins when the rule itself has to be changed.
const NOT_USABLE: &str = "not usable: ";
/// Least time between two writes of one status.
pub(super) const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Follows rules and endpoints.
pub struct Controller {
    /// The API.
    pub kube: Kube,
    /// Where uploads are; without, none can be forwarded.
    pub readings: Option<Readings>,
    /// Writes events.
    pub recorder: std::sync::Arc<Recorder>,
}

/// A rule whose work runs.
struct Running {
    way: Way,
    uid: String,
    task: AbortHandle,
}

impl Controller {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), anyhow::Error> {
        let mut running = BTreeMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let followed = self.follow(&mut running, &mut tasks, &stop).await;
            if let ControlFlow::Break(end) = is_over(followed, &stop) {
                return end;
            }
        }
    }

    async fn follow(
        &self,
        running: &mut BTreeMap<String, Running>,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let prefix = format!("{REGISTRY}{GROUP}/");
        let mut revision = self.compare(running, tasks).await?;
        loop {
            let mut watcher = self.kube.api().store().watch(&prefix, revision).await?;
            // Both may be cancelled: everything is read again.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                events = watcher.next() => drop(events?),
            }
            // A task that ended by itself has a rule that is gone.
            while tasks.try_join_next().is_some() {}
            revision = self.compare(running, tasks).await?;
        }
    }

    /// Brings what runs in line with what is asked; the revision as of which.
    async fn compare(
        &self,
        running: &mut BTreeMap<String, Running>,
        tasks: &mut JoinSet<()>,
    ) -> Result<u64, StoreError> {
        let (book, revision) = book(&**self.kube.api().store(), None).await?;
        let mut wanted = BTreeMap::new();
        for (rule, way) in &book {
            let at = |pointer: &str| text(rule, pointer);
            let id = format!("{}/{}", at("/metadata/namespace"), at("/metadata/name"));
            match way {
                Ok(way) => {
                    self.withdraw(rule).await;
                    wanted.insert(id, (way, at("/metadata/uid"), rule));
                }
                Err(error) => self.complain(rule, error).await,
            }
        }
        running.retain(|id, is| {
            let stays = wanted
                .get(id)
                .is_some_and(|(way, uid, _)| **way == is.way && *uid == is.uid);
            if !stays {
                is.task.abort();
            }
            stays
        });
        for (id, (way, uid, rule)) in wanted {
            let Way::Upload { node, topic, url } = way else {
                continue;
            };
            if running.contains_key(&id) {
                continue;
            }
            let Some(readings) = &self.readings else {
                self.complain(rule, "readings are not kept at this hub")
                    .await;
                continue;
            };
            if running.len() >= UPLOAD_RULES_MAX {
                self.complain(rule, "too many rules that take uploads")
                    .await;
                continue;
            }
            let work = upload::Work {
                kube: self.kube.clone(),
                recorder: std::sync::Arc::clone(&self.recorder),
                readings: readings.clone(),
                rule: rule.clone(),
                node: node.clone(),
                topic: topic.clone(),
                url: url.clone(),
            };
            let task = tasks.spawn(work.run());
            let way = way.clone();
            let uid = uid.to_owned();
            running.insert(id, Running { way, uid, task });
        }
        Ok(revision)
    }

    /// A rule that was not usable and is now.
    async fn withdraw(&self, rule: &Value) {
        if text(rule, "/status/errors/0").starts_with(NOT_USABLE) {
            write(&self.kube, rule, &json!({ "errors": [] })).await;
        }
    }

    /// Says in a rule's status why it does nothing; once.
    async fn complain(&self, rule: &Value, error: &str) {
        let error = &format!("{NOT_USABLE}{error}");
        let told = rule.pointer("/status/errors/0").and_then(Value::as_str);
        if told != Some(error.as_str()) {
            write(&self.kube, rule, &json!({ "errors": [error] })).await;
            self.recorder
                .record(rule, "Warning", "RuleNotUsable", error)
                .await;
        }
    }
}

/// Merges into the status of a rule.
pub(super) async fn write(kube: &Kube, rule: &Value, status: &Value) {
    let (namespace, name) = (
        text(rule, "/metadata/namespace"),
        text(rule, "/metadata/name"),
    );
    let body = json!({ "status": status });
    let patched = kube
        .patch(&rules(), namespace, name, PatchKind::Merge, body)
        .await;
    if let Err(error) = patched
        && error.reason != apiserver::Reason::NotFound
    {
        tracing::warn!(namespace, name, %error, "status of a rule could not be written");
    }
}
