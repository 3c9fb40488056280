//! Serving HTTPS: one accept loop, bounded handshakes and connections, one small task each.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::pki::Identity;

/// A handshake that takes longer is dropped.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Most connections of one HTTPS listener; more wait in the listen queue.
pub const CONNECTIONS_MAX: usize = 4096;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Address.
    pub address: SocketAddr,
    /// The verified client certificate's subject, if one was presented.
    pub identity: Option<Arc<Identity>>,
}

/// Accepts until `stop`; every request goes to `handler`. Without `tls` it is plain HTTP.
pub async fn serve<H, F, B>(
    listener: TcpListener,
    tls: impl Into<Option<Arc<rustls::ServerConfig>>>,
    stop: CancellationToken,
    handler: H,
) -> Result<(), anyhow::Error>
where
    H: Fn(Peer, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let acceptor = tls.into().map(TlsAcceptor::from);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    loop {
        // Cancelling either branch loses nothing: a permit or a queued connection.
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = Arc::clone(&slots).acquire_owned() => permit?,
        };
        let (stream, address) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, handler, stop) = (acceptor.clone(), handler.clone(), stop.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let _ = stream.set_nodelay(true);
            let Some(acceptor) = acceptor else {
                let identity = None;
                let peer = Peer { address, identity };
                connection(TokioIo::new(stream), peer, stop, handler).await;
                return;
            };
            let accepted = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await;
            let tls = match accepted {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => {
                    tracing::debug!(%address, %error, "TLS handshake failed");
                    return;
                }
                Err(_) => return,
            };
            let identity = peer_identity(tls.get_ref().1);
            let peer = Peer { address, identity };
            connection(TokioIo::new(tls), peer, stop, handler).await;
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(3), tasks.wait()).await;
    Ok(())
}

/// The subject of the certificate that the client has proved to own.
pub fn peer_identity(connection: &rustls::ServerConnection) -> Option<Arc<Identity>> {
    let der = connection.peer_certificates()?.first()?;
    Identity::from_der(der).map(Arc::new)
}

async fn connection<H, F, B, I>(io: I, peer: Peer, stop: CancellationToken, handler: H)
where
    H: Fn(Peer, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let address = peer.address;
    let service = service_fn(move |request| {
        let answer = handler(peer.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
        .keep_alive_interval(Duration::from_secs(30));
    let serving = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            // Watches have no end of their own: a short grace, then the connection is dropped.
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(1), serving.as_mut()).await;
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended");
    }
}

/// A plain answer.
pub fn answer(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(kind),
    );
    response
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", body.into())
}

/// A JSON answer.
pub fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    answer(
        status,
        "application/json",
        serde_json::to_vec(body).unwrap_or_default(),
    )
}
