//! One repository at one endpoint, asked over HTTP (OCI distribution specification).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::header::{ACCEPT, CONTENT_RANGE, HeaderName, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::token::{Challenge, TokenAnswer, basic, bearer};
use super::transport::{Errand, Transport};
use super::{Endpoint, Kind, Registries, RegistryError, Tokens};
use crate::edged::runtime::RegistryAuth;

/// A document or token that is not here by then does not come: a registry that sends a byte now and
/// then must not hold one of the node's few places for pulls.
const DOCUMENT_WITHIN: Duration = Duration::from_secs(120);
/// Basic authorization holds until it is refused.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Registries do not take manifests above 4 MiB; token answers are far smaller.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What a registry may answer a manifest request with: OCI and docker, single and list.
pub(in super::super) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A blob's bytes from the asked offset on.
pub(in super::super) type Part = stream::BoxStream<'static, io::Result<Bytes>>;

/// A repository at an endpoint, with the credentials to ask it with.
pub(in super::super) struct Client {
    endpoint: Endpoint,
    transport: Transport,
    registry: String,
    repository: String,
    auths: Vec<RegistryAuth>,
    /// The credentials that were taken last.
    chosen: AtomicUsize,
    tokens: Arc<Tokens>,
}

/// What is asked for.
struct Question<'a> {
    method: Method,
    path: &'a str,
    header: Option<(HeaderName, HeaderValue)>,
    /// In words, for errors.
    what: &'a str,
}

impl Client {
    /// `auths` are the caller's for `registry`; a mirror is another host and never sees them.
    pub(in super::super) fn new(
        registries: &Registries,
        endpoint: Endpoint,
        registry: &str,
        repository: &str,
        auths: &[RegistryAuth],
        tokens: Arc<Tokens>,
    ) -> Result<Self, RegistryError> {
        let wrong = |text: String| RegistryError::new(&endpoint.host, Kind::Config, text);
        let transport = Transport::new(&endpoint, registries.stall).map_err(wrong)?;
        let node_key = if endpoint.is_mirror {
            endpoint.host.as_str()
        } else {
            registry
        };
        let mut all = if endpoint.is_mirror {
            Vec::new()
        } else {
            auths.to_vec()
        };
        for auth in registries.node_auths(node_key, repository) {
            if !all.contains(&auth) {
                all.push(auth);
            }
        }
        Ok(Self {
            endpoint,
            transport,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            auths: all,
            chosen: AtomicUsize::new(0),
            tokens,
        })
    }

    pub(in super::super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What `reference` (tag or digest) stands for, without its bytes; `None` if not told.
    pub(in super::super) async fn digest(
        &self,
        reference: &str,
    ) -> Result<Option<String>, RegistryError> {
        let answer = self.manifest_answer(Method::HEAD, reference).await?;
        let digest = answer.headers().get("docker-content-digest");
        Ok(digest
            .and_then(|digest| digest.to_str().ok())
            .map(str::to_owned))
    }

    /// The bytes of a manifest or index, not yet verified.
    pub(in super::super) async fn manifest(&self, reference: &str) -> Result<Bytes, RegistryError> {
        let read = async {
            let answer = self.manifest_answer(Method::GET, reference).await?;
            read_all(answer, &self.endpoint.host).await
        };
        in_time(&self.endpoint.host, read).await
    }

    async fn manifest_answer(
        &self,
        method: Method,
        reference: &str,
    ) -> Result<Response, RegistryError> {
        let what = if reference.contains(':') {
            format!("{}@{reference}", self.repository)
        } else {
            format!("{}:{reference}", self.repository)
        };
        let accept = HeaderValue::from_str(&MANIFEST_TYPES.join(", ")).ok();
        self.ask(&Question {
            method,
            path: &format!("manifests/{reference}"),
            header: accept.map(|accept| (ACCEPT, accept)),
            what: &what,
        })
        .await
    }

    /// A blob from `offset` on.
    pub(in super::super) async fn blob(
        &self,
        digest: &str,
        offset: u64,
    ) -> Result<Part, RegistryError> {
        let what = format!("blob {digest} of {}", self.repository);
        let answer = self
            .ask(&Question {
                method: Method::GET,
                path: &format!("blobs/{digest}"),
                header: range(offset),
                what: &what,
            })
            .await?;
        self.part(answer, offset)
    }

    /// A layer that its maker lets nobody else distribute, from where the manifest says it is.
    /// Nobody's credentials go there.
    pub(in super::super) async fn foreign(
        &self,
        url: &str,
        offset: u64,
    ) -> Result<Part, RegistryError> {
        let url = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(url) = url else {
            let text = "names a layer's place that is no http URL".to_owned();
            return Err(self.error(Kind::Protocol, text));
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        let errand = Errand {
            header: range(offset),
            ..Errand::get(url)
        };
        let answer = self.transport.send(errand).await?;
        if !answer.status().is_success() {
            let what = "a foreign layer";
            return Err(RegistryError::of_status(&host, answer.status(), what, 0));
        }
        self.part(answer, offset)
    }

    /// Checks that an answer begins where it was asked to; what a registry without ranges sends
    /// before that is read and dropped.
    fn part(&self, answer: Response, offset: u64) -> Result<Part, RegistryError> {
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(skip(body(answer, &self.endpoint.host), offset));
        }
        let told = answer.headers().get(CONTENT_RANGE);
        let from = told.and_then(|told| first_byte(told.to_str().ok()?));
        if from.is_some_and(|from| from != offset) {
            let text = format!("sent bytes from {from:?} when asked from {offset}");
            return Err(self.error(Kind::Protocol, text));
        }
        Ok(body(answer, &self.endpoint.host))
    }

    fn error(&self, kind: Kind, text: String) -> RegistryError {
        RegistryError::new(&self.endpoint.host, kind, text)
    }

    /// Asks with each of the credentials until one is taken.
    async fn ask(&self, question: &Question<'_>) -> Result<Response, RegistryError> {
        let count = self.auths.len().max(1);
        let first = self.chosen.load(Ordering::Relaxed);
        let mut refusal = None;
        for step in 0..count {
            let index = (first + step) % count;
            match self.ask_as(question, self.auths.get(index)).await {
                Ok(answer) if answer.status().is_success() => {
                    self.chosen.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(answer) => {
                    let tried = self.auths.len();
                    let host = &self.endpoint.host;
                    let error =
                        RegistryError::of_status(host, answer.status(), question.what, tried);
                    if !matches!(error.kind, Kind::Denied | Kind::NotFound) {
                        return Err(error);
                    }
                    refusal = Some(error);
                }
                Err(error) if error.kind == Kind::Denied => refusal = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refusal.unwrap_or_else(|| self.error(Kind::Denied, "refused".to_owned())))
    }

    async fn ask_as(
        &self,
        question: &Question<'_>,
        auth: Option<&RegistryAuth>,
    ) -> Result<Response, RegistryError> {
        let key = self.key(auth);
        let known = match auth {
            Some(auth) if !auth.registry_token.is_empty() => bearer(&auth.registry_token),
            _ => self.tokens.get(&key),
        };
        let answer = self.send(question, known).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        self.tokens.forget(&key);
        let granted = match Challenge::of(answer.headers()) {
            None => None,
            Some(Challenge::Basic) => auth.and_then(basic).map(|value| (value, FOREVER)),
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                Some(self.token(&realm, service.as_deref(), &scope, auth).await?)
            }
        };
        let Some((value, life)) = granted else {
            return Ok(answer);
        };
        let answer = self.send(question, Some(value.clone())).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            self.tokens.put(&key, value, life);
        }
        Ok(answer)
    }

    async fn send(
        &self,
        question: &Question<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let url = format!(
            "{}/{}/{}",
            self.endpoint.base, self.repository, question.path
        );
        let mut url = Url::parse(&url)
            .map_err(|error| self.error(Kind::Config, format!("has no usable URL: {error}")))?;
        if self.endpoint.is_mirror {
            // A mirror of several registries is told which one is meant.
            url.query_pairs_mut().append_pair("ns", &self.registry);
        }
        let errand = Errand {
            method: question.method.clone(),
            header: question.header.clone(),
            authorization,
            is_own: true,
            ..Errand::get(url)
        };
        self.transport.send(errand).await
    }

    /// Asks a token server.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        auth: Option<&RegistryAuth>,
    ) -> Result<(HeaderValue, Duration), RegistryError> {
        let mut url = Url::parse(realm)
            .map_err(|_| self.error(Kind::Protocol, "names no usable token server".to_owned()))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        if auth.is_some() && url.scheme() != "https" && self.endpoint.base.starts_with("https:") {
            let text = format!("sends credentials to `{host}` without TLS; they were not sent");
            return Err(self.error(Kind::Protocol, text));
        }
        let refresh = auth
            .map(|auth| auth.identity_token.as_str())
            .filter(|token| !token.is_empty());
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", scope);
            if let Some(refresh) = refresh {
                query.append_pair("grant_type", "refresh_token");
                query.append_pair("client_id", "outpost");
                query.append_pair("refresh_token", refresh);
            }
        }
        let errand = if refresh.is_some() {
            let form = url.query().unwrap_or_default().to_owned();
            url.set_query(None);
            Errand {
                method: Method::POST,
                form: Some(form),
                ..Errand::get(url)
            }
        } else {
            Errand {
                authorization: auth.and_then(basic),
                ..Errand::get(url)
            }
        };
        let answer = self.transport.send(errand).await?;
        let status = answer.status();
        if !status.is_success() {
            let error = RegistryError::of_status(&host, status, "a token", self.auths.len());
            return Err(if matches!(error.kind, Kind::NotFound | Kind::Protocol) {
                self.error(Kind::Denied, error.to_string())
            } else {
                error
            });
        }
        let bytes = in_time(&host, read_all(answer, &host)).await?;
        serde_json::from_slice::<TokenAnswer>(&bytes)
            .ok()
            .and_then(TokenAnswer::authorization)
            .ok_or_else(|| {
                RegistryError::new(&host, Kind::Protocol, "answered without a token".to_owned())
            })
    }

    /// What an authorization is for; of the credentials only a hash.
    fn key(&self, auth: Option<&RegistryAuth>) -> String {
        let mut hasher = DefaultHasher::new();
        auth.hash(&mut hasher);
        let hash = hasher.finish();
        format!("{} {} {hash:016x}", self.endpoint.base, self.repository)
    }
}

fn range(offset: u64) -> Option<(HeaderName, HeaderValue)> {
    if offset == 0 {
        return None;
    }
    let value = HeaderValue::from_str(&format!("bytes={offset}-")).ok()?;
    Some((RANGE, value))
}

/// The first byte of `bytes 5-9/10`.
fn first_byte(content_range: &str) -> Option<u64> {
    let rest = content_range.trim().strip_prefix("bytes")?.trim_start();
    rest.split('-').next()?.trim().parse().ok()
}

async fn in_time<T>(
    host: &str,
    reading: impl Future<Output = Result<T, RegistryError>>,
) -> Result<T, RegistryError> {
    let read = tokio::time::timeout(DOCUMENT_WITHIN, reading).await;
    read.unwrap_or_else(|_| {
        let text = format!("did not send a small document within {DOCUMENT_WITHIN:?}");
        Err(RegistryError::new(host, Kind::Unreachable, text))
    })
}

async fn read_all(mut answer: Response, host: &str) -> Result<Bytes, RegistryError> {
    let mut bytes = Vec::new();
    loop {
        let part = answer.chunk().await;
        match part.map_err(|error| RegistryError::of_request(host, &error))? {
            None => return Ok(bytes.into()),
            Some(part) => bytes.extend_from_slice(&part),
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            let text = format!("answered with more than {ANSWER_BYTES_MAX} bytes");
            return Err(RegistryError::new(host, Kind::Protocol, text));
        }
    }
}

fn body(answer: Response, host: &str) -> Part {
    let host = host.to_owned();
    stream::try_unfold((answer, host), async |(mut answer, host)| {
        match answer.chunk().await {
            Ok(None) => Ok(None),
            Ok(Some(part)) => Ok(Some((part, (answer, host)))),
            Err(error) => Err(io::Error::other(RegistryError::of_request(&host, &error))),
        }
    })
    .boxed()
}

fn skip(stream: Part, offset: u64) -> Part {
    let mut left = offset;
    stream
        .map(move |part| {
            part.map(|mut part| {
                let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
                let dropped = left.min(length);
                left -= dropped;
                part.split_off(usize::try_from(dropped).unwrap_or(usize::MAX))
            })
        })
        .boxed()
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
