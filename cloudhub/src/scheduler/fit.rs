//! Which node suits a pod. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::requests::Requests;
use crate::{kube::text, volumes::Wish};

/// What is bound to a node already.
#[derive(Debug, Clone, Default)]
pub(super) struct Load {
    pub(super) pods: usize,
    pub(super) requests: Requests,
}

/// What the scheduler looks at.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct NodeFacts {
    labels: BTreeMap<String, String>,
    taints: Vec<Value>,
    unschedulable: bool,
    ready: bool,
    pods_max: usize,
    allocatable: Requests,
}

impl NodeFacts {
    pub(super) fn of(node: &Value) -> Self {
        let strings = |pointer: &str| -> BTreeMap<String, String> {
            let map = node.pointer(pointer).and_then(Value::as_object);
            map.into_iter()
                .flatten()
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect()
        };
        let list = |pointer: &str| node.pointer(pointer).and_then(Value::as_array).cloned();
        let pods = node.pointer("/status/allocatable/pods");
        Self {
            labels: strings("/metadata/labels"),
            taints: list("/spec/taints").unwrap_or_default(),
            unschedulable: node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)),
            ready: list("/status/conditions")
                .unwrap_or_default()
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True"),
            pods_max: pods
                .and_then(|p| {
                    p.as_str()
                        .map_or_else(|| p.as_u64()?.try_into().ok(), |s| s.parse().ok())
                })
                .unwrap_or(usize::MAX),
            allocatable: Requests::allocatable(node),
        }
    }
}

/// Why a node does not suit; the words are kube-scheduler's.
fn refusal(
    pod: &Value,
    asked: &Requests,
    name: &str,
    node: &NodeFacts,
    load: &Load,
    wishes: &[Wish],
) -> Option<String> {
    if node.unschedulable {
        return Some("node(s) were unschedulable".to_owned());
    }
    let hard = |t: &&Value| matches!(text(t, "/effect"), "NoSchedule" | "NoExecute");
    if let Some(taint) = node
        .taints
        .iter()
        .filter(hard)
        .find(|t| !is_tolerated(pod, t))
    {
        let (key, value) = (text(taint, "/key"), text(taint, "/value"));
        return Some(format!("node(s) had untolerated taint {{{key}: {value}}}"));
    }
    if !node.ready {
        return Some("node(s) were not ready".to_owned());
    }
    if !matches_selector(pod, node) || !matches_affinity(pod, name, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    if let Some(why) = wishes.iter().find_map(|w| w.refuses(name, &node.labels)) {
        return Some(why.to_owned());
    }
    if load.pods >= node.pods_max {
        return Some("Too many pods".to_owned());
    }
    let lacking = asked.lacking(&load.requests, &node.allocatable)?;
    Some(format!("Insufficient {lacking}"))
}

/// Whether the pod asks for CPU or memory: it then copes with a node that is short of memory.
fn asks_for_something(pod: &Value) -> bool {
    let lists = ["/spec/containers", "/spec/initContainers"];
    let containers = lists
        .iter()
        .filter_map(|list| pod.pointer(list).and_then(Value::as_array));
    containers.flatten().any(|container| {
        ["requests", "limits"].iter().any(|list| {
            let amounts = &container["resources"][*list];
            amounts.get("cpu").is_some() || amounts.get("memory").is_some()
        })
    })
}

fn is_tolerated(pod: &Value, taint: &Value) -> bool {
    if text(taint, "/key") == "node.kubernetes.io/memory-pressure" && asks_for_something(pod) {
        return true;
    }
    let tolerations = pod.pointer("/spec/tolerations").and_then(Value::as_array);
    tolerations.into_iter().flatten().any(|t| {
        let effect = text(t, "/effect");
        let key = text(t, "/key");
        let exists = text(t, "/operator") == "Exists";
        (effect.is_empty() || effect == text(taint, "/effect"))
            && (key == text(taint, "/key") || (key.is_empty() && exists))
            && (exists || text(t, "/value") == text(taint, "/value"))
    })
}

fn matches_selector(pod: &Value, node: &NodeFacts) -> bool {
    let selector = pod.pointer("/spec/nodeSelector").and_then(Value::as_object);
    selector
        .into_iter()
        .flatten()
        .all(|(key, want)| node.labels.get(key).map(String::as_str) == want.as_str())
}

/// Required terms: any of them, and of one term all.
fn matches_affinity(pod: &Value, name: &str, node: &NodeFacts) -> bool {
    let pointer = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution\
                   /nodeSelectorTerms";
    let terms = pod.pointer(pointer).and_then(Value::as_array);
    terms.is_none_or(|terms| matches_terms(terms, name, &node.labels))
}

/// Whether a volume can be used on a node (`spec.nodeAffinity` of a PersistentVolume).
pub(crate) fn fits_volume(volume: &Value, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let terms = volume.pointer("/spec/nodeAffinity/required/nodeSelectorTerms");
    let terms = terms.and_then(Value::as_array);
    terms.is_none_or(|terms| matches_terms(terms, node, labels))
}

fn matches_terms(terms: &[Value], name: &str, known: &BTreeMap<String, String>) -> bool {
    let list = |term: &Value, member: &str| {
        term.get(member)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    terms.iter().any(|term| {
        let (labels, fields) = (list(term, "matchExpressions"), list(term, "matchFields"));
        let by_label = |e: &Value| holds(e, known.get(text(e, "/key")).map(String::as_str));
        let by_field = |e: &Value| holds(e, (text(e, "/key") == "metadata.name").then_some(name));
        !(labels.is_empty() && fields.is_empty())
            && labels.iter().all(by_label)
            && fields.iter().all(by_field)
    })
}

fn holds(expression: &Value, is: Option<&str>) -> bool {
    let values = expression.get("values").and_then(Value::as_array);
    let mut values = values.into_iter().flatten().filter_map(Value::as_str);
    let number = |text: &str| text.parse::<i64>().ok();
    match text(expression, "/operator") {
        "In" => is.is_some_and(|is| values.any(|v| v == is)),
        "NotIn" => is.is_none_or(|is| values.all(|v| v != is)),
        "Exists" => is.is_some(),
        "DoesNotExist" => is.is_none(),
        "Gt" => matches!((is.and_then(number), values.next().and_then(number)),
            (Some(is), Some(than)) if is > than),
        "Lt" => matches!((is.and_then(number), values.next().and_then(number)),
            (Some(is), Some(than)) if is < than),
        _ => false,
    }
}

/// The suitable node with the fewest pods; or why there is none.
pub(super) fn choose<'n>(
    pod: &Value,
    nodes: &'n BTreeMap<String, NodeFacts>,
    loads: &BTreeMap<&str, Load>,
    wishes: &[Wish],
) -> Result<&'n str, String> {
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(usize, &str)> = None;
    let asked = Requests::of(pod);
    let idle = Load::default();
    for (name, node) in nodes {
        let load = loads.get(name.as_str()).unwrap_or(&idle);
        let pods = load.pods;
        match refusal(pod, &asked, name, node, load, wishes) {
            Some(why) => *refusals.entry(why).or_default() += 1,
            None if best.is_none_or(|(fewest, _)| pods < fewest) => best = Some((pods, name)),
            None => {}
        }
    }
    if let Some((_, name)) = best {
        return Ok(name);
    }
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let why: Vec<String> = refusals
        .iter()
        .map(|(why, n)| format!("{n} {why}"))
        .collect();
    Err(format!(
        "0/{} nodes are available: {}.",
        nodes.len(),
        why.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(labels: &Value, taints: &Value, ready: &str) -> NodeFacts {
        NodeFacts::of(&json!({
            "metadata": {"labels": labels},
            "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}],
                       "allocatable": {"pods": "2"}},
        }))
    }

    #[test]
    fn a_node_short_of_memory_takes_who_asked_for_some() {
        let short = json!([{"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}]);
        let nodes = BTreeMap::from([("a".to_owned(), node(&json!({}), &short, "True"))]);
        let asks = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1m"}}}]}});
        assert_eq!(choose(&asks, &nodes, &BTreeMap::new(), &[]), Ok("a"));
        let none = json!({"spec": {"containers": [{"resources": {}}]}});
        assert!(choose(&none, &nodes, &BTreeMap::new(), &[]).is_err());
    }

    #[test]
    fn a_pod_goes_to_the_emptiest_node_that_suits() {
        let nodes: BTreeMap<String, NodeFacts> = [
            ("a", node(&json!({"zone": "x"}), &json!([]), "True")),
            ("b", node(&json!({"zone": "y"}), &json!([]), "True")),
            (
                "c",
                node(
                    &json!({}),
                    &json!([{"key": "k", "effect": "NoSchedule"}]),
                    "True",
                ),
            ),
            ("d", node(&json!({}), &json!([]), "Unknown")),
        ]
        .into_iter()
        .map(|(name, facts)| (name.to_owned(), facts))
        .collect();
        let pods = |pods: usize| Load {
            pods,
            ..Load::default()
        };
        let counts = BTreeMap::from([("a", pods(1)), ("c", pods(0))]);
        let affinity = |operator: &str| {
            json!({"spec": {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": operator, "values": ["x"]}]},
            ]}}}}})
        };
        let tolerant =
            json!({"spec": {"nodeSelector": {}, "tolerations": [{"operator": "Exists"}]}});
        for (name, pod, want) in [
            ("emptiest", json!({"spec": {}}), Ok("b")),
            ("selector", json!({"spec": {"nodeSelector": {"zone": "x"}}}), Ok("a")),
            ("affinity", affinity("In"), Ok("a")),
            ("anti", affinity("NotIn"), Ok("b")),
            ("tolerates", tolerant, Ok("b")),
            (
                "nothing suits",
                json!({"spec": {"nodeSelector": {"zone": "z"}}}),
                Err("0/4 nodes are available: 2 node(s) didn't match Pod's node affinity/selector, \
                     1 node(s) had untolerated taint {k: }, 1 node(s) were not ready."
                    .to_owned()),
            ),
        ] {
            assert_eq!(choose(&pod, &nodes, &counts, &[]), want, "{name}");
        }
        let full = BTreeMap::from([("a", pods(2)), ("b", pods(2))]);
        assert!(
            choose(&json!({"spec": {}}), &nodes, &full, &[])
                .unwrap_err()
                .contains("Too many pods")
        );
        let none = choose(&json!({}), &BTreeMap::new(), &BTreeMap::new(), &[]).unwrap_err();
        assert_eq!(none, "no nodes available to schedule pods");
    }
}
