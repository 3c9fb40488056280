//! The API over HTTP: routing, negotiation, and the translation between requests and the
//! pipeline. Mount [`Service`] on any hyper server; put the caller's [`User`] into the request's
//! extensions (without it the caller is `system:anonymous`).

mod answer;
mod body;
mod negotiate;
mod objects;
mod reviews;
mod route;
mod watch;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Method, Request, Response};
use serde_json::json;

pub use answer::Body;

use crate::authn::{Attributes, Authorizer, Tokens, UNAUTHENTICATED, User};
use crate::discovery::{self, Document};
use crate::status::ApiError;
use crate::{Api, openapi};
use negotiate::Shape;
use route::{Query, Route};

/// The version that clients are told. They insist on a semantic version and compare it with
/// their own; the suffix says what it is.
const GIT_VERSION: &str = concat!("v1.32.0+outpost-", env!("CARGO_PKG_VERSION"));

/// The HTTP service. Clones are the same service.
#[derive(Clone)]
pub struct Service {
    api: Api,
    authorizer: Arc<dyn Authorizer>,
    tokens: Option<Arc<dyn Tokens>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

/// A request as the handlers see it. The body has been read, also when the request is going to be
/// refused: a connection with an unread body could not be used again.
struct Asked {
    method: Method,
    path: String,
    query: Query,
    headers: HeaderMap,
    user: User,
    body: Bytes,
}

impl Asked {
    fn header(&self, name: http::HeaderName) -> &str {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    }

    fn accept(&self) -> String {
        let all = self.headers.get_all(ACCEPT).iter();
        let texts: Vec<&str> = all.filter_map(|v| v.to_str().ok()).collect();
        texts.join(",")
    }

    fn content_type(&self) -> String {
        self.header(CONTENT_TYPE).to_owned()
    }
}

impl Service {
    /// A service that asks `authorizer` before everything.
    pub fn new(api: Api, authorizer: Arc<dyn Authorizer>) -> Self {
        Self {
            api,
            authorizer,
            tokens: None,
        }
    }

    /// Serves tokens of service accounts too.
    #[must_use]
    pub fn with_tokens(self, tokens: Arc<dyn Tokens>) -> Self {
        Self {
            tokens: Some(tokens),
            ..self
        }
    }

    fn tokens(&self) -> Result<&Arc<dyn Tokens>, ApiError> {
        self.tokens.as_ref().ok_or_else(ApiError::no_such_resource)
    }

    /// Answers one request. Never fails: refusals are responses.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let user = parts
            .extensions
            .get::<User>()
            .cloned()
            .unwrap_or_else(User::anonymous);
        let limit = if user.is_in(UNAUTHENTICATED) {
            body::STRANGER_BODY_BYTES_MAX
        } else {
            body::BODY_BYTES_MAX
        };
        let body = match body::read(body, limit).await {
            Ok(body) => body,
            Err(error) => return answer::error(&error),
        };
        let asked = Asked {
            query: Query::parse(parts.uri.query().unwrap_or_default()),
            path: parts.uri.path().to_owned(),
            user,
            method: parts.method,
            headers: parts.headers,
            body,
        };
        self.route(asked)
            .await
            .unwrap_or_else(|error| answer::error(&error))
    }

    async fn route(&self, asked: Asked) -> Result<Response<Body>, ApiError> {
        let route = route::parse(&asked.path);
        if let Route::Resource(path) = route {
            if let Some(kind) = reviews::kind(&path) {
                return self.review(&asked, kind).await;
            }
            return self.resource(asked, path).await;
        }
        let verb = asked.method.as_str().to_lowercase();
        self.authorizer.check(
            &asked.user,
            &Attributes::Path {
                verb: &verb,
                path: &asked.path,
            },
        )?;
        if !matches!(asked.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        Ok(match route {
            Route::Health(check) => self.health(&check, &asked.query).await,
            Route::Version => answer::json(200, &version()),
            Route::Root => answer::json(
                200,
                &json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2",
                                  "/openapi/v3", "/readyz", "/version"]}),
            ),
            Route::OpenApiV2 => answer::respond(200, openapi::V2_TYPE, answer::full("")),
            Route::OpenApiV3Index => answer::json(200, &openapi::index(&self.served())),
            Route::OpenApiV3(name) => match openapi::document(&self.served(), &name) {
                Some(document) => answer::json(200, &document),
                None => return Ok(answer::text(404, "404 page not found\n")),
            },
            Route::CoreVersions => self.discover(&asked, &Document::CoreVersions)?,
            Route::Groups => self.discover(&asked, &Document::Groups)?,
            Route::Group(group) => self.discover(&asked, &Document::Group(group))?,
            Route::Resources(group, version) => {
                self.discover(&asked, &Document::Resources(group, version))?
            }
            Route::Unknown | Route::Resource(_) => answer::text(404, "404 page not found\n"),
        })
    }

    fn served(&self) -> Arc<crate::registry::Served> {
        self.api.registry().served()
    }

    async fn health(&self, path: &str, query: &Query) -> Response<Body> {
        let check = path.split('/').next().unwrap_or_default();
        let healthy = self.api.store().revision().await.is_ok();
        let (code, mark, verdict) = if healthy {
            (200, "[+]store ok", format!("{check} check passed\n"))
        } else {
            (
                500,
                "[-]store failed: reason withheld",
                format!("{check} check failed\n"),
            )
        };
        if healthy && !query.has("verbose") {
            return answer::text(200, "ok");
        }
        answer::text(code, format!("[+]ping ok\n{mark}\n{verdict}"))
    }

    /// Discovery documents carry an ETag, so that clients keep them on disk.
    fn discover(&self, asked: &Asked, document: &Document) -> Result<Response<Body>, ApiError> {
        let shape = negotiate::choose(&asked.accept())?;
        let served = self.served();
        let aggregated = shape == Shape::Discovery;
        let Some(value) = discovery::document(&served, document, aggregated) else {
            return Ok(answer::text(404, "404 page not found\n"));
        };
        let (content_type, cached) = if aggregated && document.is_aggregate() {
            (discovery::AGGREGATED_TYPE, true)
        } else {
            (answer::JSON, false)
        };
        let body = value.to_string();
        let tag = format!("\"{}\"", discovery::digest(&body));
        let mut response = if cached && asked.header(IF_NONE_MATCH) == tag {
            let mut response = Response::new(answer::full(""));
            *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            response
        } else {
            answer::respond(200, content_type, answer::full(body))
        };
        if cached {
            let headers = response.headers_mut();
            headers.insert(VARY, HeaderValue::from_static("Accept"));
            headers.insert(
                http::header::CACHE_CONTROL,
                HeaderValue::from_static("public"),
            );
            if let Ok(tag) = HeaderValue::from_str(&tag) {
                headers.insert(ETAG, tag);
            }
        }
        Ok(response)
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "32", "gitVersion": GIT_VERSION, "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
        "compiler": "rustc", "platform": format!("linux/{}", platform()),
    })
}

/// Go's name of the architecture.
const fn platform() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else if cfg!(target_arch = "arm") {
        "arm"
    } else {
        std::env::consts::ARCH
    }
}

impl<B> hyper::service::Service<Request<B>> for Service
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.handle(request).await) })
    }
}
