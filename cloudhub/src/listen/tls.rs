//! TLS configurations. The provider is always passed explicitly (*ring*).

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};

use crate::pki::{Authority, Leaf};

/// The listener's TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused.
    #[error("TLS configuration refused")]
    Rustls(#[from] rustls::Error),
    /// The client verifier refused.
    #[error("client verifier refused the authority")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// A certificate or key is not PEM.
    #[error("certificate or key is not PEM")]
    Pem(#[from] rustls_pki_types::pem::Error),
}

/// What a listener asks of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// A certificate of our authority.
    Required,
    /// A certificate of our authority, or none.
    Optional,
    /// As `Optional`, but one that has expired is accepted too: the handshake proves the key, and
    /// the handler of this listener only renews (a node may have been off for a year).
    OptionalEvenExpired,
}

/// The crypto provider of the whole process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server configuration with the hub's certificate.
pub fn server_config(
    authority: &Authority,
    leaf: &Leaf,
    clients: ClientAuth,
    alpn: &[&str],
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.der().to_vec()))?;
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier: Arc<dyn ClientCertVerifier> = match clients {
        ClientAuth::Required => builder.build()?,
        ClientAuth::Optional => builder.allow_unauthenticated().build()?,
        ClientAuth::OptionalEvenExpired => {
            Arc::new(EvenExpired(builder.allow_unauthenticated().build()?))
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(
        leaf.certificate_pem.as_bytes(),
    )?];
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    // Sessions live for weeks: nothing is kept for resumption.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// Verifies a chain as of the moment the certificate became valid, if it has expired since.
#[derive(Debug)]
struct EvenExpired(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for EvenExpired {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self.0.verify_client_cert(end_entity, intermediates, now);
        let expired = matches!(
            verdict,
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. }
            ))
        );
        let start = x509_parser::parse_x509_certificate(end_entity)
            .ok()
            .and_then(|(_, c)| u64::try_from(c.validity().not_before.timestamp()).ok());
        match (expired, start) {
            (true, Some(start)) => {
                // Backdated by at most a few minutes, so the authority was valid then too.
                let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
                    start + crate::pki::ca::BACKDATE_SECS,
                ));
                self.0.verify_client_cert(end_entity, intermediates, then)
            }
            _ => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::pki::csr::CheckedRequest;

    #[test]
    fn an_expired_certificate_of_ours_may_renew_and_a_strangers_may_not() {
        let made = 1_000_000_000;
        let node = |authority: &Authority| {
            let key = KeyPair::generate().unwrap();
            let csr = CertificateParams::default()
                .serialize_request(&key)
                .unwrap();
            let request = CheckedRequest::parse(csr.der()).unwrap();
            CertificateDer::from(request.sign(authority, "e1", made).unwrap().der)
        };
        let (ours, _) = Authority::generate(made).unwrap();
        let (strangers, _) = Authority::generate(made).unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(ours.der().to_vec()))
            .unwrap();
        let strict = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .unwrap();
        let lenient = EvenExpired(Arc::clone(&strict));
        let years_later =
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(made + 5 * 365 * 86_400));
        let own = node(&ours);
        assert!(strict.verify_client_cert(&own, &[], years_later).is_err());
        assert!(lenient.verify_client_cert(&own, &[], years_later).is_ok());
        let foreign = node(&strangers);
        assert!(
            lenient
                .verify_client_cert(&foreign, &[], years_later)
                .is_err()
        );
    }
}
