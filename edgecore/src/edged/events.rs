//! Kubernetes events about pods, counted so that a repetition replaces the event before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::deps::StatusSink;
use super::pod::convert::PodId;
use super::pod::status::time;
use crate::clock::UnixMillis;

/// Distinct events remembered per pod; beyond it the oldest counts start anew.
const REMEMBERED_MAX: usize = 64;

/// Whether somebody should look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Normal,
    Warning,
}

/// Records the events of one pod.
pub(super) struct Recorder {
    sink: Arc<dyn StatusSink>,
    node: String,
    pod: PodId,
    counts: BTreeMap<(String, String, String), Counted>,
    next: u64,
}

struct Counted {
    name: String,
    count: u32,
    first_ms: UnixMillis,
    order: u64,
}

impl Recorder {
    pub(super) fn new(sink: Arc<dyn StatusSink>, node: String, pod: PodId) -> Self {
        Self {
            sink,
            node,
            pod,
            counts: BTreeMap::new(),
            next: 0,
        }
    }

    /// Tells an event about the pod, or about one of its containers.
    pub(super) fn record(
        &mut self,
        severity: Severity,
        reason: &str,
        container: Option<&str>,
        message: &str,
        now_ms: UnixMillis,
    ) {
        let key = (
            reason.to_owned(),
            container.unwrap_or_default().to_owned(),
            message.to_owned(),
        );
        if self.counts.len() >= REMEMBERED_MAX && !self.counts.contains_key(&key) {
            let oldest = self.counts.iter().min_by_key(|(_, c)| c.order);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.counts.remove(&oldest);
            }
        }
        self.next += 1;
        let order = self.next;
        let pod = &self.pod;
        let counted = self.counts.entry(key).or_insert_with(|| Counted {
            name: format!("{}.{:016x}", pod.name, rand::random::<u64>()),
            count: 0,
            first_ms: now_ms,
            order,
        });
        counted.count = counted.count.saturating_add(1);
        counted.order = order;
        let mut involved = json!({
            "apiVersion": "v1", "kind": "Pod",
            "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
        });
        if let (Some(container), Some(map)) = (container, involved.as_object_mut()) {
            let path = format!("spec.containers{{{container}}}");
            map.insert("fieldPath".to_owned(), json!(path));
        }
        self.sink.event(json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": counted.name, "namespace": pod.namespace},
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": match severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
            "source": {"component": "kubelet", "host": self.node},
            "reportingComponent": "kubelet",
            "reportingInstance": self.node,
            "firstTimestamp": time(counted.first_ms),
            "lastTimestamp": time(now_ms),
            "count": counted.count,
        }));
    }
}
