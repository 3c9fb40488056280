//! Sessions over the local socket: `POST /exec` and `POST /attach` with `Upgrade: outpost-session`,
//! then [`super::frames`] in both directions until one side closes.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::frames::{Frame, Frames};
use super::target::{Target, TargetError};
use crate::edged::PodSummary;
use crate::edged::runtime::session::{
    AttachRequest, ExecRequest, Input, MESSAGES_MAX, Output, Session,
};
use crate::edged::runtime::{Runtime, RuntimeError};

/// The protocol's name in `Upgrade`.
pub const PROTOCOL: &str = "outpost-session";
/// Sessions at the same time.
pub const SESSIONS_MAX: usize = 32;
/// Longest request: a command line.
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// Body of `POST /exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ExecBody {
    pub target: Target,
    pub exec: ExecRequest,
}

/// Body of `POST /attach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttachBody {
    pub target: Target,
    pub attach: AttachRequest,
}

/// Why no session came about, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refusal {
    pub message: String,
    /// What a shell would have answered: 126 or 127.
    pub exit_code: Option<i32>,
}

impl From<TargetError> for Refusal {
    fn from(error: TargetError) -> Self {
        Self {
            message: error.to_string(),
            exit_code: None,
        }
    }
}

impl From<RuntimeError> for Refusal {
    fn from(error: RuntimeError) -> Self {
        Self {
            exit_code: if let RuntimeError::Exec { exit_code, .. } = &error {
                Some(*exit_code)
            } else {
                None
            },
            message: error.to_string(),
        }
    }
}

/// Opens sessions, so many at once.
pub(super) struct Sessions {
    pub(super) runtime: Arc<dyn Runtime>,
    room: Arc<Semaphore>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

/// Which session is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Exec,
    Attach,
}

impl Sessions {
    pub(super) fn new(runtime: Arc<dyn Runtime>, stop: CancellationToken) -> Self {
        Self {
            runtime,
            room: Arc::new(Semaphore::new(SESSIONS_MAX)),
            stop,
        }
    }

    /// Answers 101 and carries the session in its own task, or says why not.
    pub(super) async fn answer(
        &self,
        kind: Kind,
        mut request: Request<Incoming>,
        pods: &[PodSummary],
    ) -> Response<Full<Bytes>> {
        let wants = request.headers().get(http::header::UPGRADE);
        if wants.is_none_or(|wants| wants != PROTOCOL) {
            return refuse(
                StatusCode::UPGRADE_REQUIRED,
                &message("no upgrade asked for"),
            );
        }
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            let text = format!("{SESSIONS_MAX} sessions are open already");
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &message(&text));
        };
        let upgraded = hyper::upgrade::on(&mut request);
        let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX);
        let Ok(body) = body.collect().await else {
            return refuse(StatusCode::BAD_REQUEST, &message("the request is too long"));
        };
        let session = match self.open(kind, &body.to_bytes(), pods).await {
            Ok(session) => session,
            Err(refusal) => return refuse(StatusCode::CONFLICT, &refusal),
        };
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let _held = permit;
            // Cancel-safe: dropping the session hangs up.
            tokio::select! {
                () = stop.cancelled() => {}
                () = async {
                    match upgraded.await {
                        Ok(io) => serve(session, TokioIo::new(io)).await,
                        Err(error) => tracing::debug!(%error, "session did not begin"),
                    }
                } => {}
            }
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(
            http::header::UPGRADE,
            http::HeaderValue::from_static(PROTOCOL),
        );
        headers.insert(
            http::header::CONNECTION,
            http::HeaderValue::from_static("upgrade"),
        );
        response
    }

    async fn open(&self, kind: Kind, body: &[u8], pods: &[PodSummary]) -> Result<Session, Refusal> {
        let unreadable = |error: serde_json::Error| message(&error.to_string());
        match kind {
            Kind::Exec => {
                let body: ExecBody = serde_json::from_slice(body).map_err(unreadable)?;
                let id = &body.target.running(pods)?.id;
                Ok(self.runtime.exec(id, &body.exec).await?)
            }
            Kind::Attach => {
                let body: AttachBody = serde_json::from_slice(body).map_err(unreadable)?;
                let id = &body.target.running(pods)?.id;
                Ok(self.runtime.attach(id, &body.attach).await?)
            }
        }
    }
}

fn message(text: &str) -> Refusal {
    Refusal {
        message: text.to_owned(),
        exit_code: None,
    }
}

fn refuse(code: StatusCode, refusal: &Refusal) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(refusal).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response
}

/// Carries a session over a connection until the process ends or the other side hangs up.
pub async fn serve<T: AsyncRead + AsyncWrite + Unpin>(session: Session, io: T) {
    let Session { input, mut output } = session;
    let (mut sink, mut source) = Framed::new(io, Frames).split();
    let saying = async {
        while let Some(said) = output.recv().await {
            let is_last = matches!(said, Output::Exited(_) | Output::Failed(_));
            if sink.send(Frame::Output(said)).await.is_err() || is_last {
                break;
            }
        }
        // The other side may be gone already.
        drop(sink.close().await);
    };
    let hearing = async {
        while let Some(Ok(Frame::Input(heard))) = source.next().await {
            if input.send(heard).await.is_err() {
                // The process reads no more, but may have more to say.
                return std::future::pending().await;
            }
        }
    };
    // Cancel-safe: whoever ends first ends the session.
    tokio::select! {
        () = saying => {}
        () = hearing => {}
    }
}

/// The asking side of [`serve`]: a connection as a session.
pub fn over<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: T) -> Session {
    let (input, mut said) = mpsc::channel::<Input>(MESSAGES_MAX);
    let (heard, output) = mpsc::channel(MESSAGES_MAX);
    tokio::spawn(async move {
        let (mut sink, mut source) = Framed::new(io, Frames).split();
        let saying = async {
            while let Some(input) = said.recv().await {
                if sink.send(Frame::Input(input)).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let hearing = async {
            loop {
                let frame = match source.next().await {
                    Some(Ok(Frame::Output(frame))) => frame,
                    Some(Ok(Frame::Input(_))) => continue,
                    Some(Err(error)) => Output::Failed(error.to_string()),
                    None => Output::Failed("edgecore hung up".to_owned()),
                };
                let is_last = matches!(frame, Output::Exited(_) | Output::Failed(_));
                if heard.send(frame).await.is_err() || is_last {
                    return;
                }
            }
        };
        // Cancel-safe: the end of the output ends the session, as does its reader's going.
        tokio::select! {
            () = saying => {}
            () = hearing => {}
            () = heard.closed() => {}
        }
    });
    Session { input, output }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::runtime::session::pair;

    #[tokio::test]
    async fn a_session_passes_through_a_connection_both_ways() {
        let (ours, theirs) = tokio::io::duplex(64);
        let (session, mut served) = pair();
        let serving = tokio::spawn(serve(session, theirs));
        let mut remote = over(ours);
        let text = Bytes::from(vec![b'x'; 1000]);
        remote.input.send(Input::Stdin(text.clone())).await.unwrap();
        assert_eq!(served.input.recv().await, Some(Input::Stdin(text.clone())));
        served
            .output
            .send(Output::Stderr(text.clone()))
            .await
            .unwrap();
        assert_eq!(remote.output.recv().await, Some(Output::Stderr(text)));
        served.output.send(Output::Exited(7)).await.unwrap();
        assert_eq!(remote.output.recv().await, Some(Output::Exited(7)));
        serving.await.unwrap();
        assert_eq!(remote.output.recv().await, None);
    }

    #[tokio::test]
    async fn hanging_up_on_either_side_reaches_the_other() {
        let (ours, theirs) = tokio::io::duplex(64);
        let (session, served) = pair();
        let serving = tokio::spawn(serve(session, theirs));
        drop(over(ours).output);
        serving.await.unwrap();
        served.output.closed().await;

        let (ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        let mut remote = over(ours);
        assert!(matches!(
            remote.output.recv().await,
            Some(Output::Failed(_))
        ));
    }
}
