//! Commands in running containers.
//!
//! A command is an exec process of the daemon whose streams are fifos in a private directory. The
//! daemon inherits nothing from the container: the process is described anew from the container's
//! own stored OCI spec. Whatever way a command ends (its own exit, a time limit, an asker that
//! went away, a crash of this program), its record in the daemon and its directory are removed:
//! by [`Process`] when it is dropped, or by [`home::sweep`] at the next start.

mod attach;
mod fifo;
mod home;
mod output;
mod session;
#[cfg(test)]
mod tests;
mod tree;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest,
    ResizePtyRequest, StartRequest, WaitRequest,
};
use containerd_client::types::v1::Status;
use prost_types::Any;
use serde_json::{Value, json};
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

pub(super) use self::fifo::make_fifo;
use self::fifo::{Ends, Wanted};
use self::home::{Homes, Place};
use super::channel::{CALL, CallError, DELETE, Daemon, TASK};
use super::record;
use crate::edged::runtime::session::{self as talk, ExecRequest, Session, Size};
use crate::edged::runtime::{ExecOutput, RuntimeError};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Commands that live at the same time on one node, hooks and sessions included.
const ALIVE_MAX: usize = 128;
/// Commands that are being started at the same time: each costs some 20 ms of CPU in runc, and
/// more in parallel only makes all of them late.
const STARTING_MAX: usize = 4;
/// Pause before the daemon is asked again when it went away under a command.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often the removal of one command is tried; with the pauses above some five minutes. What is
/// left then goes at the next start.
const REAP_ATTEMPTS: u32 = 60;
const KILL: u32 = 9;

/// What is to run.
pub(super) struct Ask<'a> {
    pub(super) id: &'a str,
    pub(super) command: &'a [String],
    pub(super) tty: bool,
    pub(super) stdin: bool,
    /// Of the terminal, if it has one.
    pub(super) size: Option<Size>,
}

/// Runs commands, so many at once.
pub(super) struct Execs {
    daemon: Daemon,
    homes: Arc<Homes>,
    alive: Arc<Semaphore>,
    starting: Semaphore,
    sweeping: JoinHandle<()>,
}

impl Drop for Execs {
    fn drop(&mut self) {
        self.sweeping.abort();
    }
}

/// A command that runs, and this side's ends of its streams.
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: pipe::Receiver,
    /// `None` with a terminal: it has one stream.
    pub(super) stderr: Option<pipe::Receiver>,
}

impl Execs {
    /// Must be called inside a tokio runtime; leftovers of a crash are removed in the background.
    pub(super) fn new(daemon: Daemon, directory: std::path::PathBuf) -> Self {
        let homes = Arc::new(Homes::new(directory));
        let sweeping = tokio::spawn(home::sweep(daemon.clone(), Arc::clone(&homes)));
        Self {
            daemon,
            homes,
            alive: Arc::new(Semaphore::new(ALIVE_MAX)),
            starting: Semaphore::new(STARTING_MAX),
            sweeping,
        }
    }

    /// Runs a command to its end. Waiting for a place among the others does not count for the
    /// limit, starting does (as in containerd's CRI).
    pub(super) async fn run(
        &self,
        id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let ask = Ask {
            id,
            command,
            tty: false,
            stdin: false,
            size: None,
        };
        let place = self.place().await?;
        let ran = tokio::time::timeout(limit, async {
            let running = self.start(place, &ask).await?;
            output::collect(running).await
        });
        // Dropping the future drops the process, which kills and removes it.
        ran.await.unwrap_or(Err(RuntimeError::Timeout {
            step: "the command",
            limit,
        }))
    }

    /// Starts a command that somebody talks with.
    pub(super) async fn open(
        &self,
        id: &str,
        request: &ExecRequest,
    ) -> Result<Session, RuntimeError> {
        let ask = Ask {
            id,
            command: &request.command,
            tty: request.tty,
            stdin: request.stdin,
            size: request.size,
        };
        // A person is told at once; a probe would wait.
        let place = Arc::clone(&self.alive)
            .try_acquire_owned()
            .map_err(|_| failed(&format!("{ALIVE_MAX} are running already")))?;
        let running = self.start(place, &ask).await?;
        let (session, served) = talk::pair();
        tokio::spawn(session::drive(running, served));
        Ok(session)
    }

    /// Waits until nothing that has ended is left behind, or for `limit`.
    pub(super) async fn settle(&self, limit: Duration) {
        let all = u32::try_from(ALIVE_MAX).unwrap_or(u32::MAX);
        // Whoever waits in vain leaves it to the next start.
        drop(tokio::time::timeout(limit, self.alive.acquire_many(all)).await);
    }

    /// A place among the living; waits for one.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, RuntimeError> {
        Arc::clone(&self.alive)
            .acquire_owned()
            .await
            .map_err(|_| failed("the runtime ends"))
    }

    /// Starts a command. Cancel-safe: what was begun is taken back.
    pub(super) async fn start(
        &self,
        permit: OwnedSemaphorePermit,
        ask: &Ask<'_>,
    ) -> Result<Running, RuntimeError> {
        let record = record::get(&self.daemon, ask.id)
            .await?
            .ok_or_else(|| not_found(ask.id))?;
        let spec = record.spec.unwrap_or_default();
        let described = describe(&spec.value, ask)?;
        let place = self
            .homes
            .place(ask.id)
            .map_err(|error| failed(&format!("its directory: {error}")))?;
        let wanted = Wanted {
            stdin: ask.stdin,
            stderr: !ask.tty,
        };
        let made = Ends::make(place.path(), &wanted);
        // From here on everything is undone by dropping this.
        let process = Process {
            daemon: self.daemon.clone(),
            remains: Some(Remains { place, permit }),
            has_ended: AtomicBool::new(true),
            container: ask.id.to_owned(),
            runtime: Handle::current(),
        };
        let ends = made.map_err(|error| failed(&format!("its streams: {error}")))?;
        let request = ExecProcessRequest {
            container_id: ask.id.to_owned(),
            exec_id: process.exec_id(),
            stdin: ends.path_of("stdin", wanted.stdin),
            stdout: ends.path_of("stdout", true),
            stderr: ends.path_of("stderr", wanted.stderr),
            terminal: ask.tty,
            spec: Some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: described,
            }),
        };
        let _starting = self
            .starting
            .acquire()
            .await
            .map_err(|_| failed("the runtime ends"))?;
        self.daemon
            .call("exec", CALL, self.daemon.tasks().exec(request))
            .await
            .map_err(|error| refused(ask.id, error))?;
        process.has_ended.store(false, Ordering::Relaxed);
        let started = StartRequest {
            container_id: ask.id.to_owned(),
            exec_id: process.exec_id(),
        };
        self.daemon
            .call("exec start", TASK, self.daemon.tasks().start(started))
            .await
            .map_err(|error| refused(ask.id, error))?;
        let (stdin, stdout, stderr) = ends
            .into_ours()
            .map_err(|error| failed(&format!("its streams: {error}")))?;
        Ok(Running {
            process,
            stdin,
            stdout,
            stderr,
        })
    }
}

fn failed(reason: &str) -> RuntimeError {
    RuntimeError::Other {
        step: "command in a container",
        reason: reason.to_owned(),
    }
}

fn not_found(id: &str) -> RuntimeError {
    RuntimeError::NotFound { id: id.to_owned() }
}

/// What runc says, without the daemon's decoration, and the exit code a shell would have given.
fn refused(id: &str, error: CallError) -> RuntimeError {
    if error.is_not_found() {
        return not_found(id);
    }
    error.or(|text| {
        let reason = text
            .split_once("exec failed: ")
            .map_or(text.as_str(), |(_, rest)| rest)
            .trim_start_matches("exec failed: ")
            .trim_start_matches("unable to start container process: ")
            .trim_end_matches(": unknown")
            .to_owned();
        let lower = reason.to_ascii_lowercase();
        let exit_code = if lower.contains("executable file not found")
            || lower.contains("no such file or directory")
        {
            127
        } else {
            126
        };
        RuntimeError::Exec { exit_code, reason }
    })
}

/// The process in the container's own spec with other arguments (and a terminal or none).
fn describe(spec: &[u8], ask: &Ask<'_>) -> Result<Vec<u8>, RuntimeError> {
    if ask.command.is_empty() {
        return Err(RuntimeError::Exec {
            exit_code: 126,
            reason: "no command given".to_owned(),
        });
    }
    let mut spec: Value = serde_json::from_slice(spec)
        .map_err(|error| failed(&format!("the container's stored spec: {error}")))?;
    let Some(Value::Object(process)) = spec.get_mut("process") else {
        return Err(failed("the container's stored spec names no process"));
    };
    process.insert("args".to_owned(), Value::from(ask.command.to_vec()));
    process.insert("terminal".to_owned(), Value::from(ask.tty));
    process.remove("consoleSize");
    if let Some(size) = ask.size.filter(|_| ask.tty) {
        // From its first instruction on, not when the first resize has come.
        let size = json!({"width": size.width, "height": size.height});
        process.insert("consoleSize".to_owned(), size);
    }
    if ask.tty {
        let env = process
            .entry("env")
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(env) = env
            && !env
                .iter()
                .any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM=")))
        {
            env.push(Value::from("TERM=xterm"));
        }
    }
    serde_json::to_vec(process).map_err(|error| failed(&error.to_string()))
}

/// What has to go when a command ends.
struct Remains {
    place: Place,
    /// Given back only when nothing is left.
    permit: OwnedSemaphorePermit,
}

/// One exec process. Dropping it kills it if it runs, and removes its record and directory in the
/// background: the daemon's delete waits until everybody has let go of the output (up to 10 s).
pub(super) struct Process {
    daemon: Daemon,
    container: String,
    remains: Option<Remains>,
    has_ended: AtomicBool,
    runtime: Handle,
}

impl Process {
    fn exec_id(&self) -> String {
        self.remains
            .as_ref()
            .map(|remains| remains.place.exec_id().to_owned())
            .unwrap_or_default()
    }

    /// The exit code. Cancel-safe.
    pub(super) async fn wait(&self) -> Result<i32, RuntimeError> {
        let code = wait(&self.daemon, &self.container, &self.exec_id()).await?;
        self.has_ended.store(true, Ordering::Relaxed);
        Ok(code)
    }

    /// Tells the process' terminal its size.
    pub(super) async fn resize(&self, size: Size) -> Result<(), RuntimeError> {
        resize(&self.daemon, &self.container, &self.exec_id(), size).await
    }

    /// Ends the process' input; this side's writer must be gone already.
    pub(super) async fn close_stdin(&self) -> Result<(), RuntimeError> {
        let request = CloseIoRequest {
            container_id: self.container.clone(),
            exec_id: self.exec_id(),
            stdin: true,
        };
        let closed = self
            .daemon
            .call("exec close", CALL, self.daemon.tasks().close_io(request))
            .await;
        match closed {
            Err(error) if error.is_not_found() => Ok(()),
            other => Ok(other?),
        }
    }
}

/// The exit code of a process; of the container's own with an empty `exec_id`. A daemon that
/// restarts meanwhile is waited for. Cancel-safe.
async fn wait(daemon: &Daemon, container: &str, exec_id: &str) -> Result<i32, RuntimeError> {
    let mut pause = RETRY_MIN;
    loop {
        let request = WaitRequest {
            container_id: container.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let waited = daemon
            .call("exec wait", Duration::MAX, daemon.tasks().wait(request))
            .await;
        match waited {
            Ok(ended) => return Ok(i32::try_from(ended.exit_status).unwrap_or(i32::MAX)),
            Err(error) if error.is_transport() => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            Err(error) if error.is_not_found() => return Err(not_found(container)),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn resize(
    daemon: &Daemon,
    container: &str,
    exec_id: &str,
    size: Size,
) -> Result<(), RuntimeError> {
    let request = ResizePtyRequest {
        container_id: container.to_owned(),
        exec_id: exec_id.to_owned(),
        width: size.width.into(),
        height: size.height.into(),
    };
    let resized = daemon
        .call("exec resize", CALL, daemon.tasks().resize_pty(request))
        .await;
    Ok(resized?)
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(remains) = self.remains.take() else {
            return;
        };
        let daemon = self.daemon.clone();
        let container = std::mem::take(&mut self.container);
        let is_running = !self.has_ended.load(Ordering::Relaxed);
        self.runtime.spawn(async move {
            let exec_id = remains.place.exec_id().to_owned();
            if reap(&daemon, &container, &exec_id, is_running).await {
                remains.place.remove();
            }
            drop(remains.permit);
        });
    }
}

/// Ends a command with what it started. Whoever cannot be found is left to the kill that follows.
async fn end_tree(daemon: &Daemon, container: &str, exec_id: &str) {
    let request = GetRequest {
        container_id: container.to_owned(),
        exec_id: exec_id.to_owned(),
    };
    let got = daemon
        .call("exec get", CALL, daemon.tasks().get(request))
        .await;
    let process = got.ok().and_then(|answer| answer.process);
    if let Some(process) = process.filter(|process| process.status() == Status::Running)
        && let Ok(leader) = i32::try_from(process.pid)
    {
        // It does not panic, and nobody waits for what it returns.
        drop(tokio::task::spawn_blocking(move || tree::end(leader)).await);
    }
}

/// Kills (if wanted, with all it started) and deletes one exec process; true when the daemon knows
/// it no more.
async fn reap(daemon: &Daemon, container: &str, exec_id: &str, kill: bool) -> bool {
    let mut pause = RETRY_MIN;
    if kill {
        end_tree(daemon, container, exec_id).await;
    }
    for _ in 0..REAP_ATTEMPTS {
        if kill {
            let request = KillRequest {
                container_id: container.to_owned(),
                exec_id: exec_id.to_owned(),
                signal: KILL,
                all: false,
            };
            // It may have ended, or never started; the delete tells.
            drop(
                daemon
                    .call("exec kill", CALL, daemon.tasks().kill(request))
                    .await,
            );
        }
        let request = DeleteProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let deleted = daemon
            .call(
                "exec delete",
                DELETE,
                daemon.tasks().delete_process(request),
            )
            .await;
        match deleted {
            Ok(_) => return true,
            Err(error) if error.is_not_found() => return true,
            Err(error) => {
                tracing::debug!(%error, container, exec_id, "command not removed yet");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
    tracing::warn!(
        container,
        exec_id,
        "command in a container not removed; left to the next start"
    );
    false
}
