//! Everything between the wish to start a container and its start: image, sandbox, objects,
//! volumes, specification.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::super::dns::Notice;
use super::super::env::{self, Facts, References, Sources};
use super::super::status::Trouble;
use super::super::verdict::Verdict;
use super::super::{convert, last_words, network, security, sources, state, sysctl};
use super::{RETRY_FIRST, RETRY_MAX, Worker};
use crate::clock::UnixMillis;
use crate::edged::events::Severity;
use crate::edged::runtime::{
    Container as Seen, ContainerState, Image, Mount, Resources, RuntimeError, Sandbox,
};
use crate::edged::volumes;

/// Exit code of a container of which no process came to be (containerd: `StartError`).
const EXIT_CODE_UNSTARTED: i32 = 128;
/// Least and longest time between two looks at tokens. The longest bounds what it costs that the
/// clock was set meanwhile (a node without a battery begins in 1970), and what a node pays for
/// asking a hub that is away.
const TOKEN_LOOK_MIN: Duration = Duration::from_secs(30);
const TOKEN_LOOK_MAX: Duration = Duration::from_secs(600);

/// Longest wait for a slot to start in.
const SLOT_WAIT: Duration = Duration::from_secs(3);

/// How far a start got.
pub(super) enum Failure {
    /// Nothing to tell; tried again when the runtime is back.
    Runtime(RuntimeError),
    /// The container waits with this reason.
    Waiting {
        trouble: Trouble,
        event: &'static str,
        /// A desired object may repair it.
        on_change: bool,
        delay: (Duration, Duration),
    },
    /// An image pull is under way.
    Pulling,
    PullFailed(RuntimeError),
    /// The container was made, but no process came of it.
    Unstarted {
        container: Box<Seen>,
        message: String,
    },
}

impl Worker {
    pub(super) async fn try_start(&mut self, name: &str, attempt: u32) -> Result<Seen, Failure> {
        let pod = self.pod.clone();
        let Some(container) = convert::container(&pod, name) else {
            return Err(config("the pod has no such container".to_owned()));
        };
        let image = self.image(container).await?;
        security::verify_non_root(&pod, container, &image.user)
            .map_err(|error| config(error.to_string()))?;
        let slot = self.start_slot().await;
        let begun = Instant::now();
        let sandbox = self.sandbox().await?;
        // What follows may ask the hub, which may take long.
        drop(slot);
        let refs = References::of(&pod);
        let sources = sources::fetch(&*self.context.desired, &self.id.namespace, &refs)
            .await
            .map_err(|error| config(error.to_string()))?;
        let facts = self.facts(&sandbox);
        let prepared = self.prepare(&sources, &facts).await?;
        let env = env::resolve(&pod, container, &sources, &facts)
            .map_err(|error| config(error.to_string()))?;
        let env: BTreeMap<String, String> = env.into_iter().collect();
        let mut mounts = mounts(container.clone(), prepared, env).await?;
        mounts.extend(self.mount_for_last_words(container, attempt).await);
        for message in env::skipped(&pod, container, &sources) {
            let reason = "InvalidEnvironmentVariableNames";
            self.event(Severity::Warning, reason, Some(name), &message);
        }
        let placement = &self.context.placement;
        let spec = convert::container_spec(
            &pod, container, attempt, &sources, &facts, mounts, placement,
        )
        .map_err(|error| config(error.to_string()))?;
        if attempt == 0 {
            self.tell_ignored_limits(name, &spec.resources);
        }
        let slot = self.start_slot().await;
        let result = self.context.runtime.start(&spec).await;
        drop(slot);
        let image_id = image_id(&spec.image, &image.digest);
        let seen = |id: String, state: ContainerState| Seen {
            id,
            image_id,
            state,
            pod_uid: spec.pod_uid,
            pod_namespace: spec.pod_namespace,
            pod_name: spec.pod_name,
            name: spec.name,
            attempt,
            spec_hash: spec.spec_hash,
            image: spec.image,
            log_path: spec.log_path,
        };
        let now_ms = (self.context.now_ms)();
        let id = match result {
            Ok(id) => id,
            Err(RuntimeError::Start { reason }) => {
                self.sandbox_doubted = true;
                let id = format!("{}/{name}/{attempt}", self.id.uid);
                let state = ContainerState::Exited {
                    exit_code: EXIT_CODE_UNSTARTED,
                    oom_killed: false,
                    started_at_ms: 0,
                    finished_at_ms: now_ms,
                };
                return Err(Failure::Unstarted {
                    container: Box::new(seen(id, state)),
                    message: reason,
                });
            }
            Err(error) => return Err(self.start_failure(name, error)),
        };
        for (reason, message) in [
            ("Created", format!("Created container: {name}")),
            ("Started", format!("Started container {name}")),
        ] {
            self.event(Severity::Normal, reason, Some(name), &message);
        }
        info!(pod = %self.id.name, namespace = %self.id.namespace, container = name, attempt,
            took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), "container started");
        let started = self.context.runtime.started_at_ms(&id);
        let state = ContainerState::Running {
            started_at_ms: started.unwrap_or(now_ms),
        };
        Ok(seen(id, state))
    }

    /// A file of this node for the container to write its last words to.
    async fn mount_for_last_words(
        &self,
        container: &k8s_openapi::api::core::v1::Container,
        attempt: u32,
    ) -> Option<Mount> {
        let source = self.message_file(&container.name, attempt)?;
        let target = last_words::target(container)?;
        let made = tokio::task::spawn_blocking(move || last_words::make(source, target)).await;
        match made.ok()? {
            Ok(mount) => Some(mount),
            Err(error) => {
                debug!(pod = %self.id.name, namespace = %self.id.namespace, error = %error,
                    "no file for the termination message; the container runs without");
                None
            }
        }
    }

    /// A limit that this host cannot enforce is dropped, not refused: many boards boot without
    /// the memory controller.
    fn tell_ignored_limits(&mut self, name: &str, limits: &Resources) {
        let missing = self.context.runtime.missing_controllers();
        for controller in limits.controllers() {
            if missing.contains(&controller) {
                let message = format!(
                    "The {controller} limit of container {name} is not enforced: \
                     the cgroup controller `{controller}` is missing on this node"
                );
                self.event(
                    Severity::Warning,
                    "ResourceLimitIgnored",
                    Some(name),
                    &message,
                );
            }
        }
    }

    /// Waits for a free slot, but not for long: a start that hangs (a network plugin, runc) must
    /// not keep other pods from starting.
    async fn start_slot(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let slots = self.context.starts.clone();
        tokio::time::timeout(SLOT_WAIT, slots.acquire_owned())
            .await
            .ok()?
            .ok()
    }

    fn start_failure(&mut self, name: &str, error: RuntimeError) -> Failure {
        let message = error.to_string();
        let reason = match &error {
            RuntimeError::Unavailable { .. } => return Failure::Runtime(error),
            RuntimeError::ImageNotPresent { .. }
            | RuntimeError::InvalidImageName { .. }
            | RuntimeError::Pull { .. }
            | RuntimeError::RegistryUnavailable { .. } => return Failure::PullFailed(error),
            RuntimeError::Create { .. } => "CreateContainerError",
            RuntimeError::Start { .. }
            | RuntimeError::Exec { .. }
            | RuntimeError::Network { .. }
            | RuntimeError::NotFound { .. }
            | RuntimeError::Timeout { .. }
            | RuntimeError::Other { .. } => "RunContainerError",
        };
        debug!(pod = %self.id.name, namespace = %self.id.namespace, container = name, "start refused");
        // Perhaps the sandbox is not what it was: it is asked for again, which finds or makes it.
        self.sandbox_doubted = true;
        Failure::Waiting {
            trouble: Trouble { reason, message },
            event: "Failed",
            on_change: false,
            delay: (state::BACKOFF_FIRST, state::BACKOFF_MAX),
        }
    }

    /// The image, by the container's policy; begins a pull where one is needed.
    async fn image(
        &mut self,
        container: &k8s_openapi::api::core::v1::Container,
    ) -> Result<Image, Failure> {
        let name = container.name.clone();
        let reference = container.image.clone().unwrap_or_default();
        let present = self.context.runtime.image(&reference).await;
        let present = present.map_err(|error| match error {
            RuntimeError::InvalidImageName { .. } => Failure::PullFailed(error),
            RuntimeError::Unavailable { .. }
            | RuntimeError::ImageNotPresent { .. }
            | RuntimeError::Pull { .. }
            | RuntimeError::RegistryUnavailable { .. }
            | RuntimeError::Create { .. }
            | RuntimeError::Start { .. }
            | RuntimeError::Exec { .. }
            | RuntimeError::Network { .. }
            | RuntimeError::NotFound { .. }
            | RuntimeError::Timeout { .. }
            | RuntimeError::Other { .. } => Failure::Runtime(error),
        })?;
        match self.pulled.remove(&name) {
            Some((took, Ok(image))) => {
                let message = format!(
                    "Successfully pulled image \"{reference}\" in {}ms. Image size: {} bytes.",
                    took.as_millis(),
                    image.size_bytes
                );
                self.event(Severity::Normal, "Pulled", Some(&name), &message);
                return Ok(image);
            }
            Some((_, Err(RuntimeError::Unavailable { address, source }))) => {
                return Err(Failure::Runtime(RuntimeError::Unavailable {
                    address,
                    source,
                }));
            }
            Some((_, Err(error))) => {
                // `Always` asks the registry; a node that cannot reach it runs what it has. A
                // workload does not stay down after a reboot because the uplink is away.
                let Some(image) = present else {
                    return Err(Failure::PullFailed(error));
                };
                let message = format!(
                    "Failed to pull image \"{reference}\": {error}; using the one already present"
                );
                self.event(Severity::Warning, "Failed", Some(&name), &message);
                return Ok(image);
            }
            None => {}
        }
        let policy = convert::pull_policy(container);
        match (present, policy) {
            (Some(image), convert::PullPolicy::IfNotPresent | convert::PullPolicy::Never) => {
                let message = format!("Container image \"{reference}\" already present on machine");
                self.event(Severity::Normal, "Pulled", Some(&name), &message);
                Ok(image)
            }
            (None, convert::PullPolicy::Never) => {
                let message = format!(
                    "Container image \"{reference}\" is not present with pull policy of Never"
                );
                Err(Failure::Waiting {
                    trouble: Trouble {
                        reason: "ErrImageNeverPull",
                        message,
                    },
                    event: "ErrImageNeverPull",
                    on_change: false,
                    delay: (state::BACKOFF_FIRST, state::BACKOFF_MAX),
                })
            }
            (_, convert::PullPolicy::Always | convert::PullPolicy::IfNotPresent) => {
                self.begin_pull(name, reference);
                Err(Failure::Pulling)
            }
        }
    }

    async fn sandbox(&mut self) -> Result<Sandbox, Failure> {
        if let Some(sandbox) = self.sandbox.as_ref().filter(|_| !self.sandbox_doubted) {
            return Ok(sandbox.clone());
        }
        self.admit()?;
        let spec = convert::sandbox_spec(&self.pod, &self.context.placement);
        let made = self.context.runtime.ensure_sandbox(&spec).await;
        if let Err(RuntimeError::Network { .. }) = &made {
            let info = self.context.runtime.info().await;
            if info.ready && !info.network_ready {
                return Err(network_not_ready(&info.network_reason));
            }
        }
        let sandbox = made.map_err(|error| {
            if matches!(error, RuntimeError::Unavailable { .. }) {
                return Failure::Runtime(error);
            }
            // Another configuration may be all that it takes.
            let on_change = matches!(error, RuntimeError::Network { .. });
            Failure::Waiting {
                trouble: Trouble {
                    reason: "ContainerCreating",
                    message: format!("Failed to create pod sandbox: {error}"),
                },
                event: "FailedCreatePodSandBox",
                on_change,
                delay: (RETRY_FIRST, RETRY_MAX),
            }
        })?;
        self.sandbox = Some(sandbox.clone());
        self.sandbox_doubted = false;
        if self.record.ips.take().is_some() {
            self.keep_record().await;
        }
        Ok(sandbox)
    }

    /// What can be said of the pod before anything is made for it.
    fn admit(&self) -> Result<(), Failure> {
        let placement = &self.context.placement;
        if let Err(message) = sysctl::admit(&self.pod, &placement.rules.unsafe_sysctls) {
            let verdict = Verdict {
                reason: "SysctlForbidden".to_owned(),
                message: message.clone(),
                grace: Duration::ZERO,
                disruption: None,
            };
            self.context.judge(&self.id.uid, verdict);
            return Err(Failure::Waiting {
                trouble: Trouble {
                    reason: "ContainerCreating",
                    message,
                },
                event: "SysctlForbidden",
                on_change: false,
                delay: (RETRY_FIRST, RETRY_MAX),
            });
        }
        let names = convert::names(&self.pod, placement);
        names.check().map_err(|error| config(error.to_string()))?;
        let wish = network::of(&self.pod).map(drop);
        wish.map_err(|error| config(error.to_string()))
    }

    /// Each once in the life of this worker.
    fn tell(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            if !self.told_dns.contains(&notice) {
                self.event(Severity::Warning, notice.reason, None, &notice.message);
                self.told_dns.push(notice);
            }
        }
    }

    fn facts(&self, sandbox: &Sandbox) -> Facts {
        let pod_ips = match sandbox.ips.as_slice() {
            [] => vec![self.host_ip.clone()],
            ips => ips.to_vec(),
        };
        Facts {
            node_name: self.context.node_name.clone(),
            host_ip: self.host_ip.clone(),
            pod_ips,
            cpu_milli: self.context.allocatable.cpu_milli,
            memory_bytes: self.context.allocatable.memory_bytes,
            storage_bytes: self.context.allocatable.storage_bytes,
        }
    }

    async fn prepare(
        &mut self,
        sources: &Sources,
        facts: &Facts,
    ) -> Result<volumes::Prepared, Failure> {
        self.note_tokens(sources);
        let (pod, dirs) = (self.pod.clone(), self.context.dirs.clone());
        let (sources, facts) = (sources.clone(), facts.clone());
        let names = convert::names(&pod, &self.context.placement);
        let site = self.context.placement.rules.dns.clone();
        let work = move || {
            let mut prepared = volumes::prepare(&pod, &sources, &facts, &dirs)?;
            let (files, notices) = volumes::write_etc(&pod, &names, &facts.pod_ips, &site, &dirs)?;
            prepared.files = files;
            Ok::<_, volumes::VolumeError>((prepared, notices))
        };
        let result = tokio::task::spawn_blocking(work).await;
        let error = match result {
            Ok(Ok((prepared, notices))) => {
                self.tell(notices);
                return Ok(prepared);
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(config("preparing volumes was interrupted".to_owned())),
        };
        let source = std::error::Error::source(&error).map(|s| format!(": {s}"));
        let message = format!("{error}{}", source.unwrap_or_default());
        Err(Failure::Waiting {
            trouble: Trouble {
                reason: "ContainerCreating",
                message,
            },
            event: "FailedMount",
            on_change: true,
            delay: (RETRY_FIRST, RETRY_MAX),
        })
    }

    /// When tokens are to be replaced. One that is overdue could not be: the hub is away.
    fn note_tokens(&mut self, sources: &Sources) {
        let now_ms = (self.context.now_ms)();
        let ends = sources.tokens.values().map(|token| match token {
            Ok(token) => token.refresh_at_ms,
            Err(_) => now_ms,
        });
        let Some(at_ms) = ends.min() else {
            return;
        };
        self.tokens_at_ms = at_ms;
        self.tokens_late = (at_ms <= now_ms).then(|| {
            let last = self.tokens_late.unwrap_or_default();
            (last * 2).clamp(TOKEN_LOOK_MIN, TOKEN_LOOK_MAX)
        });
        self.arm_tokens(now_ms);
    }

    fn arm_tokens(&mut self, now_ms: UnixMillis) {
        let left = u64::try_from(self.tokens_at_ms.saturating_sub(now_ms)).unwrap_or(0);
        let wait = self.tokens_late.unwrap_or(Duration::from_millis(left));
        self.tokens_due = Some(Instant::now() + wait.clamp(TOKEN_LOOK_MIN, TOKEN_LOOK_MAX));
    }

    /// Has volumes brought up to date when a token is to be replaced.
    pub(super) fn look_at_tokens(&mut self) {
        if self.tokens_due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        let now_ms = (self.context.now_ms)();
        if self.tokens_late.is_none() && now_ms < self.tokens_at_ms {
            return self.arm_tokens(now_ms);
        }
        self.tokens_due = None;
        self.volumes_stale = true;
    }

    /// Brings new content of ConfigMaps and Secrets into volumes that stand. What cannot be read
    /// now stays as it is.
    pub(super) async fn refresh_volumes(&mut self) {
        let Some(sandbox) = self.sandbox.clone() else {
            return;
        };
        if self.phase != state::Phase::Syncing || self.want.delete || self.memory.is_released() {
            return;
        }
        // What only the environment needs keeps no volume from being brought up to date.
        let mut refs = References::of_volumes(&self.pod);
        refs.claims.clear();
        let desired = self.context.desired.clone();
        let Ok(sources) = sources::fetch(&*desired, &self.id.namespace, &refs).await else {
            return;
        };
        let facts = self.facts(&sandbox);
        self.note_tokens(&sources);
        let (pod, dirs) = (self.pod.clone(), self.context.dirs.clone());
        let work = move || volumes::refresh(&pod, &sources, &facts, &dirs);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(work).await {
            let source = std::error::Error::source(&error).map(|s| format!(": {s}"));
            let message = format!("{error}{}", source.unwrap_or_default());
            self.event(Severity::Warning, "FailedMount", None, &message);
        }
    }
}

/// Looks into volumes and binds what is inside them: not for an asynchronous thread.
async fn mounts(
    container: k8s_openapi::api::core::v1::Container,
    prepared: volumes::Prepared,
    env: BTreeMap<String, String>,
) -> Result<Vec<Mount>, Failure> {
    let work = move || volumes::mounts(&container, &prepared, &env);
    match tokio::task::spawn_blocking(work).await {
        Ok(made) => made.map_err(|error| config(error.to_string())),
        Err(_) => Err(config("binding volumes was interrupted".to_owned())),
    }
}

/// kubelet's words for a node without a pod network; pods on the node's own network start.
fn network_not_ready(reason: &str) -> Failure {
    Failure::Waiting {
        trouble: Trouble {
            reason: "ContainerCreating",
            message: format!("network is not ready: {reason}"),
        },
        event: "NetworkNotReady",
        on_change: true,
        delay: (RETRY_FIRST, RETRY_MAX),
    }
}

fn config(message: String) -> Failure {
    Failure::Waiting {
        trouble: Trouble {
            reason: "CreateContainerConfigError",
            message,
        },
        event: "Failed",
        on_change: true,
        delay: (state::BACKOFF_FIRST, state::BACKOFF_MAX),
    }
}

fn image_id(reference: &str, digest: &str) -> String {
    let name = reference.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    };
    format!("{name}@{digest}")
}
