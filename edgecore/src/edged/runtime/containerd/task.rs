//! Containers' tasks: create, start, signal, delete, list.

use std::collections::BTreeMap;
use std::time::Duration;

use containerd_client::services::v1::sandbox::{StoreCreateRequest, StoreDeleteRequest};
use containerd_client::services::v1::{
    CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, ListTasksRequest, StartRequest,
};
use containerd_client::types;
use containerd_client::types::v1::{Process, Status};

use super::channel::{CALL, CallError, DELETE, Daemon, TASK, tolerate_missing};
use super::record;
use super::snapshot::{self, remove_snapshot};
use super::start::{Launch, Stdin};
use crate::edged::runtime::RuntimeError;

/// Name of the shim.
pub(super) const RUNTIME: &str = "io.containerd.runc.v2";

/// Task status "running", as `containerd.v1.types.Status` numbers it.
pub(super) const RUNNING: i32 = 2;

/// How often and how far apart a delete is tried against a shim that is going.
const DELETE_ATTEMPTS: u32 = 20;
const DELETE_PAUSE: Duration = Duration::from_millis(100);

/// Prepares the snapshot, creates the task (shim, logger, runc create) and starts it.
pub(super) async fn launch(daemon: &Daemon, launch: &Launch<'_>) -> Result<(), RuntimeError> {
    let rootfs = snapshot::prepare(daemon, launch.snapshotter, launch.id, launch.chain_id)
        .await
        .map_err(|error| error.or(|reason| RuntimeError::Create { reason }))?;
    keep_exit_code(daemon, launch.id).await;
    let stderr = if launch.container.tty {
        ""
    } else {
        launch.log_address
    };
    daemon
        .call(
            "task create",
            TASK,
            daemon.tasks().create(CreateTaskRequest {
                container_id: launch.id.to_owned(),
                rootfs,
                stdin: match launch.stdin {
                    Stdin::Terminal(fifo) => fifo.clone(),
                    Stdin::None | Stdin::Opened => String::new(),
                },
                stdout: launch.log_address.to_owned(),
                stderr: stderr.to_owned(),
                terminal: launch.container.tty,
                ..CreateTaskRequest::default()
            }),
        )
        .await
        // runc looks for the command here, and a command that is not there is no fault of the
        // container's making: kubelet's containerd calls all of it the start.
        .map_err(|error| error.or(|reason| RuntimeError::Start { reason }))?;
    // A logger that dies before it is ready counts as ready; what it made is the only proof.
    if !launch.container.log_path.exists() {
        return Err(RuntimeError::Create {
            reason: format!(
                "the logger did not open {}",
                launch.container.log_path.display()
            ),
        });
    }
    launch
        .marks
        .starting(launch.id)
        .map_err(|error| RuntimeError::Create {
            reason: format!("state directory: {error}"),
        })?;
    daemon
        .call(
            "task start",
            TASK,
            daemon.tasks().start(StartRequest {
                container_id: launch.id.to_owned(),
                ..StartRequest::default()
            }),
        )
        .await
        .map_err(|error| error.or(|reason| RuntimeError::Start { reason }))?;
    Ok(())
}

/// containerd 1.7 and later forget a task that ends while the daemon is down, unless its id is in
/// the sandbox store. 1.6 has no such store and keeps the task anyway.
async fn keep_exit_code(daemon: &Daemon, id: &str) {
    let created = daemon
        .call(
            "exit record",
            CALL,
            daemon.exit_records().create(StoreCreateRequest {
                sandbox: Some(types::Sandbox {
                    sandbox_id: id.to_owned(),
                    runtime: Some(types::sandbox::Runtime {
                        name: RUNTIME.to_owned(),
                        options: None,
                    }),
                    ..types::Sandbox::default()
                }),
            }),
        )
        .await;
    if let Err(error) = created
        && !error.is_unimplemented()
        && !error.is_already_exists()
    {
        tracing::debug!(%error, id, "exit code will not survive a daemon restart");
    }
}

/// The task's state; `None` if there is no task.
pub(super) async fn get(daemon: &Daemon, id: &str) -> Result<Option<Process>, CallError> {
    let got = daemon
        .call(
            "task get",
            CALL,
            daemon.tasks().get(GetRequest {
                container_id: id.to_owned(),
                ..GetRequest::default()
            }),
        )
        .await;
    match got {
        Err(error) if error.is_not_found() => Ok(None),
        other => Ok(other?.process),
    }
}

/// Sends a signal. A process that has ended already is fine.
pub(super) async fn kill(
    daemon: &Daemon,
    id: &str,
    signal: u32,
    all: bool,
) -> Result<(), RuntimeError> {
    let killed = daemon
        .call(
            "task kill",
            CALL,
            daemon.tasks().kill(KillRequest {
                container_id: id.to_owned(),
                signal,
                all,
                ..KillRequest::default()
            }),
        )
        .await;
    match killed {
        Err(error) if error.is_not_found() || error.is_failed_precondition() => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

/// Deletes task, record and snapshot, in this order; what is gone already is fine.
pub(super) async fn delete(
    daemon: &Daemon,
    snapshotter: &str,
    id: &str,
) -> Result<(), RuntimeError> {
    let state = get(daemon, id).await?;
    if state.is_some_and(|process| {
        matches!(
            process.status(),
            Status::Running | Status::Paused | Status::Pausing
        )
    }) {
        return Err(RuntimeError::Other {
            step: "container remove",
            reason: "it is running".to_owned(),
        });
    }
    delete_task(daemon, id).await?;
    forget_exit_code(daemon, id).await?;
    record::delete(daemon, id).await?;
    Ok(remove_snapshot(daemon, snapshotter, id).await?)
}

/// Undoes [`keep_exit_code`].
pub(super) async fn forget_exit_code(daemon: &Daemon, id: &str) -> Result<(), CallError> {
    let forgotten = daemon
        .call(
            "exit record delete",
            CALL,
            daemon.exit_records().delete(StoreDeleteRequest {
                sandbox_id: id.to_owned(),
            }),
        )
        .await;
    match forgotten {
        Err(error) if error.is_unimplemented() || error.is_no_entry() => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Deletes the task. While the daemon is still finding out that a shim has died the call fails
/// with a text only; the task then vanishes by itself within a moment.
pub(super) async fn delete_task(daemon: &Daemon, id: &str) -> Result<(), CallError> {
    let mut attempt = 0;
    loop {
        let deleted = daemon
            .call(
                "task delete",
                DELETE,
                daemon.tasks().delete(DeleteTaskRequest {
                    container_id: id.to_owned(),
                }),
            )
            .await;
        match tolerate_missing(deleted) {
            Err(error) if error.is_transport() || attempt >= DELETE_ATTEMPTS => return Err(error),
            Err(error) => {
                tracing::debug!(%error, id, attempt, "task not deleted yet");
                attempt += 1;
                tokio::time::sleep(DELETE_PAUSE).await;
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// Status of every task in our namespace, by container id.
pub(super) async fn states(daemon: &Daemon) -> Result<BTreeMap<String, i32>, CallError> {
    Ok(tasks(daemon)
        .await?
        .into_iter()
        .map(|(id, process)| (id, process.status))
        .collect())
}

/// Every task of our namespace, by container id.
pub(super) async fn tasks(daemon: &Daemon) -> Result<BTreeMap<String, Process>, CallError> {
    let listed = daemon
        .call(
            "task list",
            CALL,
            daemon.tasks().list(ListTasksRequest::default()),
        )
        .await?;
    Ok(listed
        .tasks
        .into_iter()
        .map(|process| (process.id.clone(), process))
        .collect())
}
