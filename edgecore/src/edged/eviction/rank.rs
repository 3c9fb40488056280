//! Which pod goes first, and what it is told (`eviction/helpers.go`). Pure.

use std::cmp::Reverse;

use quantity::binary;

use super::manager::Starved;
use super::threshold::Signal;

/// A pod that could be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) uid: String,
    pub(super) priority: i32,
    /// Of the resource that is short; nothing for inodes and process ids.
    pub(super) request: i64,
    pub(super) usage: i64,
    /// Name, usage and request of each container that uses more than it asked for.
    pub(super) containers: Vec<(String, i64, i64)>,
}

/// The first to go first: those above their request, then the less important, then those that are
/// furthest above. Process ids have no request: importance alone, then number.
pub(super) fn rank(signal: Signal, candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| {
        let key = |c: &Candidate| {
            let exceeds = signal != Signal::PidAvailable && c.usage > c.request;
            let above = c.usage.saturating_sub(c.request);
            (Reverse(exceeds), c.priority, Reverse(above))
        };
        key(a).cmp(&key(b)).then_with(|| a.uid.cmp(&b.uid))
    });
}

/// Bytes as a binary quantity, numbers as they are.
fn amount(signal: Signal, value: i64) -> String {
    match signal {
        Signal::MemoryAvailable | Signal::NodefsAvailable | Signal::ImagefsAvailable => {
            binary(value)
        }
        Signal::NodefsInodesFree | Signal::ImagefsInodesFree | Signal::PidAvailable => {
            value.to_string()
        }
    }
}

/// `status.message` of the pod that goes (`evictionMessage`).
pub(super) fn message(starved: &Starved, candidate: &Candidate) -> String {
    let signal = starved.threshold.signal;
    let resource = signal.resource();
    let quantity = starved.threshold.amount.of(starved.observation.capacity);
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        amount(signal, quantity),
        amount(signal, starved.observation.available),
    );
    for (name, usage, request) in &candidate.containers {
        text.push_str(&format!(
            "Container {name} was using {}, request is {}, has larger consumption of {resource}. ",
            amount(signal, *usage),
            amount(signal, *request),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::eviction::manager::Observation;
    use crate::edged::eviction::threshold::{Amount, Threshold};

    fn candidate(uid: &str, priority: i32, request: i64, usage: i64) -> Candidate {
        Candidate {
            uid: uid.to_owned(),
            priority,
            request,
            usage,
            containers: Vec::new(),
        }
    }

    #[test]
    fn the_order_is_kubelets() {
        let pods = [
            candidate("modest", 0, 100, 90),
            candidate("modest-unimportant", -5, 100, 1),
            candidate("above-important", 1000, 100, 900),
            candidate("above", 0, 100, 150),
            candidate("far-above", 0, 100, 800),
            candidate("best-effort", 0, 0, 200),
        ];
        let order = |signal| -> Vec<String> {
            let mut pods = pods.to_vec();
            rank(signal, &mut pods);
            pods.into_iter().map(|c| c.uid).collect()
        };
        assert_eq!(
            order(Signal::MemoryAvailable),
            [
                "far-above",
                "best-effort",
                "above",
                "above-important",
                "modest-unimportant",
                "modest"
            ]
        );
        assert_eq!(order(Signal::PidAvailable)[0], "modest-unimportant");
        assert_eq!(order(Signal::PidAvailable)[5], "above-important");
    }

    #[test]
    fn the_words_are_kubelets() {
        let starved = Starved {
            threshold: Threshold {
                signal: Signal::MemoryAvailable,
                amount: Amount::Value(100 << 20),
                grace: None,
                reclaim: None,
            },
            observation: Observation {
                available: 99 << 20,
                capacity: 4 << 30,
            },
        };
        let mut pod = candidate("a", 0, 10 << 20, 60 << 20);
        pod.containers = vec![("main".to_owned(), 60 << 20, 10 << 20)];
        assert_eq!(
            message(&starved, &pod),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 99Mi. \
             Container main was using 60Mi, request is 10Mi, has larger consumption of memory. "
        );
    }
}
