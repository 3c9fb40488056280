//! Which container is meant.

use crate::edged::{ContainerSummary, PodSummary};

/// A container as a person names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Target {
    /// `None`: whichever has a pod of the name.
    pub namespace: Option<String>,
    pub pod: String,
    /// `None`: the pod's only one.
    pub container: Option<String>,
}

/// Why it is not clear, or not there. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    #[error("pod {0} is not on this node; `edgecore pods` shows what is")]
    NoPod(String),
    #[error("pod {pod} is not on this node, but {}", others.join(", "))]
    OtherNamespace { pod: String, others: Vec<String> },
    #[error("there are several: {}; say which", .0.join(", "))]
    SeveralPods(Vec<String>),
    #[error("pod {pod} has {} containers, choose one with -c: {}", names.len(), names.join(", "))]
    SeveralContainers { pod: String, names: Vec<String> },
    #[error("pod {pod} has no container `{container}`; it has {}", names.join(", "))]
    NoContainer {
        pod: String,
        container: String,
        names: Vec<String>,
    },
    #[error("pod {pod} has no container yet ({status})")]
    Nothing { pod: String, status: String },
    #[error(
        "container {container} of pod {pod} is not running{}; `edgecore logs {pod} -c {container}` shows what it said",
        because(reason)
    )]
    NotRunning {
        pod: String,
        container: String,
        reason: String,
    },
}

fn because(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    }
}

impl Target {
    /// `name`, `namespace/name`, or a name with a namespace beside it.
    pub fn new(namespace: Option<&str>, pod: &str, container: Option<&str>) -> Self {
        let (inside, pod) = match pod.split_once('/') {
            Some((namespace, pod)) => (Some(namespace), pod),
            None => (None, pod),
        };
        Self {
            namespace: inside.or(namespace).map(str::to_owned),
            pod: pod.to_owned(),
            container: container.map(str::to_owned),
        }
    }

    fn shown(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.pod),
            None => self.pod.clone(),
        }
    }

    /// The one pod that is meant.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn pod<'a>(&self, pods: &'a [PodSummary]) -> Result<&'a PodSummary, TargetError> {
        let named: Vec<&PodSummary> = pods.iter().filter(|pod| pod.name == self.pod).collect();
        let full = |pod: &&PodSummary| format!("{}/{}", pod.namespace, pod.name);
        let mut meant: Vec<&PodSummary> = named
            .iter()
            .copied()
            .filter(|pod| self.namespace.as_ref().is_none_or(|n| *n == pod.namespace))
            .collect();
        // A pod that goes while its successor is here already.
        if meant.len() > 1 && meant.iter().all(|pod| pod.namespace == meant[0].namespace) {
            meant.sort_by_key(|pod| (pod.status != "Terminating", pod.started_at_ms));
            meant.drain(..meant.len() - 1);
        }
        match meant.as_slice() {
            [one] => Ok(one),
            [] if named.is_empty() => Err(TargetError::NoPod(self.shown())),
            [] => Err(TargetError::OtherNamespace {
                pod: self.shown(),
                others: named
                    .iter()
                    .map(|pod| format!("{} is", full(pod)))
                    .collect(),
            }),
            several => Err(TargetError::SeveralPods(several.iter().map(full).collect())),
        }
    }

    /// The one container of the pod that is meant: the named one, or the only one that is no init
    /// container.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn container<'a>(&self, pod: &'a PodSummary) -> Result<&'a ContainerSummary, TargetError> {
        let shown = format!("{}/{}", pod.namespace, pod.name);
        let names = |found: &[&ContainerSummary]| found.iter().map(|c| c.name.clone()).collect();
        let all: Vec<&ContainerSummary> = pod.members.iter().collect();
        if let Some(wanted) = &self.container {
            return all
                .iter()
                .copied()
                .find(|c| c.name == *wanted)
                .ok_or_else(|| TargetError::NoContainer {
                    pod: shown,
                    container: wanted.clone(),
                    names: names(&all),
                });
        }
        let main: Vec<&ContainerSummary> = all.iter().copied().filter(|c| !c.is_init).collect();
        match main.as_slice() {
            [one] => Ok(one),
            [] => Err(TargetError::Nothing {
                pod: shown,
                status: pod.status.clone(),
            }),
            several => Err(TargetError::SeveralContainers {
                pod: shown,
                names: names(several),
            }),
        }
    }

    /// As [`Target::container`], and it runs.
    ///
    /// # Errors
    /// Also if it does not run.
    pub fn running<'a>(&self, pods: &'a [PodSummary]) -> Result<&'a ContainerSummary, TargetError> {
        let pod = self.pod(pods)?;
        let container = self.container(pod)?;
        if container.is_running {
            return Ok(container);
        }
        Err(TargetError::NotRunning {
            pod: format!("{}/{}", pod.namespace, pod.name),
            container: container.name.clone(),
            reason: container.reason.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, containers: &[(&str, bool, bool)]) -> PodSummary {
        PodSummary {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            status: "Running".to_owned(),
            members: containers
                .iter()
                .map(|(name, is_init, is_running)| ContainerSummary {
                    name: (*name).to_owned(),
                    id: format!("id-{name}"),
                    is_init: *is_init,
                    is_running: *is_running,
                    reason: if *is_running { "" } else { "CrashLoopBackOff" }.to_owned(),
                    ..ContainerSummary::default()
                })
                .collect(),
            ..PodSummary::default()
        }
    }

    #[test]
    fn what_is_meant_or_what_to_do() {
        let pods = [
            pod(
                "default",
                "one",
                &[("setup", true, false), ("main", false, true)],
            ),
            pod("default", "two", &[("a", false, true), ("b", false, false)]),
            pod("x", "same", &[("m", false, true)]),
            pod("y", "same", &[("m", false, true)]),
            pod("y", "new", &[]),
        ];
        for (namespace, name, container, expected) in [
            (None, "one", None, Ok("id-main")),
            (None, "default/one", None, Ok("id-main")),
            (Some("default"), "two", Some("a"), Ok("id-a")),
            (None, "x/same", None, Ok("id-m")),
            (
                None,
                "two",
                None,
                Err("pod default/two has 2 containers, choose one with -c: a, b"),
            ),
            (
                None,
                "two",
                Some("c"),
                Err("pod default/two has no container `c`; it has a, b"),
            ),
            (
                None,
                "two",
                Some("b"),
                Err(
                    "container b of pod default/two is not running (CrashLoopBackOff); `edgecore logs default/two -c b` shows what it said",
                ),
            ),
            (
                None,
                "none",
                None,
                Err("pod none is not on this node; `edgecore pods` shows what is"),
            ),
            (
                Some("x"),
                "one",
                None,
                Err("pod x/one is not on this node, but default/one is"),
            ),
            (
                None,
                "same",
                None,
                Err("there are several: x/same, y/same; say which"),
            ),
            (
                None,
                "new",
                None,
                Err("pod y/new has no container yet (Running)"),
            ),
        ] {
            let found = Target::new(namespace, name, container).running(&pods);
            let found = found.map(|c| c.id.clone()).map_err(|e| e.to_string());
            assert_eq!(
                found.as_deref().map_err(String::as_str),
                expected.map_err(|e: &str| e)
            );
        }
    }
}
