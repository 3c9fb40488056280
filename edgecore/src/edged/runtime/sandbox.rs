//! A pod without a pause container: its network, UTS and IPC namespaces are pinned as bind mounts
//! under the state directory, so no process has to live to keep them, and they survive our own
//! restart.
//!
//! `<state>/sandboxes/<uid>/` holds `sandbox.json` (written last: its presence means the sandbox
//! stands), `ns/{net,uts,ipc}` and `shm/`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::cni::{Attachment, Cni, is_namespace};
use super::containerd::PodPaths;
use super::{ContainerSpec, NetworkHealth, RuntimeError, Sandbox, SandboxSpec};

/// Kubernetes' runtimes give each pod this much `/dev/shm`.
const SHM_OPTIONS: &std::ffi::CStr = c"mode=1777,size=67108864";

/// Beside a sandbox's record: it stands, and is to be made anew when somebody asks for it.
const ABANDONED: &str = "abandoned";

/// What is remembered of a standing sandbox.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    pod_uid: String,
    hostname: String,
    host_network: bool,
    host_ipc: bool,
    #[serde(default)]
    share_pid: bool,
    cgroup_parent: String,
    ips: Vec<String>,
}

impl Record {
    fn sandbox(&self) -> Sandbox {
        Sandbox {
            pod_uid: self.pod_uid.clone(),
            ips: self.ips.clone(),
        }
    }
}

/// Every sandbox of this node.
#[derive(Debug)]
pub(super) struct Sandboxes {
    state_dir: PathBuf,
    cni: Cni,
}

/// A pod uid becomes a path and a CNI container id: letters, digits, dash, dot, underscore.
fn check_uid(uid: &str) -> Result<(), RuntimeError> {
    let plain = uid
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if plain && uid.starts_with(|c: char| c.is_ascii_alphanumeric()) && uid.len() <= 63 {
        Ok(())
    } else {
        Err(RuntimeError::Other {
            step: "sandbox",
            reason: format!("`{uid}` is not a pod uid"),
        })
    }
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> RuntimeError {
    move |error| RuntimeError::Other {
        step,
        reason: error.to_string(),
    }
}

async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(failed(step))
}

impl Sandboxes {
    pub(super) fn new(state_dir: PathBuf, cni: Cni) -> Self {
        Self { state_dir, cni }
    }

    fn directory(&self, uid: &str) -> PathBuf {
        self.state_dir.join("sandboxes").join(uid)
    }

    /// Whether pods can get a network; the reason if not.
    pub(super) fn network_status(&self) -> Result<(), String> {
        self.cni.status()
    }

    /// Makes what is missing of the pod's sandbox.
    pub(super) async fn ensure(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        check_uid(&spec.pod_uid)?;
        let directory = self.directory(&spec.pod_uid);
        if let Some(record) = read_record(&directory)
            && !directory.join(ABANDONED).exists()
        {
            let pins = pins_of(record.host_network, record.host_ipc);
            if pins.iter().all(|pin| is_pinned(&directory, pin)) {
                return Ok(record.sandbox());
            }
        }
        // Half-made, or left over by a reboot on a state directory that is not tmpfs.
        self.remove(&spec.pod_uid).await?;
        match self.create(spec, &directory).await {
            Ok(record) => Ok(record.sandbox()),
            Err(error) => {
                if let Err(leftover) = self.remove(&spec.pod_uid).await {
                    tracing::warn!(error = %leftover, pod = spec.pod_uid, "broken sandbox not removed");
                }
                Err(error)
            }
        }
    }

    async fn create(&self, spec: &SandboxSpec, directory: &Path) -> Result<Record, RuntimeError> {
        let wanted = spec.clone();
        let at = directory.to_owned();
        blocking("namespaces", move || pin(&wanted, &at)).await?;
        let mut record = Record {
            pod_uid: spec.pod_uid.clone(),
            hostname: spec.hostname.clone(),
            host_network: spec.host_network,
            host_ipc: spec.host_ipc,
            share_pid: spec.share_pid,
            cgroup_parent: spec.cgroup_parent.clone(),
            ips: Vec::new(),
        };
        if !spec.host_network {
            record.ips = self
                .cni
                .add(&Attachment {
                    pod_uid: spec.pod_uid.clone(),
                    namespace: spec.namespace.clone(),
                    name: spec.name.clone(),
                    netns: directory.join("ns/net"),
                    port_mappings: spec.port_mappings.clone(),
                    wish: spec.network.clone(),
                })
                .await
                .map_err(|error| RuntimeError::Network {
                    reason: error.to_string(),
                })?;
        }
        let written = record.clone();
        let at = directory.to_owned();
        blocking("sandbox record", move || write_record(&written, &at)).await?;
        Ok(record)
    }

    /// How the pod's network stands.
    pub(super) async fn check_network(&self, uid: &str) -> NetworkHealth {
        match check_uid(uid) {
            Ok(()) => self.cni.check(uid).await,
            Err(_) => NetworkHealth::Good,
        }
    }

    /// The next [`Sandboxes::ensure`] makes the sandbox anew, also that of a later process.
    pub(super) async fn abandon(&self, uid: &str) -> Result<(), RuntimeError> {
        check_uid(uid)?;
        let mark = self.directory(uid).join(ABANDONED);
        blocking("sandbox mark", move || std::fs::write(mark, b"")).await
    }

    /// Takes the sandbox down: network first (the plugins need the namespace), then the pins.
    /// Returns the pod's cgroup if it was known.
    pub(super) async fn remove(&self, uid: &str) -> Result<Option<String>, RuntimeError> {
        check_uid(uid)?;
        let directory = self.directory(uid);
        let record = read_record(&directory);
        self.cni
            .del(uid)
            .await
            .map_err(|error| RuntimeError::Network {
                reason: error.to_string(),
            })?;
        blocking("sandbox removal", move || unpin(&directory)).await?;
        Ok(record.map(|record| record.cgroup_parent))
    }

    /// Whether removing the pod must look for a process that holds its PID namespace. Without a
    /// record nothing is known: a reboot may have taken it.
    pub(super) fn may_have_holder(&self, uid: &str) -> bool {
        check_uid(uid).is_ok() && read_record(&self.directory(uid)).is_none_or(|r| r.share_pid)
    }

    /// Every sandbox that stands or half stands; the latter without addresses. Also pods of which
    /// only a note of their network is left: removing them undoes it.
    pub(super) async fn list(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        let cni = self.cni.clone();
        let attached = blocking("network notes", move || {
            cni.free_stale_addresses();
            Ok(cni.attached())
        })
        .await?;
        let mut list = self.standing().await?;
        for pod_uid in attached {
            if !list.iter().any(|sandbox| sandbox.pod_uid == pod_uid) {
                list.push(Sandbox {
                    pod_uid,
                    ips: Vec::new(),
                });
            }
        }
        Ok(list)
    }

    async fn standing(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        let pods = self.state_dir.join("sandboxes");
        blocking("sandbox list", move || {
            let entries = match std::fs::read_dir(&pods) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other?,
            };
            Ok(entries
                .flatten()
                .map(|entry| {
                    read_record(&entry.path()).map_or_else(
                        || Sandbox {
                            pod_uid: entry.file_name().to_string_lossy().into_owned(),
                            ips: Vec::new(),
                        },
                        |record| record.sandbox(),
                    )
                })
                .collect())
        })
        .await
    }

    /// Where a container of the pod finds what it shares.
    pub(super) fn paths(&self, container: &ContainerSpec) -> Result<PodPaths, RuntimeError> {
        check_uid(&container.pod_uid)?;
        let directory = self.directory(&container.pod_uid);
        let record = read_record(&directory).ok_or_else(|| RuntimeError::Create {
            reason: "the pod's sandbox does not stand".to_owned(),
        })?;
        let pin = |name: &str| Some(directory.join("ns").join(name));
        Ok(PodPaths {
            net_ns: if record.host_network {
                None
            } else {
                pin("net")
            },
            uts_ns: if record.host_network {
                None
            } else {
                pin("uts")
            },
            ipc_ns: if record.host_ipc { None } else { pin("ipc") },
            shm: (!record.host_ipc).then(|| directory.join("shm")),
            hostname: record.hostname,
            pid_ns: None,
        })
    }
}

fn read_record(directory: &Path) -> Option<Record> {
    let bytes = std::fs::read(directory.join("sandbox.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Pods on the host's network share its UTS namespace too (Kubernetes' rule).
fn pins_of(host_network: bool, host_ipc: bool) -> Vec<&'static str> {
    let mut pins = Vec::new();
    if !host_network {
        pins.extend(["net", "uts"]);
    }
    if !host_ipc {
        pins.push("ipc");
    }
    pins
}

fn is_pinned(directory: &Path, pin: &str) -> bool {
    is_namespace(&directory.join("ns").join(pin))
}

/// Makes the namespaces on a thread of their own, which ends with them: a thread that left the
/// host's network must never go back to the runtime's pool.
fn pin(spec: &SandboxSpec, directory: &Path) -> io::Result<()> {
    if let Some(all) = directory.parent() {
        make_private(all)?;
    }
    let ns = directory.join("ns");
    std::fs::create_dir_all(&ns)?;
    let pins = pins_of(spec.host_network, spec.host_ipc);
    for pin in &pins {
        std::fs::write(ns.join(pin), b"")?;
    }
    if !spec.host_ipc {
        let shm = directory.join("shm");
        std::fs::create_dir_all(&shm)?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        mount(c"shm", &shm, c"tmpfs", flags, SHM_OPTIONS)?;
    }
    if pins.is_empty() {
        return Ok(());
    }
    let (hostname, sysctls) = (spec.hostname.clone(), spec.sysctls.clone());
    std::thread::Builder::new()
        .name("sandbox".to_owned())
        .spawn(move || in_new_namespaces(&ns, &pins, &hostname, &sysctls))?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("namespace thread panicked")))
}

/// A pod's `/dev/shm` is open to everybody, as in every container; on the node only root may come
/// there. Also one that an earlier release made.
fn make_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(directory)?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

fn in_new_namespaces(
    ns: &Path,
    pins: &[&str],
    hostname: &str,
    sysctls: &BTreeMap<String, String>,
) -> io::Result<()> {
    let has = |pin: &str| pins.contains(&pin);
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNET, has("net"));
    flags.set(UnshareFlags::NEWUTS, has("uts"));
    flags.set(UnshareFlags::NEWIPC, has("ipc"));
    unshare::unshare(flags)?;
    if has("uts") && !hostname.is_empty() {
        rustix::system::sethostname(hostname.as_bytes())?;
    }
    if has("net") {
        loopback_up()?;
    }
    for (name, value) in sysctls {
        let path = sysctl_path(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "sysctl name"))?;
        std::fs::write(path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}: {error}")))?;
    }
    for pin in pins {
        mount_bind(Path::new("/proc/thread-self/ns").join(pin), ns.join(pin))?;
    }
    Ok(())
}

/// Dots between parts become slashes, slashes within parts dots.
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let swapped: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    let parts = Path::new(&swapped).components();
    let stays = parts
        .clone()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    (stays && parts.count() > 0).then(|| Path::new("/proc/sys").join(swapped))
}

/// Brings `lo` (index 1 in every new network namespace) up with one rtnetlink message.
fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const LO: i32 = 1;
    const IFF_UP: u32 = 1;
    const LENGTH: u32 = 32;
    const ERROR_AT: usize = 16;
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::NETLINK,
        rustix::net::SocketType::RAW,
        None,
    )?;
    let mut message = Vec::with_capacity(32);
    // struct nlmsghdr, then struct ifinfomsg (rtnetlink(7))
    message.extend_from_slice(&LENGTH.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&LO.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    rustix::net::send(&socket, &message, rustix::net::SendFlags::empty())?;
    let mut answer = [0_u8; 256];
    let (_, received) =
        rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())?;
    let code = answer
        .get(ERROR_AT..ERROR_AT + 4)
        .filter(|_| received >= ERROR_AT + 4)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
        .map_or(0, i32::from_ne_bytes);
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

fn write_record(record: &Record, directory: &Path) -> io::Result<()> {
    let partial = directory.join("sandbox.json.new");
    std::fs::write(&partial, serde_json::to_vec(record)?)?;
    std::fs::rename(partial, directory.join("sandbox.json"))
}

fn unpin(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let points = ["ns/net", "ns/uts", "ns/ipc", "shm"];
    for point in points.map(|point| directory.join(point)) {
        // A pin may have been mounted twice by a crash between; unmount until nothing is there.
        loop {
            match unmount(&point, UnmountFlags::DETACH) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    std::fs::remove_dir_all(directory)
}

mod unshare {
    #![expect(
        unsafe_code,
        reason = "unshare(2) is unsafe for CLONE_FILES and CLONE_FS only"
    )]

    use rustix::thread::UnshareFlags;

    /// Leaves the host's namespaces on this thread.
    pub(super) fn unshare(flags: UnshareFlags) -> std::io::Result<()> {
        debug_assert!(!flags.intersects(UnshareFlags::FILES | UnshareFlags::FS));
        // SAFETY: callers pass namespace flags only, never FILES, which is what makes the call
        // unsafe (file descriptors of other threads).
        unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_pods_share_is_not_open_to_the_nodes_users() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let all = state.path().join("sandboxes");
        std::fs::create_dir(&all).unwrap();
        std::fs::set_permissions(&all, std::fs::Permissions::from_mode(0o755)).unwrap();
        let cni = Cni::new("/none".into(), Vec::new(), state.path().join("cni"));
        let sandboxes = Sandboxes::new(state.path().to_owned(), cni);
        // Nothing is mounted for it: this needs no rights.
        let spec = SandboxSpec {
            pod_uid: "u".to_owned(),
            host_network: true,
            host_ipc: true,
            ..SandboxSpec::default()
        };
        sandboxes.ensure(&spec).await.unwrap();
        let mode = std::fs::metadata(&all).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn uids_that_could_leave_the_directory_are_refused() {
        for (uid, valid) in [
            ("0f1e2d3c-aaaa-bbbb-cccc-0123456789ab", true),
            ("", false),
            ("../x", false),
            ("a/b", false),
            ("..", false),
        ] {
            assert_eq!(check_uid(uid).is_ok(), valid, "{uid}");
        }
    }

    #[test]
    fn sysctls_stay_below_their_directory() {
        let path = |name: &str| sysctl_path(name).map(|path| path.display().to_string());
        assert_eq!(
            path("net.ipv4.conf.eth0/1.forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        for bad in ["", "//.//.etc.passwd", ".etc.passwd"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn host_network_keeps_the_hosts_name() {
        assert_eq!(pins_of(true, false), ["ipc"]);
        assert_eq!(pins_of(false, false), ["net", "uts", "ipc"]);
        assert!(pins_of(true, true).is_empty());
    }
}
