//! What pods ask for in sum, and what a node has for them. Pure.

use std::collections::BTreeMap;

use quantity::Quantity;
use serde_json::Value;

use crate::kube::text;

/// Resources that a node tells of and that the scheduler counts.
const COUNTED: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Amounts by resource, exact.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Requests(BTreeMap<&'static str, i128>);

fn nanos(amount: &Value) -> Option<i128> {
    let written = amount
        .as_str()
        .map_or_else(|| amount.to_string(), str::to_owned);
    let amount = Quantity::parse(&written).ok()?;
    (!amount.is_negative()).then(|| amount.nanos())
}

/// A limit without a request is one.
fn request(container: &Value, name: &str) -> i128 {
    let resources = &container["resources"];
    let amount = resources["requests"]
        .get(name)
        .or_else(|| resources["limits"].get(name));
    amount.and_then(nanos).unwrap_or(0)
}

impl Requests {
    /// What a pod asks for: containers and sidecars run together, an init container with the
    /// sidecars before it; the greater of both counts.
    pub(super) fn of(pod: &Value) -> Self {
        let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array);
        let sum = |name: &'static str| {
            let (mut sidecars, mut starting) = (0_i128, 0_i128);
            for init in list("/spec/initContainers").into_iter().flatten() {
                let asked = request(init, name);
                if text(init, "/restartPolicy") == "Always" {
                    sidecars = sidecars.saturating_add(asked);
                    starting = starting.max(sidecars);
                } else {
                    starting = starting.max(sidecars.saturating_add(asked));
                }
            }
            let containers = list("/spec/containers").into_iter().flatten();
            let running = containers.fold(sidecars, |sum, c| sum.saturating_add(request(c, name)));
            let overhead = pod.pointer("/spec/overhead").and_then(|o| o.get(name));
            let overhead = overhead.and_then(nanos).unwrap_or(0);
            (name, running.max(starting).saturating_add(overhead))
        };
        let sums = COUNTED.into_iter().map(sum);
        Self(sums.filter(|(_, amount)| *amount > 0).collect())
    }

    /// What a node says that pods may ask for in sum.
    pub(super) fn allocatable(node: &Value) -> Self {
        let told = node.pointer("/status/allocatable");
        let found = COUNTED.into_iter().filter_map(|name| {
            let amount = told?.get(name)?;
            Some((name, nanos(amount)?))
        });
        Self(found.collect())
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// The first resource of which `allocatable` has not enough for this beside `used`. What a
    /// node does not tell of is not counted.
    pub(super) fn lacking(&self, used: &Self, allocatable: &Self) -> Option<&'static str> {
        COUNTED.into_iter().find(|name| {
            let Some((asked, all)) = self.0.get(name).zip(allocatable.0.get(name)) else {
                return false;
            };
            let used = used.0.get(name).copied().unwrap_or(0);
            used.saturating_add(*asked) > *all
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_needs_room_beside_the_others() {
        let node =
            json!({"status": {"allocatable": {"cpu": "1500m", "memory": "1Gi", "pods": "9"}}});
        let all = Requests::allocatable(&node);
        let pod = |cpu: &str, memory: &str| {
            Requests::of(&json!({"spec": {"containers": [
                {"resources": {"requests": {"cpu": cpu}, "limits": {"memory": memory}}}]}}))
        };
        let mut used = pod("1", "512Mi");
        assert_eq!(pod("500m", "512Mi").lacking(&used, &all), None);
        assert_eq!(pod("501m", "1").lacking(&used, &all), Some("cpu"));
        assert_eq!(pod("0", "513Mi").lacking(&used, &all), Some("memory"));
        used.add(&pod("2", "0"));
        let free = Requests::of(&json!({"spec": {"containers": [{}]}}));
        assert_eq!(free.lacking(&used, &all), None, "who asks for nothing fits");
        let silent = Requests::allocatable(&json!({}));
        assert_eq!(pod("64", "1Ti").lacking(&used, &silent), None);
    }

    #[test]
    fn init_containers_and_sidecars_count_as_they_run() {
        let container = |cpu: &str, policy: &str| json!({"restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
        let pod = json!({"spec": {
            "initContainers": [container("300m", ""), container("100m", "Always"), container("350m", "")],
            "containers": [container("200m", "")],
            "overhead": {"cpu": "10m"},
        }});
        assert_eq!(Requests::of(&pod).0.get("cpu"), Some(&460_000_000));
    }
}
