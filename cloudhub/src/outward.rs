//! Connections that the hub itself makes to others: TLS always verified, proxies never guessed,
//! redirects not followed (a POST that is sent on is another request than the one that was asked
//! for).

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// An endpoint that cannot be connected within this is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Where systems keep the certificates that they trust.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// TLS that trusts the system's authorities, and those given.
pub fn tls(ca_pem: Option<&str>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    for bundle in BUNDLES {
        if let Ok(certificates) = CertificateDer::pem_file_iter(bundle) {
            // One that cannot be read is not trusted; the others are.
            roots.add_parsable_certificates(certificates.filter_map(Result::ok));
            break;
        }
    }
    if let Some(pem) = ca_pem {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| format!("CA certificate: {error}"))?;
            roots
                .add(certificate)
                .map_err(|error| format!("CA certificate: {error}"))?;
        }
    }
    let config = ClientConfig::builder_with_provider(crate::listen::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// An HTTP client on [`tls`].
pub fn client(ca_pem: Option<&str>) -> Result<reqwest::Client, String> {
    let config = ClientConfig::clone(&*tls(ca_pem)?);
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_WITHIN)
        .build()
        .map_err(|error| error.to_string())
}
