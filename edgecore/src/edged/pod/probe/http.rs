//! HTTP requests of probes and hooks (`k8s.io/kubernetes/pkg/probe/http`).

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::check::{connect, join};
use super::{Outcome, tls};

/// Go's client follows as many redirects.
const REDIRECTS_MAX: usize = 10;
/// Longest response head that is read.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// One GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Get {
    pub(in super::super) https: bool,
    /// Where to connect, if not to the pod.
    pub(in super::super) host: Option<String>,
    pub(in super::super) port: u16,
    pub(in super::super) path: String,
    pub(in super::super) headers: Vec<(String, String)>,
}

/// Asks; a status from 200 to 399 is good.
pub(super) async fn probe(get: &Get, address: &str, timeout: Duration) -> Outcome {
    match request(get, address, timeout, "kube-probe").await {
        Ok(status) if (200..400).contains(&status.as_u16()) => Outcome::Success,
        Ok(status) => Outcome::Failure(format!(
            "HTTP probe failed with statuscode: {}",
            status.as_u16()
        )),
        Err(message) => Outcome::Failure(message),
    }
}

/// Sends the request and follows redirects to the same host; the status it ends with.
pub(in super::super) async fn request(
    get: &Get,
    address: &str,
    timeout: Duration,
    agent: &str,
) -> Result<StatusCode, String> {
    let mut target = Target::of(get, address);
    let begun = target.url();
    let asking = async {
        for _ in 0..REDIRECTS_MAX {
            let (status, location) = ask(&target, get, agent, timeout).await?;
            let next = location.filter(|_| status.is_redirection());
            match next.and_then(|location| target.redirected(&location)) {
                Some(next) if next.host == target.host => target = next,
                // Somewhere else: the redirect itself is the answer.
                _ => return Ok(status),
            }
        }
        Err(format!("stopped after {REDIRECTS_MAX} redirects"))
    };
    let answer = tokio::time::timeout(timeout, asking).await;
    let answer = answer.unwrap_or_else(|_| {
        Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned())
    });
    answer.map_err(|why| format!("Get \"{begun}\": {why}"))
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    https: bool,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn of(get: &Get, address: &str) -> Self {
        let path = get.path.trim_start_matches('/');
        Self {
            https: get.https,
            host: get.host.clone().unwrap_or_else(|| address.to_owned()),
            port: get.port,
            path: format!("/{path}"),
        }
    }

    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", join(&self.host, self.port), self.path)
    }

    /// Where a `Location` leads; nothing if it cannot be read.
    fn redirected(&self, location: &str) -> Option<Self> {
        let uri: Uri = location.parse().ok()?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let Some(host) = uri.host() else {
            let path = path.to_owned();
            return path.starts_with('/').then(|| Self {
                path,
                ..self.clone()
            });
        };
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) => return None,
            None => self.https,
        };
        Some(Self {
            https,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
            path: path.to_owned(),
        })
    }
}

async fn ask(
    target: &Target,
    get: &Get,
    agent: &str,
    timeout: Duration,
) -> Result<(StatusCode, Option<String>), String> {
    let request = build(target, get, agent)?;
    let stream = connect(&target.host, target.port, timeout).await?;
    if target.https {
        exchange(tls::connect(&target.host, stream).await?, request).await
    } else {
        exchange(stream, request).await
    }
}

fn build(target: &Target, get: &Get, agent: &str) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::builder()
        .uri(target.path.as_str())
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    for (name, value) in &get.headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|e| e.to_string())?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|e| e.to_string())?;
        if name == HOST {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
    let default_port = if target.https { 443 } else { 80 };
    let host = if target.port == default_port {
        target.host.clone()
    } else {
        join(&target.host, target.port)
    };
    for (name, default) in [
        (HOST, host.as_str()),
        (USER_AGENT, agent),
        (ACCEPT, "*/*"),
        (CONNECTION, "close"),
    ] {
        if !headers.contains_key(&name) {
            let value = HeaderValue::try_from(default).map_err(|e| e.to_string())?;
            headers.insert(name, value);
        }
    }
    // An empty value is how a pod asks for the header to be left out.
    for name in [USER_AGENT, ACCEPT] {
        if headers.get(&name).is_some_and(HeaderValue::is_empty) {
            headers.remove(&name);
        }
    }
    Ok(request)
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let handshake = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    // Cancel-safe: both are pinned here and polled on; a connection that is over has handed its
    // answer or its error to the sender.
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    };
    let answer = answer.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None if error.is_incomplete_message() => "EOF".to_owned(),
        None => error.to_string(),
    })?;
    let location = answer.headers().get(LOCATION);
    let location = location.and_then(|value| Some(value.to_str().ok()?.to_owned()));
    Ok((answer.status(), location))
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
