//! Which capabilities a container's first process gets.

use super::{HostFacts, SpecError};
use crate::edged::runtime::ContainerSpec;

/// The same capabilities as containerd and docker grant by default (containerd `oci/spec.go`,
/// `defaultUnixCaps`).
pub(super) const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability in kernel order (`linux/capability.h`); the bounding set of this process
/// decides how many of them a privileged container really gets.
pub(in super::super) const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What was asked for, without what this process itself could never give.
pub(super) fn granted(
    container: &ContainerSpec,
    host: &HostFacts,
) -> Result<Vec<&'static str>, SpecError> {
    let mut granted = capabilities(container)?;
    if let Some(bounds) = host.capability_bounds {
        granted.retain(|name| {
            let bit = ALL_CAPABILITIES.iter().position(|known| known == name);
            bit.is_some_and(|bit| bounds & (1 << bit) != 0)
        });
    }
    Ok(granted)
}

pub(super) fn capabilities(container: &ContainerSpec) -> Result<Vec<&'static str>, SpecError> {
    let known = |name: &str| -> Result<&'static str, SpecError> {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") {
            upper
        } else {
            format!("CAP_{upper}")
        };
        ALL_CAPABILITIES
            .into_iter()
            .find(|capability| *capability == full)
            .ok_or_else(|| SpecError::BadCapability(name.to_owned()))
    };
    let is_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("all"));
    if container.privileged || is_all(&container.add_capabilities) {
        let mut all = ALL_CAPABILITIES.to_vec();
        if !container.privileged && !is_all(&container.drop_capabilities) {
            for name in &container.drop_capabilities {
                let dropped = known(name)?;
                all.retain(|capability| *capability != dropped);
            }
        }
        return Ok(all);
    }
    let mut set = if is_all(&container.drop_capabilities) {
        Vec::new()
    } else {
        DEFAULT_CAPABILITIES.to_vec()
    };
    for name in &container.drop_capabilities {
        if !name.eq_ignore_ascii_case("all") {
            let dropped = known(name)?;
            set.retain(|capability| *capability != dropped);
        }
    }
    for name in &container.add_capabilities {
        let added = known(name)?;
        if !set.contains(&added) {
            set.push(added);
        }
    }
    Ok(set)
}
