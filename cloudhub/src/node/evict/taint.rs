//! Taints with the effect NoExecute: who may stay, and how long (Kubernetes
//! `pkg/controller/tainteviction`, design D14 apart).

use serde_json::Value;

use crate::kube::text;

const NO_EXECUTE: &str = "NoExecute";
/// A node that is silent or not ready is no reason to end its pods: whoever wants that says so
/// (ADR 0010). Others' controllers may put these taints all the same.
const NOT_OURS: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

/// One taint that ends pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taint {
    key: String,
    value: String,
    /// Unix seconds.
    since: u64,
}

/// What a pod tolerates of such taints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Toleration {
    /// Empty for every key.
    key: String,
    /// `None`: whatever the value is.
    value: Option<String>,
    /// `None`: for ever.
    secs: Option<u64>,
}

impl Toleration {
    fn covers(&self, taint: &Taint) -> bool {
        (self.key.is_empty() || self.key == taint.key)
            && self
                .value
                .as_ref()
                .is_none_or(|value| *value == taint.value)
    }
}

/// The node's taints. Since when they are there is not always written: then it is since they were
/// seen, which `before` remembers.
pub(super) fn taints(node: &Value, before: &[Taint], now: u64) -> Vec<Taint> {
    let all = node.pointer("/spec/taints").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .filter(|taint| text(taint, "/effect") == NO_EXECUTE)
        .filter(|taint| !NOT_OURS.contains(&text(taint, "/key")))
        .map(|taint| {
            let (key, value) = (text(taint, "/key"), text(taint, "/value"));
            let known = before.iter().find(|t| t.key == key && t.value == value);
            let since = unix(text(taint, "/timeAdded")).or(known.map(|t| t.since));
            Taint {
                key: key.to_owned(),
                value: value.to_owned(),
                since: since.unwrap_or(now),
            }
        })
        .collect()
}

fn unix(time: &str) -> Option<u64> {
    let at: jiff::Timestamp = time.parse().ok()?;
    u64::try_from(at.as_second()).ok()
}

pub(super) fn tolerations(pod: &Value) -> Vec<Toleration> {
    let all = pod.pointer("/spec/tolerations").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .filter(|t| matches!(text(t, "/effect"), "" | NO_EXECUTE))
        .filter(|t| !text(t, "/key").is_empty() || text(t, "/operator") == "Exists")
        .map(|t| Toleration {
            key: text(t, "/key").to_owned(),
            value: (text(t, "/operator") != "Exists").then(|| text(t, "/value").to_owned()),
            secs: t["tolerationSeconds"]
                .as_i64()
                .map(|secs| u64::try_from(secs).unwrap_or(0)),
        })
        .collect()
}

/// Since when the pod is bound to its node.
pub(super) fn bound_at(pod: &Value) -> u64 {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let scheduled = conditions
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "PodScheduled" && c["status"] == "True");
    scheduled
        .and_then(|c| unix(text(c, "/lastTransitionTime")))
        .or_else(|| unix(text(pod, "/metadata/creationTimestamp")))
        .unwrap_or(0)
}

/// When the pod has to go, in Unix seconds; `None`: it stays. Each taint is judged by the first
/// toleration that covers it, as Kubernetes does.
pub(super) fn leaves_at(
    taints: &[Taint],
    tolerations: &[Toleration],
    bound_at: u64,
) -> Option<u64> {
    taints
        .iter()
        .filter_map(|taint| {
            let since = taint.since.max(bound_at);
            match tolerations.iter().find(|t| t.covers(taint)) {
                None => Some(since),
                Some(toleration) => Some(since.saturating_add(toleration.secs?)),
            }
        })
        .min()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(taints: &Value) -> Vec<Taint> {
        super::taints(&json!({"spec": {"taints": taints}}), &[], 100)
    }

    fn pod(tolerations: &Value) -> Vec<Toleration> {
        super::tolerations(&json!({"spec": {"tolerations": tolerations}}))
    }

    #[test]
    fn who_tolerates_stays_and_who_tolerates_for_a_while_goes_then() {
        let one = json!([{"key": "k", "value": "v", "effect": "NoExecute"}]);
        let for_secs =
            |secs: i64| json!([{"key": "k", "operator": "Exists", "tolerationSeconds": secs}]);
        for (taints, tolerations, leaves) in [
            (json!([]), json!([]), None),
            (one.clone(), json!([]), Some(100)),
            (
                json!([{"key": "k", "effect": "NoSchedule"}]),
                json!([]),
                None,
            ),
            (
                json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]),
                json!([]),
                None,
            ),
            (
                one.clone(),
                json!([{"key": "k", "value": "v", "effect": "NoExecute"}]),
                None,
            ),
            (
                one.clone(),
                json!([{"key": "k", "operator": "Equal", "value": "w"}]),
                Some(100),
            ),
            (
                one.clone(),
                json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]),
                Some(100),
            ),
            (one.clone(), json!([{"operator": "Exists"}]), None),
            (one.clone(), json!([{"value": "v"}]), Some(100)),
            (one.clone(), for_secs(30), Some(130)),
            (one.clone(), for_secs(0), Some(100)),
            (one.clone(), for_secs(-5), Some(100)),
            // The first that covers it counts.
            (
                one.clone(),
                json!([{"operator": "Exists"}, for_secs(5)[0]]),
                None,
            ),
            (
                one,
                json!([for_secs(5)[0], {"operator": "Exists"}]),
                Some(105),
            ),
            // Each taint for itself; the earliest end counts.
            (
                json!([{"key": "k", "effect": "NoExecute"}, {"key": "l", "effect": "NoExecute"}]),
                json!([for_secs(30)[0], {"key": "l", "operator": "Exists", "tolerationSeconds": 10}]),
                Some(110),
            ),
        ] {
            let found = leaves_at(&node(&taints), &pod(&tolerations), 0);
            assert_eq!(found, leaves, "{taints} {tolerations}");
        }
    }

    #[test]
    fn time_runs_from_the_taint_or_the_binding_whichever_is_later() {
        let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}});
        let first = taints(&taint, &[], 100);
        let later = taints(&taint, &first, 150);
        assert_eq!(later, first, "seen before");
        let mut dated = taint.clone();
        dated["spec"]["taints"][0]["timeAdded"] = json!("1970-01-01T00:00:40Z");
        assert_eq!(taints(&dated, &first, 150)[0].since, 40, "as it is written");
        let tolerates = pod(&json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 30}]));
        assert_eq!(leaves_at(&first, &tolerates, 0), Some(130));
        assert_eq!(leaves_at(&first, &tolerates, 120), Some(150));

        let bound = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:10Z"}, "status": {
            "conditions": [{"type": "PodScheduled", "status": "True",
                            "lastTransitionTime": "1970-01-01T00:00:20Z"}]}});
        assert_eq!(bound_at(&bound), 20);
        assert_eq!(
            bound_at(&json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:10Z"}})),
            10
        );
    }
}
