//! The nodes' listener: mTLS, then the WebSocket handshake, then a session.
//!
//! Who the node is comes from its certificate. A `node_id` header that says otherwise, or a
//! certificate that a later join has replaced, is answered with a close frame that says so.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::handshake::server::{ErrorResponse, Request, Response},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wire::extension::{Extensions, HEADER, HEADER_ACKED, HEADER_EPOCH};

use super::http::{HANDSHAKE_MAX, peer_identity};
use crate::{
    clock,
    config::Session,
    pki::Enrollment,
    session::{self, Close, Services, Socket, socket_config},
};

/// Unsent ciphertext per connection.
const TLS_BUFFER_BYTES_MAX: usize = 16 * 1024;

/// What the listener needs.
pub struct WsState {
    /// Which certificates count.
    pub enrollment: Arc<Enrollment>,
    /// What sessions need.
    pub services: Arc<Services>,
    /// Bounds.
    pub limits: Session,
}

/// Accepts until `stop`, then waits for the sessions to say goodbye.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
    state: Arc<WsState>,
) -> Result<(), anyhow::Error> {
    let acceptor = TlsAcceptor::from(tls);
    let nodes = Arc::new(Semaphore::new(state.limits.nodes_max));
    let handshakes = Arc::new(Semaphore::new(state.limits.handshakes_max));
    let tasks = TaskTracker::new();
    loop {
        // Cancelling either branch loses nothing: a permit or a queued connection.
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = Arc::clone(&nodes).acquire_owned() => slot?,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, state, stop, handshakes) = (
            acceptor.clone(),
            Arc::clone(&state),
            stop.clone(),
            Arc::clone(&handshakes),
        );
        // The handshake's future is large; the session's is small and lives for weeks.
        let inner = tasks.clone();
        tasks.spawn(async move {
            let Ok(_turn) = handshakes.acquire().await else {
                return;
            };
            let shaken = tokio::time::timeout(HANDSHAKE_MAX, handshake(acceptor, stream, &state));
            if let Ok(Some(accepted)) = shaken.await {
                inner.spawn(attend(accepted, state, stop, slot));
            }
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(3), tasks.wait()).await;
    Ok(())
}

/// A connection after both handshakes.
struct Accepted {
    socket: Socket<TlsStream<TcpStream>>,
    node: String,
    extensions: Extensions,
    /// Epoch the node named, and what is stored of it.
    stored: Option<(String, u64)>,
    /// Number of the connection in the node's ledger.
    connection: Option<u64>,
    refusal: Option<Close>,
}

async fn attend(
    accepted: Accepted,
    state: Arc<WsState>,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
) {
    let Accepted {
        socket,
        node,
        extensions,
        stored,
        connection,
        refusal,
    } = accepted;
    if let Some(close) = refusal {
        tracing::warn!(node, reason = %close.reason, "node refused");
        Box::pin(socket.close(close)).await;
        return;
    }
    let services = Arc::clone(&state.services);
    drop(state);
    let handle = services
        .registry
        .connect(&node, extensions, clock::unix_millis());
    drop(node);
    session::run(socket, handle, (stored, connection), services, stop).await;
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, state: &WsState) -> Option<Accepted> {
    let _ = stream.set_nodelay(true);
    let mut tls = match acceptor.accept(stream).await {
        Ok(tls) => tls,
        Err(error) => {
            tracing::debug!(%error, "TLS handshake failed");
            return None;
        }
    };
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
    let identity = peer_identity(tls.get_ref().1)?;
    let mut refusal = None;
    let node = if let Some(node) = identity.node() {
        if let Err(error) = state
            .enrollment
            .check_certificate(node, &identity.serial)
            .await
        {
            refusal = Some(Close::new(Close::POLICY, error.to_string()));
        }
        node.to_owned()
    } else {
        let reason = format!("certificate of `{}` is no node certificate", identity.user);
        refusal = Some(Close::new(Close::POLICY, reason));
        identity.user.clone()
    };
    let (connection, acked) = match &refusal {
        None => {
            let begun = match state.services.ledger.begin(&node).await {
                Ok(begun) => begun,
                Err(error) => {
                    tracing::error!(node, %error, "a node cannot be let in: the store fails");
                    return None;
                }
            };
            (Some(begun.connection), begun.acked)
        }
        Some(_) => (None, None),
    };
    let (ws, request) = upgrade(tls, acked).await?;
    if let Some(claimed) = request.node_id.filter(|claimed| *claimed != node) {
        let reason = format!("node_id `{claimed}` is not the certificate's node `{node}`");
        refusal.get_or_insert(Close::new(Close::POLICY, reason));
    }
    let socket = Socket::new(ws, Instant::now());
    Some(Accepted {
        socket,
        node,
        extensions: request.extensions,
        stored: request.stored,
        connection,
        refusal,
    })
}

#[derive(Debug, Default)]
struct Upgrade {
    node_id: Option<String>,
    extensions: Extensions,
    stored: Option<(String, u64)>,
}

/// Answers the upgrade; `acked` is the ledger's epoch and sequence number for this node.
async fn upgrade(
    tls: TlsStream<TcpStream>,
    acked: Option<(String, u64)>,
) -> Option<(WebSocketStream<TlsStream<TcpStream>>, Upgrade)> {
    let mut seen = Upgrade::default();
    #[expect(
        clippy::result_large_err,
        reason = "the signature that tungstenite asks for"
    )]
    let callback = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
        seen.node_id = header("node_id").map(str::to_owned);
        let Some(offered) = header(HEADER) else {
            return Ok(response);
        };
        seen.extensions = Extensions::parse(offered).both(Extensions::ALL);
        let stored = match (header(HEADER_EPOCH), &acked) {
            (Some(epoch), Some((ours, seq))) if epoch == ours => *seq,
            _ => 0,
        };
        if let Ok(value) = seen.extensions.to_header().parse() {
            response.headers_mut().insert(HEADER, value);
        }
        if seen.extensions.batch {
            seen.stored = header(HEADER_EPOCH).map(|epoch| (epoch.to_owned(), stored));
            response.headers_mut().insert(HEADER_ACKED, stored.into());
        }
        Ok(response)
    };
    match accept_hdr_async_with_config(tls, callback, Some(socket_config())).await {
        Ok(ws) => Some((ws, seen)),
        Err(error) => {
            tracing::debug!(%error, "WebSocket handshake failed");
            None
        }
    }
}
