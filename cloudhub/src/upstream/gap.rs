//! Losses that a node tells of become events, beside their place in its ledger.

use apiserver::{ApiError, Reason};
use serde_json::json;
use wire::extension::{Gap, Gaps};

use super::{Request, Upstream};
use crate::{downstream::index::PlacedKind, events::Recorder, kube::resources};

/// Devices with an event of their own in one report; the node's event tells how many there are.
const DEVICES_MAX: usize = 10;

impl Upstream {
    pub(super) async fn gaps(&self, request: &Request<'_>) -> Result<(), ApiError> {
        let decoded = request.message.content.decode::<Gaps>();
        let Gaps { gaps } =
            decoded.map_err(|e| ApiError::new(Reason::BadRequest, format!("gaps: {e}")))?;
        let recorder = Recorder::new(self.kube.clone());
        let rows: u64 = gaps.iter().map(|gap| gap.rows).sum();
        let node = request.node();
        tracing::warn!(node, rows, streams = gaps.len(), "a node lost messages");
        let text = gaps
            .iter()
            .take(DEVICES_MAX)
            .map(sentence)
            .collect::<Vec<_>>()
            .join("; ");
        let of = gaps.len();
        let text = format!("{rows} messages of {of} streams never reach the hub: {text}");
        if let Ok(object) = self.kube.get(&resources::nodes(), "", node).await {
            let about = about("v1", "Node", &object);
            recorder
                .write(&about, "Warning", "MessagesLost", &text)
                .await?;
        }
        for (gap, namespace, name) in gaps.iter().filter_map(device).take(DEVICES_MAX) {
            let id = format!("{namespace}/{name}");
            if !self.downstream.is_placed(node, PlacedKind::Device, &id) {
                continue;
            }
            if let Ok(object) = self.kube.get(&resources::devices(), namespace, name).await {
                let about = about("devices.kubeedge.io/v1beta1", "Device", &object);
                recorder
                    .write(&about, "Warning", "MessagesLost", &sentence(gap))
                    .await?;
            }
        }
        Ok(())
    }
}

/// What the recorder wants to know; objects of a list lack the first two.
fn about(version: &str, kind: &str, object: &serde_json::Value) -> serde_json::Value {
    json!({ "apiVersion": version, "kind": kind, "metadata": object["metadata"] })
}

/// The device that a gap is about.
fn device(gap: &Gap) -> Option<(&Gap, &str, &str)> {
    let (kind, id) = gap.stream.split_once('/')?;
    let (namespace, name) = id.split_once('/')?;
    matches!(kind, "twin" | "state").then_some((gap, namespace, name))
}

fn sentence(gap: &Gap) -> String {
    let at = |ms: i64| {
        jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| at.to_string())
    };
    let stream: String = gap.stream.chars().take(100).collect();
    format!(
        "{} of {stream} {} (accepted {} to {})",
        gap.rows,
        gap.fate,
        at(gap.first_ms),
        at(gap.last_ms)
    )
}
