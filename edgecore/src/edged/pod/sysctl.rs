//! Which kernel settings a pod may make for itself (`kubelet/sysctl`). Pure.

use k8s_openapi::api::core::v1::Pod;

/// `safe_sysctls.go`: isolated by the pod's namespaces and harmless to others.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Which namespace isolates a setting (`namespaces.go`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    Ipc,
    Net,
    None,
}

fn isolation(name: &str) -> Isolation {
    if name.starts_with("net.") {
        return Isolation::Net;
    }
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name == "kernel.sem" || ipc.iter().any(|prefix| name.starts_with(prefix)) {
        return Isolation::Ipc;
    }
    Isolation::None
}

/// With dots between its parts. A name that begins with slashes may have dots inside a part
/// (`net/ipv4/conf/eth0.1/…`), so the two change places (`util.go: NormalizeName`).
pub fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// The settings of the pod, named with dots.
pub fn of(pod: &Pod) -> impl Iterator<Item = (String, String)> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    context
        .and_then(|context| context.sysctls.as_ref())
        .into_iter()
        .flatten()
        .map(|sysctl| (normal(&sysctl.name), sysctl.value.clone()))
}

/// Refuses what would reach beyond the pod or was not allowed; the message for the API.
///
/// # Errors
/// What is wrong, for a status with reason `SysctlForbidden`.
pub fn admit(pod: &Pod, allowed: &[String]) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let host_ipc = spec.and_then(|s| s.host_ipc) == Some(true);
    for (name, _) in of(pod) {
        let isolation = isolation(&name);
        if isolation == Isolation::Ipc && host_ipc {
            return Err(format!(
                "forbidden sysctl: \"{name}\" not allowed with host ipc enabled"
            ));
        }
        if isolation == Isolation::Net && host_network {
            return Err(format!(
                "forbidden sysctl: \"{name}\" not allowed with host net enabled"
            ));
        }
        let listed = allowed
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(&normal(prefix)),
                None => normal(pattern) == name,
            });
        // What no namespace isolates would change the node for everybody, whoever allowed it.
        if isolation == Isolation::None || !(SAFE.contains(&name.as_str()) || listed) {
            return Err(format!("forbidden sysctl: \"{name}\" not allowlisted"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_safe_or_allowed_and_isolated_is_admitted() {
        let allowed = ["kernel.msg*", "net.core.somaxconn", "vm.swappiness"].map(str::to_owned);
        for (name, host_network, host_ipc, says) in [
            ("kernel.shm_rmid_forced", false, false, None),
            ("kernel/shm_rmid_forced", false, false, None),
            ("net.ipv4.tcp_syncookies", false, false, None),
            ("net.core.somaxconn", false, false, None),
            ("kernel.msgmax", false, false, None),
            ("kernel.sem", false, false, Some("not allowlisted")),
            ("net.ipv4.ip_forward", false, false, Some("not allowlisted")),
            ("vm.swappiness", false, false, Some("not allowlisted")),
            ("kernel.hostname", false, false, Some("not allowlisted")),
            ("../../../etc/passwd", false, false, Some("not allowlisted")),
            ("net.ipv4.tcp_syncookies", true, false, Some("host net")),
            ("kernel.shm_rmid_forced", true, false, None),
            ("kernel.shm_rmid_forced", false, true, Some("host ipc")),
            ("net.ipv4.tcp_syncookies", false, true, None),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": {
                "hostNetwork": host_network, "hostIPC": host_ipc, "containers": [],
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]},
            }}))
            .unwrap();
            let found = admit(&pod, &allowed);
            match says {
                None => assert_eq!(found, Ok(()), "{name}"),
                Some(text) => assert!(
                    found.clone().unwrap_err().contains(text),
                    "{name}: {found:?}"
                ),
            }
        }
    }

    #[test]
    fn dots_and_slashes_change_places() {
        for (name, expected) in [
            ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
            ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net.ipv4.conf.eth0/1.forwarding",
            ),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net.ipv4.conf.eth0/1.forwarding",
            ),
        ] {
            assert_eq!(normal(name), expected);
        }
    }
}
