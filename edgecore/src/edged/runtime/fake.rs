//! A runtime that does what a script says, for tests of everything above the trait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    Container, ContainerSpec, ContainerState, ExecOutput, FsUsage, Image, NetworkHealth,
    PullOptions, Reclaim, Runtime, RuntimeError, RuntimeInfo, Sandbox, SandboxSpec,
};

/// Wall time of the fake's beginning, in milliseconds.
pub const EPOCH_MS: i64 = 1_700_000_000_000;

/// The scripted runtime. Calls are recorded as one word each plus what they are about.
pub struct FakeRuntime {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    born: Instant,
}

#[derive(Default)]
struct State {
    images: BTreeMap<String, Image>,
    pulls: BTreeMap<String, VecDeque<Result<(), String>>>,
    pull_time: Duration,
    start_errors: BTreeMap<String, VecDeque<RuntimeError>>,
    exits_at_once: BTreeMap<String, i32>,
    deaf: BTreeSet<String>,
    execs: BTreeMap<String, (i32, String, Duration)>,
    containers: Vec<Container>,
    specs: Vec<ContainerSpec>,
    sandboxes: BTreeMap<String, Sandbox>,
    /// Containers without a task.
    retired: BTreeSet<String>,
    refusals: BTreeMap<String, u32>,
    calls: Vec<String>,
    down: bool,
    disk: FsUsage,
    networks: BTreeMap<String, NetworkHealth>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self {
            state: Mutex::new(State::default()),
            changes: watch::Sender::new(0),
            born: Instant::now(),
        }
    }
}

impl FakeRuntime {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> Result<MutexGuard<'_, State>, RuntimeError> {
        let state = self.state();
        if state.down {
            return Err(RuntimeError::Unavailable {
                address: "fake".to_owned(),
                source: "the fake is down".into(),
            });
        }
        Ok(state)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Wall time as the fake has it: paused with tokio's clock.
    pub fn now_ms(&self) -> i64 {
        EPOCH_MS + i64::try_from(self.born.elapsed().as_millis()).unwrap_or(0)
    }

    /// Makes an image present.
    pub fn add_image(&self, reference: &str) {
        let image = Image {
            reference: reference.to_owned(),
            digest: format!("sha256:{reference}"),
            ..Image::default()
        };
        self.state().images.insert(reference.to_owned(), image);
    }

    /// Sets the user that an image present is to run as.
    pub fn set_image_user(&self, reference: &str, user: &str) {
        if let Some(image) = self.state().images.get_mut(reference) {
            user.clone_into(&mut image.user);
        }
    }

    /// Sets the size of an image that is present.
    pub fn set_image_size(&self, reference: &str, bytes: u64) {
        if let Some(image) = self.state().images.get_mut(reference) {
            image.size_bytes = bytes;
        }
    }

    /// Sets how full the disk of the images is.
    pub fn set_disk(&self, disk: FsUsage) {
        self.state().disk = disk;
    }

    /// What the next pulls of this image end with; an empty script fails.
    pub fn script_pulls(
        &self,
        reference: &str,
        results: impl IntoIterator<Item = Result<(), String>>,
    ) {
        let queue = results.into_iter().collect();
        self.state().pulls.insert(reference.to_owned(), queue);
    }

    /// How long a pull takes.
    pub fn set_pull_time(&self, time: Duration) {
        self.state().pull_time = time;
    }

    /// The next start of a container of this name fails so.
    pub fn fail_start(&self, name: &str, error: RuntimeError) {
        let mut state = self.state();
        state
            .start_errors
            .entry(name.to_owned())
            .or_default()
            .push_back(error);
    }

    /// Containers of this name exit as soon as they are started.
    pub fn exit_at_once(&self, name: &str, code: i32) {
        self.state().exits_at_once.insert(name.to_owned(), code);
    }

    /// The next calls that begin so are refused.
    pub fn refuse(&self, call: &str, times: u32) {
        self.state().refusals.insert(call.to_owned(), times);
    }

    /// Containers of this name do not heed the stop signal.
    pub fn make_deaf(&self, name: &str) {
        self.state().deaf.insert(name.to_owned());
    }

    /// What a command in a container comes to, by its words, and how long it takes; one that is not
    /// named succeeds at once.
    pub fn on_exec(&self, command: &str, exit_code: i32, output: &str, takes: Duration) {
        let script = (exit_code, output.to_owned(), takes);
        self.state().execs.insert(command.to_owned(), script);
    }

    /// What is found of a pod's network.
    pub fn set_network(&self, uid: &str, health: NetworkHealth) {
        self.state().networks.insert(uid.to_owned(), health);
    }

    /// The daemon goes away or comes back.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
        self.changed();
    }

    /// A container of this name that runs exits.
    pub fn exit(&self, name: &str, code: i32) {
        let now = self.now_ms();
        for container in &mut self.state().containers {
            if container.name == name {
                end(container, code, now);
            }
        }
        self.changed();
    }

    /// Adds a container as if it had been started by an earlier process.
    pub fn add_container(&self, container: Container) {
        let uid = container.pod_uid.clone();
        let mut state = self.state();
        state.containers.push(container);
        let sandbox = sandbox(&uid);
        state.sandboxes.insert(uid, sandbox);
    }

    /// As after a reboot: tasks and namespaces are gone, records stay.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.sandboxes.clear();
        let State {
            containers,
            retired,
            ..
        } = &mut *state;
        // How those ended stays with their records.
        for container in containers.iter_mut().filter(|c| !retired.contains(&c.id)) {
            container.state = ContainerState::Unknown;
        }
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// The specs of the containers started so far.
    pub fn specs(&self) -> Vec<ContainerSpec> {
        self.state().specs.clone()
    }

    /// Uids of the sandboxes that stand.
    pub fn sandbox_uids(&self) -> Vec<String> {
        self.state().sandboxes.keys().cloned().collect()
    }
}

impl State {
    fn refused(&mut self, call: &str) -> Result<(), RuntimeError> {
        let mut refusals = self.refusals.iter_mut();
        match refusals.find(|(name, left)| call.starts_with(name.as_str()) && **left > 0) {
            Some((_, left)) => {
                *left -= 1;
                Err(RuntimeError::Other {
                    step: "script",
                    reason: "refused".to_owned(),
                })
            }
            None => Ok(()),
        }
    }
}

fn sandbox(uid: &str) -> Sandbox {
    Sandbox {
        pod_uid: uid.to_owned(),
        ips: vec!["10.88.0.7".to_owned()],
    }
}

fn end(container: &mut Container, code: i32, now: i64) {
    if let ContainerState::Running { started_at_ms } = container.state {
        container.state = ContainerState::Exited {
            exit_code: code,
            oom_killed: false,
            started_at_ms,
            finished_at_ms: now,
        };
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn info(&self) -> RuntimeInfo {
        let down = self.state().down;
        RuntimeInfo {
            version: "containerd://fake".to_owned(),
            ready: !down,
            network_ready: !down,
            network_reason: String::new(),
        }
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        Ok(self.up()?.images.get(reference).cloned())
    }

    async fn pull(&self, reference: &str, _options: &PullOptions) -> Result<Image, RuntimeError> {
        let time = {
            let mut state = self.up()?;
            state.calls.push(format!("pull {reference}"));
            state.pull_time
        };
        tokio::time::sleep(time).await;
        let result = {
            let mut state = self.up()?;
            state.pulls.get_mut(reference).and_then(VecDeque::pop_front)
        };
        match result {
            Some(Ok(())) => {
                self.add_image(reference);
                Ok(self
                    .up()?
                    .images
                    .get(reference)
                    .cloned()
                    .unwrap_or_default())
            }
            Some(Err(reason)) => Err(RuntimeError::Pull {
                reference: reference.to_owned(),
                reason,
            }),
            None => Err(RuntimeError::Pull {
                reference: reference.to_owned(),
                reason: "no route to host".to_owned(),
            }),
        }
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(self.up()?.images.values().cloned().collect())
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        let mut state = self.up()?;
        state.calls.push(format!("remove-image {reference}"));
        state.images.remove(reference);
        Ok(())
    }

    async fn reclaim_images(&self, reclaim: &Reclaim) -> Result<u64, RuntimeError> {
        let mut state = self.up()?;
        state.calls.push("reclaim-images".to_owned());
        let mut keep = reclaim.keep.clone();
        keep.extend(state.containers.iter().map(|c| c.image.clone()));
        let before: u64 = state.images.values().map(|image| image.size_bytes).sum();
        state.images.retain(|name, _| keep.contains(name));
        let after: u64 = state.images.values().map(|image| image.size_bytes).sum();
        Ok(before - after)
    }

    async fn image_fs(&self) -> Result<FsUsage, RuntimeError> {
        Ok(self.up()?.disk)
    }

    async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        let mut state = self.up()?;
        state.calls.push(format!("sandbox {}", spec.name));
        let made = sandbox(&spec.pod_uid);
        Ok(state
            .sandboxes
            .entry(spec.pod_uid.clone())
            .or_insert(made)
            .clone())
    }

    async fn check_network(&self, pod_uid: &str) -> NetworkHealth {
        let mut state = self.state();
        state.calls.push(format!("check-network {pod_uid}"));
        let found = state.networks.get(pod_uid).cloned();
        found.unwrap_or(NetworkHealth::Good)
    }

    async fn abandon_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let mut state = self.up()?;
        state.calls.push(format!("abandon-sandbox {pod_uid}"));
        state.networks.remove(pod_uid);
        Ok(())
    }

    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let mut state = self.up()?;
        state.calls.push(format!("remove-sandbox {pod_uid}"));
        state.refused(&format!("remove-sandbox {pod_uid}"))?;
        let holds = |c: &Container| c.pod_uid == pod_uid && !state.retired.contains(&c.id);
        if state.containers.iter().any(holds) {
            return Err(RuntimeError::Other {
                step: "remove sandbox",
                reason: "tasks are left".to_owned(),
            });
        }
        state.sandboxes.remove(pod_uid);
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        Ok(self.up()?.sandboxes.values().cloned().collect())
    }

    async fn start(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let now = self.now_ms();
        let id = format!("{}-{}-{}", spec.pod_uid, spec.name, spec.attempt);
        {
            let mut state = self.up()?;
            state
                .calls
                .push(format!("start {} {}", spec.name, spec.attempt));
            let errors = state.start_errors.get_mut(&spec.name);
            if let Some(error) = errors.and_then(VecDeque::pop_front) {
                return Err(error);
            }
            if !state.images.contains_key(&spec.image) {
                return Err(RuntimeError::ImageNotPresent {
                    reference: spec.image.clone(),
                });
            }
            let mut container = Container {
                id: id.clone(),
                pod_uid: spec.pod_uid.clone(),
                pod_namespace: spec.pod_namespace.clone(),
                pod_name: spec.pod_name.clone(),
                name: spec.name.clone(),
                attempt: spec.attempt,
                spec_hash: spec.spec_hash.clone(),
                image: spec.image.clone(),
                image_id: format!("{}@sha256:1", spec.image),
                log_path: spec.log_path.clone(),
                state: ContainerState::Running { started_at_ms: now },
            };
            if let Some(code) = state.exits_at_once.get(&spec.name) {
                end(&mut container, *code, now);
            }
            state.retired.remove(&id);
            state.specs.push(spec.clone());
            state.containers.retain(|c| c.id != id);
            state.containers.push(container);
        }
        self.changed();
        Ok(id)
    }

    async fn signal_stop(&self, id: &str) -> Result<(), RuntimeError> {
        let now = self.now_ms();
        {
            let mut state = self.up()?;
            state.calls.push(format!("stop {id}"));
            let deaf = state.deaf.clone();
            for container in &mut state.containers {
                if container.id == id && !deaf.contains(&container.name) {
                    end(container, 0, now);
                }
            }
        }
        self.changed();
        Ok(())
    }

    async fn kill(&self, id: &str) -> Result<(), RuntimeError> {
        let now = self.now_ms();
        {
            let mut state = self.up()?;
            state.calls.push(format!("kill {id}"));
            for container in &mut state.containers {
                if container.id == id {
                    end(container, 137, now);
                }
            }
        }
        self.changed();
        Ok(())
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let words = command.join(" ");
        let is_running = |state: &State| {
            let mut mine = state.containers.iter().filter(|c| c.id == id);
            mine.any(|c| matches!(c.state, ContainerState::Running { .. }))
        };
        let gone = || RuntimeError::NotFound { id: id.to_owned() };
        let script = {
            let mut state = self.up()?;
            state.calls.push(format!("exec {id} {words}"));
            if !is_running(&state) {
                return Err(gone());
            }
            state.execs.get(&words).cloned().unwrap_or_default()
        };
        let (exit_code, output, takes) = script;
        tokio::time::sleep(takes.min(timeout)).await;
        if !is_running(&*self.up()?) {
            return Err(gone());
        }
        if takes > timeout {
            return Err(RuntimeError::Timeout {
                step: "exec",
                limit: timeout,
            });
        }
        Ok(ExecOutput {
            exit_code,
            output: output.into_bytes(),
        })
    }

    async fn retire(&self, id: &str) -> Result<(), RuntimeError> {
        let mut state = self.up()?;
        let call = format!("retire {id}");
        state.calls.push(call.clone());
        state.refused(&call)?;
        let mut mine = state.containers.iter().filter(|c| c.id == id);
        if mine.any(|c| matches!(c.state, ContainerState::Running { .. })) {
            return Err(RuntimeError::Other {
                step: "container retire",
                reason: "it is running".to_owned(),
            });
        }
        state.retired.insert(id.to_owned());
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        {
            let mut state = self.up()?;
            state.calls.push(format!("remove {id}"));
            state.containers.retain(|c| c.id != id);
        }
        self.changed();
        Ok(())
    }

    async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        Ok(self.up()?.containers.clone())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
