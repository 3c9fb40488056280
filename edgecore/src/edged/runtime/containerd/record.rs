//! Containers' records: what is written on them, and what they say together with their tasks.

use std::collections::HashMap;
use std::path::PathBuf;

use containerd_client::services::v1::container::Runtime as RuntimeRecord;
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
    ListContainersRequest,
};
use containerd_client::types::v1::{Process, Status};
use prost_types::Any;

use super::cgroup::Cgroups;
use super::channel::{CALL, CallError, Daemon, millis, tolerate_missing};
use super::container_id;
use super::marks::Marks;
use super::retire;
use super::start::{Launch, Stdin};
use super::task::{RUNTIME, tasks};
use crate::edged::runtime::{Container, ContainerState, RuntimeError};

pub(super) const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Exit code of a process that SIGKILL ended.
const EXIT_KILLED: u32 = 137;

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

/// Writes the container's record. It names the snapshot before that exists: a prepared snapshot
/// that nothing references may be collected at any moment. False: a record was there.
pub(super) async fn create(daemon: &Daemon, launch: &Launch<'_>) -> Result<bool, RuntimeError> {
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
        Err(error) => Err(error.or(|reason| RuntimeError::Create { reason })),
    }
}

/// One container's record.
pub(super) async fn get(daemon: &Daemon, id: &str) -> Result<Option<Record>, CallError> {
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

/// Deletes the record; one that is gone already is fine.
pub(super) async fn delete(daemon: &Daemon, id: &str) -> Result<(), CallError> {
    let deleted = daemon
        .call(
            "container delete",
            CALL,
            daemon
                .containers()
                .delete(DeleteContainerRequest { id: id.to_owned() }),
        )
        .await;
    tolerate_missing(deleted)
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
