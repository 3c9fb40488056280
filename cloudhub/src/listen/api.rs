//! The API listener: who asks, then the hub's own paths, then the Kubernetes API.

use std::sync::Arc;

use apiserver::{
    ApiError,
    authn::{AllowMasters, Tokens as _, UNAUTHENTICATED, User},
    http::Service,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::http::{Peer, json};
use crate::{
    accounts::Accounts,
    clock,
    ledger::Ledger,
    pki::{ADMIN_GROUP, EnrollError, Enrollment, Pki, tokens::Record},
    readings::{self, Health, Readings},
    rules::rest::{self, Rest},
};

/// Largest body on the hub's own paths.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// User name.
    pub user: String,
    /// Groups, with `system:authenticated` or `system:unauthenticated`.
    pub groups: Vec<String>,
    /// Of a service account; else empty.
    pub uid: String,
}

impl Caller {
    /// Whether this is an administrator.
    pub fn is_admin(&self) -> bool {
        self.groups.iter().any(|g| g == ADMIN_GROUP)
    }
}

/// What the listener needs.
pub struct ApiState {
    /// Keys and the administrator's token.
    pub pki: Arc<Pki>,
    /// Tokens and node certificates.
    pub enrollment: Arc<Enrollment>,
    /// What nodes have reported.
    pub ledger: Arc<Ledger>,
    /// What devices reported.
    pub readings: Option<Readings>,
    /// Requests that rules hand on.
    pub rest: Rest,
    /// How forwarding goes.
    pub health: Health,
    /// Service accounts.
    pub accounts: Arc<Accounts>,
    /// The Kubernetes API.
    pub service: Service,
}

/// Any answer.
pub type AnyBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

fn any<B>(response: Response<B>) -> Response<AnyBody>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

/// Answers one request: who asks, then the hub's own paths, then the Kubernetes API.
pub async fn handle(
    state: Arc<ApiState>,
    peer: Peer,
    mut request: Request<Incoming>,
) -> Response<AnyBody> {
    let Some(caller) = caller(&state, &peer, request.headers()).await else {
        let refused = status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
        return any(refused);
    };
    let is_known = !caller.groups.iter().any(|g| g == UNAUTHENTICATED);
    let issuer = match (
        request.uri().path(),
        is_known && request.method() == Method::GET,
    ) {
        ("/.well-known/openid-configuration", true) => Some(Accounts::configuration()),
        ("/openid/v1/jwks", true) => Some(state.accounts.key_set()),
        _ => None,
    };
    if let Some(document) = issuer {
        return any(json(StatusCode::OK, &document));
    }
    if request.uri().path().starts_with("/outpost/") {
        return any(outpost(&state, &caller, request).await);
    }
    let user = user(caller);
    if request.uri().path().starts_with(readings::GROUP_PREFIX) {
        let uri = request.uri();
        let asked = (
            request.method(),
            uri.path(),
            uri.query().unwrap_or_default(),
        );
        let (kept, health) = (state.readings.as_ref(), &state.health);
        let answer = readings::handle(kept, health, &AllowMasters, &user, asked).await;
        return any(answer.map_or_else(|error| api_error(&error), |v| json(StatusCode::OK, &v)));
    }
    if request.uri().path().starts_with(rest::PREFIX) {
        return any(rule(&state.rest, Some(&user), rest::PREFIX, request).await);
    }
    request.extensions_mut().insert(user);
    any(state.service.handle(request).await)
}

/// A token could not be recognised.
#[derive(Debug, PartialEq, Eq)]
pub struct Unauthorized;

/// Finds out who asks: client certificate, else bearer token, else anonymous.
///
/// A bad token is refused even where anonymous would be allowed (API specification §9).
pub fn authenticate(
    pki: &Pki,
    peer: &Peer,
    headers: &http::HeaderMap,
) -> Result<Caller, Unauthorized> {
    if let Some(identity) = &peer.identity {
        let mut groups = identity.groups.clone();
        groups.push("system:authenticated".to_owned());
        return Ok(Caller {
            user: identity.user.clone(),
            groups,
            uid: String::new(),
        });
    }
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(Caller {
            user: "system:anonymous".to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            uid: String::new(),
        });
    };
    match bearer(value) {
        Some(token) if pki.is_admin_token(token) => Ok(Caller {
            user: "kubernetes-admin".to_owned(),
            groups: vec![ADMIN_GROUP.to_owned(), "system:authenticated".to_owned()],
            uid: String::new(),
        }),
        _ => Err(Unauthorized),
    }
}

fn bearer(value: &http::HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The service account whose token this is. A store that cannot be read knows nobody.
async fn account(accounts: &Accounts, headers: &http::HeaderMap) -> Option<Caller> {
    let token = headers.get(header::AUTHORIZATION).and_then(bearer)?;
    match accounts.review(token, &[]).await {
        Ok(known) => known.map(|known| Caller {
            user: known.user.name,
            groups: known.user.groups,
            uid: known.user.uid,
        }),
        Err(error) => {
            tracing::warn!(%error, "token of a service account could not be checked");
            None
        }
    }
}

/// A Kubernetes `Status` for a refusal.
pub fn status(code: StatusCode, reason: &str, message: &str) -> Response<Full<Bytes>> {
    json(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        }),
    )
}

/// Hands a request on by a rule.
async fn rule(
    rest: &Rest,
    user: Option<&User>,
    below: &str,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let asked = rest::Asked {
        method: &parts.method,
        path: parts.uri.path().strip_prefix(below).unwrap_or_default(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &parts.headers,
        body: Bytes::new(),
        is_authenticated: user.is_some(),
    };
    // Before the body: a stranger's is not read.
    if let Some(user) = user
        && let Err(error) = Rest::authorize(&AllowMasters, user, &asked)
    {
        return api_error(&error);
    }
    let Some(room) = rest.room.take() else {
        let words = "too many requests for rules at once";
        return rest::refusal(StatusCode::TOO_MANY_REQUESTS, words);
    };
    let body = Limited::new(body, rest::BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(rest::BODY_WITHIN, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return rest::refusal(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(_) => return rest::refusal(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
    };
    drop(room);
    match rest.handle(rest::Asked { body, ..asked }).await {
        Ok(answer) => answer,
        Err(error) => api_error(&error),
    }
}

/// Answers on the port that rules have for themselves.
pub async fn router(
    state: Arc<ApiState>,
    is_anonymous: bool,
    peer: Peer,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if is_anonymous {
        return rule(&state.rest, None, "/", request).await;
    }
    let Some(caller) = caller(&state, &peer, request.headers()).await else {
        return status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
    };
    rule(&state.rest, Some(&user(caller)), "/", request).await
}

fn user(caller: Caller) -> User {
    User {
        name: caller.user,
        groups: caller.groups,
        uid: caller.uid,
    }
}

/// Who asks; `None`: by credentials that are nobody's.
async fn caller(state: &ApiState, peer: &Peer, headers: &http::HeaderMap) -> Option<Caller> {
    match authenticate(&state.pki, peer, headers) {
        Ok(caller) => Some(caller),
        Err(Unauthorized) => account(&state.accounts, headers).await,
    }
}

/// The `Status` of an API error.
fn api_error(error: &ApiError) -> Response<Full<Bytes>> {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(code, &error.to_status())
}

/// Body of `POST /outpost/v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// The node.
    pub node: String,
    /// Seconds to live.
    pub ttl_secs: u64,
    /// Take the place of a node that has joined.
    #[serde(default)]
    pub replace: bool,
}

/// Answer to `POST /outpost/v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenCreated {
    /// The token, shown once.
    pub token: String,
    /// What is kept.
    pub record: Record,
}

/// Answers the hub's own paths (`/outpost/…`), for administrators only.
pub async fn outpost(
    state: &ApiState,
    caller: &Caller,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if !caller.is_admin() {
        let message = format!("`{}` may not use the hub's own paths", caller.user);
        return status(StatusCode::FORBIDDEN, "Forbidden", &message);
    }
    let path = request.uri().path().to_owned();
    if let (&Method::GET, Some(node)) = (request.method(), path.strip_prefix("/outpost/v1/ledger/"))
    {
        return ledger(state, node, request.uri().query().unwrap_or_default()).await;
    }
    match (
        request.method().clone(),
        path.strip_prefix("/outpost/v1/tokens"),
    ) {
        (Method::GET, Some("")) => match state.enrollment.tokens().await {
            Ok(tokens) => json(StatusCode::OK, &json!({ "items": tokens })),
            Err(error) => refused(&error),
        },
        (Method::POST, Some("")) => create_token(state, request).await,
        (Method::DELETE, Some(rest)) if rest.starts_with('/') => {
            match state.enrollment.revoke_token(&rest[1..]).await {
                Ok(true) => json(StatusCode::OK, &json!({ "revoked": &rest[1..] })),
                Ok(false) => status(
                    StatusCode::NOT_FOUND,
                    "NotFound",
                    &format!("no token `{}`", &rest[1..]),
                ),
                Err(error) => refused(&error),
            }
        }
        _ => status(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        ),
    }
}

/// `GET /outpost/v1/ledger/<node>[?limit=N][&stream=S]`: position, counts and the last readings.
async fn ledger(state: &ApiState, node: &str, query: &str) -> Response<Full<Bytes>> {
    let parameter = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == name))
    };
    let limit = parameter("limit")
        .and_then(|(_, n)| n.parse().ok())
        .unwrap_or(usize::MAX);
    match state.ledger.read(node, limit).await {
        Ok(Some((record, mut entries))) => {
            if let Some((_, stream)) = parameter("stream") {
                let stream = stream.replace("%2F", "/").replace("%2f", "/");
                entries.retain(|entry| entry.stream == stream);
            }
            json(
                StatusCode::OK,
                &json!({
                    "node": node, "epoch": record.epoch, "sequence": record.sequence,
                    "received": record.received, "repeated": record.repeated,
                    "history": record.history, "gaps": record.gaps,
                    "streams": record.streams, "entries": entries,
                }),
            )
        }
        Ok(None) => {
            let message = format!("node `{node}` has reported nothing");
            status(StatusCode::NOT_FOUND, "NotFound", &message)
        }
        Err(error) => status(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            &error.to_string(),
        ),
    }
}

async fn create_token(state: &ApiState, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = match Limited::new(request.into_body(), BODY_BYTES_MAX)
        .collect()
        .await
    {
        Ok(body) => body.to_bytes(),
        Err(error) => return status(StatusCode::BAD_REQUEST, "BadRequest", &error.to_string()),
    };
    let wish: TokenRequest = match serde_json::from_slice(&body) {
        Ok(wish) => wish,
        Err(error) => return status(StatusCode::BAD_REQUEST, "BadRequest", &error.to_string()),
    };
    let now = clock::unix_secs();
    match state
        .enrollment
        .create_token(&wish.node, wish.ttl_secs, wish.replace, now)
        .await
    {
        Ok((token, record)) => json(StatusCode::CREATED, &TokenCreated { token, record }),
        Err(error) => refused(&error),
    }
}

fn refused(error: &EnrollError) -> Response<Full<Bytes>> {
    let (code, reason) = match error {
        EnrollError::Facts(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        EnrollError::Token(_) => (StatusCode::CONFLICT, "Conflict"),
        EnrollError::Csr(_)
        | EnrollError::NodeName(_)
        | EnrollError::Replaced(_)
        | EnrollError::OtherIdentity { .. }
        | EnrollError::NoCredentials
        | EnrollError::Ttl
        | EnrollError::TooMany => (StatusCode::BAD_REQUEST, "BadRequest"),
    };
    status(code, reason, &error.to_string())
}
