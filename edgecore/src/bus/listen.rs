//! What comes before MQTT on a port of the broker inside: TLS, a WebSocket request, or both.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use broker::{Listener, Transport, Upgrade, UpgradeFuture, Upgraded};
use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::BusError;
use super::certificates::Certificates;
use crate::config::MqttConfig;

/// Bytes a WebSocket reads at once; MQTT packets are small.
const READ_BYTES: usize = 8 << 10;

/// The listeners besides the plain one, bound.
pub(super) async fn bind(config: &MqttConfig) -> Result<Vec<Listener>, BusError> {
    let files = config.tls.clone();
    let certificates = files.map(|files| Certificates::load(files, "MQTT"));
    let certificates = certificates.transpose();
    let certificates = certificates.map_err(BusError::ListenerTls)?.map(Arc::new);
    let mut listeners = Vec::new();
    for (listen, has_tls, is_web_socket) in [
        (&config.tls_listen, true, false),
        (&config.web_socket_listen, false, true),
        (&config.web_socket_tls_listen, true, true),
    ] {
        let Some(listen) = listen else { continue };
        let tcp = TcpListener::bind(listen).await;
        let tcp = tcp.map_err(|source| BusError::Listen {
            listen: listen.clone(),
            source,
        })?;
        tracing::info!(%listen, tls = has_tls, web_socket = is_web_socket, "MQTT broker listens");
        let upgrade = BusUpgrade {
            tls: certificates.clone().filter(|_| has_tls),
            web_socket: is_web_socket.then(|| WebSocket {
                origins: config.web_socket_origins.clone().into(),
                message_bytes_max: usize::try_from(config.packet_bytes_max).unwrap_or(usize::MAX),
            }),
        };
        listeners.push(Listener::upgraded(tcp, Arc::new(upgrade)));
    }
    Ok(listeners)
}

#[derive(Clone)]
struct WebSocket {
    origins: Arc<[String]>,
    message_bytes_max: usize,
}

#[derive(Clone)]
struct BusUpgrade {
    tls: Option<Arc<Certificates>>,
    web_socket: Option<WebSocket>,
}

impl Upgrade for BusUpgrade {
    fn upgrade(&self, stream: TcpStream) -> UpgradeFuture {
        let Self { tls, web_socket } = self.clone();
        Box::pin(async move {
            let mut certificate = None;
            let stream: Box<dyn Transport> = match tls {
                None => Box::new(stream),
                Some(certificates) => {
                    let stream = certificates.acceptor().accept(stream).await?;
                    certificate = common_name(stream.get_ref().1.peer_certificates());
                    Box::new(stream)
                }
            };
            let transport = match web_socket {
                None => stream,
                Some(web_socket) => Box::new(web_socket.accept(stream).await?),
            };
            Ok(Upgraded {
                transport,
                certificate,
            })
        })
    }
}

/// The common name of the certificate that the TLS handshake has verified.
fn common_name(chain: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(chain?.first()?).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    let name = name.as_str().ok()?;
    (!name.is_empty() && !name.contains(char::is_control)).then(|| name.to_owned())
}

impl WebSocket {
    async fn accept(self, stream: Box<dyn Transport>) -> io::Result<Binary> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(self.message_bytes_max))
            .max_frame_size(Some(self.message_bytes_max));
        let origins = self.origins;
        #[expect(
            clippy::result_large_err,
            reason = "the callback's type is the library's"
        )]
        let answer = move |request: &Request, mut response: Response| {
            if !is_welcome(request.headers(), &origins) {
                return Err(refusal("this page may not connect (webSocketOrigins)"));
            }
            // MQTT 5 §6: the client asks for `mqtt` and is told so.
            let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
            let speaks = offered.iter().filter_map(|value| value.to_str().ok());
            if !speaks
                .flat_map(|value| value.split(','))
                .any(|name| name.trim() == "mqtt")
            {
                return Err(refusal("the subprotocol is mqtt"));
            }
            response.headers_mut().insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static("mqtt"),
            );
            Ok(response)
        };
        let socket =
            tokio_tungstenite::accept_hdr_async_with_config(stream, answer, Some(config)).await;
        Ok(Binary {
            socket: socket.map_err(io::Error::other)?,
            rest: Bytes::new(),
        })
    }
}

/// A browser says where its page is from. A page from elsewhere could otherwise use the node's own
/// browser to pass for a local client.
fn is_welcome(headers: &HeaderMap, origins: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let is_same = origin
        .split_once("://")
        .is_some_and(|(_, place)| Some(place) == host);
    is_same || origins.iter().any(|known| known == "*" || known == origin)
}

fn refusal(reason: &str) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(reason.to_owned()));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

/// Binary messages as a stream of bytes; packets and messages need not end together.
struct Binary {
    socket: WebSocketStream<Box<dyn Transport>>,
    rest: Bytes,
}

impl AsyncRead for Binary {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    let error = "text on a WebSocket that carries MQTT";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let len = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Binary {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // One message at a time: what the peer does not take stays with the broker.
        ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(io::Error::other)?;
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket)
            .start_send(message)
            .map_err(io::Error::other)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_flush(cx)
            .map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_close(cx)
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_from_elsewhere_are_not_welcome_unless_named() {
        let origins = ["https://panel.example".to_owned()];
        for (origin, expected) in [
            (None, true),
            (Some("http://node:9001"), true),
            (Some("https://panel.example"), true),
            (Some("https://evil.example"), false),
            (Some("null"), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("node:9001"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(is_welcome(&headers, &origins), expected, "{origin:?}");
        }
    }
}
