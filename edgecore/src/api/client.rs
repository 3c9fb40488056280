//! Asking the running daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};

use super::Status;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    #[error(
        "edgecore is not running (nothing listens at `{socket}`); start it with `edgecore run`"
    )]
    NotRunning { socket: PathBuf },
    #[error("edgecore at `{socket}` does not answer: {reason}")]
    NoAnswer { socket: PathBuf, reason: String },
}

/// The daemon's status.
pub async fn status(socket: &Path) -> Result<Status, AskError> {
    let stream = tokio::net::UnixStream::connect(socket)
        .await
        .map_err(|error| {
            use std::io::ErrorKind::{ConnectionRefused, NotFound};
            let socket = socket.to_owned();
            if matches!(error.kind(), NotFound | ConnectionRefused) {
                AskError::NotRunning { socket }
            } else {
                let reason = error.to_string();
                AskError::NoAnswer { socket, reason }
            }
        })?;
    let no_answer = |reason: String| AskError::NoAnswer {
        socket: socket.to_owned(),
        reason,
    };
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|e| no_answer(e.to_string()))?;
    // Owns the sender: the connection ends when the answer is in.
    let ask = async move {
        let request = http::Request::get("/status")
            .header("host", "edgecore")
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map_err(|e| e.to_string())
    };
    let (answer, _ended) =
        tokio::time::timeout(ANSWER_WITHIN, async { tokio::join!(ask, connection) })
            .await
            .map_err(|_| no_answer(format!("waited {ANSWER_WITHIN:?}")))?;
    answer.map_err(no_answer)
}
