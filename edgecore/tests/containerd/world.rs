//! A private daemon, a runtime on it, and what a test asks of both.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use edgecore::edged::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use edgecore::edged::runtime::{Container, ContainerSpec, ContainerState, Runtime, SandboxSpec};

use crate::daemon::PrivateContainerd;
use crate::ground::Ground;
use crate::oci::{ImageSpec, write_archive};

/// What a person running the tests should see.
#[expect(
    clippy::print_stderr,
    reason = "a skipped test and a measured figure say so"
)]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

pub(crate) const IMAGE: &str = "docker.io/library/busybox:test";
/// Longest that anything here may take; a wait that reaches it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One daemon, one runtime, everything under one directory.
pub(crate) struct World {
    pub(crate) daemon: PrivateContainerd,
    pub(crate) runtime: Arc<ContainerdRuntime>,
    pub(crate) config: ContainerdConfig,
    /// Last: cleared when the daemon is gone.
    pub(crate) directory: Ground,
}

impl World {
    /// A daemon without images; `None`, said aloud, where containerd is absent.
    pub(crate) fn empty() -> Option<Self> {
        Self::with(|_| {})
    }

    /// As [`Self::empty`], its runtime configured otherwise.
    pub(crate) fn with(edit: impl FnOnce(&mut ContainerdConfig)) -> Option<Self> {
        if crate::daemon::skipped() {
            return None;
        }
        let directory = Ground::temporary("ed").unwrap();
        let daemon = PrivateContainerd::start(directory.path()).unwrap();
        let mut config = ContainerdConfig {
            address: daemon.address().display().to_string(),
            namespace: format!("t{}", uuid::Uuid::new_v4().simple()),
            state_dir: directory.path().join("run"),
            cni_conf_dir: directory.path().join("no-cni-here"),
            logger_path: PathBuf::from(env!("CARGO_BIN_EXE_edged-logger")),
            cgroup_root: directory.cgroup_root(),
            seccomp_root: directory.path().join("seccomp"),
            ..ContainerdConfig::default()
        };
        edit(&mut config);
        let runtime = ContainerdRuntime::connect(config.clone()).unwrap();
        Some(Self {
            daemon,
            runtime,
            config,
            directory,
        })
    }

    /// A daemon that holds [`IMAGE`]; `None` as for [`Self::empty`].
    pub(crate) async fn new() -> Option<Self> {
        let world = Self::empty()?;
        let archive = world.directory.path().join("busybox.tar");
        write_archive(&ImageSpec::busybox(IMAGE), &archive).unwrap();
        let images = world.runtime.import_archive(&archive, None).await.unwrap();
        assert_eq!(images[0].reference, IMAGE);
        Some(world)
    }

    /// A pod with the usual answers.
    pub(crate) fn pod(&self) -> SandboxSpec {
        let uid = uuid::Uuid::new_v4().to_string();
        SandboxSpec {
            cgroup_parent: format!("{}/pod{uid}", self.config.cgroup_root),
            pod_uid: uid,
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            hostname: "web-0".to_owned(),
            ..SandboxSpec::default()
        }
    }

    pub(crate) fn container(&self, pod: &SandboxSpec, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            pod_uid: pod.pod_uid.clone(),
            pod_namespace: pod.namespace.clone(),
            pod_name: pod.name.clone(),
            name: name.to_owned(),
            spec_hash: "h1".to_owned(),
            image: IMAGE.to_owned(),
            command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
            cgroup_parent: pod.cgroup_parent.clone(),
            host_network: pod.host_network,
            log_path: self
                .directory
                .path()
                .join("logs")
                .join(&pod.pod_uid)
                .join(name)
                .join("0.log"),
            ..ContainerSpec::default()
        }
    }

    /// Waits, woken by the runtime's own changes, until the container is in a wanted state.
    pub(crate) async fn until(
        &self,
        id: &str,
        wanted: impl Fn(&ContainerState) -> bool,
    ) -> Container {
        let mut changes = self.runtime.changes();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                let listed = self.runtime.containers().await.unwrap_or_default();
                if let Some(found) = listed.into_iter().find(|c| c.id == id)
                    && wanted(&found.state)
                {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("container {id} did not get there"))
    }

    pub(crate) async fn exited(&self, id: &str) -> (i32, Container) {
        let found = self
            .until(id, |state| matches!(state, ContainerState::Exited { .. }))
            .await;
        let ContainerState::Exited { exit_code, .. } = found.state else {
            unreachable!("waited for it");
        };
        (exit_code, found)
    }

    /// Lines of a finished container's log: `(stream, text)`.
    pub(crate) fn log(spec: &ContainerSpec) -> Vec<(String, String)> {
        std::fs::read_to_string(&spec.log_path)
            .unwrap()
            .lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ');
                let time = parts.next().unwrap();
                assert!(time.ends_with('Z') && time.len() == 30, "{time}");
                let stream = parts.next().unwrap().to_owned();
                assert_eq!(parts.next(), Some("F"));
                (stream, parts.next().unwrap().to_owned())
            })
            .collect()
    }

    /// Kills and removes what is left of a pod.
    pub(crate) async fn clean(&self, pod: &SandboxSpec) {
        for container in self.runtime.containers().await.unwrap() {
            if container.pod_uid == pod.pod_uid {
                self.runtime.kill(&container.id).await.unwrap();
                self.until(&container.id, |state| {
                    !matches!(state, ContainerState::Running { .. })
                })
                .await;
                self.runtime.remove(&container.id).await.unwrap();
            }
        }
        self.runtime.remove_sandbox(&pod.pod_uid).await.unwrap();
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        self.daemon.ctr(&self.config.namespace, arguments).unwrap()
    }

    /// Everything a pod may leave behind, by kind.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut note = |kind: &str, text: String| {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            found.extend(lines.map(|line| format!("{kind}: {line}")));
        };
        note("container", self.ctr(&["containers", "ls", "-q"]));
        note("task", self.ctr(&["tasks", "ls", "-q"]));
        let snapshots = self.ctr(&["snapshots", "ls"]);
        let active = snapshots.lines().filter(|line| line.contains("Active"));
        note("snapshot", active.collect::<Vec<_>>().join("\n"));
        let leases = self.ctr(&["leases", "ls", "-q"]);
        note("lease", leases);
        note("mount", Self::mounts(&self.config.state_dir).join("\n"));
        for directory in [
            "sandboxes",
            "log",
            "stdin",
            "cni/results",
            "cni/ipam/edgecore",
        ] {
            let listed: Vec<String> = std::fs::read_dir(self.config.state_dir.join(directory))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                // host-local's own bookkeeping
                .filter(|name| name != "lock" && !name.starts_with("last_reserved_ip"))
                .collect();
            note(directory, listed.join("\n"));
        }
        found
    }

    pub(crate) fn mounts(under: &Path) -> Vec<String> {
        std::fs::read_to_string("/proc/mounts")
            .unwrap()
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|point| Path::new(point).starts_with(under))
            .map(str::to_owned)
            .collect()
    }

    /// Ends every process in the pod's cgroups, as a power cut would.
    pub(crate) fn kill_pod_processes(pod: &SandboxSpec) {
        let needle = pod.cgroup_parent.trim_start_matches('/');
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if groups.contains(needle)
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                // It may have ended by itself since.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Process ids of our shims.
    pub(crate) fn shims(&self) -> Vec<i32> {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).into_owned();
                line.contains("containerd-shim-runc-v2") && line.contains(&self.config.namespace)
            })
            .collect()
    }

    pub(crate) fn bridge(&self) -> Option<String> {
        let text = std::fs::read(self.config.state_dir.join("cni/builtin.conflist")).ok()?;
        let list: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(list["plugins"][0]["bridge"].as_str()?.to_owned())
    }
}
