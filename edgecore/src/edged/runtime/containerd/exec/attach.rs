//! Joining the process that a container runs. What it says is read from its log, so that nobody
//! who comes or goes disturbs it; what it hears goes through the fifo it was started with.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
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
use crate::edged::runtime::containerd::marks::Marks;
use crate::edged::runtime::containerd::record::{self, label};
use crate::edged::runtime::session::{
    self as talk, AttachRequest, Input, Output, Served, Session, Size,
};

impl Execs {
    /// Joins a container.
    pub(in super::super) async fn attach(
        &self,
        id: &str,
        request: &AttachRequest,
        marks: &Marks,
    ) -> Result<Session, RuntimeError> {
        let record = record::get(&self.daemon, id)
            .await?
            .ok_or_else(|| not_found(id))?;
        let spec: Value = serde_json::from_slice(&record.spec.unwrap_or_default().value)
            .map_err(|error| failed(&format!("the container's stored spec: {error}")))?;
        let has_terminal = spec["process"]["terminal"] == Value::Bool(true);
        let log = record.labels.get(label::LOG_PATH).map(PathBuf::from);
        let stdin = if request.stdin {
            let end = marks.stdin_end(id);
            Some(Feed {
                to: Some(open_input(&marks.stdin(id), &end)?),
                fifo: marks.stdin(id),
                end: end.exists().then_some(end),
            })
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
fn open_input(path: &Path, end: &Path) -> Result<Sender, RuntimeError> {
    let nobody_reads = rustix::io::Errno::NXIO.raw_os_error();
    OpenOptions::new().open_sender(path).map_err(|error| {
        if error.raw_os_error() == Some(nobody_reads) {
            failed("the container has closed its input")
        } else if error.kind() != io::ErrorKind::NotFound {
            failed(&format!("the container's input: {error}"))
        } else if end.exists() {
            failed("the container's input ended with its first session (`stdinOnce: true`)")
        } else {
            failed("the container takes no input (its spec has no `stdin: true`)")
        }
    })
}

/// A session's part in a container's input. Dropping it ends the input that lasts for one session.
struct Feed {
    to: Option<Sender>,
    fifo: PathBuf,
    /// Where the end is told, if the session ends the input.
    end: Option<PathBuf>,
}

impl Feed {
    async fn write(&mut self, bytes: &[u8]) {
        if let Some(open) = &mut self.to
            && open.write_all(bytes).await.is_err()
        {
            self.to = None;
        }
    }

    /// This session has no more to say. Without `stdinOnce` the container keeps its input: others
    /// may join.
    fn close(&mut self) {
        self.to = None;
        let Some(end) = self.end.take() else { return };
        // The next session finds no input.
        let tell = || {
            std::fs::remove_file(&self.fifo)?;
            // A logger that is gone holds nothing open any more.
            let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            let mut open = std::fs::File::options();
            open.write(true)
                .custom_flags(flags)
                .open(end)?
                .write_all(b"e")
        };
        let told: io::Result<()> = tell();
        if let Err(error) = told {
            tracing::debug!(%error, "the end of a container's input not told");
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.close();
    }
}

struct Joined {
    daemon: Daemon,
    id: String,
    log: PathBuf,
    stdin: Option<Feed>,
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
        let (ended, listens) = (CancellationToken::new(), CancellationToken::new());
        let listener = output.clone();
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
            let opened = || listens.cancel();
            let reads = logs::pump_from(&self.log, &query, ended.cancelled(), lines, opened);
            tokio::join!(reads, says)
        };
        let waiting = async {
            let code = wait(&self.daemon, &self.id, "").await;
            ended.cancel();
            code
        };
        let carrying = async { tokio::join!(copying, waiting) };
        let feeding = async {
            // What is answered must not be missed.
            listens.cancelled().await;
            self.feed(stdin, input, &listener).await;
        };
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

    /// Passes input on. Ends when the other side hangs up.
    async fn feed(
        &self,
        mut stdin: Option<Feed>,
        mut input: mpsc::Receiver<Input>,
        listener: &mpsc::Sender<Output>,
    ) {
        loop {
            match input.recv().await {
                Some(Input::Stdin(bytes)) => {
                    if let Some(stdin) = &mut stdin {
                        // Cancel-safe enough: nobody is there to miss the rest.
                        tokio::select! {
                            biased;
                            () = stdin.write(&bytes) => {}
                            () = listener.closed() => return,
                        }
                    }
                }
                Some(Input::Resize(size)) => self.tell_size(size).await,
                Some(Input::StdinEnd) => stdin = None,
                None => {
                    drop(stdin);
                    return listener.closed().await;
                }
            }
        }
    }
}
