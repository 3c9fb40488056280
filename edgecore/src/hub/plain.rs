//! What only a plain KubeEdge hub needs: the node's lease, created once and renewed every 10 s
//! (protocol §9, steps 17–22). Our hub renews it itself from what it hears.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wire::message::{Content, Message, Operation};

use super::sink;

const RENEW_EVERY: Duration = Duration::from_secs(10);
const LEASE_SECS: u32 = 40;

/// The lease on one connection.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// `None`: not with this peer.
    due: Option<Instant>,
    created: bool,
}

impl Lease {
    /// A new connection, to a plain hub or to ours.
    pub(super) fn reset(&mut self, is_plain: bool, now: Instant) {
        self.created = false;
        self.due = is_plain.then_some(now);
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The message that is due. An insert of a lease that exists is answered with an error and
    /// changes nothing, so each connection begins with one insert; then updates follow.
    pub(super) fn renewal(&mut self, node: &str, now_ms: i64, now: Instant) -> Option<Message> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        let operation = if self.created {
            self.due = Some(now + RENEW_EVERY);
            Operation::Update
        } else {
            self.created = true;
            Operation::Insert
        };
        let resource = format!("kube-node-lease/lease/{node}");
        let content = Content::json(&lease(node, now_ms)).unwrap_or_default();
        Some(sink::message(&operation, resource, content))
    }
}

/// `renewTime` has microseconds (protocol §4.3).
fn lease(node: &str, now_ms: i64) -> Value {
    let renewed = jiff::Timestamp::from_millisecond(now_ms)
        .map(|time| format!("{time:.6}"))
        .unwrap_or_default();
    json!({
        "metadata": {"name": node, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": LEASE_SECS, "renewTime": renewed},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_an_update_and_then_one_every_ten_seconds() {
        let t0 = crate::clock::monotonic();
        let mut lease = Lease::default();
        lease.reset(true, t0);
        let insert = lease.renewal("n", 1_700_000_000_123, t0).unwrap();
        assert_eq!(insert.route.operation, "insert");
        assert!(insert.content.raw().contains("2023-11-14T22:13:20.123000Z"));
        assert_eq!(lease.renewal("n", 1, t0).unwrap().route.operation, "update");
        assert!(lease.renewal("n", 1, t0).is_none());
        assert_eq!(lease.due(), Some(t0 + RENEW_EVERY));
        lease.reset(false, t0);
        assert!(lease.renewal("n", 1, t0 + RENEW_EVERY).is_none());
    }
}
