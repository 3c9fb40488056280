//! What pods use together, and whether one more fits beside them
//! (`scheduler/framework/plugins/noderesources/fit.go`, `nodeports/node_ports.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::Refusal;
use crate::edged::capacity::Amounts;
use crate::edged::pod::resources::{names, pod_request};

/// Requests and host ports of some pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Used {
    pub(super) pods: i64,
    pub(super) requests: BTreeMap<String, i64>,
    /// A port twice is counted twice: pods that were taken before may hold the same one.
    ports: BTreeMap<Port, u32>,
}

/// `(port, protocol, address)`; an empty address is every one.
type Port = (i32, String, String);

/// The order in which shortages are told.
const ORDER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

impl Used {
    pub(super) fn add(&mut self, pod: &Pod) {
        self.pods += 1;
        for name in names(pod) {
            let sum = self.requests.entry(name.clone()).or_default();
            *sum = sum.saturating_add(pod_request(pod, &name));
        }
        for port in ports(pod) {
            *self.ports.entry(port).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, pod: &Pod) {
        self.pods -= 1;
        for name in names(pod) {
            if let Some(sum) = self.requests.get_mut(&name) {
                *sum = sum.saturating_sub(pod_request(pod, &name));
            }
        }
        for port in ports(pod) {
            if let Some(count) = self.ports.get_mut(&port) {
                *count = count.saturating_sub(1);
            }
            self.ports.retain(|_, count| *count > 0);
        }
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.pods += other.pods;
        for (name, amount) in &other.requests {
            let sum = self.requests.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
        for (port, count) in &other.ports {
            *self.ports.entry(port.clone()).or_default() += count;
        }
    }

    /// The first resource of which there is not enough. One of which the node knows nothing is not
    /// its business: it may be the cluster's.
    pub(super) fn check(&self, pod: &Pod, allocatable: &Amounts) -> Option<Refusal> {
        if self.pods + 1 > allocatable.pods {
            return Some(short("pods", 1, self.pods, allocatable.pods));
        }
        let mut asked: Vec<String> = names(pod).into_iter().collect();
        let place = |name: &str| ORDER.iter().position(|known| *known == name);
        asked.sort_by_key(|name| place(name).unwrap_or(ORDER.len()));
        asked.into_iter().find_map(|name| {
            let request = pod_request(pod, &name);
            let capacity = allocatable.get(&name)?;
            let used = self.requests.get(&name).copied().unwrap_or(0);
            let fits = request == 0 || used.saturating_add(request) <= capacity;
            (!fits).then(|| short(&name, request, used, capacity))
        })
    }

    pub(super) fn has_port_of(&self, pod: &Pod) -> bool {
        ports(pod).into_iter().any(|(port, protocol, address)| {
            self.ports.keys().any(|(held, by, at)| {
                *held == port
                    && *by == protocol
                    && (*at == address || at.is_empty() || address.is_empty())
            })
        })
    }
}

fn short(name: &str, requested: i64, used: i64, capacity: i64) -> Refusal {
    Refusal {
        reason: format!("OutOf{name}"),
        message: format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, \
             capacity: {capacity}"
        ),
        short: true,
    }
}

/// Ports of the host that the pod takes while it runs.
fn ports(pod: &Pod) -> Vec<Port> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let on_host = spec.host_network == Some(true);
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let ports = spec.containers.iter().chain(sidecars);
    ports
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            let own = on_host.then_some(port.container_port);
            let number = port.host_port.filter(|p| *p != 0).or(own)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let address = port.host_ip.clone().unwrap_or_default();
            let address = if ["0.0.0.0", "::"].contains(&address.as_str()) {
                String::new()
            } else {
                address
            };
            Some((number, protocol, address))
        })
        .collect()
}
