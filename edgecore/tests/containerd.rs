//! The runtime on a real containerd, a private one that the test starts.

#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgecore::edged::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use edgecore::edged::runtime::{
    Container, ContainerSpec, ContainerState, Runtime, RuntimeError, SandboxSpec,
};
use support::containerd::PrivateContainerd;
use support::oci::{ImageSpec, write_archive};

const IMAGE: &str = "docker.io/library/busybox:test";
/// Longest that anything here may take; a wait that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// One daemon, one runtime, everything under one directory.
struct World {
    daemon: PrivateContainerd,
    runtime: Arc<ContainerdRuntime>,
    config: ContainerdConfig,
    directory: tempfile::TempDir,
}

/// `None`, said aloud, where containerd is absent; a failure where it is required.
fn skipped(test: &str) -> bool {
    let Some(reason) = support::containerd::missing() else {
        return false;
    };
    let required = std::env::var("OUTPOST_REQUIRE_NEIGHBOURS").is_ok_and(|value| value == "1");
    assert!(!required, "{test}: {reason}");
    eprintln!("SKIPPED {test}: {reason}");
    true
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ed").tempdir().unwrap();
        let daemon = PrivateContainerd::start(directory.path()).unwrap();
        let config = ContainerdConfig {
            address: daemon.address().display().to_string(),
            namespace: format!("t{}", uuid::Uuid::new_v4().simple()),
            state_dir: directory.path().join("run"),
            cni_conf_dir: directory.path().join("no-cni-here"),
            logger_path: PathBuf::from(env!("CARGO_BIN_EXE_edged-logger")),
            cgroup_root: "/edgepods-test".to_owned(),
            ..ContainerdConfig::default()
        };
        let runtime = ContainerdRuntime::connect(config.clone()).unwrap();
        let world = Self {
            daemon,
            runtime,
            config,
            directory,
        };
        let archive = world.directory.path().join("busybox.tar");
        write_archive(&ImageSpec::busybox(IMAGE), &archive).unwrap();
        let images = world.runtime.import_archive(&archive, None).await.unwrap();
        assert_eq!(images[0].reference, IMAGE);
        world
    }

    fn pod(&self) -> SandboxSpec {
        let uid = uuid::Uuid::new_v4().to_string();
        SandboxSpec {
            cgroup_parent: format!("/edgepods-test/pod{uid}"),
            pod_uid: uid,
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            hostname: "web-0".to_owned(),
            ..SandboxSpec::default()
        }
    }

    fn container(&self, pod: &SandboxSpec, name: &str, script: &str) -> ContainerSpec {
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
    async fn until(&self, id: &str, wanted: impl Fn(&ContainerState) -> bool) -> Container {
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

    async fn exited(&self, id: &str) -> (i32, Container) {
        let found = self
            .until(id, |state| matches!(state, ContainerState::Exited { .. }))
            .await;
        let ContainerState::Exited { exit_code, .. } = found.state else {
            unreachable!("waited for it");
        };
        (exit_code, found)
    }

    /// Lines of a finished container's log: `(stream, text)`.
    async fn log(&self, spec: &ContainerSpec) -> Vec<(String, String)> {
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

    async fn clean(&self, pod: &SandboxSpec) {
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_logs_exits_and_leaves_nothing() {
    if skipped("a_pod_runs_logs_exits_and_leaves_nothing") {
        return;
    }
    let world = World::new().await;
    let pod = world.pod();
    let began = Instant::now();
    let sandbox = world.runtime.ensure_sandbox(&pod).await.unwrap();
    eprintln!("sandbox with network: {:?}", began.elapsed());
    assert_eq!(sandbox.ips.len(), 1);
    assert_eq!(world.runtime.ensure_sandbox(&pod).await.unwrap(), sandbox);

    let script = "echo out; echo err >&2; hostname; cat /proc/net/dev | grep -c eth0; exit 7";
    let spec = world.container(&pod, "main", script);
    let began = Instant::now();
    let id = world.runtime.start(&spec).await.unwrap();
    eprintln!("start: {:?}", began.elapsed());
    let (code, container) = world.exited(&id).await;
    assert_eq!(code, 7);
    assert_eq!((container.name.as_str(), container.attempt), ("main", 0));
    assert_eq!(container.spec_hash, "h1");
    assert!(
        container
            .image_id
            .starts_with("docker.io/library/busybox@sha256:")
    );
    assert_eq!(
        world.runtime.start(&spec).await.unwrap(),
        id,
        "started once"
    );

    world.runtime.remove(&id).await.unwrap();
    world.runtime.remove(&id).await.unwrap();
    let mut lines = world.log(&spec).await;
    lines.sort();
    let expect = |stream: &str, text: &str| (stream.to_owned(), text.to_owned());
    assert_eq!(
        lines,
        [
            expect("stderr", "err"),
            expect("stdout", "1"),
            expect("stdout", "out"),
            expect("stdout", "web-0"),
        ]
    );
    world.clean(&pod).await;
}
