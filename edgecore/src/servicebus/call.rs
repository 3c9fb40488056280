//! A call of the cloud to a service on this node (device plane §7.2).

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use wire::message::Message;
use wire::rules::{Base64, HOP_HEADERS, HTTP_BODY_BYTES_MAX, Headers, HttpReply, HttpRequest};

/// Connect, ask and read together (KubeEdge's client has the same).
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Headers of a reply, in bytes; beside the body they have to fit one message.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Methods that a rule may call with. `CONNECT` and `TRACE` are about the connection.
const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

/// Why no service has answered.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("`{0}` is not <port>:<path>")]
    Resource(String),
    #[error("port {0} is the ServiceBus itself")]
    Own(u16),
    #[error("the request is not readable")]
    Content(#[source] serde_json::Error),
    #[error("method `{0}` is not taken")]
    Method(String),
    #[error("`{0}` is no header")]
    Header(String),
    #[error("nothing answers at 127.0.0.1:{port}: {source}")]
    Unreachable { port: u16, source: std::io::Error },
    #[error("the service broke off")]
    Broken(#[source] hyper::Error),
    #[error("the service's answer is larger than {HTTP_BODY_BYTES_MAX} bytes, or was not finished")]
    TooLarge,
    #[error("the service did not answer within {CALL_WITHIN:?}")]
    Late,
}

impl CallError {
    fn status_code(&self) -> u16 {
        match self {
            Self::Resource(_)
            | Self::Own(_)
            | Self::Content(_)
            | Self::Method(_)
            | Self::Header(_) => 400,
            Self::Unreachable { .. } | Self::Broken(_) | Self::TooLarge => 502,
            Self::Late => 504,
        }
    }
}

/// Does what a message asks; the reply is the service's, or says why there is none. A request is
/// made once: what may be repeated only its sender knows.
pub(super) async fn call(message: &Message, own_port: Option<u16>) -> HttpReply {
    let attempt = tokio::time::timeout(CALL_WITHIN, attempt(message, own_port));
    attempt
        .await
        .unwrap_or(Err(CallError::Late))
        .unwrap_or_else(|error| {
            tracing::debug!(%error, "a call of the cloud has no answer of a service");
            HttpReply::of_node(error.status_code(), &error.to_string())
        })
}

async fn attempt(message: &Message, own_port: Option<u16>) -> Result<HttpReply, CallError> {
    let (port, uri) = target(&message.route.resource)?;
    if own_port == Some(port) {
        return Err(CallError::Own(port));
    }
    let asked: HttpRequest = message.content.decode().map_err(CallError::Content)?;
    let request = request(&message.route.operation, port, uri, asked)?;
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .map_err(|source| CallError::Unreachable { port, source })?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEADER_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(CallError::Broken)?;
    let exchange = async {
        let reply = sender
            .send_request(request)
            .await
            .map_err(CallError::Broken)?;
        let (head, body) = reply.into_parts();
        let body = Limited::new(body, HTTP_BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|_| CallError::TooLarge)?.to_bytes();
        Ok(HttpReply {
            header: headers(&head.headers),
            status_code: head.status.as_u16(),
            body: Base64(body.into()),
        })
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut is_open = true;
    loop {
        // Both go on where they were: neither is dropped before the answer is there.
        tokio::select! {
            reply = &mut exchange => return reply,
            // Whatever ended it shows in the exchange.
            _ = &mut connection, if is_open => is_open = false,
        }
    }
}

/// `<port>:<path>`: the path with its query. KubeEdge allows one colon in all; here more may follow
/// in the path.
fn target(resource: &str) -> Result<(u16, Uri), CallError> {
    let wrong = || CallError::Resource(resource.to_owned());
    let (port, path) = resource.split_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|&port| port > 0);
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    // In the form of a request to an origin: nothing in a path can name another host.
    let uri = path.parse().ok().filter(|uri: &Uri| uri.host().is_none());
    port.zip(uri).ok_or_else(wrong)
}

fn request(
    operation: &str,
    port: u16,
    uri: Uri,
    asked: HttpRequest,
) -> Result<Request<Full<Bytes>>, CallError> {
    let name = if asked.method.is_empty() {
        operation
    } else {
        &asked.method
    };
    let method = METHODS.iter().find(|method| method.as_str() == name);
    let method = method.ok_or_else(|| CallError::Method(name.to_owned()))?;
    let mut request = Request::new(Full::new(Bytes::from(asked.body.0)));
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (name, values) in &asked.header {
        if HOP_HEADERS.iter().any(|hop| name.eq_ignore_ascii_case(hop)) {
            continue;
        }
        let wrong = || CallError::Header(name.clone());
        let header = HeaderName::try_from(name).map_err(|_| wrong())?;
        for value in values {
            let value = HeaderValue::try_from(value).map_err(|_| wrong())?;
            headers.append(header.clone(), value);
        }
    }
    let host = HeaderValue::try_from(format!("127.0.0.1:{port}"));
    headers.insert(HOST, host.map_err(|_| CallError::Header("host".into()))?);
    headers
        .entry(ACCEPT)
        .or_insert(HeaderValue::from_static("*/*"));
    Ok(request)
}

fn headers(found: &HeaderMap) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in found {
        if !HOP_HEADERS.contains(&name.as_str()) {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            headers
                .entry(name.as_str().to_owned())
                .or_default()
                .push(value);
        }
    }
    headers
}
