//! Containers and their tasks: create, start, signal, delete, list.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime as RuntimeRecord;
use containerd_client::services::v1::sandbox::{StoreCreateRequest, StoreDeleteRequest};
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteTaskRequest, GetContainerRequest, GetRequest, KillRequest, ListContainersRequest,
    ListTasksRequest, StartRequest,
};
use containerd_client::types;
use containerd_client::types::v1::{Process, Status};
use prost_types::Any;

use super::cgroup::Cgroups;
use super::channel::{CALL, CallError, DELETE, Daemon, TASK, millis, tolerate_missing};
use super::container_id;
use super::marks::Marks;
use super::retire;
use super::snapshot::{self, remove_snapshot};
use crate::edged::runtime::{Container, ContainerSpec, ContainerState, RuntimeError};

const RUNTIME: &str = "io.containerd.runc.v2";
pub(super) const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Task status "running", as `containerd.v1.types.Status` numbers it.
pub(super) const RUNNING: i32 = 2;

/// Exit code of a process that SIGKILL ended.
const EXIT_KILLED: u32 = 137;

/// How often and how far apart a delete is tried against a shim that is going.
const DELETE_ATTEMPTS: u32 = 20;
const DELETE_PAUSE: Duration = Duration::from_millis(100);

pub(super) mod label {
    pub(in super::super) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(in super::super) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(in super::super) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(in super::super) const NAME: &str = "io.kubernetes.container.name";
    pub(in super::super) const MANAGED: &str = "io.outpost.managed";
    /// A pod's holder; not one of its containers.
    pub(in super::super) const HOLDER: &str = "io.outpost.holder";
    pub(in super::super) const ATTEMPT: &str = "io.outpost.attempt";
    pub(in super::super) const SPEC_HASH: &str = "io.outpost.spec-hash";
    pub(in super::super) const LOG_PATH: &str = "io.outpost.log-path";
    pub(in super::super) const IMAGE_ID: &str = "io.outpost.image-id";
    pub(in super::super) const STOP_SIGNAL: &str = "io.outpost.stop-signal";
    pub(in super::super) const CGROUP: &str = "io.outpost.cgroup";
    /// How the container ended, once it has no task any more.
    pub(in super::super) const EXIT: &str = "io.outpost.exit";
}

/// containerd refuses a label whose key and value together are longer (`labels.Validate`).
const LABEL_BYTES_MAX: usize = 4096;

/// The few fields of runc's shim options that we set (containerd `runtime/v2/runc/options`);
/// containerd-client does not generate this message.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    /// What is run in runc's place; empty for runc itself.
    #[prost(string, tag = "6")]
    binary_name: String,
    /// Where runc keeps its state. Ours, because the default is shared by every daemon on the host.
    #[prost(string, tag = "7")]
    root: String,
}

/// What creating one container needs beyond its spec.
pub(super) struct Launch<'a> {
    pub(super) id: &'a str,
    pub(super) container: &'a ContainerSpec,
    pub(super) spec: &'a serde_json::Value,
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

fn labels(launch: &Launch<'_>) -> Result<HashMap<String, String>, RuntimeError> {
    let container = launch.container;
    // As in the OCI spec, which does not know of spare ids.
    let usual = container_id(&container.pod_uid, &container.name, container.attempt);
    let cgroup = format!("{}/{usual}", container.cgroup_parent);
    let labels = HashMap::from([
        (label::MANAGED, "true".to_owned()),
        (label::POD_UID, container.pod_uid.clone()),
        (label::POD_NAME, container.pod_name.clone()),
        (label::POD_NAMESPACE, container.pod_namespace.clone()),
        (label::NAME, container.name.clone()),
        (label::ATTEMPT, container.attempt.to_string()),
        (label::SPEC_HASH, container.spec_hash.clone()),
        (label::LOG_PATH, container.log_path.display().to_string()),
        (label::IMAGE_ID, launch.image_id.to_owned()),
        (label::STOP_SIGNAL, launch.stop_signal.to_owned()),
        (label::CGROUP, cgroup),
    ]);
    for (key, value) in &labels {
        if key.len() + value.len() > LABEL_BYTES_MAX {
            return Err(RuntimeError::Create {
                reason: format!("`{key}` has {} bytes", value.len()),
            });
        }
    }
    Ok(labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect())
}

pub(super) fn runtime_record(runc_root: &str, binary_name: &str) -> RuntimeRecord {
    use prost::Message as _;
    RuntimeRecord {
        name: RUNTIME.to_owned(),
        options: Some(Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: RuncOptions {
                binary_name: binary_name.to_owned(),
                root: runc_root.to_owned(),
            }
            .encode_to_vec(),
        }),
    }
}

fn create_failed(error: CallError) -> RuntimeError {
    error.or(|reason| RuntimeError::Create { reason })
}

/// Writes the container's record. It names the snapshot before that exists: a prepared snapshot
/// that nothing references may be collected at any moment. False: a record was there.
pub(super) async fn create_record(
    daemon: &Daemon,
    launch: &Launch<'_>,
) -> Result<bool, RuntimeError> {
    let spec = serde_json::to_vec(launch.spec).map_err(|error| RuntimeError::Create {
        reason: error.to_string(),
    })?;
    let record = Record {
        id: launch.id.to_owned(),
        labels: labels(launch)?,
        image: launch.container.image.clone(),
        runtime: Some(runtime_record(
            launch.runc_root,
            match launch.stdin {
                Stdin::Opened => launch.opener,
                Stdin::None | Stdin::Terminal(_) => "",
            },
        )),
        spec: Some(Any {
            type_url: SPEC_TYPE.to_owned(),
            value: spec,
        }),
        snapshotter: launch.snapshotter.to_owned(),
        snapshot_key: launch.id.to_owned(),
        ..Record::default()
    };
    let created = daemon
        .call(
            "container create",
            CALL,
            daemon.containers().create(CreateContainerRequest {
                container: Some(record),
            }),
        )
        .await;
    match created {
        Ok(_) => Ok(true),
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(create_failed(error)),
    }
}

/// Prepares the snapshot, creates the task (shim, logger, runc create) and starts it.
pub(super) async fn launch(daemon: &Daemon, launch: &Launch<'_>) -> Result<(), RuntimeError> {
    let rootfs = snapshot::prepare(daemon, launch.snapshotter, launch.id, launch.chain_id)
        .await
        .map_err(create_failed)?;
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

/// One container's record.
pub(super) async fn record(daemon: &Daemon, id: &str) -> Result<Option<Record>, CallError> {
    let got = daemon
        .call(
            "container get",
            CALL,
            daemon
                .containers()
                .get(GetContainerRequest { id: id.to_owned() }),
        )
        .await;
    match got {
        Err(error) if error.is_not_found() => Ok(None),
        other => Ok(other?.container),
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
    let deleted = daemon
        .call(
            "container delete",
            CALL,
            daemon
                .containers()
                .delete(DeleteContainerRequest { id: id.to_owned() }),
        )
        .await;
    tolerate_missing(deleted)?;
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

/// Every container with our labels and its state.
pub(super) async fn list(
    daemon: &Daemon,
    cgroups: &Cgroups,
    marks: &Marks,
) -> Result<Vec<Container>, CallError> {
    let filters = vec![format!("labels.\"{}\"==true", label::MANAGED)];
    let records = daemon
        .call(
            "container list",
            CALL,
            daemon.containers().list(ListContainersRequest { filters }),
        )
        .await?;
    let tasks = tasks(daemon).await?;
    Ok(records
        .containers
        .iter()
        .map(|record| describe(record, tasks.get(&record.id), cgroups, marks))
        .collect())
}

pub(super) fn describe(
    record: &Record,
    task: Option<&Process>,
    cgroups: &Cgroups,
    marks: &Marks,
) -> Container {
    let text = |key: &str| record.labels.get(key).cloned().unwrap_or_default();
    // The daemon keeps no start time but the record's own, from tens of milliseconds before.
    let started_at_ms = marks
        .started_at_ms(&record.id)
        .or_else(|| millis(record.created_at.as_ref()))
        .unwrap_or(0);
    let log_path = PathBuf::from(text(label::LOG_PATH));
    let kept = task.is_none().then(|| retire::kept_end(record)).flatten();
    let state = match task.map(|process| (process, process.status())) {
        None if kept.is_some() => kept.unwrap_or(ContainerState::Unknown),
        None if marks.never_ran(&record.id, &log_path) => ContainerState::Created,
        None | Some((_, Status::Unknown)) => ContainerState::Unknown,
        Some((_, Status::Created)) => ContainerState::Created,
        Some((_, Status::Running | Status::Paused | Status::Pausing)) => {
            ContainerState::Running { started_at_ms }
        }
        Some((process, Status::Stopped)) => ContainerState::Exited {
            exit_code: i32::try_from(process.exit_status).unwrap_or(i32::MAX),
            oom_killed: process.exit_status == EXIT_KILLED
                && cgroups.oom_kills(&text(label::CGROUP)) > 0,
            started_at_ms,
            finished_at_ms: millis(process.exited_at.as_ref()).unwrap_or(started_at_ms),
        },
    };
    Container {
        id: record.id.clone(),
        pod_uid: text(label::POD_UID),
        pod_namespace: text(label::POD_NAMESPACE),
        pod_name: text(label::POD_NAME),
        name: text(label::NAME),
        attempt: text(label::ATTEMPT).parse().unwrap_or(0),
        spec_hash: text(label::SPEC_HASH),
        image: record.image.clone(),
        image_id: text(label::IMAGE_ID),
        log_path,
        state,
    }
}

/// Number of a signal as an image names it (`SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`).
pub(super) fn signal_number(name: &str) -> Option<u32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    const RTMIN: u32 = 34;
    if let Ok(number) = name.parse::<u32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = short.strip_prefix("RTMIN") {
        let offset = rest.strip_prefix('+').unwrap_or("0").parse::<u32>().ok()?;
        return (RTMIN + offset <= 64).then_some(RTMIN + offset);
    }
    let position = NAMES.iter().position(|known| *known == short)?;
    u32::try_from(position + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1.6 refuses a URL with a host before the name ("type with url … not found").
    #[test]
    fn the_shims_options_have_a_bare_type() {
        let options = runtime_record("/run/x/runc", "").options.unwrap();
        assert_eq!(options.type_url, "containerd.runc.v1.Options");
        assert!(SPEC_TYPE.starts_with("types.containerd.io/"));
    }

    /// containerd takes 76 characters.
    #[test]
    fn the_longest_names_make_an_id_that_fits() {
        let uid = uuid::Uuid::nil().to_string();
        let id = container_id(&uid, &"n".repeat(63), u32::MAX);
        assert!(id.len() <= 76, "{id}");
        assert_ne!(id, container_id(&uid, &"n".repeat(63), 0));
    }

    #[test]
    fn signals_by_name_and_number() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGSYS", Some(31)),
            ("SIGNOPE", None),
            ("0", None),
            ("99", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }

    #[test]
    fn a_record_without_a_task_has_lost_its_exit_code() {
        let cgroups = Cgroups::detect();
        let marks = Marks::new(std::path::Path::new("/nonexistent"));
        let mut record = Record::default();
        assert_eq!(
            describe(&record, None, &cgroups, &marks).state,
            ContainerState::Created,
            "no log: it never ran"
        );
        let log = tempfile::NamedTempFile::new().unwrap();
        let path = log.path().display().to_string();
        record.labels.insert(label::LOG_PATH.to_owned(), path);
        assert_eq!(
            describe(&record, None, &cgroups, &marks).state,
            ContainerState::Unknown
        );
        let end = r#"{"exitCode":3,"oomKilled":true,"startedAtMs":5,"finishedAtMs":6}"#;
        let mut retired = record.clone();
        retired
            .labels
            .insert(label::EXIT.to_owned(), end.to_owned());
        assert_eq!(
            describe(&retired, None, &cgroups, &marks).state,
            ContainerState::Exited {
                exit_code: 3,
                oom_killed: true,
                started_at_ms: 5,
                finished_at_ms: 6
            }
        );
        retired
            .labels
            .insert(label::EXIT.to_owned(), "{".to_owned());
        assert_eq!(
            describe(&retired, None, &cgroups, &marks).state,
            ContainerState::Unknown
        );
        let stopped = Process {
            status: Status::Stopped.into(),
            exit_status: 7,
            ..Process::default()
        };
        assert!(matches!(
            describe(&record, Some(&stopped), &cgroups, &marks).state,
            ContainerState::Exited {
                exit_code: 7,
                oom_killed: false,
                ..
            }
        ));
    }
}
