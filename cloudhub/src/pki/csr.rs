//! Certificate signing requests: only the public key is taken.
//!
//! `rcgen` would copy subject, names, usages **and basic constraints** of a request; signed as
//! received, a request could make itself a second authority or `system:masters`. So nothing of a
//! request reaches the certificate but its key, after the request's own signature was checked.

use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateSigningRequestDer;
use sha2::{Digest, Sha256};

use super::{Authority, NODE_GROUP, NODE_USER_PREFIX, ca::SignError};

/// Largest request accepted (wire specification §1.1).
pub const CSR_BYTES_MAX: usize = 1024 * 1024;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Not a PKCS#10 request, an unknown extension, or its signature does not verify.
    #[error("certificate request refused: {0}")]
    Invalid(rcgen::Error),
    /// The key is not ECDSA P-256.
    #[error("certificate request refused: the key must be ECDSA P-256")]
    Key,
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// A request whose signature was verified.
pub struct CheckedRequest {
    public_key: rcgen::PublicKey,
    fingerprint: String,
}

/// A node certificate.
#[derive(Debug, Clone)]
pub struct NodeCertificate {
    /// DER.
    pub der: Vec<u8>,
    /// Serial number as text.
    pub serial: String,
}

impl CheckedRequest {
    /// Parses a DER request and verifies that the sender has the key.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                .map_err(CsrError::Invalid)?;
        if *request.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CsrError::Key);
        }
        let key: &[u8] = rcgen::PublicKeyData::der_bytes(&request.public_key);
        let fingerprint = hex::encode(Sha256::digest(key));
        Ok(Self {
            public_key: request.public_key,
            fingerprint,
        })
    }

    /// SHA-256 of the public key, hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Signs the key as node `node`, whatever the request asked for.
    pub fn sign(
        &self,
        authority: &Authority,
        node: &str,
        now_secs: u64,
    ) -> Result<NodeCertificate, CsrError> {
        let user = format!("{NODE_USER_PREFIX}{node}");
        let (der, serial) = authority.sign_client(&self.public_key, &user, NODE_GROUP, now_secs)?;
        Ok(NodeCertificate { der, serial })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

    use super::*;

    #[test]
    fn a_hostile_request_yields_only_a_node_certificate() {
        let (authority, _) = Authority::generate(1_800_000_000).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        wish.distinguished_name
            .push(DnType::CommonName, "system:admin");
        wish.distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wish.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let csr = wish.serialize_request(&key).unwrap();
        let signed = CheckedRequest::parse(csr.der())
            .unwrap()
            .sign(&authority, "e1", 1_800_000_000)
            .unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&signed.der).unwrap();
        assert_eq!(
            certificate.subject().to_string(),
            "O=system:nodes, CN=system:node:e1"
        );
        assert!(!certificate.is_ca());
        assert!(certificate.subject_alternative_name().unwrap().is_none());
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        assert_eq!(
            certificate.validity().not_before.timestamp(),
            1_800_000_000 - 300
        );
        let identity = crate::pki::Identity::from_der(&signed.der).unwrap();
        assert_eq!(identity.node(), Some("e1"));
        assert_eq!(identity.serial, signed.serial);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_ask_for_another_key(
            turned in proptest::collection::vec((proptest::prelude::any::<usize>(), 0_u8..8), 1..4),
            cut in proptest::option::of(proptest::prelude::any::<usize>()),
        ) {
            static VALID: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
                let key = KeyPair::generate().unwrap();
                CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
            });
            let mut der = VALID.clone();
            for (at, bit) in turned {
                let at = at % der.len();
                der[at] ^= 1 << bit;
            }
            if let Some(cut) = cut {
                der.truncate(cut % der.len());
            }
            // What is not covered by the signature may differ.
            if let Ok(request) = CheckedRequest::parse(&der) {
                let valid = CheckedRequest::parse(&VALID).unwrap();
                proptest::prop_assert_eq!(request.fingerprint(), valid.fingerprint());
            }
        }
    }

    #[test]
    fn a_request_with_a_broken_signature_is_refused() {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let mut der = csr.der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(matches!(
            CheckedRequest::parse(&der),
            Err(CsrError::Invalid(_))
        ));
        assert!(CheckedRequest::parse(b"not a request").is_err());
    }
}
