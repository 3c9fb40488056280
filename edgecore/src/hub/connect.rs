//! TCP, TLS, upgrade (protocol §3.1), and our extension headers.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::HeaderName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, http::Response};
use wire::extension::{self, Extensions};
use wire::limits;

use super::tls::{self, Floor, TlsError};
use crate::config::HubConfig;

pub(super) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Socket buffers: small, the link carries small messages and lives for weeks.
const BUFFER_BYTES: usize = 4 << 10;

/// Why there is no session. `Display` with its causes is what `edgecore status` shows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ConnectError {
    #[error("{0}; has this node joined? (`edgecore join`)")]
    Identity(TlsError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot connect to {server}: {source}")]
    Tcp {
        server: String,
        source: std::io::Error,
    },
    #[error("TLS with {server} failed: {source}")]
    Handshake {
        server: String,
        source: std::io::Error,
    },
    #[error("{server} refused the session: {status} {body}")]
    Refused {
        server: String,
        status: u16,
        body: String,
    },
    #[error("upgrade at {server} failed: {source}")]
    Upgrade {
        server: String,
        source: Box<tungstenite::Error>,
    },
    #[error("{server} did not answer within {within:?}")]
    Timeout { server: String, within: Duration },
}

/// What the upgrade agreed on.
pub(super) struct Connected {
    pub socket: Socket,
    pub extensions: Extensions,
    /// Highest sequence number of our epoch that the hub has stored.
    pub acked: Option<u64>,
}

/// One attempt, bounded by `within`.
pub(super) async fn connect(
    config: &HubConfig,
    node: &str,
    epoch: &str,
    floor: &Floor,
    within: Duration,
) -> Result<Connected, ConnectError> {
    tokio::time::timeout(within, attempt(config, node, epoch, floor))
        .await
        .map_err(|_| ConnectError::Timeout {
            server: config.server.clone(),
            within,
        })?
}

async fn attempt(
    config: &HubConfig,
    node: &str,
    epoch: &str,
    floor: &Floor,
) -> Result<Connected, ConnectError> {
    let server = || config.server.clone();
    // Read anew each time: a join or a renewal may have written them meanwhile.
    let tls_config = Arc::new(tls::mutual(&config.tls, floor).map_err(ConnectError::Identity)?);
    let name = tls::server_name(&config.server)?;
    let tcp = TcpStream::connect(&config.server)
        .await
        .map_err(|source| ConnectError::Tcp {
            server: server(),
            source,
        })?;
    // A status or an acknowledgement must not wait for Nagle; if it cannot be set, it waits.
    drop(tcp.set_nodelay(true));
    let stream = tokio_rustls::TlsConnector::from(tls_config)
        .connect(name, tcp)
        .await
        .map_err(|source| ConnectError::Handshake {
            server: server(),
            source,
        })?;
    let request = upgrade_request(config, node, epoch).map_err(|source| ConnectError::Upgrade {
        server: server(),
        source: Box::new(source),
    })?;
    let websocket = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(limits::MESSAGE_BYTES_MAX))
        .max_frame_size(Some(limits::MESSAGE_BYTES_MAX));
    match tokio_tungstenite::client_async_with_config(request, stream, Some(websocket)).await {
        Ok((socket, response)) => Ok(agreed(socket, &response)),
        Err(tungstenite::Error::Http(response)) => Err(ConnectError::Refused {
            server: server(),
            status: response.status().as_u16(),
            body: response
                .body()
                .as_ref()
                .map(|body| String::from_utf8_lossy(body).chars().take(300).collect())
                .unwrap_or_default(),
        }),
        Err(source) => Err(ConnectError::Upgrade {
            server: server(),
            source: Box::new(source),
        }),
    }
}

fn upgrade_request(
    config: &HubConfig,
    node: &str,
    epoch: &str,
) -> Result<http::Request<()>, tungstenite::Error> {
    let url = format!(
        "wss://{}/{}/{node}/events",
        config.server, config.project_id
    );
    let mut request = url.into_client_request()?;
    let extensions = Extensions::ALL.to_header();
    let headers = [
        ("node_id", node),
        ("project_id", &config.project_id),
        ("connectionuse", "msg"),
        (extension::HEADER, &extensions),
        (extension::HEADER_EPOCH, epoch),
    ];
    for (name, value) in headers {
        let value = HeaderValue::from_str(value)
            .map_err(|error| tungstenite::Error::HttpFormat(error.into()))?;
        request
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    Ok(request)
}

fn agreed<B>(socket: Socket, response: &Response<B>) -> Connected {
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let extensions = header(extension::HEADER).map_or(Extensions::NONE, Extensions::parse);
    Connected {
        socket,
        extensions: extensions.both(Extensions::ALL),
        acked: header(extension::HEADER_ACKED).and_then(|text| text.trim().parse().ok()),
    }
}
