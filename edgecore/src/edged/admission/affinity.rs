//! Whether a pod wants another node than this one, as far as this node can know
//! (`component-helpers/scheduling/corev1/nodeaffinity`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};

/// False only where a label of the node's own contradicts.
pub(super) fn suits(pod: &Pod, labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = &pod.spec else {
        return true;
    };
    let selector = spec.node_selector.iter().flatten();
    for (key, value) in selector {
        if labels.get(key).is_some_and(|own| own != value) {
            return false;
        }
    }
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    required.is_none_or(|required| {
        let terms = &required.node_selector_terms;
        terms.iter().any(|term| may_match(term, labels))
    })
}

/// All requirements of a term must hold; one that is about an unknown label may.
fn may_match(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.iter().flatten();
    expressions.into_iter().all(|requirement| {
        let own = labels.get(&requirement.key);
        own.is_none_or(|own| holds(requirement, own))
    })
}

fn holds(requirement: &NodeSelectorRequirement, own: &str) -> bool {
    let mut values = requirement.values.iter().flatten();
    let number = |text: &str| text.parse::<i64>().ok();
    match requirement.operator.as_str() {
        "In" => values.any(|value| value == own),
        "NotIn" => !values.any(|value| value == own),
        "DoesNotExist" => false,
        "Gt" => number(own)
            .zip(values.next().and_then(|v| number(v)))
            .is_some_and(|(a, b)| a > b),
        "Lt" => number(own)
            .zip(values.next().and_then(|v| number(v)))
            .is_some_and(|(a, b)| a < b),
        // `Exists`, and what a later API may add.
        _ => true,
    }
}
