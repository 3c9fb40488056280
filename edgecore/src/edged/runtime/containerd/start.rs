//! Starting a container: everything that its record, its task and its logger are given.

use std::path::PathBuf;

use containerd_client::types::v1::Status;
use serde_json::Value;

use super::image::{ImageFacts, image_id};
use super::marks::Marks;
use super::reference::normalize;
use super::spec::{PodPaths, UserDatabase};
use super::{ContainerdRuntime, exec, holder, host, record, retire, snapshot, spec, task};
use crate::edged::runtime::{ContainerSpec, Runtime, RuntimeError};

/// What creating one container needs beyond its spec.
pub(super) struct Launch<'a> {
    pub(super) id: &'a str,
    pub(super) container: &'a ContainerSpec,
    pub(super) spec: &'a Value,
    pub(super) snapshotter: &'a str,
    pub(super) chain_id: &'a str,
    pub(super) image_id: &'a str,
    pub(super) stop_signal: &'a str,
    pub(super) runc_root: &'a str,
    pub(super) stdin: &'a Stdin,
    /// The program that gives a container its input without a terminal.
    pub(super) opener: &'a str,
    /// `binary://…` address of the logger.
    pub(super) log_address: &'a str,
    pub(super) marks: &'a Marks,
}

/// Where a container's input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stdin {
    None,
    /// The shim copies it from this fifo to the terminal.
    Terminal(String),
    /// Without a terminal the shim would not read it (containerd `pkg/process: newBinaryIO`): runc
    /// is given the fifo named in [`STDIN_ANNOTATION`] by the program that stands before it.
    Opened,
}

/// In the OCI spec: the fifo that becomes the process' standard input.
pub(super) const STDIN_ANNOTATION: &str = "io.outpost.stdin";
/// In the OCI spec: the input ends with its last writer.
pub(super) const STDIN_ONCE_ANNOTATION: &str = "io.outpost.stdin-once";

fn create_failed(reason: String) -> RuntimeError {
    RuntimeError::Create { reason }
}

impl ContainerdRuntime {
    /// Starts a container, or finds it started; its id.
    pub(super) async fn start_container(
        &self,
        container: &ContainerSpec,
    ) -> Result<String, RuntimeError> {
        let id = self.spoilt.usable(container);
        let reference = normalize(&container.image)?;
        let (target, facts) = self
            .images
            .present(&reference.whole())
            .await
            .map_err(|error| error.into_pull(&container.image))?
            .ok_or_else(|| RuntimeError::ImageNotPresent {
                reference: container.image.clone(),
            })?;
        let mut oci = self.oci_spec(container, &facts).await?;
        let log_config = self
            .write_logger_config(&id, container)
            .map_err(|error| create_failed(format!("log directory: {error}")))?;
        let stdin = self
            .make_stdin(&id, container)
            .map_err(|error| create_failed(format!("standard input: {error}")))?;
        if stdin == Stdin::Opened {
            self.annotate(&id, container, &mut oci);
        }
        let logger = self.config.logger_path.display().to_string();
        let launch = Launch {
            id: &id,
            container,
            spec: &oci,
            snapshotter: &self.config.snapshotter,
            chain_id: &facts.chain_id,
            image_id: &image_id(&reference, &target.digest),
            stop_signal: &facts.config.config.stop_signal,
            runc_root: &self.runc_root(),
            stdin: &stdin,
            opener: &logger,
            log_address: &format!("binary://{logger}?--config={}", log_config.display()),
            marks: &Marks::new(&self.config.state_dir),
        };
        if !record::create(&self.daemon, &launch).await? {
            if self.is_started(&id).await? {
                return Ok(id);
            }
            record::create(&self.daemon, &launch).await?;
        }
        let Err(error) = task::launch(&self.daemon, &launch).await else {
            return Ok(id);
        };
        if let Err(leftover) = self.remove(&id).await {
            tracing::debug!(error = %leftover, id, "broken container left to the next start");
        }
        if self.spoilt.note(&id, &error) {
            tracing::info!(
                id,
                "a dead task of this id is in the way in containerd; another id is used"
            );
            return self.start(container).await;
        }
        Err(error)
    }

    async fn oci_spec(
        &self,
        container: &ContainerSpec,
        facts: &ImageFacts,
    ) -> Result<Value, RuntimeError> {
        let users = self.users(facts).await?;
        let mut paths = self.sandboxes.paths(container)?;
        if container.share_pid && !container.host_pid {
            paths.pid_ns = Some(self.shared_pid(container, &paths).await?);
        }
        let mut host = if container.privileged {
            host::with_devices(&self.host)
        } else {
            self.host.clone()
        };
        host.has_swap = self.cgroups.has_swap(&container.cgroup_parent);
        host.has_oom_group = self.cgroups.has_oom_group(&container.cgroup_parent);
        let image = &facts.config.config;
        let seccomp = &self.config.seccomp_root;
        spec::build(container, image, &users, &paths, &host, seccomp)
            .map_err(|error| create_failed(error.to_string()))
    }

    async fn users(&self, facts: &ImageFacts) -> Result<UserDatabase, RuntimeError> {
        facts
            .users
            .get_or_try_init(|| {
                snapshot::read_users(&self.daemon, &self.config.snapshotter, &facts.chain_id)
            })
            .await
            .cloned()
            .map_err(|error| create_failed(format!("users of the image: {error}")))
    }

    fn runc_root(&self) -> String {
        self.config.state_dir.join("runc").display().to_string()
    }

    /// The PID namespace that the pod's containers share, as runc takes it.
    async fn shared_pid(
        &self,
        container: &ContainerSpec,
        paths: &PodPaths,
    ) -> Result<PathBuf, RuntimeError> {
        let runc_root = self.runc_root();
        let wanted = holder::Wanted {
            pod_uid: &container.pod_uid,
            cgroup_parent: &container.cgroup_parent,
            paths,
            snapshotter: &self.config.snapshotter,
            state_dir: &self.config.state_dir,
            runc_root: &runc_root,
            oom_score_adj_min: self.host.oom_score_adj_min,
        };
        let pid = holder::ensure(&self.daemon, &wanted).await?;
        Ok(PathBuf::from(format!("/proc/{pid}/ns/pid")))
    }

    /// Whether `id` is already as a start would leave it. Leftovers of a start that broke off
    /// are removed.
    async fn is_started(&self, id: &str) -> Result<bool, RuntimeError> {
        let task = task::get(&self.daemon, id).await?;
        match task.map(|process| process.status()) {
            None if retire::is_retired(&self.daemon, id).await? => Ok(true),
            None | Some(Status::Created | Status::Unknown) => {
                task::delete(&self.daemon, &self.config.snapshotter, id).await?;
                Ok(false)
            }
            Some(Status::Running | Status::Stopped | Status::Paused | Status::Pausing) => Ok(true),
        }
    }

    /// Where a container's input goes in, if it has any.
    fn stdin_path(&self, id: &str) -> PathBuf {
        Marks::new(&self.config.state_dir).stdin(id)
    }

    /// Makes the fifo of a container that wants input.
    fn make_stdin(&self, id: &str, spec: &ContainerSpec) -> std::io::Result<Stdin> {
        if !spec.stdin {
            return Ok(Stdin::None);
        }
        let path = self.stdin_path(id);
        if let Some(parent) = path.parent() {
            crate::files::make_dir(parent, 0o700)?;
        }
        exec::make_fifo(&path)?;
        if spec.tty {
            return Ok(Stdin::Terminal(path.display().to_string()));
        }
        if spec.stdin_once {
            exec::make_fifo(&Marks::new(&self.config.state_dir).stdin_end(id))?;
        }
        Ok(Stdin::Opened)
    }

    /// What the program before runc has to know.
    fn annotate(&self, id: &str, spec: &ContainerSpec, oci: &mut Value) {
        let path = self.stdin_path(id).display().to_string();
        let annotations = &mut oci["annotations"];
        annotations[STDIN_ANNOTATION] = path.into();
        annotations[STDIN_ONCE_ANNOTATION] = spec.stdin_once.to_string().into();
    }

    fn write_logger_config(&self, id: &str, spec: &ContainerSpec) -> std::io::Result<PathBuf> {
        let directory = self.config.state_dir.join("log");
        std::fs::create_dir_all(&directory)?;
        if let Some(parent) = spec.log_path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let path = directory.join(format!("{id}.json"));
        let config = serde_json::json!({
            "path": spec.log_path,
            "bytesMax": spec.log_bytes_max,
            "filesMax": spec.log_files_max,
            "podBytesMax": self.config.log_pod_bytes_max,
            "nodeBytesMax": self.config.log_node_bytes_max,
            "isTerminal": spec.tty,
            "holds": (spec.stdin && spec.stdin_once && !spec.tty).then(|| serde_json::json!({
                "input": self.stdin_path(id),
                "end": Marks::new(&self.config.state_dir).stdin_end(id),
            })),
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}
