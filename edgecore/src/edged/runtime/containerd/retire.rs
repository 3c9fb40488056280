//! Containers that are over and stay to be looked at: without a task, their end kept in their record.

use std::collections::HashMap;

use containerd_client::services::v1::{Container as Record, UpdateContainerRequest};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroups;
use super::channel::{CALL, CallError, Daemon};
use super::marks::Marks;
use super::record::{self, label};
use super::task;
use crate::edged::runtime::{ContainerState, RuntimeError};

/// Deletes the task of a container that is over and keeps its record. How it ended is written to the
/// record first: from then on the record tells, whatever comes in between.
pub(super) async fn retire(
    daemon: &Daemon,
    cgroups: &Cgroups,
    marks: &Marks,
    id: &str,
) -> Result<(), RuntimeError> {
    let Some(record) = record::get(daemon, id).await? else {
        return Ok(());
    };
    if let Some(process) = task::get(daemon, id).await? {
        match record::describe(&record, Some(&process), cgroups, marks).state {
            ContainerState::Running { .. } => {
                return Err(RuntimeError::Other {
                    step: "container retire",
                    reason: "it is running".to_owned(),
                });
            }
            state @ ContainerState::Exited { .. } => keep_end(daemon, id, &state).await?,
            ContainerState::Created | ContainerState::Unknown => {}
        }
        task::delete_task(daemon, id).await?;
    }
    Ok(task::forget_exit_code(daemon, id).await?)
}

/// How a container ended, as its record keeps it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    exit_code: i32,
    oom_killed: bool,
    started_at_ms: i64,
    finished_at_ms: i64,
}

async fn keep_end(daemon: &Daemon, id: &str, state: &ContainerState) -> Result<(), RuntimeError> {
    let ContainerState::Exited {
        exit_code,
        oom_killed,
        started_at_ms,
        finished_at_ms,
    } = *state
    else {
        return Ok(());
    };
    let end = End {
        exit_code,
        oom_killed,
        started_at_ms,
        finished_at_ms,
    };
    let end = serde_json::to_string(&end).map_err(|error| RuntimeError::Other {
        step: "container retire",
        reason: error.to_string(),
    })?;
    let request = UpdateContainerRequest {
        container: Some(Record {
            id: id.to_owned(),
            labels: HashMap::from([(label::EXIT.to_owned(), end)]),
            ..Record::default()
        }),
        // This label alone: the others stay.
        update_mask: Some(prost_types::FieldMask {
            paths: vec![format!("labels.{}", label::EXIT)],
        }),
    };
    daemon
        .call(
            "container update",
            CALL,
            daemon.containers().update(request),
        )
        .await?;
    Ok(())
}

/// What [`keep_end`] wrote.
pub(super) fn kept_end(record: &Record) -> Option<ContainerState> {
    let end: End = serde_json::from_str(record.labels.get(label::EXIT)?).ok()?;
    Some(ContainerState::Exited {
        exit_code: end.exit_code,
        oom_killed: end.oom_killed,
        started_at_ms: end.started_at_ms,
        finished_at_ms: end.finished_at_ms,
    })
}

/// Whether the container is over and has given its task back.
pub(super) async fn is_retired(daemon: &Daemon, id: &str) -> Result<bool, CallError> {
    Ok(record::get(daemon, id)
        .await?
        .is_some_and(|record| kept_end(&record).is_some()))
}
