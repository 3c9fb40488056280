//! Joining the process that a container runs. What it says is read from its log, so that nobody
//! who comes or goes disturbs it; what it hears goes through the fifo it was started with.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::{OpenOptions, Sender};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Daemon, Execs, failed, not_found, resize, wait};
use crate::edged::logs::{self, CHUNKS_MAX, Query, Stream};
use crate::edged::runtime::RuntimeError;
use crate::edged::runtime::containerd::task::{self, label};
use crate::edged::runtime::session::{
    self as talk, AttachRequest, Input, Output, Served, Session, Size,
};

impl Execs {
    /// Joins a container; `stdin` is its fifo, which is there if it has input.
    pub(in super::super) async fn attach(
        &self,
        id: &str,
        request: &AttachRequest,
        stdin: &Path,
    ) -> Result<Session, RuntimeError> {
        let record = task::record(&self.daemon, id)
            .await?
            .ok_or_else(|| not_found(id))?;
        let spec: Value = serde_json::from_slice(&record.spec.unwrap_or_default().value)
            .map_err(|error| failed(&format!("the container's stored spec: {error}")))?;
        let has_terminal = spec["process"]["terminal"] == Value::Bool(true);
        let log = record.labels.get(label::LOG_PATH).map(PathBuf::from);
        let stdin = if request.stdin {
            Some(open_input(stdin, has_terminal)?)
        } else {
            None
        };
        let (session, served) = talk::pair();
        let joined = Joined {
            daemon: self.daemon.clone(),
            id: id.to_owned(),
            log: log.ok_or_else(|| failed("the container has no log"))?,
            stdin,
            size: request.size.filter(|_| has_terminal),
        };
        tokio::spawn(joined.drive(served));
        Ok(session)
    }
}

/// The writing end of a container's input.
fn open_input(path: &Path, has_terminal: bool) -> Result<Sender, RuntimeError> {
    OpenOptions::new().open_sender(path).map_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            failed(&format!("the container's input: {error}"))
        } else if has_terminal {
            failed("the container takes no input (its spec has no `stdin: true`)")
        } else {
            failed("the container takes no input (its spec needs `stdin: true` and `tty: true`)")
        }
    })
}

struct Joined {
    daemon: Daemon,
    id: String,
    log: PathBuf,
    stdin: Option<Sender>,
    size: Option<Size>,
}

impl Joined {
    async fn drive(mut self, served: Served) {
        let Served { input, output } = served;
        let left = output.clone();
        let stdin = self.stdin.take();
        if let Some(size) = self.size {
            // A program that draws the screen draws it anew when the size changes.
            let other = Size {
                width: size.width.saturating_add(1),
                ..size
            };
            self.tell_size(other).await;
            self.tell_size(size).await;
        }
        let ended = CancellationToken::new();
        let (lines, mut chunks) = mpsc::channel::<logs::Chunk>(CHUNKS_MAX);
        let query = Query {
            follow: true,
            tail: Some(0),
            ..Query::default()
        };
        let copying = async {
            let says = async move {
                while let Some(chunk) = chunks.recv().await {
                    let bytes = Bytes::from(chunk.bytes);
                    let said = match chunk.stream {
                        Stream::Stdout => Output::Stdout(bytes),
                        Stream::Stderr => Output::Stderr(bytes),
                    };
                    if output.send(said).await.is_err() {
                        break;
                    }
                }
                output
            };
            let reads = logs::pump(&self.log, &query, ended.cancelled(), lines);
            tokio::join!(reads, says)
        };
        let waiting = async {
            let code = wait(&self.daemon, &self.id, "").await;
            ended.cancel();
            code
        };
        let carrying = async { tokio::join!(copying, waiting) };
        let feeding = self.feed(stdin, input);
        tokio::pin!(carrying);
        // A container may be silent for ever: whoever joined it may not leave a watch behind.
        // Cancel-safe: the input is over with the output.
        let ((read, output), code) = tokio::select! {
            carried = &mut carrying => carried,
            () = feeding => return,
            () = left.closed() => return,
        };
        let last = match (read, code) {
            (Err(error), _) => Output::Failed(error.to_string()),
            (_, Err(error)) => Output::Failed(error.to_string()),
            (Ok(()), Ok(code)) => Output::Exited(code),
        };
        drop(output.send(last).await);
    }

    async fn tell_size(&self, size: Size) {
        if let Err(error) = resize(&self.daemon, &self.id, "", size).await {
            tracing::debug!(%error, "size of a terminal not told");
        }
    }

    /// Passes input on. Ends only when the other side hangs up.
    async fn feed(&self, mut stdin: Option<Sender>, mut input: mpsc::Receiver<Input>) {
        loop {
            match input.recv().await {
                Some(Input::Stdin(bytes)) => {
                    if let Some(open) = &mut stdin
                        && open.write_all(&bytes).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some(Input::Resize(size)) => self.tell_size(size).await,
                // The container keeps its input: others may join.
                Some(Input::StdinEnd) => stdin = None,
                None => return std::future::pending().await,
            }
        }
    }
}
