//! Local applications that ask for a URL of the cloud (device plane §7.1).
//!
//! As with KubeEdge, the HTTP status is always 200 and the outcome is in the body:
//! `{"code","msg","body"}`. Unlike there, `code` tells apart what went wrong.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::message::{Content, Message, Operation, Route};
use wire::rules::{Failure, GROUP, HTTP_BODY_BYTES_MAX, Routes, SERVICE_BUS};

use super::ServiceBusConfig;
use crate::bus::Certificates;
use crate::clock;
use crate::hub::{HubHandle, RequestError};

/// Connections at once; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 32;
/// Requests that wait for the cloud at once, of the link's
/// [`REQUESTS_MAX`](wire::limits::REQUESTS_MAX): pods need it too.
const REQUESTS_MAX: usize = 16;
/// A head, or a body, that takes longer is not waited for.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Pause before a port that could not be opened is tried again.
const BIND_RETRY: Duration = Duration::from_secs(5);
/// While there are no file descriptors: nothing tells when there are.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What a local application sends; everything but the URL is for the application in the cloud.
#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(rename = "targetURL", alias = "targetUrl", alias = "targeturl")]
    target_url: String,
}

/// What it gets.
#[derive(Debug, Serialize)]
struct Told {
    code: u16,
    msg: String,
    body: String,
}

impl Told {
    fn new(code: u16, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            body: String::new(),
        }
    }
}

pub(super) struct Server {
    pub(super) config: ServiceBusConfig,
    pub(super) hub: HubHandle,
    pub(super) routes: watch::Receiver<Arc<Routes>>,
}

/// What a connection is served with.
struct Served {
    hub: HubHandle,
    routes: watch::Receiver<Arc<Routes>>,
    timeout: Duration,
    room: Arc<Semaphore>,
}

impl Server {
    /// Until `stop`: open while a rule wants it.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut is_told = false;
        loop {
            let wanted = self.routes.wait_for(|routes| !routes.urls.is_empty());
            // Cancel-safe: a watch and a token.
            tokio::select! {
                () = stop.cancelled() => return,
                wanted = wanted => if wanted.is_err() { return },
            }
            match self.open().await {
                Ok((listener, tls)) => {
                    is_told = false;
                    tracing::info!(
                        listen = self.config.listen,
                        tls = tls.is_some(),
                        "ServiceBus listens"
                    );
                    self.serve(listener, tls, &stop).await;
                    tracing::info!(listen = self.config.listen, "ServiceBus no longer listens");
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(
                            listen = self.config.listen,
                            error,
                            "ServiceBus cannot listen; trying again"
                        );
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(BIND_RETRY) => {}
                    }
                }
            }
        }
    }

    async fn open(&self) -> Result<(TcpListener, Option<Arc<Certificates>>), String> {
        let files = self.config.tls.clone();
        let tls = files.map(|files| Certificates::load(files, "ServiceBus"));
        let tls = tls.transpose().map_err(|error| error.to_string())?;
        let listener = TcpListener::bind(&self.config.listen).await;
        Ok((
            listener.map_err(|error| error.to_string())?,
            tls.map(Arc::new),
        ))
    }

    /// Until no rule wants it any more. Who is being answered is answered still.
    async fn serve(
        &mut self,
        listener: TcpListener,
        tls: Option<Arc<Certificates>>,
        stop: &CancellationToken,
    ) {
        let served = Arc::new(Served {
            hub: self.hub.clone(),
            routes: self.routes.clone(),
            timeout: self.config.timeout,
            room: Arc::new(Semaphore::new(REQUESTS_MAX)),
        });
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            // Cancel-safe: an accept that is dropped has taken nothing, nor has a permit.
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                empty = self.routes.wait_for(|routes| routes.urls.is_empty()) => {
                    drop(empty);
                    break;
                }
                Some(_) = connections.join_next() => continue,
                accepted = async {
                    let slot = Arc::clone(&slots).acquire_owned().await;
                    listener.accept().await.map(|(stream, _)| (stream, slot))
                } => accepted,
            };
            let Ok((stream, slot)) = accepted else {
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            };
            let (served, tls) = (Arc::clone(&served), tls.clone());
            connections.spawn(async move {
                let _held = slot;
                connection(stream, tls, served).await;
            });
        }
        drop(listener);
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { while connections.join_next().await.is_some() {} } => {}
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<Arc<Certificates>>, served: Arc<Served>) {
    let Some(certificates) = tls else {
        return exchange(stream, served).await;
    };
    let handshake = certificates.acceptor().accept(stream);
    match tokio::time::timeout(REQUEST_WITHIN, handshake).await {
        Ok(Ok(stream)) => exchange(stream, served).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake with the ServiceBus failed"),
        Err(_) => tracing::debug!("TLS handshake with the ServiceBus took too long"),
    }
}

/// One request a connection: an application that keeps one open keeps a slot.
async fn exchange<S>(stream: S, served: Arc<Served>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request| {
        let served = Arc::clone(&served);
        async move {
            let told = answer(request, &served).await;
            let body = serde_json::to_vec(&told).unwrap_or_default();
            let mut response = Response::new(Full::new(Bytes::from(body)));
            response.headers_mut().insert(
                http::header::CONTENT_TYPE,
                http::HeaderValue::from_static("application/json"),
            );
            Ok::<_, Infallible>(response)
        }
    });
    let ended = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        .keep_alive(false)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "connection to the ServiceBus ended early");
    }
}

async fn answer(request: Request<Incoming>, served: &Served) -> Told {
    let body = Limited::new(request.into_body(), HTTP_BODY_BYTES_MAX).collect();
    let Ok(Ok(body)) = tokio::time::timeout(REQUEST_WITHIN, body).await else {
        return Told::new(400, "can't read data from body of the http's request");
    };
    let body = body.to_bytes();
    let Ok(asked) = serde_json::from_slice::<Asked>(&body) else {
        return Told::new(400, "invalid params");
    };
    let url = asked.target_url;
    if !served.routes.borrow().urls.contains(&url) {
        let words =
            format!("url {url} is not allowed and please make a rule for this url in the cloud");
        return Told::new(400, words);
    }
    let Ok(room) = Arc::clone(&served.room).try_acquire_owned() else {
        return Told::new(503, "too many requests wait for the cloud");
    };
    let hub = served.hub.clone();
    let message = message(url, &body);
    // The place is held until the link forgets the request, also when nobody waits any more.
    let asking = tokio::spawn(async move {
        let _held = room;
        hub.request(message).await
    });
    match tokio::time::timeout(served.timeout, asking).await {
        Ok(Ok(Ok(reply))) => told(&reply),
        Ok(Ok(Err(error))) => Told::new(code_of(error), error.to_string()),
        Ok(Err(_)) => Told::new(503, "this node is stopping"),
        Err(_) => Told::new(504, format!("no answer within {:?}", served.timeout)),
    }
}

fn message(url: String, body: &[u8]) -> Message {
    let route = Route::new(SERVICE_BUS, GROUP, &Operation::Upload, url);
    let id = uuid::Uuid::new_v4().to_string();
    // As Go writes a byte slice.
    let content = Content::string(&STANDARD.encode(body));
    Message::new(id, clock::unix_millis(), route, content)
}

fn code_of(error: RequestError) -> u16 {
    match error {
        RequestError::Disabled | RequestError::Offline | RequestError::Busy => 503,
        RequestError::Lost => 504,
    }
}

fn told(reply: &Message) -> Told {
    if reply.route.operation() == Operation::Error {
        return match reply.content.decode::<Failure>() {
            Ok(failure) => Told {
                code: failure.code,
                msg: failure.message,
                body: failure.body,
            },
            Err(_) => Told::new(500, "the hub's answer could not be read"),
        };
    }
    Told {
        code: 200,
        msg: "receive response from cloud successfully".to_owned(),
        body: reply.content.document().into_owned(),
    }
}
