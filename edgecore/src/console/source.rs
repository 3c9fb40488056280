//! Who answers: the daemon, or containerd itself when the daemon is not running.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::ConsoleError;
use crate::api::NodeStats;
use crate::api::client::{self, AskError};
use crate::api::sessions::{AttachBody, ExecBody};
use crate::app;
use crate::config::{Config, RuntimeConfig};
use crate::edged::runtime::containerd::ContainerdRuntime;
use crate::edged::runtime::session::Session;
use crate::edged::runtime::{Container, ContainerState, Runtime, RuntimeError};
use crate::edged::{ContainerSummary, PodSummary};

/// What a finished session may still have to clean up.
const SETTLE: Duration = Duration::from_secs(3);

/// Who is asked.
pub enum Source {
    Daemon(PathBuf),
    /// The daemon is down; this asks as it would.
    Containerd(Arc<ContainerdRuntime>),
}

pub(super) fn runtime_config(config: &Config) -> Result<&RuntimeConfig, ConsoleError> {
    config.runtime.as_ref().ok_or(ConsoleError::NoPods)
}

/// containerd as the daemon would use it.
pub(super) fn containerd(config: &Config) -> Result<Arc<ContainerdRuntime>, ConsoleError> {
    let runtime = runtime_config(config)?;
    let containers = ContainerdRuntime::connect(app::containerd(runtime, &config.run_dir))?;
    Ok(containers)
}

impl Source {
    /// The daemon if it answers, else containerd; the pods that it knows.
    pub async fn find(config: &Config) -> Result<(Self, Vec<PodSummary>), ConsoleError> {
        runtime_config(config)?;
        let socket = config.socket();
        match client::pods(&socket).await {
            Ok(pods) => Ok((Self::Daemon(socket), pods)),
            Err(AskError::NotRunning { .. }) => {
                let runtime = containerd(config)?;
                match runtime.containers().await {
                    Ok(containers) => Ok((Self::Containerd(runtime), summaries(&containers))),
                    Err(RuntimeError::Unavailable { .. }) => Err(ConsoleError::Nobody {
                        containerd: runtime_config(config)?.containerd.clone(),
                    }),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Said beside an answer that did not come from the daemon.
    pub fn note(&self) -> Option<&'static str> {
        match self {
            Self::Daemon(_) => None,
            Self::Containerd(_) => Some("edgecore is not running; this is what containerd knows"),
        }
    }

    pub(super) async fn stats(&self) -> Result<NodeStats, ConsoleError> {
        Ok(match self {
            Self::Daemon(socket) => client::stats(socket).await?,
            Self::Containerd(runtime) => NodeStats::look(runtime.as_ref()).await?,
        })
    }

    pub(super) async fn exec(
        &self,
        body: &ExecBody,
        pods: &[PodSummary],
    ) -> Result<Session, ConsoleError> {
        Ok(match self {
            Self::Daemon(socket) => client::exec(socket, body).await?,
            Self::Containerd(runtime) => {
                let id = &body.target.running(pods)?.id;
                runtime.exec(id, &body.exec).await?
            }
        })
    }

    pub(super) async fn attach(
        &self,
        body: &AttachBody,
        pods: &[PodSummary],
    ) -> Result<Session, ConsoleError> {
        Ok(match self {
            Self::Daemon(socket) => client::attach(socket, body).await?,
            Self::Containerd(runtime) => {
                let id = &body.target.running(pods)?.id;
                runtime.attach(id, &body.attach).await?
            }
        })
    }

    /// Waits until nothing of a finished session is left behind.
    pub(super) async fn settle(&self) {
        if let Self::Containerd(runtime) = self {
            runtime.settle(SETTLE).await;
        }
    }
}

/// Waits until the container that writes `log` is over.
pub(super) async fn container_ends(runtime: &ContainerdRuntime, log: &Path) {
    let mut changes = runtime.changes();
    loop {
        changes.mark_unchanged();
        if let Ok(containers) = runtime.containers().await {
            let is_alive = containers.iter().any(|container| {
                container.log_path == log
                    && matches!(
                        container.state,
                        ContainerState::Created | ContainerState::Running { .. }
                    )
            });
            if !is_alive {
                return;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Pods as far as their containers tell.
fn summaries(containers: &[Container]) -> Vec<PodSummary> {
    let mut newest: BTreeMap<(&str, &str, &str), &Container> = BTreeMap::new();
    for container in containers {
        let key = (
            container.pod_namespace.as_str(),
            container.pod_uid.as_str(),
            container.name.as_str(),
        );
        let known = newest.entry(key).or_insert(container);
        if known.attempt < container.attempt {
            *known = container;
        }
    }
    let mut pods: BTreeMap<(&str, &str), PodSummary> = BTreeMap::new();
    for ((namespace, uid, _), container) in newest {
        let pod = pods.entry((namespace, uid)).or_insert_with(|| PodSummary {
            namespace: namespace.to_owned(),
            name: container.pod_name.clone(),
            uid: uid.to_owned(),
            ..PodSummary::default()
        });
        let (is_running, reason, started_at_ms) = match &container.state {
            ContainerState::Running { started_at_ms } => {
                (true, String::new(), Some(*started_at_ms))
            }
            ContainerState::Created => (false, "Created".to_owned(), None),
            ContainerState::Unknown => (false, "ContainerStatusUnknown".to_owned(), None),
            ContainerState::Exited {
                exit_code,
                oom_killed,
                started_at_ms,
                ..
            } => {
                let reason = match (exit_code, oom_killed) {
                    (_, true) => "OOMKilled",
                    (0, false) => "Completed",
                    (_, false) => "Error",
                };
                (false, reason.to_owned(), Some(*started_at_ms))
            }
        };
        pod.containers += 1;
        pod.ready += usize::from(is_running);
        pod.restarts += i64::from(container.attempt);
        pod.started_at_ms = match (pod.started_at_ms, started_at_ms) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if pod.status.is_empty() || is_running {
            let status = if is_running { "Running" } else { &reason };
            status.clone_into(&mut pod.status);
        }
        pod.members.push(ContainerSummary {
            name: container.name.clone(),
            id: container.id.clone(),
            is_init: false,
            is_running,
            ready: is_running,
            restarts: container.attempt.into(),
            reason,
        });
    }
    pods.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_told_from_their_containers() {
        let container = |name: &str, attempt: u32, state: ContainerState| Container {
            id: format!("{name}{attempt}"),
            pod_uid: "u".to_owned(),
            pod_namespace: "default".to_owned(),
            pod_name: "web".to_owned(),
            name: name.to_owned(),
            attempt,
            spec_hash: String::new(),
            image: String::new(),
            image_id: String::new(),
            log_path: PathBuf::new(),
            state,
        };
        let ended = ContainerState::Exited {
            exit_code: 1,
            oom_killed: false,
            started_at_ms: 5,
            finished_at_ms: 6,
        };
        let pods = summaries(&[
            container("a", 0, ended.clone()),
            container("a", 1, ContainerState::Running { started_at_ms: 7 }),
            container("b", 0, ended),
        ]);
        let [pod] = pods.as_slice() else {
            panic!("{pods:?}");
        };
        assert_eq!((pod.ready, pod.containers, pod.restarts), (1, 2, 1));
        assert_eq!(
            (pod.status.as_str(), pod.started_at_ms),
            ("Running", Some(5))
        );
        assert_eq!(
            (pod.members[0].id.as_str(), pod.members[1].reason.as_str()),
            ("a1", "Error")
        );
    }
}
