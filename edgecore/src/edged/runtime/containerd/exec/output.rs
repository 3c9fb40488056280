//! A command's whole output and exit code.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

use super::Running;
use crate::edged::runtime::{EXEC_OUTPUT_BYTES_MAX, ExecOutput, RuntimeError};

/// How long output is waited for after the process has ended: a child in the background may hold
/// the streams for ever.
const DRAIN: Duration = Duration::from_secs(1);
const CHUNK_BYTES: usize = 4 << 10;

/// Both streams in the order in which they come, up to a limit; more is read and dropped.
struct Kept(Vec<u8>);

impl Kept {
    fn add(&mut self, bytes: &[u8]) {
        let room = EXEC_OUTPUT_BYTES_MAX.saturating_sub(self.0.len());
        self.0.extend(bytes.iter().take(room));
    }
}

/// Reads some; nothing when the stream is over. A stream that is over never answers. Cancel-safe,
/// as reading a pipe is.
async fn some(stream: &mut Option<Receiver>, chunk: &mut [u8]) -> usize {
    let Some(open) = stream else {
        return std::future::pending().await;
    };
    loop {
        match open.read(chunk).await {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(length) if length > 0 => return length,
            Ok(_) | Err(_) => {
                *stream = None;
                return 0;
            }
        }
    }
}

/// Reads to the end of both streams and of the process.
pub(super) async fn collect(running: Running) -> Result<ExecOutput, RuntimeError> {
    let Running {
        process,
        stdin,
        stdout,
        stderr,
    } = running;
    drop(stdin);
    let (mut stdout, mut stderr) = (Some(stdout), stderr);
    let mut kept = Kept(Vec::new());
    let (mut out, mut err) = ([0_u8; CHUNK_BYTES], [0_u8; CHUNK_BYTES]);
    let mut code = None;
    let drained = tokio::time::sleep(Duration::MAX);
    tokio::pin!(drained);
    {
        let ended = process.wait();
        tokio::pin!(ended);
        while code.is_none() || stdout.is_some() || stderr.is_some() {
            // All cancel-safe: pipe reads, a future by reference, a timer by reference.
            tokio::select! {
                length = some(&mut stdout, &mut out) => kept.add(&out[..length]),
                length = some(&mut stderr, &mut err) => kept.add(&err[..length]),
                exit = &mut ended, if code.is_none() => {
                    code = Some(exit?);
                    drained.as_mut().reset(Instant::now() + DRAIN);
                }
                () = &mut drained, if code.is_some() => break,
            }
        }
    }
    Ok(ExecOutput {
        exit_code: code.unwrap_or_default(),
        output: kept.0,
    })
}
