//! Pure: from what the pod asks for, what the image says and where things lie on this host to an
//! OCI runtime spec. Explicit throughout; nothing is taken from a library's defaults (those have
//! weaker `/proc` options, a hostname of their own and other limits).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::edged::runtime::{ContainerSpec, Mount, Resources};

/// The same capabilities as containerd and docker grant by default (containerd `oci/spec.go`,
/// `defaultUnixCaps`).
const DEFAULT_CAPABILITIES: [&str; 14] = [
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
pub(super) const ALL_CAPABILITIES: [&str; 41] = [
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

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/interrupts",
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

/// The annotation by which runc's shim groups containers on one process (containerd
/// `runtime/v2/runc/manager`, the same key from 1.6 to 2.3).
const GROUP_ANNOTATION: &str = "io.containerd.runc.v2.group";

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
    pub(crate) shm: Option<PathBuf>,
    pub(crate) hostname: String,
    /// Bound unless the pod mounts something on the same target.
    pub(crate) files: Vec<Mount>,
}

/// A device node of the host, for privileged containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostDevice {
    pub(super) path: PathBuf,
    pub(super) is_block: bool,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) mode: u32,
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
    #[error("path `{0}` is not absolute")]
    RelativePath(String),
    #[error("internal: {0}")]
    Shape(String),
}

/// Resolved process identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
}

/// Whether resolving the container's user needs the image's tables.
pub(super) fn needs_users(container: &ContainerSpec, image: &ImageDefaults) -> bool {
    container.run_as_user.is_some_and(|uid| uid != 0)
        || container.run_as_user.is_none()
            && !matches!(image.user.as_str(), "" | "0" | "0:0" | "root")
}

/// Builds the spec.
pub(super) fn build(
    container: &ContainerSpec,
    image: &ImageDefaults,
    users: &UserDatabase,
    paths: &PodPaths,
    host: &HostFacts,
) -> Result<Spec, SpecError> {
    let identity = identity(container, image, users)?;
    let linux = linux(container, paths, host);
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": process(container, image, &identity, paths, host)?,
        "root": { "path": "rootfs", "readonly": container.read_only_rootfs },
        "mounts": mounts(container, paths)?,
        "linux": linux,
        "annotations": { GROUP_ANNOTATION: container.pod_uid },
    });
    // The typed form is the check that the document is well formed.
    serde_json::from_value(spec).map_err(|error| SpecError::Shape(error.to_string()))
}

fn process(
    container: &ContainerSpec,
    image: &ImageDefaults,
    identity: &Identity,
    paths: &PodPaths,
    host: &HostFacts,
) -> Result<Value, SpecError> {
    let mut capabilities = capabilities(container)?;
    if let Some(bounds) = host.capability_bounds {
        capabilities.retain(|name| {
            let bit = ALL_CAPABILITIES.iter().position(|known| known == name);
            bit.is_some_and(|bit| bounds & (1 << bit) != 0)
        });
    }
    let mut process = json!({
        "terminal": container.tty,
        "user": {
            "uid": identity.uid,
            "gid": identity.gid,
            "additionalGids": identity.groups,
        },
        "args": arguments(container, image)?,
        "env": environment(container, image, identity, paths),
        "cwd": working_dir(container, image)?,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": container.no_new_privileges,
    });
    if let Some(asked) = container.resources.oom_score_adj {
        let allowed = host.oom_score_adj_min.map_or(asked, |min| asked.max(min));
        process["oomScoreAdj"] = json!(allowed.clamp(-1000, 1000));
    }
    Ok(process)
}

/// Kubernetes' table of command and args over entrypoint and cmd.
fn arguments(container: &ContainerSpec, image: &ImageDefaults) -> Result<Vec<String>, SpecError> {
    let (head, tail) = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &container.args),
        (false, _) => (&container.command, &container.args),
    };
    let arguments: Vec<String> = head.iter().chain(tail).cloned().collect();
    if arguments.is_empty() {
        return Err(SpecError::NoCommand);
    }
    Ok(arguments)
}

fn working_dir(container: &ContainerSpec, image: &ImageDefaults) -> Result<String, SpecError> {
    let asked = container
        .working_dir
        .as_deref()
        .filter(|dir| !dir.is_empty());
    let dir = asked.unwrap_or(&image.working_dir);
    match dir {
        "" => Ok("/".to_owned()),
        dir if dir.starts_with('/') => Ok(dir.to_owned()),
        dir => Err(SpecError::RelativePath(dir.to_owned())),
    }
}

/// Image first, pod over it; each name once, at its first place.
fn environment(
    container: &ContainerSpec,
    image: &ImageDefaults,
    identity: &Identity,
    paths: &PodPaths,
) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        if values.insert(name.to_owned(), value.to_owned()).is_none() {
            names.push(name.to_owned());
        }
    };
    if let Some((name, value)) = DEFAULT_PATH.split_once('=') {
        set(name, value);
    }
    if !paths.hostname.is_empty() {
        set("HOSTNAME", &paths.hostname);
    }
    if container.tty {
        set("TERM", "xterm");
    }
    set("HOME", &identity.home);
    for pair in &image.env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        set(name, value);
    }
    for (name, value) in &container.env {
        set(name, value);
    }
    names
        .into_iter()
        .map(|name| {
            let value = values.get(&name).map_or("", String::as_str);
            format!("{name}={value}")
        })
        .collect()
}

fn capabilities(container: &ContainerSpec) -> Result<Vec<&'static str>, SpecError> {
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

fn mounts(container: &ContainerSpec, paths: &PodPaths) -> Result<Vec<Value>, SpecError> {
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
    let own = |target: &Path| container.mounts.iter().any(|mount| mount.target == target);
    let files = paths.files.iter().filter(|file| !own(&file.target));
    let mut binds: Vec<&Mount> = files.chain(&container.mounts).collect();
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
        let mode = if bind.read_only { "ro" } else { "rw" };
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

fn linux(container: &ContainerSpec, paths: &PodPaths, host: &HostFacts) -> Value {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if !container.host_pid {
        namespaces.push(json!({ "type": "pid" }));
    }
    for (kind, path) in [
        ("network", &paths.net_ns),
        ("uts", &paths.uts_ns),
        ("ipc", &paths.ipc_ns),
    ] {
        if let Some(path) = path {
            namespaces.push(json!({ "type": kind, "path": path }));
        }
    }
    if host.cgroup_v2 && !container.privileged {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": format!("{}/{}", container.cgroup_parent, super::container_id(
            &container.pod_uid, &container.name, container.attempt)),
        "resources": resources(&container.resources, container.privileged, host),
    });
    if container.privileged {
        linux["devices"] = host.devices.iter().map(device).collect();
    } else {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READ_ONLY_PATHS);
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
        "uid": 0,
        "gid": 0,
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

fn id(number: i64) -> Result<u32, SpecError> {
    u32::try_from(number).map_err(|_| SpecError::BadId(number))
}

/// The pod's word over the image's; names and primary groups from the image's own tables
/// (containerd `oci.WithUser` has the same rules).
fn identity(
    container: &ContainerSpec,
    image: &ImageDefaults,
    users: &UserDatabase,
) -> Result<Identity, SpecError> {
    let asked = match container.run_as_user {
        Some(uid) => Some(id(uid)?.to_string()),
        None => None,
    };
    let (user, group) = match (&asked, image.user.split_once(':')) {
        (Some(uid), _) => (uid.as_str(), None),
        (None, Some((user, group))) => (user, Some(group)),
        (None, None) => (image.user.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let rows = || {
        users
            .passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|row| row.len() >= 6)
    };
    let row = match user.parse::<u32>() {
        Ok(uid) => rows().find(|row| row[2].parse() == Ok(uid)),
        Err(_) => Some(
            rows()
                .find(|row| row[0] == user)
                .ok_or_else(|| SpecError::NoUser(user.to_owned()))?,
        ),
    };
    let uid = match user.parse::<i64>() {
        Ok(number) => id(number)?,
        Err(_) => row
            .as_ref()
            .and_then(|row| row[2].parse().ok())
            .ok_or_else(|| SpecError::NoUser(user.to_owned()))?,
    };
    let name = row.as_ref().map_or("", |row| row[0]).to_owned();
    let primary = row.as_ref().and_then(|row| row[3].parse().ok());
    let home = match row.as_ref().map_or("", |row| row[5]) {
        "" if uid == 0 => "/root",
        "" => "/",
        home => home,
    };
    let gid = match (container.run_as_group, group) {
        (Some(gid), _) => id(gid)?,
        (None, Some(group)) => group_id(group, users)?,
        (None, None) => primary.unwrap_or(0),
    };
    let mut groups: Vec<u32> = users
        .group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|row| {
            row.len() >= 4 && !name.is_empty() && row[3].split(',').any(|member| member == name)
        })
        .filter_map(|row| row[2].parse().ok())
        .collect();
    for extra in &container.supplemental_groups {
        groups.push(id(*extra)?);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

fn group_id(group: &str, users: &UserDatabase) -> Result<u32, SpecError> {
    if let Ok(number) = group.parse::<i64>() {
        return id(number);
    }
    users
        .group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|row| row.len() >= 3 && row[0] == group)
        .and_then(|row| row[2].parse().ok())
        .ok_or_else(|| SpecError::NoGroup(group.to_owned()))
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
