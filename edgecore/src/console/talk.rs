//! `edgecore exec` and `edgecore attach`.

use std::io::{Read, Write};

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::detach::{DetachKeys, Typed};
use super::terminal::{self, Raw};
use super::{ConsoleError, Source};
use crate::api::sessions::{AttachBody, ExecBody};
use crate::api::target::Target;
use crate::edged::PodSummary;
use crate::edged::runtime::session::{
    AttachRequest, CHUNK_BYTES_MAX, ExecRequest, Input, Output, Session,
};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct TalkRequest {
    pub target: Target,
    /// For `exec` alone.
    pub command: Vec<String>,
    pub stdin: bool,
    pub tty: bool,
    /// For `attach` alone, and only with a terminal and input.
    pub detach_keys: DetachKeys,
}

/// How a conversation was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    /// The person left; the container runs on.
    Left,
}

/// Runs a command; the exit code is the command's.
pub async fn exec(
    source: &Source,
    pods: &[PodSummary],
    request: &TalkRequest,
) -> Result<i32, ConsoleError> {
    let tty = request.tty;
    let body = ExecBody {
        target: request.target.clone(),
        exec: ExecRequest {
            command: request.command.clone(),
            stdin: request.stdin,
            tty,
            size: tty.then(terminal::size).flatten(),
        },
    };
    let session = source.exec(&body, pods).await?;
    // Who leaves a command ends it: there is no coming back to it.
    let ended = converse(session, request.stdin, tty, DetachKeys::default()).await;
    source.settle().await;
    match ended? {
        Ended::Exited(code) => Ok(code),
        Ended::Left => Ok(0),
    }
}

/// Joins what a container runs; the exit code is the container's.
pub async fn attach(
    source: &Source,
    pods: &[PodSummary],
    request: &TalkRequest,
) -> Result<Ended, ConsoleError> {
    let tty = request.tty;
    let body = AttachBody {
        target: request.target.clone(),
        attach: AttachRequest {
            stdin: request.stdin,
            size: tty.then(terminal::size).flatten(),
        },
    };
    let session = source.attach(&body, pods).await?;
    converse(session, request.stdin, tty, request.detach_keys.clone()).await
}

/// Carries both directions until the process ends or somebody hangs up.
async fn converse(
    session: Session,
    stdin: bool,
    tty: bool,
    keys: DetachKeys,
) -> Result<Ended, ConsoleError> {
    let _raw = if tty && stdin {
        Some(Raw::enter().map_err(ConsoleError::Terminal)?)
    } else {
        None
    };
    let Session { input, mut output } = session;
    let left = CancellationToken::new();
    if stdin {
        let (input, left) = (input.clone(), left.clone());
        // Bytes from a file are no keys.
        let typed = Typed::new(if tty { keys } else { DetachKeys::default() });
        // A read of the terminal cannot be called off: the thread ends with the program.
        std::thread::spawn(move || read_input(&input, typed, &left));
    }
    let listen = |kind| signal(kind).map_err(ConsoleError::Terminal);
    let mut resized = listen(SignalKind::window_change())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;
    loop {
        // All cancel-safe: channel and signals keep what was not taken.
        let said = tokio::select! {
            said = output.recv() => said,
            _ = resized.recv(), if tty => {
                if let Some(size) = terminal::size() {
                    // A session that is over needs no size.
                    drop(input.send(Input::Resize(size)).await);
                }
                continue;
            }
            () = left.cancelled() => return Ok(Ended::Left),
            _ = terminated.recv() => return Ok(Ended::Exited(128 + 15)),
            _ = hung_up.recv() => return Ok(Ended::Exited(128 + 1)),
        };
        let is_printed = match said {
            Some(Output::Stdout(bytes)) => print(std::io::stdout().lock(), &bytes),
            Some(Output::Stderr(bytes)) => print(std::io::stderr().lock(), &bytes),
            Some(Output::Exited(code)) => return Ok(Ended::Exited(code)),
            Some(Output::Failed(reason)) => return Err(ConsoleError::Broken(reason)),
            None => return Err(ConsoleError::Broken("no exit code came".to_owned())),
        };
        if !is_printed {
            // Whoever read this is gone: hang up.
            return Ok(Ended::Exited(128 + 13));
        }
    }
}

fn print(mut out: impl Write, bytes: &[u8]) -> bool {
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}

fn read_input(input: &mpsc::Sender<Input>, mut typed: Typed, left: &CancellationToken) {
    let mut chunk = vec![0; CHUNK_BYTES_MAX];
    let mut stdin = std::io::stdin().lock();
    loop {
        let said = match stdin.read(&mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => Input::StdinEnd,
            Ok(length) => {
                let (bytes, has_left) = typed.pass(chunk.get(..length).unwrap_or_default());
                if has_left {
                    left.cancel();
                    return;
                }
                if bytes.is_empty() {
                    continue;
                }
                Input::Stdin(Bytes::from(bytes))
            }
        };
        let is_last = said == Input::StdinEnd;
        if input.blocking_send(said).is_err() || is_last {
            return;
        }
    }
}
