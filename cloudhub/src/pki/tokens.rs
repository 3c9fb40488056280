//! Join tokens: per node, single use, expiring, stored as a hash.
//!
//! A token reads `hex(sha256(CA DER)).header.payload.signature`, KubeEdge's shape (wire
//! specification §2.1), so the node can check the authority it downloads before it trusts it. The
//! last three parts are a JWT (HS256) under a secret of this hub that is used for nothing else.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Prefix of the hub's records about tokens.
pub const TOKENS_PREFIX: &str = "/outpost/tokens/";

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Why a token was refused. The text is what the joining node prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three base64 parts with our claims inside.
    #[error(
        "token malformed: expected hash.header.payload.signature as printed by `cloudhub token create`"
    )]
    Malformed,
    /// Signature of another hub, or the record was revoked.
    #[error("token unknown: not issued by this hub, or revoked")]
    Unknown,
    /// Past its time.
    #[error("token expired at {at}: create a new one with `cloudhub token create --node {node}`")]
    Expired {
        /// When (RFC 3339).
        at: String,
        /// For which node it was.
        node: String,
    },
    /// It was made for a different node.
    #[error("token is for another node: it was created for `{token_node}`, not for `{node}`")]
    OtherNode {
        /// The node in the token.
        token_node: String,
        /// The node that asks.
        node: String,
    },
    /// It has been used.
    #[error(
        "token already used at {at}: a token joins one node once; create a new one with `cloudhub token create --node {node} --replace`"
    )]
    Used {
        /// When (RFC 3339).
        at: String,
        /// By which node.
        node: String,
    },
    /// The node has joined already and the token was not made to replace it.
    #[error(
        "node `{node}` has already joined: to replace it create a token with `cloudhub token create --node {node} --replace`"
    )]
    NodeExists {
        /// The node.
        node: String,
    },
}

/// What is inside a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Expiry, Unix seconds.
    pub exp: u64,
    /// Identifier of the token.
    pub jti: String,
    /// The one node it may join.
    pub node: String,
}

/// What the hub keeps about a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Identifier (`jti`).
    pub id: String,
    /// The node it may join.
    pub node: String,
    /// SHA-256 of the JWT, hexadecimal. The token itself is never stored.
    pub hash: String,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds.
    pub expires: u64,
    /// Whether it may take the place of a node that has joined.
    #[serde(default)]
    pub replace: bool,
    /// Set when used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Usage>,
}

/// How a token was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Unix seconds.
    pub at: u64,
    /// SHA-256 of the public key that was signed: the same key may fetch its certificate again
    /// for a while, for the case that the answer was lost on the way.
    pub key: String,
}

/// The secret under which tokens are signed.
pub struct TokenSecret(hmac::Key);

impl TokenSecret {
    /// Wraps at least 32 random bytes.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Makes a token for `node`: the text to print, and the record to keep.
    pub fn mint(
        &self,
        ca_der: &[u8],
        node: &str,
        ttl_secs: u64,
        replace: bool,
        now_secs: u64,
    ) -> (String, Record) {
        let expires = now_secs.saturating_add(ttl_secs);
        let id = uuid::Uuid::new_v4().to_string();
        let claims = Claims {
            exp: expires,
            jti: id.clone(),
            node: node.to_owned(),
        };
        let payload = serde_json::to_vec(&claims).unwrap_or_default();
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(HEADER),
            URL_SAFE_NO_PAD.encode(payload)
        );
        let signature = hmac::sign(&self.0, signed.as_bytes());
        let jwt = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        let record = Record {
            id,
            node: node.to_owned(),
            hash: hash(&jwt),
            created: now_secs,
            expires,
            replace,
            used: None,
        };
        (
            format!("{}.{jwt}", hex::encode(Sha256::digest(ca_der))),
            record,
        )
    }

    /// Checks shape, signature, expiry and node of a bearer token; returns its claims and hash.
    pub fn verify(
        &self,
        bearer: &str,
        node: &str,
        now_secs: u64,
    ) -> Result<(Claims, String), TokenError> {
        let parts: Vec<&str> = bearer.trim().split('.').collect();
        // Nodes send the JWT; a person with curl may send all four parts.
        let ([header, payload, signature] | [_, header, payload, signature]) = parts[..] else {
            return Err(TokenError::Malformed);
        };
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| TokenError::Malformed)
        };
        let tag = decode(signature)?;
        let claims: Claims =
            serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)?;
        let signed = format!("{header}.{payload}");
        if decode(header)? != HEADER.as_bytes() {
            return Err(TokenError::Malformed);
        }
        hmac::verify(&self.0, signed.as_bytes(), &tag).map_err(|_| TokenError::Unknown)?;
        if claims.exp <= now_secs {
            return Err(TokenError::Expired {
                at: rfc3339(claims.exp),
                node: claims.node,
            });
        }
        if claims.node != node {
            return Err(TokenError::OtherNode {
                token_node: claims.node,
                node: node.to_owned(),
            });
        }
        Ok((claims, hash(&format!("{signed}.{signature}"))))
    }
}

/// The key of a token's record.
pub fn record_key(id: &str) -> String {
    format!("{TOKENS_PREFIX}{id}")
}

fn hash(jwt: &str) -> String {
    hex::encode(Sha256::digest(jwt.as_bytes()))
}

/// Unix seconds as RFC 3339 text.
pub(crate) fn rfc3339(secs: u64) -> String {
    i64::try_from(secs)
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .map_or_else(|| secs.to_string(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_why_it_is_refused() {
        let secret = TokenSecret::new(&[7; 32]);
        let (token, record) = secret.mint(b"ca", "e1", 60, false, 1000);
        let (hash_part, jwt) = token.split_once('.').unwrap();
        assert_eq!(hash_part, hex::encode(Sha256::digest(b"ca")));
        let (claims, hash) = secret.verify(jwt, "e1", 1001).unwrap();
        assert_eq!((claims.jti, hash), (record.id.clone(), record.hash.clone()));
        assert!(!serde_json::to_string(&record).unwrap().contains(jwt));

        for (name, bearer, node, now, want) in [
            ("garbage", "abc", "e1", 1001, "token malformed"),
            ("not base64", "!.!.!", "e1", 1001, "token malformed"),
            (
                "expired",
                jwt,
                "e1",
                1060,
                "token expired at 1970-01-01T00:17:40Z",
            ),
            (
                "other node",
                jwt,
                "e2",
                1001,
                "token is for another node: it was created for `e1`",
            ),
        ] {
            let error = secret.verify(bearer, node, now).unwrap_err().to_string();
            assert!(error.starts_with(want), "{name}: {error}");
        }
        let other = TokenSecret::new(&[8; 32]);
        assert_eq!(other.verify(jwt, "e1", 1001), Err(TokenError::Unknown));
    }
}
