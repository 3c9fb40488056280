//! What is mounted in a container.

use serde_json::{Value, json};

use super::{PodPaths, SpecError};
use crate::edged::runtime::{ContainerSpec, Mount};

pub(super) fn mounts(container: &ContainerSpec, paths: &PodPaths) -> Result<Vec<Value>, SpecError> {
    let sys_mode = if container.privileged { "rw" } else { "ro" };
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": source, "options": options });
    let safe = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &safe),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &safe),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", sys_mode],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", sys_mode],
        ),
    ];
    let shm = match &paths.shm {
        Some(shm) => json!({
            "destination": "/dev/shm", "type": "bind", "source": shm,
            "options": ["rbind", "nosuid", "noexec", "nodev", "rw"],
        }),
        None => json!({
            "destination": "/dev/shm", "type": "bind", "source": "/dev/shm",
            "options": ["rbind", "nosuid", "noexec", "nodev", "rw"],
        }),
    };
    mounts.push(shm);
    let mut binds: Vec<&Mount> = container.mounts.iter().collect();
    // A mount below another one must come after it; the order of equals is kept.
    binds.sort_by_key(|mount| mount.target.components().count());
    for bind in binds {
        if !bind.target.is_absolute() {
            return Err(SpecError::RelativePath(bind.target.display().to_string()));
        }
        let propagation = match bind.propagation.as_str() {
            "" => "rprivate",
            other => other,
        };
        let mode = match (bind.read_only, bind.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        mounts.retain(|mount| mount["destination"] != json!(bind.target));
        mounts.push(json!({
            "destination": bind.target,
            "type": "bind",
            "source": bind.source,
            "options": ["rbind", propagation, mode],
        }));
    }
    Ok(mounts)
}

/// What the container's root must be for mounts to travel through the binds below it
/// (containerd `pkg/cri/opts/spec_linux_opts.go`).
pub(super) fn rootfs_propagation(mounts: &[Mount]) -> Option<&'static str> {
    let any = |wanted: &str| mounts.iter().any(|mount| mount.propagation == wanted);
    if any("rshared") {
        Some("rshared")
    } else if any("rslave") {
        Some("rslave")
    } else {
        None
    }
}
