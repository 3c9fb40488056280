//! The joining listener (wire specification §1.1): `/ca.crt`, `/edge.crt`, `/node/{name}`.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

use super::http::{Peer, answer, text};
use crate::{
    clock,
    pki::{EnrollError, Enrollment, csr::CSR_BYTES_MAX},
    session::{Close, Registry},
};

const DER: &str = "application/octet-stream";

/// Answers one request.
pub async fn handle(
    enrollment: Arc<Enrollment>,
    registry: Arc<Registry>,
    peer: Peer,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    match (path.as_str(), &method) {
        ("/ca.crt", &Method::GET) => {
            answer(StatusCode::OK, DER, enrollment.authority().der().to_vec())
        }
        ("/edge.crt", &(Method::GET | Method::POST)) => {
            let address = peer.address;
            match edge_certificate(&enrollment, &registry, peer, request).await {
                Ok(der) => answer(StatusCode::OK, DER, der),
                Err(refusal) => {
                    tracing::warn!(%address, reason = %refusal.text, "node certificate refused");
                    text(refusal.status, refusal.text)
                }
            }
        }
        (path, method) => match (path.strip_prefix("/node/"), method) {
            (Some(node), &Method::GET) if !node.contains('/') => known(&enrollment, node).await,
            (Some(_), _) => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"),
            _ if path == "/ca.crt" || path == "/edge.crt" => {
                text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
            }
            _ => text(StatusCode::NOT_FOUND, "not found"),
        },
    }
}

struct Refusal {
    status: StatusCode,
    text: String,
}

impl From<EnrollError> for Refusal {
    fn from(error: EnrollError) -> Self {
        let status = match &error {
            EnrollError::Token(_) | EnrollError::NoCredentials => StatusCode::UNAUTHORIZED,
            EnrollError::Replaced(_) | EnrollError::OtherIdentity { .. } => StatusCode::FORBIDDEN,
            EnrollError::Csr(_)
            | EnrollError::NodeName(_)
            | EnrollError::Ttl
            | EnrollError::TooMany => StatusCode::BAD_REQUEST,
            EnrollError::Facts(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self {
            status,
            text: error.to_string(),
        }
    }
}

async fn edge_certificate(
    enrollment: &Enrollment,
    registry: &Registry,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Vec<u8>, Refusal> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
    let node = header("nodename").unwrap_or_default().trim().to_owned();
    let body = Limited::new(body, CSR_BYTES_MAX)
        .collect()
        .await
        .map_err(|_| Refusal {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            text: format!(
                "certificate request could not be read, or exceeds {CSR_BYTES_MAX} bytes"
            ),
        })?;
    let csr = body.to_bytes();
    let now = clock::unix_secs();
    // The first word is not compared with `Bearer` (wire specification §2.4).
    let bearer = header(header::AUTHORIZATION.as_str())
        .and_then(|v| v.trim().split_once(' '))
        .map(|(_, token)| token.trim().to_owned());
    let der = match (bearer, peer.identity) {
        (Some(token), _) => {
            let der = enrollment.join(&node, &token, &csr, now).await?;
            // Whoever held the name until now is out at once, not when its connection breaks.
            if let Some(session) = registry.get(&node) {
                let why = EnrollError::Replaced(node.clone()).to_string();
                session.close(Close::new(Close::POLICY, why));
            }
            der
        }
        (None, Some(identity)) => enrollment.renew(&node, &identity, &csr, now).await?,
        (None, None) => return Err(EnrollError::NoCredentials.into()),
    };
    tracing::info!(node, address = %peer.address, "node certificate issued");
    Ok(der)
}

async fn known(enrollment: &Enrollment, node: &str) -> Response<Full<Bytes>> {
    match enrollment.joined(node).await {
        Ok(Some(_)) => text(StatusCode::OK, "Node found"),
        Ok(None) => text(StatusCode::NOT_FOUND, "Node not found"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
