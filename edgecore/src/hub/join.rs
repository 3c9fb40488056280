//! Joining: from a one-time token to a certificate on disk (protocol §2.2).
//!
//! Crash-safe and idempotent: the key is on disk before the hub hears of it, so that a repeated
//! request carries the same key and the hub may answer it again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::tls::{self, Floor, TlsError};
use crate::config::TlsFiles;
use crate::files::write_atomic;
use crate::unverified_tls;

/// TCP, TLS, request and answer together (protocol §2.2 step 6).
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// Largest answer read from the hub before it is trusted.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    #[error("the token is malformed: {0}; copy it whole from `cloudhub token create --node …`")]
    Token(&'static str),
    #[error("the token expired; make a new one with `cloudhub token create --node …`")]
    Expired,
    #[error(
        "the token is for node `{token}`, this node is `{asked}`; use its own token or `--node-name {token}`"
    )]
    OtherNode { token: String, asked: String },
    #[error("no node name: the token names none, so give `--node-name`")]
    NoName,
    #[error("`{0}` is no valid node name (lower-case letters, digits, `-` and `.`, at most 253)")]
    BadName(String),
    #[error("`{0}` is no hub address; it looks like https://hub.example:10002")]
    Address(String),
    #[error("cannot reach the hub at `{address}`: {reason}")]
    Unreachable { address: String, reason: String },
    #[error(
        "the hub's certificate authority is not the one the token was made for: wrong hub, or somebody in between"
    )]
    WrongAuthority,
    #[error("the hub refused: {0}")]
    Refused(String),
    #[error("the hub answered {status} to {path}: {body}")]
    Answer {
        path: &'static str,
        status: u16,
        body: String,
    },
    #[error("the hub's answer is no usable certificate: {0}")]
    Certificate(String),
    #[error("cannot write `{path}`")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "this node is `{found}` already, by the certificate `{path}`; remove that file to join as `{asked}`"
    )]
    Joined {
        found: String,
        asked: String,
        path: PathBuf,
    },
    #[error("`{path}` exists and differs; move it away, or pass `--force` to replace it")]
    ConfigExists { path: PathBuf },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot make a key or a request: {0}")]
    Request(#[from] rcgen::Error),
}

impl JoinError {
    /// Whether trying again, unchanged, can succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Answer { status, .. } => *status >= 500,
            Self::Token(_)
            | Self::Expired
            | Self::OtherNode { .. }
            | Self::NoName
            | Self::BadName(_)
            | Self::Address(_)
            | Self::WrongAuthority
            | Self::Refused(_)
            | Self::Certificate(_)
            | Self::Write { .. }
            | Self::Joined { .. }
            | Self::ConfigExists { .. }
            | Self::Tls(_)
            | Self::Request(_) => false,
        }
    }
}

/// A join token, taken apart but not verified: only the hub can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Hexadecimal SHA-256 of the CA certificate's DER.
    pub ca_digest: String,
    /// The JWT that is sent.
    pub jwt: String,
    /// The node it is for; our hub's tokens name one, KubeEdge's do not.
    pub node: Option<String>,
    /// Unix seconds.
    pub expires: Option<i64>,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    exp: Option<i64>,
    #[serde(default)]
    node: Option<String>,
}

impl Token {
    /// Takes `digest.header.payload.signature` apart.
    pub fn parse(text: &str) -> Result<Self, JoinError> {
        let (digest, jwt) = text
            .trim()
            .split_once('.')
            .ok_or(JoinError::Token("it has four parts with dots between"))?;
        if jwt.split('.').count() != 3 {
            return Err(JoinError::Token("it has four parts with dots between"));
        }
        if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(JoinError::Token("its first part is no SHA-256 digest"));
        }
        let claims = jwt
            .split('.')
            .nth(1)
            .and_then(|part| URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok())
            .and_then(|json| serde_json::from_slice::<Claims>(&json).ok())
            .ok_or(JoinError::Token("its payload is unreadable"))?;
        Ok(Self {
            ca_digest: digest.to_ascii_lowercase(),
            jwt: jwt.to_owned(),
            node: claims.node.filter(|node| !node.is_empty()),
            expires: claims.exp,
        })
    }

    /// Which node joins: as asked, else as the token says, else the host's name for a token that
    /// names nobody.
    pub fn node_name(&self, asked: Option<&str>, host: &str) -> Result<String, JoinError> {
        let name = match (asked, &self.node) {
            (Some(asked), Some(token)) if asked != token => {
                return Err(JoinError::OtherNode {
                    token: token.clone(),
                    asked: asked.to_owned(),
                });
            }
            (Some(name), _) => name.to_owned(),
            (None, Some(name)) => name.clone(),
            (None, None) if host.is_empty() => return Err(JoinError::NoName),
            (None, None) => host.to_owned(),
        };
        if crate::config::is_node_name(&name) {
            Ok(name)
        } else {
            Err(JoinError::BadName(name))
        }
    }
}

/// The node a certificate is for, from its common name `system:node:<name>`.
pub fn node_of_certificate(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?;
    name.strip_prefix("system:node:").map(ToOwned::to_owned)
}

/// First and last second (Unix) in which the certificate is valid.
pub fn validity(der: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let validity = certificate.validity();
    Some((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

/// Whether this node holds a certificate; an error if it is another node's.
pub fn has_joined(files: &TlsFiles, node: &str) -> Result<bool, JoinError> {
    if !(files.cert.exists() && files.key.exists() && files.ca.exists()) {
        return Ok(false);
    }
    let chain = tls::certificates(&files.cert)?;
    let found = chain
        .first()
        .and_then(|leaf| node_of_certificate(leaf))
        .unwrap_or_default();
    if found == node {
        return Ok(true);
    }
    Err(JoinError::Joined {
        found,
        asked: node.to_owned(),
        path: files.cert.clone(),
    })
}

/// Fetches the CA, checks it against the token, requests a certificate and stores all three
/// files. Nothing is overwritten before the new certificate is in hand, except the key that no
/// certificate belongs to.
pub async fn enroll(
    http_server: &str,
    token: &Token,
    node: &str,
    files: &TlsFiles,
    floor: &Floor,
) -> Result<(), JoinError> {
    if token
        .expires
        .is_some_and(|expires| expires.saturating_mul(1000) <= floor.now_ms())
    {
        return Err(JoinError::Expired);
    }
    let ca = get(
        http_server,
        "/ca.crt",
        Arc::new(unverified_tls::client_config().map_err(TlsError::from)?),
        &[],
        Bytes::new(),
    )
    .await?;
    if hex::encode(Sha256::digest(&ca)) != token.ca_digest {
        return Err(JoinError::WrongAuthority);
    }
    let ca = CertificateDer::from(ca.to_vec());
    let key = key_pair(&files.key)?;
    let request = signing_request(&key, node)?;
    let headers = [
        ("authorization", format!("Bearer {}", token.jwt)),
        ("nodename", node.to_owned()),
    ];
    let trusting = Arc::new(tls::trusting(ca.clone(), floor)?);
    let answer = get(http_server, "/edge.crt", trusting, &headers, request).await?;
    store_certificate(&answer, &key, node, files)?;
    let ca_pem = pem("CERTIFICATE", &ca);
    write(&files.ca, ca_pem.as_bytes(), 0o644)
}

/// Requests a new certificate with the current one (protocol §2.5). The key is kept.
pub async fn renew(
    http_server: &str,
    node: &str,
    files: &TlsFiles,
    floor: &Floor,
) -> Result<(), JoinError> {
    let key = key_pair(&files.key)?;
    let request = signing_request(&key, node)?;
    let config = Arc::new(tls::mutual(files, floor)?);
    let headers = [("nodename", node.to_owned())];
    let answer = get(http_server, "/edge.crt", config, &headers, request).await?;
    store_certificate(&answer, &key, node, files)
}

fn store_certificate(
    der: &[u8],
    key: &KeyPair,
    node: &str,
    files: &TlsFiles,
) -> Result<(), JoinError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|error| JoinError::Certificate(error.to_string()))?;
    if node_of_certificate(der).as_deref() != Some(node) {
        return Err(JoinError::Certificate("it is for another node".into()));
    }
    if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(JoinError::Certificate("it is for another key".into()));
    }
    write(&files.cert, pem("CERTIFICATE", der).as_bytes(), 0o644)
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), JoinError> {
    write_atomic(path, bytes, mode).map_err(|source| JoinError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The key on disk, or a fresh one that is on disk on return.
fn key_pair(path: &Path) -> Result<KeyPair, JoinError> {
    if let Ok(text) = std::fs::read_to_string(path)
        && let Ok(key) = KeyPair::from_pem(&text)
    {
        return Ok(key);
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// Subject as KubeEdge writes it, P-256, no alternative names (protocol §2.2 step 5).
fn signing_request(key: &KeyPair, node: &str) -> Result<Bytes, JoinError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, format!("system:node:{node}"));
    params.distinguished_name = name;
    let request = params.serialize_request(key)?;
    Ok(Bytes::copy_from_slice(request.der()))
}

/// One GET over TLS. KubeEdge's certificate service takes the request as the body of a GET.
async fn get(
    http_server: &str,
    path: &'static str,
    config: Arc<ClientConfig>,
    headers: &[(&str, String)],
    body: Bytes,
) -> Result<Bytes, JoinError> {
    let address = authority(http_server)?;
    let unreachable = |reason: String| JoinError::Unreachable {
        address: address.clone(),
        reason,
    };
    let exchange = async {
        let tcp = tokio::net::TcpStream::connect(&address)
            .await
            .map_err(|e| unreachable(e.to_string()))?;
        let name = tls::server_name(&address)?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|e| unreachable(e.to_string()))?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(|e| unreachable(e.to_string()))?;
        let mut request = http::Request::get(path).header("host", &address);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|e| unreachable(e.to_string()))?;
        // Owns the sender: the connection ends when the answer is in.
        let answer = async move {
            let response = sender
                .send_request(request)
                .await
                .map_err(|e| e.to_string())?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|e| e.to_string())?
                .to_bytes();
            Ok::<_, String>((status, body))
        };
        let (answer, _ended) = tokio::join!(answer, connection);
        answer.map_err(unreachable)
    };
    let (status, body) = tokio::time::timeout(REQUEST_WITHIN, exchange)
        .await
        .map_err(|_| unreachable(format!("no answer within {REQUEST_WITHIN:?}")))??;
    let text = || {
        String::from_utf8_lossy(&body)
            .trim()
            .chars()
            .take(500)
            .collect::<String>()
    };
    match status {
        200 => Ok(body),
        400..=499 => Err(JoinError::Refused(text())),
        _ => Err(JoinError::Answer {
            path,
            status,
            body: text(),
        }),
    }
}

/// `https://host:port` to `host:port`.
pub fn authority(http_server: &str) -> Result<String, JoinError> {
    let wrong = || JoinError::Address(http_server.to_owned());
    let rest = http_server
        .trim_end_matches('/')
        .strip_prefix("https://")
        .ok_or_else(wrong)?;
    let uri: http::uri::Authority = rest.parse().map_err(|_| wrong())?;
    Ok(if uri.port().is_some() {
        rest.to_owned()
    } else {
        format!("{rest}:10002")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> String {
        let digest = "ab".repeat(32);
        format!("{digest}.aGVhZGVy.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn a_token_is_taken_apart_and_names_its_node() {
        let parsed = Token::parse(&token(r#"{"exp":5,"jti":"x","node":"n1"}"#)).unwrap();
        assert_eq!(parsed.expires, Some(5));
        assert_eq!(parsed.jwt.split('.').count(), 3);
        assert_eq!(parsed.node_name(None, "host").unwrap(), "n1");
        let told = parsed.node_name(Some("n2"), "host").unwrap_err();
        assert!(matches!(told, JoinError::OtherNode { .. }), "{told}");
        let kubeedge = Token::parse(&token(r#"{"exp":5}"#)).unwrap();
        assert_eq!(kubeedge.node_name(None, "host").unwrap(), "host");
        assert!(kubeedge.node_name(Some("Bad_Name"), "").is_err());
    }

    #[test]
    fn broken_tokens_are_refused_before_any_connection() {
        for text in ["", "a.b", "x.y.z.w", &token("no json"), &token("[]")[..70]] {
            assert!(
                matches!(Token::parse(text), Err(JoinError::Token(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn the_request_names_the_node_and_keeps_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pki/node.key");
        let key = key_pair(&path).unwrap();
        assert_eq!(
            key.public_key_raw(),
            key_pair(&path).unwrap().public_key_raw()
        );
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let request = signing_request(&key, "n1").unwrap();
        assert!(
            request
                .windows(14)
                .any(|window| window == b"system:node:n1")
        );
    }

    #[test]
    fn hub_addresses() {
        assert_eq!(authority("https://h:1/").unwrap(), "h:1");
        assert_eq!(authority("https://h").unwrap(), "h:10002");
        assert!(authority("http://h:1").is_err());
        assert!(authority("h:1").is_err());
    }
}
