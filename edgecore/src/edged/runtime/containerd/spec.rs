//! Pure: from what the pod asks for, what the image says and where things lie on this host to an
//! OCI runtime spec. Explicit throughout; nothing is taken from a library's defaults (those have
//! weaker `/proc` options, a hostname of their own and other limits).

mod capabilities;
mod identity;
mod linux;
mod mounts;
mod process;
mod seccomp;
mod seccomp_default;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use self::seccomp::{Circumstances, Profile};
use crate::edged::runtime::{ContainerSpec, SeccompChoice};

/// The annotation by which runc's shim groups containers on one process (containerd
/// `runtime/v2/runc/manager`, the same key from 1.6 to 2.3).
pub(super) const GROUP_ANNOTATION: &str = "io.containerd.runc.v2.group";

/// Go writes empty lists as `null`.
pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The `config` object of an image config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ImageDefaults {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) user: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) stop_signal: String,
}

/// The image's own user tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UserDatabase {
    pub(super) passwd: String,
    pub(super) group: String,
}

/// Where the pod's shared things lie on the host. `None`: the host's own namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodPaths {
    pub(crate) net_ns: Option<PathBuf>,
    pub(crate) uts_ns: Option<PathBuf>,
    pub(crate) ipc_ns: Option<PathBuf>,
    /// The pod's, where its containers share one; `None`: each has its own.
    pub(crate) pid_ns: Option<PathBuf>,
    pub(crate) shm: Option<PathBuf>,
    pub(crate) hostname: String,
}

impl PodPaths {
    /// Namespaces that the pod's containers share, as the spec calls them.
    pub(super) fn shared(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        [
            ("network", &self.net_ns),
            ("uts", &self.uts_ns),
            ("ipc", &self.ipc_ns),
        ]
        .into_iter()
        .filter_map(|(kind, path)| Some((kind, path.as_ref()?)))
    }
}

/// A device node of the host, for privileged containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostDevice {
    pub(super) path: PathBuf,
    pub(super) is_block: bool,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What this host can do.
#[derive(Clone, Debug, Default)]
pub(super) struct HostFacts {
    pub(super) cgroup_v2: bool,
    pub(super) has_memory: bool,
    pub(super) has_cpu: bool,
    pub(super) has_pids: bool,
    /// Swap can be bounded, so a memory limit bounds both together.
    pub(super) has_swap: bool,
    /// The kernel can kill a container as a whole, as kubelet asks of cgroup v2.
    pub(super) has_oom_group: bool,
    /// Set when `CAP_SYS_RESOURCE` is missing: going below would make runc die without a word.
    pub(super) oom_score_adj_min: Option<i32>,
    pub(super) devices: Vec<HostDevice>,
    /// Our own bounding set: a capability outside it cannot be given away, runc would fail.
    pub(super) capability_bounds: Option<u64>,
    /// As Rust names it.
    pub(super) arch: &'static str,
    pub(super) kernel: (u32, u32),
    /// The kernel can filter system calls.
    pub(super) has_seccomp: bool,
    /// Profiles that are loaded; `None` where `AppArmor` is off.
    pub(super) apparmor_profiles: Option<Vec<String>>,
}

/// The asked-for container cannot be described.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum SpecError {
    #[error("no command: neither the pod nor the image names one")]
    NoCommand,
    #[error("user `{0}` is not in the image")]
    NoUser(String),
    #[error("group `{0}` is not in the image")]
    NoGroup(String),
    #[error("`{0}` is out of range for a user or group id")]
    BadId(i64),
    #[error("unknown capability `{0}`")]
    BadCapability(String),
    #[error("seccomp profile `{profile}`: {reason}")]
    Seccomp { profile: String, reason: String },
    #[error("AppArmor profile `{profile}`: {reason}")]
    AppArmor { profile: String, reason: String },
    #[error("path `{0}` is not absolute")]
    RelativePath(String),
}

/// Builds the spec. The one thing read here is a `Localhost` seccomp profile, below
/// `seccomp_root`.
pub(super) fn build(
    container: &ContainerSpec,
    image: &ImageDefaults,
    users: &UserDatabase,
    paths: &PodPaths,
    host: &HostFacts,
    seccomp_root: &Path,
) -> Result<Value, SpecError> {
    let identity = identity::identity(container, image, users)?;
    let capabilities = capabilities::granted(container, host)?;
    let seccomp = seccomp_of(container, &capabilities, host, seccomp_root)?;
    let process = process::process(container, image, &identity, &capabilities, paths, host)?;
    let mut linux = linux::linux(container, paths, host, seccomp);
    if let Some(propagation) = mounts::rootfs_propagation(&container.mounts) {
        linux["rootfsPropagation"] = json!(propagation);
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": "rootfs", "readonly": container.read_only_rootfs },
        "mounts": mounts::mounts(container, paths)?,
        "linux": linux,
        "annotations": { GROUP_ANNOTATION: container.pod_uid },
    }))
}

/// The filter of system calls; none for privileged containers and for those that ask for none.
fn seccomp_of(
    container: &ContainerSpec,
    capabilities: &[&str],
    host: &HostFacts,
    root: &Path,
) -> Result<Option<Value>, SpecError> {
    if container.privileged {
        return Ok(None);
    }
    let profile = match &container.seccomp {
        SeccompChoice::Unconfined => return Ok(None),
        // A kernel without it runs what it has, as containerd does; who names a profile is refused.
        SeccompChoice::RuntimeDefault if !host.has_seccomp => return Ok(None),
        SeccompChoice::RuntimeDefault => seccomp_default::profile(),
        SeccompChoice::Localhost(name) if !host.has_seccomp => {
            return Err(SpecError::Seccomp {
                profile: name.clone(),
                reason: "this kernel has no seccomp filters".to_owned(),
            });
        }
        SeccompChoice::Localhost(name) => Profile::read(root, name)?,
    };
    Ok(Some(profile.resolve(&Circumstances {
        capabilities,
        arch: host.arch,
        kernel: host.kernel,
    })))
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "spec_golden_tests.rs"]
mod golden_tests;
