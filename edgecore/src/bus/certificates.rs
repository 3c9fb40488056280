//! TLS of the node's own ports, by files that are read again when they change.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::TlsAcceptor;

use crate::config::ServerTls;
use crate::files::{self, Stamp};
use crate::hub::tls::{TlsError, certificates, provider, roots};

/// The files of a port's TLS, read again when one of them has changed. Connections that stand stay
/// as they are.
pub(crate) struct Certificates {
    files: ServerTls,
    port: &'static str,
    known: Mutex<(Vec<Stamp>, TlsAcceptor)>,
}

impl Certificates {
    /// `port` is what the log calls it.
    pub(crate) fn load(files: ServerTls, port: &'static str) -> Result<Self, TlsError> {
        let known = (stamps(&files), acceptor_of(&files)?);
        Ok(Self {
            files,
            port,
            known: Mutex::new(known),
        })
    }

    /// For a connection that begins now. Files that cannot be used (half of a renewal is there)
    /// change nothing.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if stamps != known.0 {
            match acceptor_of(&self.files) {
                Ok(renewed) => {
                    tracing::info!(port = self.port, "certificates of a port read again");
                    known.1 = renewed;
                }
                Err(error) => {
                    tracing::warn!(port = self.port, %error, "changed certificates of a port cannot be used; the earlier ones stay");
                }
            }
            known.0 = stamps;
        }
        known.1.clone()
    }
}

fn stamps(tls: &ServerTls) -> Vec<Stamp> {
    let all = [Some(&tls.cert), Some(&tls.key), tls.client_ca.as_ref()];
    all.into_iter()
        .flatten()
        .map(|path| files::stamp(path))
        .collect()
}

/// With an authority of clients, their certificates are looked at.
fn acceptor_of(tls: &ServerTls) -> Result<TlsAcceptor, TlsError> {
    let private = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| TlsError::Read {
        path: tls.key.clone(),
        reason: error.to_string(),
    })?;
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        // Who comes without a certificate has a password, or is refused by the access rules.
        Some(ca) => builder.with_client_cert_verifier(verifier(ca)?),
    };
    let mut config = builder.with_single_cert(certificates(&tls.cert)?, private)?;
    // Devices stay connected: a session cache would only hold memory.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn verifier(ca: &Path) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let roots = Arc::new(roots(certificates(ca)?)?);
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Read {
            path: ca.to_owned(),
            reason: error.to_string(),
        })
}
