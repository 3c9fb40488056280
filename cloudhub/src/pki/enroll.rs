//! Joining and renewing: which node may have a certificate, and which of its certificates counts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Authority, Identity,
    csr::{CheckedRequest, CsrError},
    tokens::{self, Record, TokenError, TokenSecret, Usage, record_key, rfc3339},
    valid_node_name,
};
use crate::facts::{Fact, Facts, FactsError, Write};

/// Prefix of the hub's records about joined nodes.
pub const NODES_PREFIX: &str = "/outpost/nodes/";
/// For how long the key that used a token may fetch its certificate again.
pub const REISSUE_SECS: u64 = 600;
/// Longest life of a token (90 days).
pub const TTL_SECS_MAX: u64 = 90 * 24 * 3600;
/// Most tokens kept; expired and used ones go first.
pub const TOKENS_MAX: usize = 10_000;

/// Why a node did not get a certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The token was refused.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The request was refused.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// Not a node name.
    #[error("`{0}` is no node name: lower-case letters, digits, `-` and `.`, at most 253")]
    NodeName(String),
    /// The presented certificate is not the one this node has now.
    #[error(
        "certificate of node `{0}` has been replaced by a later join; join again with a new token"
    )]
    Replaced(String),
    /// The presented certificate belongs to somebody else.
    #[error("certificate of `{user}` cannot renew node `{node}`")]
    OtherIdentity {
        /// Who the certificate says.
        user: String,
        /// Which node was asked for.
        node: String,
    },
    /// Neither a certificate nor a token came with the request.
    #[error("token is empty: send `Authorization: Bearer <token>` or a node certificate")]
    NoCredentials,
    /// Life of a token out of range.
    #[error("time to live must be between 1 second and 90 days")]
    Ttl,
    /// Too many tokens.
    #[error("too many unused tokens ({TOKENS_MAX}): revoke some")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Facts(#[from] FactsError),
}

/// What the hub keeps about a node that has joined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinedNode {
    /// Serial number of the certificate issued last.
    pub current: String,
    /// The one before it, after a renewal: the node may crash before it has stored the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Unix seconds of the last join or renewal.
    pub issued: u64,
}

impl JoinedNode {
    fn accepts(&self, serial: &str) -> bool {
        self.current == serial || self.previous.as_deref() == Some(serial)
    }
}

/// Issues tokens and node certificates.
pub struct Enrollment {
    authority: Arc<Authority>,
    secret: TokenSecret,
    facts: Facts,
}

impl Enrollment {
    /// Puts the parts together.
    pub fn new(authority: Arc<Authority>, secret: TokenSecret, facts: Facts) -> Self {
        Self {
            authority,
            secret,
            facts,
        }
    }

    /// The authority that signs.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Makes a token for `node`; returns the text, which is shown once and never stored.
    pub async fn create_token(
        &self,
        node: &str,
        ttl_secs: u64,
        replace: bool,
        now_secs: u64,
    ) -> Result<(String, Record), EnrollError> {
        if !valid_node_name(node) {
            return Err(EnrollError::NodeName(node.to_owned()));
        }
        if !(1..=TTL_SECS_MAX).contains(&ttl_secs) {
            return Err(EnrollError::Ttl);
        }
        if !replace && self.joined(node).await?.is_some() {
            return Err(TokenError::NodeExists {
                node: node.to_owned(),
            }
            .into());
        }
        let mut kept = 0;
        for (key, fact) in self.facts.list(tokens::TOKENS_PREFIX).await? {
            match decode::<Record>(&fact) {
                // Expired ones are forgotten a day later: until then the answer can say why.
                Some(record) if record.expires + 86_400 > now_secs => kept += 1,
                _ => {
                    let write = Write {
                        key,
                        expect: fact.revision,
                        value: None,
                    };
                    self.facts.commit(vec![write]).await?;
                }
            }
        }
        if kept >= TOKENS_MAX {
            return Err(EnrollError::TooMany);
        }
        let (token, record) =
            self.secret
                .mint(self.authority.der(), node, ttl_secs, replace, now_secs);
        self.facts
            .commit(vec![Write {
                key: record_key(&record.id),
                expect: 0,
                value: Some(encode(&record)),
            }])
            .await?;
        Ok((token, record))
    }

    /// All tokens, without their secrets.
    pub async fn tokens(&self) -> Result<Vec<Record>, EnrollError> {
        let facts = self.facts.list(tokens::TOKENS_PREFIX).await?;
        Ok(facts.iter().filter_map(|(_, fact)| decode(fact)).collect())
    }

    /// Revokes a token; false if there was none.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, EnrollError> {
        let key = record_key(id);
        let Some(fact) = self.facts.get(&key).await? else {
            return Ok(false);
        };
        self.facts
            .commit(vec![Write {
                key,
                expect: fact.revision,
                value: None,
            }])
            .await?;
        Ok(true)
    }

    /// Joins a node by token: verifies, signs, and marks the token used in one transaction.
    pub async fn join(
        &self,
        node: &str,
        bearer: &str,
        csr: &[u8],
        now_secs: u64,
    ) -> Result<Vec<u8>, EnrollError> {
        if !valid_node_name(node) {
            return Err(EnrollError::NodeName(node.to_owned()));
        }
        let (claims, hash) = self.secret.verify(bearer, node, now_secs)?;
        let request = CheckedRequest::parse(csr)?;
        let key = record_key(&claims.jti);
        let fact = self.facts.get(&key).await?.ok_or(TokenError::Unknown)?;
        let mut record: Record = decode(&fact).ok_or(TokenError::Unknown)?;
        if record.hash != hash || record.node != node {
            return Err(TokenError::Unknown.into());
        }
        let again = match &record.used {
            None => false,
            Some(used)
                if used.key == request.fingerprint() && used.at + REISSUE_SECS > now_secs =>
            {
                true
            }
            Some(used) => {
                return Err(TokenError::Used {
                    at: rfc3339(used.at),
                    node: node.to_owned(),
                }
                .into());
            }
        };
        let joined = self.facts.get(&node_key(node)).await?;
        if joined.is_some() && !record.replace && !again {
            return Err(TokenError::NodeExists {
                node: node.to_owned(),
            }
            .into());
        }
        let signed = request.sign(&self.authority, node, now_secs)?;
        if !again {
            record.used = Some(Usage {
                at: now_secs,
                key: request.fingerprint().to_owned(),
            });
        }
        let entry = JoinedNode {
            current: signed.serial,
            previous: None,
            issued: now_secs,
        };
        let done = self
            .facts
            .commit(vec![
                Write {
                    key,
                    expect: fact.revision,
                    value: Some(encode(&record)),
                },
                Write {
                    key: node_key(node),
                    expect: joined.map_or(0, |f| f.revision),
                    value: Some(encode(&entry)),
                },
            ])
            .await;
        match done {
            Ok(()) => Ok(signed.der),
            // Two requests with one token at the same moment: the other one won.
            Err(FactsError::Conflict) => Err(TokenError::Used {
                at: rfc3339(now_secs),
                node: node.to_owned(),
            }
            .into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Renews by the node's own certificate (the TLS layer has proved the key; it may be expired).
    pub async fn renew(
        &self,
        node: &str,
        identity: &Identity,
        csr: &[u8],
        now_secs: u64,
    ) -> Result<Vec<u8>, EnrollError> {
        if identity.node() != Some(node) {
            return Err(EnrollError::OtherIdentity {
                user: identity.user.clone(),
                node: node.to_owned(),
            });
        }
        let fact = self.check_certificate(node, &identity.serial).await?;
        let signed = CheckedRequest::parse(csr)?.sign(&self.authority, node, now_secs)?;
        let entry = JoinedNode {
            current: signed.serial,
            previous: Some(identity.serial.clone()),
            issued: now_secs,
        };
        // Without a record (the store was lost) there is none to be brought up to date; only a join
        // makes one.
        if let Some(fact) = fact {
            self.facts
                .commit(vec![Write {
                    key: node_key(node),
                    expect: fact.revision,
                    value: Some(encode(&entry)),
                }])
                .await?;
        }
        Ok(signed.der)
    }

    /// Whether the certificate with this serial still speaks for the node.
    ///
    /// A node without a record (a hub restored without its store) is accepted: its certificate
    /// chains to our authority, and only a later join may take its place.
    pub async fn check_certificate(
        &self,
        node: &str,
        serial: &str,
    ) -> Result<Option<Fact>, EnrollError> {
        let fact = self.facts.get(&node_key(node)).await?;
        match fact.as_ref().and_then(decode::<JoinedNode>) {
            Some(joined) if !joined.accepts(serial) => Err(EnrollError::Replaced(node.to_owned())),
            Some(_) | None => Ok(fact),
        }
    }

    /// Whether a node of this name has joined.
    pub async fn joined(&self, node: &str) -> Result<Option<JoinedNode>, EnrollError> {
        Ok(self
            .facts
            .get(&node_key(node))
            .await?
            .as_ref()
            .and_then(decode))
    }
}

/// The key of a node's record.
pub fn node_key(node: &str) -> String {
    format!("{NODES_PREFIX}{node}")
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn decode<T: serde::de::DeserializeOwned>(fact: &Fact) -> Option<T> {
    serde_json::from_slice(&fact.value).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use apiserver::store::MemoryStore;

    fn enrollment() -> Enrollment {
        let (authority, _) = Authority::generate(1000).unwrap();
        Enrollment::new(
            Arc::new(authority),
            TokenSecret::new(&[1; 32]),
            Facts::new(Arc::new(MemoryStore::new())),
        )
    }

    fn csr() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .der()
            .to_vec()
    }

    fn bearer(token: &str) -> &str {
        token.split_once('.').unwrap().1
    }

    #[tokio::test]
    async fn a_token_joins_one_node_once() {
        let hub = enrollment();
        let (token, record) = hub.create_token("e1", 60, false, 1000).await.unwrap();
        let request = csr();
        let first = hub
            .join("e1", bearer(&token), &request, 1001)
            .await
            .unwrap();
        // The answer was lost: the same key may ask again, another may not.
        let again = hub
            .join("e1", bearer(&token), &request, 1002)
            .await
            .unwrap();
        assert!(Identity::from_der(&again).is_some() && first != again);
        let error = hub
            .join("e1", bearer(&token), &csr(), 1003)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("token already used at 1970-01-01T00:16:41Z"),
            "{error}"
        );
        assert!(hub.revoke_token(&record.id).await.unwrap());
        let error = hub
            .join("e1", bearer(&token), &csr(), 1003)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("token unknown"), "{error}");
    }

    #[tokio::test]
    async fn a_second_node_of_the_same_name_needs_replace() {
        let hub = enrollment();
        let (one, _) = hub.create_token("e1", 60, false, 1000).await.unwrap();
        let (two, _) = hub.create_token("e1", 60, false, 1000).await.unwrap();
        let old = hub.join("e1", bearer(&one), &csr(), 1001).await.unwrap();
        let error = hub
            .join("e1", bearer(&two), &csr(), 1001)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("node `e1` has already joined"), "{error}");
        let error = hub
            .create_token("e1", 60, false, 1001)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("--replace"), "{error}");
        let (three, _) = hub.create_token("e1", 60, true, 1002).await.unwrap();
        let new = hub.join("e1", bearer(&three), &csr(), 1003).await.unwrap();
        let (old, new) = (
            Identity::from_der(&old).unwrap(),
            Identity::from_der(&new).unwrap(),
        );
        assert!(matches!(
            hub.check_certificate("e1", &old.serial).await,
            Err(EnrollError::Replaced(_))
        ));
        assert!(hub.check_certificate("e1", &new.serial).await.is_ok());
    }

    #[tokio::test]
    async fn renewal_keeps_the_certificate_before_it_alive() {
        let hub = enrollment();
        let (token, _) = hub.create_token("e1", 60, false, 1000).await.unwrap();
        let first = hub.join("e1", bearer(&token), &csr(), 1001).await.unwrap();
        let first = Identity::from_der(&first).unwrap();
        let second = hub.renew("e1", &first, &csr(), 2000).await.unwrap();
        let second = Identity::from_der(&second).unwrap();
        assert!(hub.check_certificate("e1", &first.serial).await.is_ok());
        hub.renew("e1", &second, &csr(), 3000).await.unwrap();
        assert!(hub.check_certificate("e1", &first.serial).await.is_err());
        let error = hub
            .renew("e2", &second, &csr(), 3000)
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "certificate of `system:node:e1` cannot renew node `e2`"
        );
    }
}
