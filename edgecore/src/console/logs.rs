//! `edgecore logs`: reads the files; the daemon is asked only which containers are init containers.

use std::io::Write;
use std::path::PathBuf;

use tokio::sync::mpsc;

use super::ConsoleError;
use super::source::{container_ends, containerd, runtime_config};
use crate::api::client;
use crate::api::target::Target;
use crate::config::Config;
use crate::edged::logs::{self, CHUNKS_MAX, Chunk, PodLogs, Query};
use crate::edged::{ContainerSummary, PodSummary};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct LogsRequest {
    pub target: Target,
    pub previous: bool,
    pub query: Query,
}

/// Prints the log.
pub async fn logs(config: &Config, request: &LogsRequest) -> Result<(), ConsoleError> {
    let path = locate(config, request).await?;
    let (out, mut chunks) = mpsc::channel::<Chunk>(CHUNKS_MAX);
    let follows = request.query.follow && !request.previous;
    let ended = async {
        if follows && let Ok(runtime) = containerd(config) {
            container_ends(&runtime, &path).await;
        }
    };
    let query = Query {
        follow: follows,
        ..request.query.clone()
    };
    let printing = async move {
        while let Some(chunk) = chunks.recv().await {
            // Both streams, as `kubectl logs` does: a pipe gets all of it.
            let mut out = std::io::stdout().lock();
            let is_printed = out
                .write_all(&chunk.bytes)
                .and_then(|()| out.flush())
                .is_ok();
            if !is_printed {
                // A reader that closed the pipe has seen enough.
                return;
            }
        }
    };
    let pumping = logs::pump(&path, &query, ended, out);
    // The printing ends when nothing more comes, or, with the channel, when nobody looks.
    let (pumped, ()) = tokio::join!(pumping, printing);
    Ok(pumped?)
}

/// The log's file.
async fn locate(config: &Config, request: &LogsRequest) -> Result<PathBuf, ConsoleError> {
    let root = &runtime_config(config)?.pod_logs_dir;
    let unreadable = |source: std::io::Error| ConsoleError::LogDirectory {
        path: root.clone(),
        source,
    };
    let found = match logs::pods(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(unreadable)?,
    };
    let known = client::pods(&config.socket()).await.unwrap_or_default();
    let mut summaries = Vec::with_capacity(found.len());
    for pod in &found {
        summaries.push(summary(pod, &known).map_err(unreadable)?);
    }
    let pod = request.target.pod(&summaries)?;
    let container = request.target.container(pod)?;
    let directories = found
        .iter()
        .find(|logs| logs.uid == pod.uid)
        .map(PodLogs::containers)
        .transpose()
        .map_err(unreadable)?
        .unwrap_or_default();
    directories
        .iter()
        .find(|logs| logs.name == container.name)
        .and_then(|logs| logs.log(request.previous))
        .ok_or_else(|| ConsoleError::NoLog {
            pod: format!("{}/{}", pod.namespace, pod.name),
            container: container.name.clone(),
            previous: request.previous,
        })
}

/// The pod as the daemon knows it, or else as its directories tell.
fn summary(logs: &PodLogs, known: &[PodSummary]) -> Result<PodSummary, std::io::Error> {
    if let Some(pod) = known.iter().find(|pod| pod.uid == logs.uid) {
        return Ok(pod.clone());
    }
    let changed = logs.changed.duration_since(std::time::UNIX_EPOCH);
    Ok(PodSummary {
        namespace: logs.namespace.clone(),
        name: logs.name.clone(),
        uid: logs.uid.clone(),
        started_at_ms: changed
            .ok()
            .and_then(|at| i64::try_from(at.as_millis()).ok()),
        members: logs
            .containers()?
            .into_iter()
            .map(|container| ContainerSummary {
                name: container.name,
                ..ContainerSummary::default()
            })
            .collect(),
        ..PodSummary::default()
    })
}
