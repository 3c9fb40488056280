//! The node as the API shows it: what the machine is, whether pods can run on it, and why not.
//! Told only when it changed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::Settings;
use super::capacity::{self, Amounts};
use super::image_gc;
use super::pod::resources;
use super::pod::status::time;
use super::pod::worker::Context;
use super::runtime::{Image, NodeLimits, Resources, RuntimeInfo};
use crate::clock::UnixMillis;

/// The KubeEdge release whose behaviour this node follows, and the Kubernetes release under it:
/// peers parse the part after `-kubeedge-`.
pub const KUBELET_VERSION: &str = concat!(
    "v1.32.10-kubeedge-v1.23.0-outpost.",
    env!("CARGO_PKG_VERSION")
);

/// Looked at again while the node is not ready, so that a CNI configuration put there is noticed.
const UNREADY_RECHECK: Duration = Duration::from_secs(10);

/// What does not change while the machine is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub hostname: String,
    pub cpus: i64,
    pub memory_bytes: i64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    pub architecture: &'static str,
}

fn line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

pub(super) fn meminfo(text: &str, key: &str) -> Option<i64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: i64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

impl Machine {
    /// Reads it from `/proc`, `/sys` and `/etc`; what cannot be read stays empty.
    pub fn read() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let os_image = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            hostname: line("/proc/sys/kernel/hostname"),
            cpus: i64::try_from(cpus).unwrap_or(1),
            memory_bytes: meminfo(&memory, "MemTotal").unwrap_or(0),
            machine_id: line("/etc/machine-id"),
            system_uuid: line("/sys/class/dmi/id/product_uuid"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: os_image.unwrap_or_default().trim_matches('"').to_owned(),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                "x86" => "386",
                "powerpc64" => "ppc64le",
                other => other,
            },
        }
    }
}

/// What is short on the node now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

pub(super) fn nearest(dir: &Path) -> Option<&Path> {
    dir.ancestors().find(|dir| dir.exists())
}

fn disk_bytes(dir: &Path) -> u64 {
    nearest(dir)
        .and_then(|dir| rustix::fs::statvfs(dir).ok())
        .map_or(0, |fs| fs.f_blocks.saturating_mul(fs.f_frsize))
}

/// Everything the node has.
pub(super) fn capacity(settings: &Settings, machine: &Machine) -> Amounts {
    let storage = disk_bytes(&settings.disk_dir);
    capacity::capacity(machine, storage, settings.pods_max, capacity::hugepages())
}

/// The address by which this machine reaches others; nothing is sent to find it.
fn route_address() -> Option<IpAddr> {
    let found = [
        ("0.0.0.0:0", "198.51.100.1:9"),
        ("[::]:0", "[2001:db8::1]:9"),
    ];
    found.into_iter().find_map(|(own, far)| {
        let socket = UdpSocket::bind(own).ok()?;
        socket.connect(far).ok()?;
        socket
            .local_addr()
            .ok()
            .map(|address: SocketAddr| address.ip())
    })
}

fn address(settings: &Settings) -> Option<String> {
    let given = settings.node_ip.clone();
    given.or_else(|| route_address().map(|ip| ip.to_string()))
}

/// Labels that are the machine's nature: nobody can mean to change them.
fn own_labels(settings: &Settings, machine: &Machine) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", settings.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine.architecture),
    ];
    own.into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Everything a node object is made of.
pub struct Facts<'a> {
    pub settings: &'a Settings,
    pub machine: &'a Machine,
    pub runtime: &'a RuntimeInfo,
    pub pressure: Pressure,
    pub host_ip: &'a str,
    pub capacity: &'a Amounts,
    pub allocatable: &'a Amounts,
    pub images: &'a [Image],
}

/// Since when each condition has its status.
pub type Transitions = BTreeMap<&'static str, (bool, UnixMillis)>;

/// Makes the whole v1 Node. Heartbeat times are left out: they are the hub's, from what it hears.
pub fn object(facts: &Facts<'_>, transitions: &mut Transitions, now_ms: UnixMillis) -> Value {
    let (settings, machine, runtime) = (facts.settings, facts.machine, facts.runtime);
    let mut labels: BTreeMap<String, String> = settings.labels.clone();
    labels.extend(own_labels(settings, machine));
    labels.insert("node-role.kubernetes.io/edge".to_owned(), String::new());
    let not_ready = match (runtime.ready, runtime.network_ready) {
        (false, _) => Some("container runtime is down: containerd does not answer".to_owned()),
        (true, false) => Some(format!("network is not ready: {}", runtime.network_reason)),
        (true, true) => None,
    };
    let pressure = facts.pressure;
    let mut condition = |kind: &'static str, holds: bool, reason: &str, message: &str| {
        let entry = transitions.entry(kind).or_insert((holds, now_ms));
        if entry.0 != holds {
            *entry = (holds, now_ms);
        }
        json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "reason": reason,
            "message": message,
            "lastTransitionTime": time(entry.1),
        })
    };
    let conditions = [
        if pressure.memory {
            condition(
                "MemoryPressure",
                true,
                "EdgeHasInsufficientMemory",
                "edge has insufficient memory available",
            )
        } else {
            condition(
                "MemoryPressure",
                false,
                "EdgeHasSufficientMemory",
                "edge has sufficient memory available",
            )
        },
        if pressure.disk {
            condition(
                "DiskPressure",
                true,
                "EdgeHasDiskPressure",
                "edge has disk pressure",
            )
        } else {
            condition(
                "DiskPressure",
                false,
                "EdgeHasNoDiskPressure",
                "edge has no disk pressure",
            )
        },
        if pressure.pids {
            condition(
                "PIDPressure",
                true,
                "EdgeHasInsufficientPID",
                "edge has insufficient PID available",
            )
        } else {
            condition(
                "PIDPressure",
                false,
                "EdgeHasSufficientPID",
                "edge has sufficient PID available",
            )
        },
        match &not_ready {
            None => condition("Ready", true, "EdgeReady", "edge is posting ready status"),
            Some(why) => condition("Ready", false, "EdgeNotReady", why),
        },
    ];
    let mut addresses = Vec::new();
    if !facts.host_ip.is_empty() {
        addresses.push(json!({"type": "InternalIP", "address": facts.host_ip}));
    }
    addresses.push(json!({"type": "Hostname", "address": settings.node_name}));
    // Only the registration carries it: what an operator says later stays.
    let spec = if settings.schedulable {
        json!({})
    } else {
        json!({"unschedulable": true})
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": settings.node_name, "labels": labels},
        "spec": spec,
        "status": {
            "capacity": facts.capacity.to_json(),
            "allocatable": facts.allocatable.to_json(),
            "conditions": conditions,
            "addresses": addresses,
            "images": image_gc::status(facts.images, settings.images.listed_max),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
            "nodeInfo": {
                "machineID": machine.machine_id,
                "systemUUID": machine.system_uuid,
                "bootID": machine.boot_id,
                "kernelVersion": machine.kernel,
                "osImage": machine.os_image,
                "containerRuntimeVersion": runtime.version,
                "kubeletVersion": KUBELET_VERSION,
                "kubeProxyVersion": KUBELET_VERSION,
                "operatingSystem": "linux",
                "architecture": machine.architecture,
            },
        },
    })
}

/// Watches over the node object: asks the runtime only when there is a reason to.
pub(super) struct Reporter {
    context: Arc<Context>,
    settings: Settings,
    machine: Machine,
    capacity: Amounts,
    own_labels: BTreeMap<String, String>,
    pressure: watch::Receiver<Pressure>,
    burstable_shares: u64,
    limits: Option<NodeLimits>,
    limits_failed: bool,
    look_again: Option<Instant>,
    host_ip: String,
    runtime: RuntimeInfo,
    transitions: Transitions,
    told: Option<Value>,
    resend: u64,
    asked_at: Option<Instant>,
    /// Changes of the network's configuration before that.
    network_changes: u64,
}

impl Reporter {
    pub(super) fn new(
        context: Arc<Context>,
        settings: Settings,
        machine: Machine,
        pressure: watch::Receiver<Pressure>,
    ) -> Self {
        Self {
            capacity: capacity(&settings, &machine),
            own_labels: own_labels(&settings, &machine),
            pressure,
            burstable_shares: 2,
            limits: None,
            limits_failed: false,
            look_again: None,
            host_ip: address(&settings).unwrap_or_default(),
            context,
            settings,
            machine,
            runtime: RuntimeInfo::default(),
            transitions: Transitions::new(),
            told: None,
            resend: 0,
            asked_at: None,
            network_changes: 0,
        }
    }

    pub(super) fn host_ip(&self) -> &str {
        &self.host_ip
    }

    /// What pods may ask for in sum.
    pub(super) fn allocatable(&self) -> &Amounts {
        &self.context.allocatable
    }

    /// See [`own_labels`].
    pub(super) fn own_labels(&self) -> &BTreeMap<String, String> {
        &self.own_labels
    }

    /// Wakes the main loop at this time.
    pub(super) fn look_again(&mut self, at: Option<Instant>) {
        self.look_again = at;
    }

    /// What all burstable pods together ask for.
    pub(super) fn set_burstable_shares(&mut self, shares: Option<u64>) {
        self.burstable_shares = shares.unwrap_or(2);
    }

    /// Brings the cgroups above the pods up to date.
    async fn apply_limits(&mut self) {
        let settings = &self.settings;
        let reserved = settings.reserved;
        let mut all_pods = Resources::default();
        if settings.enforce_allocatable {
            let memory = self.capacity.memory_bytes - reserved.memory_bytes;
            let milli = self.capacity.cpu_milli - reserved.cpu_milli;
            let pids = line("/proc/sys/kernel/pid_max").parse::<i64>().ok();
            all_pods.memory_limit_bytes = Some(memory).filter(|bytes| *bytes > 0);
            all_pods.cpu_shares = resources::shares(milli);
            all_pods.pids_limit = pids
                .filter(|_| reserved.pids > 0)
                .map(|most| (most - reserved.pids).max(1));
        }
        let limits = NodeLimits {
            cgroup_root: settings.cgroup_root.clone(),
            all_pods,
            burstable_cpu_shares: self.burstable_shares,
        };
        if self.limits.as_ref() == Some(&limits) {
            return;
        }
        match self.context.runtime.apply_node_limits(&limits).await {
            Ok(()) => {
                self.limits = Some(limits);
                self.limits_failed = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.limits_failed, true) {
                    warn!(%error, "cgroups of all pods not made; tried again");
                }
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.runtime.ready && self.runtime.network_ready
    }

    /// When the node has to be looked at although nothing happened: only while it is not ready,
    /// or a pod waits for another one to go.
    pub(super) fn due(&self) -> Option<Instant> {
        self.recheck().into_iter().chain(self.look_again).min()
    }

    fn recheck(&self) -> Option<Instant> {
        if self.is_ready() {
            return None;
        }
        self.asked_at.map(|at| at + UNREADY_RECHECK)
    }

    /// Brings the node object up to date and tells it if it is another one.
    pub(super) async fn refresh(&mut self, runtime_lost: bool, resend: u64) {
        let now = Instant::now();
        let due = self.recheck().is_none_or(|due| due <= now);
        let network_changes = self.context.runtime.network_changes();
        let ask = self.asked_at.is_none()
            || self.runtime.ready == runtime_lost
            || self.network_changes != network_changes
            || (!self.is_ready() && due);
        if ask {
            self.runtime = self.context.runtime.info().await;
            self.asked_at = Some(now);
            self.network_changes = network_changes;
        }
        if let Some(address) = address(&self.settings) {
            self.host_ip = address;
        }
        self.apply_limits().await;
        let facts = Facts {
            settings: &self.settings,
            machine: &self.machine,
            runtime: &self.runtime,
            pressure: *self.pressure.borrow_and_update(),
            host_ip: &self.host_ip,
            capacity: &self.capacity,
            allocatable: &self.context.allocatable,
            images: &self.context.images.list(),
        };
        let node = object(&facts, &mut self.transitions, (self.context.now_ms)());
        if self.told.as_ref() == Some(&node) && self.resend == resend {
            return;
        }
        self.resend = resend;
        self.told = Some(node.clone());
        self.context.sink.node_status(node);
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
