//! Asking the running daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::sessions::{self, AttachBody, ExecBody, PROTOCOL, Refusal};
use super::{NodeStats, Status};
use crate::edged::PodSummary;
use crate::edged::runtime::session::Session;
use crate::twin::{DeviceDetail, HistoryQuery, Reading};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Removing images takes as long as the disk does.
const PRUNE_WITHIN: Duration = Duration::from_secs(300);
/// Starting a command under load takes its time.
const SESSION_WITHIN: Duration = Duration::from_secs(75);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    #[error(
        "edgecore is not running (nothing listens at `{socket}`); start it with `edgecore run`"
    )]
    NotRunning { socket: PathBuf },
    #[error("only root may talk to edgecore (`{socket}`); try with sudo")]
    NotAllowed { socket: PathBuf },
    #[error("edgecore at `{socket}` does not answer: {reason}")]
    NoAnswer { socket: PathBuf, reason: String },
    /// What was asked cannot be done; `exit_code` is what a shell would have answered.
    #[error("{message}")]
    Refused {
        message: String,
        exit_code: Option<i32>,
    },
}

/// The daemon's status.
pub async fn status(socket: &Path) -> Result<Status, AskError> {
    get(socket, "/status").await
}

/// The node's pods.
pub async fn pods(socket: &Path) -> Result<Vec<PodSummary>, AskError> {
    get(socket, "/pods").await
}

/// What the node and its pods use.
pub async fn stats(socket: &Path) -> Result<NodeStats, AskError> {
    get(socket, "/stats").await
}

/// Removes the images that nobody needs; the bytes freed.
pub async fn prune_images(socket: &Path) -> Result<u64, AskError> {
    request(
        socket,
        Request::post("/images/prune"),
        Vec::new(),
        PRUNE_WITHIN,
    )
    .await
}

/// Everything about one device.
pub async fn device(socket: &Path, namespace: &str, name: &str) -> Result<DeviceDetail, AskError> {
    get(socket, &format!("/devices/{namespace}/{name}")).await
}

/// Sets desired values of a device; how it is then.
pub async fn set_desired(
    socket: &Path,
    namespace: &str,
    name: &str,
    values: &BTreeMap<String, String>,
) -> Result<DeviceDetail, AskError> {
    let path = format!("/devices/{namespace}/{name}/desired");
    let body = serde_json::to_vec(values).unwrap_or_default();
    request(socket, Request::post(path), body, ANSWER_WITHIN).await
}

/// Readings of one property, oldest first.
pub async fn history(
    socket: &Path,
    (namespace, name): (&str, &str),
    property: &str,
    query: HistoryQuery,
) -> Result<Vec<Reading>, AskError> {
    let mut path = format!("/history/{namespace}/{name}/{property}?last={}", query.last);
    for (key, bound) in [("since", query.since_ms), ("until", query.until_ms)] {
        if let Some(bound) = bound {
            path.push_str(&format!("&{key}={bound}"));
        }
    }
    get(socket, &path).await
}

/// Starts a command in a container and talks with it.
pub async fn exec(socket: &Path, body: &ExecBody) -> Result<Session, AskError> {
    open(socket, "/exec", serde_json::to_vec(body)).await
}

/// Joins the process that a container runs.
pub async fn attach(socket: &Path, body: &AttachBody) -> Result<Session, AskError> {
    open(socket, "/attach", serde_json::to_vec(body)).await
}

/// One question and the head of its answer; whatever is wrong before that is an error.
async fn ask(
    socket: &Path,
    request: http::request::Builder,
    body: Vec<u8>,
    within: Duration,
) -> Result<Response<Incoming>, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        let socket = socket.to_owned();
        let kind = error.kind();
        if matches!(kind, NotFound | ConnectionRefused) {
            AskError::NotRunning { socket }
        } else if kind == PermissionDenied {
            AskError::NotAllowed { socket }
        } else {
            let reason = error.to_string();
            AskError::NoAnswer { socket, reason }
        }
    })?;
    let asked = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the answer's body, or with the session.
        tokio::spawn(connection.with_upgrades());
        let request: Request<Full<Bytes>> = request
            .header("host", "edgecore")
            .body(Full::from(body))
            .map_err(std::io::Error::other)?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(sender.send_request(request).await?)
    };
    let no_answer = |reason: String| AskError::NoAnswer {
        socket: socket.to_owned(),
        reason,
    };
    tokio::time::timeout(within, asked)
        .await
        .map_err(|_| no_answer(format!("waited {within:?}")))?
        .map_err(|error| no_answer(error.to_string()))
}

async fn get<T: serde::de::DeserializeOwned>(socket: &Path, path: &str) -> Result<T, AskError> {
    request(socket, Request::get(path), Vec::new(), ANSWER_WITHIN).await
}

async fn request<T: serde::de::DeserializeOwned>(
    socket: &Path,
    request: http::request::Builder,
    body: Vec<u8>,
    within: Duration,
) -> Result<T, AskError> {
    let no_answer = |reason: String| AskError::NoAnswer {
        socket: socket.to_owned(),
        reason,
    };
    let response = ask(socket, request, body, within).await?;
    let code = response.status();
    let body = tokio::time::timeout(within, response.into_body().collect())
        .await
        .map_err(|_| no_answer(format!("waited {within:?}")))?
        .map_err(|error| no_answer(error.to_string()))?
        .to_bytes();
    if code != StatusCode::OK {
        return Err(AskError::Refused {
            message: String::from_utf8_lossy(&body).into_owned(),
            exit_code: None,
        });
    }
    serde_json::from_slice(&body).map_err(|error| no_answer(error.to_string()))
}

async fn open(
    socket: &Path,
    path: &str,
    body: Result<Vec<u8>, serde_json::Error>,
) -> Result<Session, AskError> {
    let no_answer = |reason: String| AskError::NoAnswer {
        socket: socket.to_owned(),
        reason,
    };
    let body = body.map_err(|error| no_answer(error.to_string()))?;
    let request = Request::post(path)
        .header("connection", "upgrade")
        .header("upgrade", PROTOCOL);
    let response = ask(socket, request, body, SESSION_WITHIN).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| no_answer(error.to_string()))?;
        return Ok(sessions::over(TokioIo::new(upgraded)));
    }
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| no_answer(error.to_string()))?
        .to_bytes();
    let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_else(|_| Refusal {
        message: String::from_utf8_lossy(&body).into_owned(),
        exit_code: None,
    });
    Err(AskError::Refused {
        message: refusal.message,
        exit_code: refusal.exit_code,
    })
}
