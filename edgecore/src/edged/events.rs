//! Kubernetes events about pods, counted so that a repetition replaces the event before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::deps::StatusSink;
use super::pod::convert::PodId;
use super::pod::status::time;
use crate::clock::UnixMillis;

/// Distinct events remembered per pod; beyond it the oldest counts start anew.
const REMEMBERED_MAX: usize = 64;
/// Events told of one pod without pause, and how long one more takes.
const BURST: i64 = 25;
const REFILL_MS: i64 = 300_000;

/// Whether somebody should look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Normal,
    Warning,
}

/// An event about the node itself.
pub(super) fn of_node(node: &str, reason: &str, message: &str, now_ms: UnixMillis) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {
            "name": format!("{node}.{:016x}", rand::random::<u64>()),
            "namespace": "default",
        },
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "reason": reason,
        "message": message,
        "type": "Warning",
        "source": {"component": "kubelet", "host": node},
        "reportingComponent": "kubelet",
        "reportingInstance": node,
        "firstTimestamp": time(now_ms),
        "lastTimestamp": time(now_ms),
        "count": 1,
    })
}

/// Records the events of one pod.
pub(super) struct Recorder {
    sink: Arc<dyn StatusSink>,
    node: String,
    pod: PodId,
    counts: BTreeMap<(String, String, String), Counted>,
    next: u64,
    room: Room,
}

/// How much may be told of one pod: a burst, then one event every few minutes
/// (`client-go/tools/record: EventSourceObjectSpamFilter`).
struct Room {
    left: i64,
    since_ms: UnixMillis,
}

impl Room {
    fn take(&mut self, now_ms: UnixMillis) -> bool {
        let passed = now_ms.saturating_sub(self.since_ms) / REFILL_MS;
        if passed != 0 {
            // A clock that went back gives nothing, and takes nothing.
            self.left = self.left.saturating_add(passed.max(0)).min(BURST);
            self.since_ms = if passed > 0 {
                self.since_ms
                    .saturating_add(passed.saturating_mul(REFILL_MS))
            } else {
                now_ms
            };
        }
        let may = self.left > 0;
        self.left -= i64::from(may);
        may
    }
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
            room: Room {
                left: BURST,
                since_ms: 0,
            },
        }
    }

    /// Tells an event about the pod, or about the part of it at `path`. Beyond the burst an event
    /// is still counted, and told with its count when there is room again.
    pub(super) fn record(
        &mut self,
        severity: Severity,
        reason: &str,
        path: Option<&str>,
        message: &str,
        now_ms: UnixMillis,
    ) {
        self.record_as(message, severity, reason, path, message, now_ms);
    }

    /// As [`Recorder::record`], for a message that changes: events of the same `topic` replace
    /// each other.
    pub(super) fn record_as(
        &mut self,
        topic: &str,
        severity: Severity,
        reason: &str,
        path: Option<&str>,
        message: &str,
        now_ms: UnixMillis,
    ) {
        let key = (
            reason.to_owned(),
            path.unwrap_or_default().to_owned(),
            topic.to_owned(),
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
        if !self.room.take(now_ms) {
            return;
        }
        let mut involved = json!({
            "apiVersion": "v1", "kind": "Pod",
            "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
        });
        if let (Some(path), Some(map)) = (path, involved.as_object_mut()) {
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
