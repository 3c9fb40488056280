//! A command's whole output and exit code.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

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
    let exit_code = {
        let ended = process.wait();
        tokio::pin!(ended);
        loop {
            // All cancel-safe: pipe reads, a future by reference.
            tokio::select! {
                length = some(&mut stdout, &mut out) => kept.add(&out[..length]),
                length = some(&mut stderr, &mut err) => kept.add(&err[..length]),
                exit = &mut ended => break exit?,
            }
        }
    };
    let rest = async {
        while stdout.is_some() || stderr.is_some() {
            // Cancel-safe: a pipe read that is dropped has taken nothing.
            tokio::select! {
                length = some(&mut stdout, &mut out) => kept.add(&out[..length]),
                length = some(&mut stderr, &mut err) => kept.add(&err[..length]),
            }
        }
    };
    // Whoever still holds the streams then is not the command.
    let _ = tokio::time::timeout(DRAIN, rest).await;
    Ok(ExecOutput {
        exit_code,
        output: kept.0,
    })
}
