//! The `linux` object: namespaces, limits, devices, hidden paths.

use serde_json::{Value, json};

use super::super::container_id;
use super::{HostDevice, HostFacts, PodPaths};
use crate::edged::runtime::{ContainerSpec, Resources};

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/interrupts",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// CPU quota period, as Kubernetes uses it.
const CPU_PERIOD_US: u64 = 100_000;

pub(super) fn linux(
    container: &ContainerSpec,
    paths: &PodPaths,
    host: &HostFacts,
    seccomp: Option<Value>,
) -> Value {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if !container.host_pid {
        namespaces.push(match &paths.pid_ns {
            Some(path) => json!({ "type": "pid", "path": path }),
            None => json!({ "type": "pid" }),
        });
    }
    for (kind, path) in paths.shared() {
        namespaces.push(json!({ "type": kind, "path": path }));
    }
    if host.cgroup_v2 && !container.privileged {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": format!("{}/{}", container.cgroup_parent, container_id(
            &container.pod_uid, &container.name, container.attempt)),
        "resources": resources(&container.resources, container.privileged, host),
    });
    if container.privileged {
        linux["devices"] = host.devices.iter().map(device).collect();
    }
    let bare = container.privileged || container.unmasked_proc;
    // Said even when empty: what is left out may be filled with a default on the way.
    linux["maskedPaths"] = if bare { json!([]) } else { json!(MASKED_PATHS) };
    linux["readonlyPaths"] = if bare {
        json!([])
    } else {
        json!(READ_ONLY_PATHS)
    };
    if let Some(seccomp) = seccomp {
        linux["seccomp"] = seccomp;
    }
    linux
}

fn device(device: &HostDevice) -> Value {
    json!({
        "path": device.path,
        "type": if device.is_block { "b" } else { "c" },
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode & 0o777,
        "uid": device.uid,
        "gid": device.gid,
    })
}

fn resources(asked: &Resources, privileged: bool, host: &HostFacts) -> Value {
    let mut resources = json!({
        "devices": [ { "allow": privileged, "access": "rwm" } ],
    });
    if host.has_memory
        && let Some(limit) = asked.memory_limit_bytes
    {
        resources["memory"] = json!({ "limit": limit });
        if host.has_swap {
            resources["memory"]["swap"] = json!(limit);
        }
    }
    if host.has_oom_group {
        resources["unified"] = json!({ "memory.oom.group": "1" });
    }
    if host.has_cpu {
        let mut cpu = serde_json::Map::new();
        if let Some(shares) = asked.cpu_shares {
            cpu.insert("shares".to_owned(), json!(shares));
        }
        if let Some(quota) = asked.cpu_quota_us {
            cpu.insert("quota".to_owned(), json!(quota));
            cpu.insert("period".to_owned(), json!(CPU_PERIOD_US));
        }
        if !cpu.is_empty() {
            resources["cpu"] = Value::Object(cpu);
        }
    }
    if host.has_pids
        && let Some(limit) = asked.pids_limit
    {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}
