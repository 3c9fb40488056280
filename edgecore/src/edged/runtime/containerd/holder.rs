//! The one process that some pods need beyond their containers'. A PID namespace cannot be pinned
//! as a file: it lives as long as its first process. With `shareProcessNamespace` that process is
//! a holder of ours in a container without an image, whose root is a directory of this node that
//! holds one tiny program. It carries none of the labels by which containers of pods are found.
//!
//! When the holder dies the kernel kills every process of the namespace; the pod's containers are
//! then seen to have ended, and the next start makes a new holder first.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateTaskRequest, ListContainersRequest,
    StartRequest, WaitRequest,
};
use containerd_client::types::v1::Status;
use prost_types::Any;
use serde_json::json;

use super::channel::{CALL, CallError, Daemon, TASK};
use super::holder_program::program;
use super::record::{SPEC_TYPE, label, runtime_record};
use super::spec::{GROUP_ANNOTATION, PodPaths};
use super::task;
use crate::edged::runtime::RuntimeError;

const PROGRAM: &str = "hold";
/// Whoever the containers run as, the holder is somebody else, and nobody (as kubelet's pause).
const NOBODY: u32 = 65535;
/// What kubelet gives the sandbox's process.
const OOM_SCORE_ADJ: i32 = -998;

/// A pod that needs a holder.
pub(super) struct Wanted<'a> {
    pub(super) pod_uid: &'a str,
    pub(super) cgroup_parent: &'a str,
    pub(super) paths: &'a PodPaths,
    pub(super) snapshotter: &'a str,
    pub(super) state_dir: &'a Path,
    pub(super) runc_root: &'a str,
    pub(super) oom_score_adj_min: Option<i32>,
}

fn id(pod_uid: &str) -> String {
    format!("{pod_uid}-holder")
}

/// Process id of the pod's holder, made if there is none.
pub(super) async fn ensure(daemon: &Daemon, wanted: &Wanted<'_>) -> Result<u32, RuntimeError> {
    let id = id(wanted.pod_uid);
    if let Some(process) = task::get(daemon, &id).await?
        && process.status() == Status::Running
    {
        return Ok(process.pid);
    }
    task::delete(daemon, wanted.snapshotter, &id).await?;
    let failed = |reason: String| RuntimeError::Create {
        reason: format!("process namespace of the pod: {reason}"),
    };
    let root = wanted.state_dir.join("holder");
    write_root(&root).map_err(|error| failed(error.to_string()))?;
    let spec = spec(wanted, &root).map_err(|error| failed(error.to_string()))?;
    match launch(daemon, wanted, &id, &spec).await {
        Ok(pid) => Ok(pid),
        Err(error) => {
            if let Err(leftover) = task::delete(daemon, wanted.snapshotter, &id).await {
                tracing::debug!(error = %leftover, id, "broken holder left to the next start");
            }
            Err(error.or(failed))
        }
    }
}

async fn launch(
    daemon: &Daemon,
    wanted: &Wanted<'_>,
    id: &str,
    spec: &[u8],
) -> Result<u32, CallError> {
    let record = Record {
        id: id.to_owned(),
        labels: HashMap::from([
            (label::HOLDER.to_owned(), "true".to_owned()),
            (label::POD_UID.to_owned(), wanted.pod_uid.to_owned()),
        ]),
        runtime: Some(runtime_record(wanted.runc_root, "")),
        spec: Some(Any {
            type_url: SPEC_TYPE.to_owned(),
            value: spec.to_vec(),
        }),
        ..Record::default()
    };
    let container = Some(record);
    let request = CreateContainerRequest { container };
    daemon
        .call("holder record", CALL, daemon.containers().create(request))
        .await?;
    let request = CreateTaskRequest {
        container_id: id.to_owned(),
        ..CreateTaskRequest::default()
    };
    daemon
        .call("holder create", TASK, daemon.tasks().create(request))
        .await?;
    let request = StartRequest {
        container_id: id.to_owned(),
        ..StartRequest::default()
    };
    let started = daemon
        .call("holder start", TASK, daemon.tasks().start(request))
        .await?;
    Ok(started.pid)
}

/// Ends the pod's holder; none is fine. Every process that is left in the namespace ends with it.
pub(super) async fn remove(
    daemon: &Daemon,
    snapshotter: &str,
    pod_uid: &str,
) -> Result<(), RuntimeError> {
    const KILL: u32 = 9;
    let id = id(pod_uid);
    let running = task::get(daemon, &id).await?;
    if running.is_some_and(|process| process.status() == Status::Running) {
        task::kill(daemon, &id, KILL, true).await?;
        let request = WaitRequest {
            container_id: id.clone(),
            ..WaitRequest::default()
        };
        let waited = daemon
            .call("holder wait", CALL, daemon.tasks().wait(request))
            .await;
        if let Err(error) = waited
            && !error.is_not_found()
        {
            return Err(error.into());
        }
    }
    task::delete(daemon, snapshotter, &id).await
}

/// Uids of pods that have a holder.
pub(super) async fn pod_uids(daemon: &Daemon) -> Result<Vec<String>, RuntimeError> {
    let filters = vec![format!("labels.\"{}\"==true", label::HOLDER)];
    let request = ListContainersRequest { filters };
    let listed = daemon
        .call("holder list", CALL, daemon.containers().list(request))
        .await?;
    Ok(listed
        .containers
        .into_iter()
        .filter_map(|record| record.labels.get(label::POD_UID).cloned())
        .collect())
}

/// The program, and the two directories that runc mounts on. Written once for all pods.
fn write_root(root: &Path) -> io::Result<()> {
    let path = root.join(PROGRAM);
    let Some(wanted) = program(std::env::consts::ARCH) else {
        let reason = "shareProcessNamespace cannot be had on this machine's architecture";
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    };
    for directory in ["proc", "dev"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    if std::fs::read(&path).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    // Another pod may be starting from it: never written in place.
    let partial = root.join(format!(".{PROGRAM}-{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(&partial, wanted)?;
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o555))?;
    std::fs::rename(partial, path)
}

fn spec(wanted: &Wanted<'_>, root: &Path) -> Result<Vec<u8>, serde_json::Error> {
    let mut namespaces = vec![json!({ "type": "mount" }), json!({ "type": "pid" })];
    for (kind, path) in wanted.paths.shared() {
        namespaces.push(json!({ "type": kind, "path": path }));
    }
    let adjust = wanted.oom_score_adj_min.unwrap_or(OOM_SCORE_ADJ);
    let safe = ["nosuid", "noexec", "nodev"];
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": NOBODY, "gid": NOBODY },
            "args": [PathBuf::from("/").join(PROGRAM)],
            "cwd": "/",
            "capabilities": {
                "bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": [],
            },
            "noNewPrivileges": true,
            "oomScoreAdj": adjust.max(OOM_SCORE_ADJ),
        },
        "root": { "path": root, "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": safe },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "size=64k"] },
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("{}/{}", wanted.cgroup_parent, id(wanted.pod_uid)),
            "resources": { "devices": [ { "allow": false, "access": "rwm" } ] },
        },
        "annotations": { GROUP_ANNOTATION: wanted.pod_uid },
    });
    serde_json::to_vec(&spec)
}
