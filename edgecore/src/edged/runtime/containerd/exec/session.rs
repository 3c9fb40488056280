//! A command somebody talks with.

use std::future::{Future, pending};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Process, Running};
use crate::edged::runtime::session::{CHUNK_BYTES_MAX, Input, Output, Served};

/// How long a silent stream is waited for after the process has ended: a child in the background
/// may hold it for ever.
const DRAIN: Duration = Duration::from_secs(1);

/// Carries a conversation to its end. The process is killed when the other side hangs up.
pub(super) async fn drive(running: Running, served: Served) {
    let Running {
        process,
        stdin,
        stdout,
        stderr,
    } = running;
    let Served { input, output } = served;
    let has_ended = CancellationToken::new();
    let copies =
        futures_util::future::join(copy(stdout, Output::Stdout, &output, &has_ended), async {
            if let Some(stderr) = stderr {
                copy(stderr, Output::Stderr, &output, &has_ended).await;
            }
        });
    let feeding = feed(&process, stdin, input);
    let exit = process.wait();
    tokio::pin!(copies, feeding, exit);
    let (mut code, mut is_copied) = (None, false);
    while code.is_none() || !is_copied {
        // Cancel-safe: futures by reference, a closed channel.
        tokio::select! {
            () = output.closed() => return,
            _ = &mut copies, if !is_copied => is_copied = true,
            exit = &mut exit, if code.is_none() => {
                code = Some(exit);
                has_ended.cancel();
            }
            () = &mut feeding => {}
        }
    }
    let last = match code {
        Some(Ok(code)) => Output::Exited(code),
        Some(Err(error)) => Output::Failed(error.to_string()),
        None => Output::Failed("the process was lost".to_owned()),
    };
    drop(output.send(last).await);
}

/// Hands a stream on until it ends; after the process' end, until it is silent.
async fn copy(
    mut stream: Receiver,
    wrap: fn(Bytes) -> Output,
    output: &mpsc::Sender<Output>,
    has_ended: &CancellationToken,
) {
    let mut chunk = vec![0; CHUNK_BYTES_MAX];
    loop {
        let silent = async {
            has_ended.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        // Cancel-safe: a pipe read that is dropped has taken nothing.
        let length = tokio::select! {
            read = stream.read(&mut chunk) => match read {
                Ok(length) if length > 0 => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Ok(_) | Err(_) => return,
            },
            () = silent => return,
        };
        let bytes = Bytes::copy_from_slice(chunk.get(..length).unwrap_or_default());
        if output.send(wrap(bytes)).await.is_err() {
            return;
        }
    }
}

/// Does what the person says, as long as the process runs. Never answers.
async fn feed(process: &Process, stdin: Option<Sender>, mut input: mpsc::Receiver<Input>) {
    let mut stdin = stdin;
    loop {
        match input.recv().await {
            Some(Input::Stdin(bytes)) => {
                if let Some(open) = &mut stdin
                    && open.write_all(&bytes).await.is_err()
                {
                    // The process has closed its input; more of it goes nowhere.
                    stdin = None;
                }
            }
            Some(Input::Resize(size)) => tell_size(process.resize(size)).await,
            Some(Input::StdinEnd) => close(process, &mut stdin).await,
            None => {
                close(process, &mut stdin).await;
                return pending().await;
            }
        }
    }
}

async fn close(process: &Process, stdin: &mut Option<Sender>) {
    if let Some(open) = stdin.take() {
        drop(open);
        if let Err(error) = process.close_stdin().await {
            tracing::debug!(%error, "input of a command not closed");
        }
    }
}

async fn tell_size(telling: impl Future<Output = Result<(), crate::edged::runtime::RuntimeError>>) {
    if let Err(error) = telling.await {
        tracing::debug!(%error, "size of a terminal not told");
    }
}
