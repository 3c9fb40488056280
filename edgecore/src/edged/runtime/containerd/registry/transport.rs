//! How one endpoint is spoken to: its TLS, the headers that are for it alone, and redirects. Those are
//! followed by hand, because the next host must not learn what was meant for this one.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Identity, Method, Response, StatusCode, Url};

use super::{Endpoint, Kind, RegistryError, Tls, read_bounded};

const CONNECT: Duration = Duration::from_secs(10);
/// The head of an answer; its body has limits of its own.
const HEAD_WITHIN: Duration = Duration::from_secs(60);
/// As many as Go's client follows.
const REDIRECTS_MAX: u32 = 10;

/// One question, wherever its answer lies.
pub(super) struct Errand {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Goes with every redirect.
    pub(super) header: Option<(HeaderName, HeaderValue)>,
    /// For the URL's own origin alone.
    pub(super) authorization: Option<HeaderValue>,
    /// A form that is posted. It may hold a token: a redirect of it is not followed.
    pub(super) form: Option<String>,
    /// The endpoint itself is asked, not a token server or a layer's maker.
    pub(super) is_own: bool,
}

impl Errand {
    pub(super) fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            header: None,
            authorization: None,
            form: None,
            is_own: false,
        }
    }
}

/// One endpoint's connections.
pub(super) struct Transport {
    http: reqwest::Client,
    headers: HeaderMap,
}

impl Transport {
    pub(super) fn new(endpoint: &Endpoint, stall: Duration) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &endpoint.headers {
            let header = name
                .parse::<HeaderName>()
                .ok()
                .zip(HeaderValue::from_str(value).ok());
            let (name, mut value) =
                header.ok_or_else(|| format!("has a header `{name}` that is none"))?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        Ok(Self {
            http: build(endpoint, stall)?,
            headers,
        })
    }

    /// Asks, and follows where the answer lies. A host other than the first one gets neither the
    /// endpoint's headers nor credentials, and neither does the first one when it is come back to:
    /// the way then was another host's choice.
    pub(super) async fn send(&self, errand: Errand) -> Result<Response, RegistryError> {
        let origin = errand.url.origin();
        let mut url = errand.url.clone();
        let mut is_home = true;
        for _ in 0..=REDIRECTS_MAX {
            is_home &= url.origin() == origin;
            let answer = self.send_once(&errand, &url, is_home).await?;
            let Some(next) = next(&url, &answer).filter(|_| errand.form.is_none()) else {
                return Ok(answer);
            };
            url = next;
        }
        let text = "redirects without end".to_owned();
        Err(RegistryError::new(&host_of(&url), Kind::Unreachable, text))
    }

    async fn send_once(
        &self,
        errand: &Errand,
        url: &Url,
        is_home: bool,
    ) -> Result<Response, RegistryError> {
        let mut request = self.http.request(errand.method.clone(), url.clone());
        if errand.is_own && is_home {
            request = request.headers(self.headers.clone());
        }
        if let Some((name, value)) = &errand.header {
            request = request.header(name, value);
        }
        if let Some(value) = errand.authorization.as_ref().filter(|_| is_home) {
            let mut headers = HeaderMap::new();
            // In the place of one that the endpoint's settings have.
            headers.insert(AUTHORIZATION, value.clone());
            request = request.headers(headers);
        }
        if let Some(form) = &errand.form {
            request = request
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone());
        }
        let failed = |error| RegistryError::of_request(&host_of(url), &error);
        let sent = tokio::time::timeout(HEAD_WITHIN, request.send()).await;
        sent.map_or_else(
            |_| {
                let text = format!("did not answer within {HEAD_WITHIN:?}");
                Err(RegistryError::new(&host_of(url), Kind::Unreachable, text))
            },
            |sent| sent.map_err(failed),
        )
    }
}

/// As errors and credentials name it: with the port, if it is not the scheme's.
fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Where an answer says that the answer is.
fn next(url: &Url, answer: &Response) -> Option<Url> {
    let is_redirect = matches!(
        answer.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let place = answer.headers().get(LOCATION).filter(|_| is_redirect)?;
    let next = url.join(place.to_str().ok()?).ok()?;
    matches!(next.scheme(), "http" | "https").then_some(next)
}

fn build(endpoint: &Endpoint, stall: Duration) -> Result<reqwest::Client, String> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Lost only to somebody who installed one at the same moment: then one is there.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let extra = certificates(&endpoint.tls)?;
    let identity = identity(&endpoint.tls)?;
    let builder = || {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("outpost-edgecore/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(stall)
            .redirect(Policy::none())
            .http1_only()
            .tls_danger_accept_invalid_certs(endpoint.tls.skip_verify);
        if let Some(identity) = &identity {
            builder = builder.identity(identity.clone());
        }
        builder
    };
    // Plain http needs no roots, and a node may have none.
    let is_plain = endpoint.base.starts_with("http:");
    let built = if is_plain {
        builder().tls_certs_only(extra.clone()).build()
    } else {
        builder().tls_certs_merge(extra.clone()).build()
    };
    built
        .or_else(|_| builder().tls_certs_only(extra).build())
        .map_err(|error| format!("cannot be asked: {error}"))
}

fn certificates(tls: &Tls) -> Result<Vec<Certificate>, String> {
    let mut all = Vec::new();
    for path in &tls.ca_files {
        let shown = path.display();
        let pem = read_bounded(path).map_err(|error| format!("has a CA file {shown}: {error}"))?;
        let read = Certificate::from_pem_bundle(&pem)
            .map_err(|_| format!("has a CA file {shown} that is not PEM"))?;
        if read.is_empty() {
            return Err(format!("has a CA file {shown} without a certificate"));
        }
        all.extend(read);
    }
    Ok(all)
}

/// The first certificate of the node's for this host.
fn identity(tls: &Tls) -> Result<Option<Identity>, String> {
    let Some((cert, key)) = tls.identities.first() else {
        return Ok(None);
    };
    let mut pem = Vec::new();
    for path in std::iter::once(cert).chain(key) {
        let read = read_bounded(path)
            .map_err(|error| format!("has a client certificate {}: {error}", path.display()))?;
        pem.extend(read);
        pem.push(b'\n');
    }
    let shown = cert.display();
    Identity::from_pem(&pem)
        .map(Some)
        .map_err(|_| format!("has a client certificate {shown} without certificate or key in PEM"))
}
