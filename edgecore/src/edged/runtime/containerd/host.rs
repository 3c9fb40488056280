//! What this host and this process may do, read once at start.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::cgroup::Cgroups;
use super::spec::{HostDevice, HostFacts};

/// Bit of `CAP_SYS_RESOURCE` (`linux/capability.h`).
const CAP_SYS_RESOURCE: u32 = 24;
/// More device nodes than any board has.
const DEVICES_MAX: usize = 4096;

/// Reads the facts that do not change while we run.
pub(super) fn facts(cgroups: &Cgroups) -> HostFacts {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = capability_mask(&status, "CapEff:").unwrap_or(0);
    let may_lower = effective & (1 << CAP_SYS_RESOURCE) != 0;
    let own_score = std::fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    HostFacts {
        cgroup_v2: cgroups.is_v2(),
        has_memory: cgroups.has("memory"),
        has_cpu: cgroups.has("cpu"),
        has_pids: cgroups.has("pids"),
        has_swap: false,
        has_oom_group: false,
        oom_score_adj_min: (!may_lower).then_some(own_score),
        devices: Vec::new(),
        capability_bounds: capability_mask(&status, "CapBnd:"),
        arch: std::env::consts::ARCH,
        kernel: kernel_version(&rustix::system::uname().release().to_string_lossy()),
        has_seccomp: has_seccomp(&status),
        apparmor_profiles: apparmor_profiles(),
    }
}

/// Kernels before 4.14 say it only by the line in every process's status.
fn has_seccomp(status: &str) -> bool {
    Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
        || status.lines().any(|line| line.starts_with("Seccomp:"))
}

/// `6.1.0-18-amd64` is 6.1; what cannot be read is old.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    (next(), next())
}

/// Names of the loaded profiles, where `AppArmor` is on.
fn apparmor_profiles() -> Option<Vec<String>> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").ok()?;
    if !enabled.starts_with('Y') {
        return None;
    }
    let loaded =
        std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    Some(profile_names(&loaded))
}

/// Each line is `name (mode)`; names may have spaces.
fn profile_names(loaded: &str) -> Vec<String> {
    loaded
        .lines()
        .filter_map(|line| Some(line.rsplit_once(" (")?.0.to_owned()))
        .collect()
}

fn capability_mask(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The same with the host's device nodes, as a privileged container sees them.
pub(super) fn with_devices(host: &HostFacts) -> HostFacts {
    let mut devices = Vec::new();
    collect(Path::new("/dev"), &mut devices);
    HostFacts {
        devices,
        ..host.clone()
    }
}

/// Terminals, shared memory and queues are the container's own.
const OWN: [&str; 4] = ["pts", "shm", "mqueue", "fd"];

fn collect(directory: &Path, devices: &mut Vec<HostDevice>) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let (Ok(metadata), name) = (entry.metadata(), entry.file_name()) else {
            continue;
        };
        let kind = metadata.file_type();
        if kind.is_dir() && !OWN.iter().any(|own| name == *own) {
            collect(&entry.path(), devices);
        }
        let is_device = kind.is_block_device() || kind.is_char_device();
        if is_device && name != "console" && devices.len() < DEVICES_MAX {
            devices.push(HostDevice {
                path: entry.path(),
                is_block: kind.is_block_device(),
                major: rustix::fs::major(metadata.rdev()),
                minor: rustix::fs::minor(metadata.rdev()),
                mode: metadata.mode(),
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_profiles_are_read() {
        for (release, version) in [
            ("6.1.0-18-amd64", (6, 1)),
            ("5.10", (5, 10)),
            ("4.19.113+", (4, 19)),
            ("x", (0, 0)),
        ] {
            assert_eq!(kernel_version(release), version, "{release}");
        }
        let loaded = "/usr/bin/man (enforce)\ndocker-default (enforce)\na b (complain)\n";
        assert_eq!(
            profile_names(loaded),
            ["/usr/bin/man", "docker-default", "a b"]
        );
    }

    #[test]
    fn masks_are_read_from_proc_status() {
        let status = "Name:\tx\nCapEff:\t000001fffeffffff\nCapBnd:\t00000000a80425fb\n";
        assert_eq!(capability_mask(status, "CapBnd:"), Some(0xa804_25fb));
        let effective = capability_mask(status, "CapEff:").unwrap();
        assert_eq!(effective & (1 << CAP_SYS_RESOURCE), 0);
    }
}
