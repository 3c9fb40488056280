//! TLS towards the hub: mutual, TLS 1.2 and 1.3 by rustls on ring.
//!
//! Certificates are judged with a clock that never stands before the last known good time
//! (design D11): a node that boots in 1970 still reaches its hub.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::clock;
use crate::config::TlsFiles;

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("cannot read `{path}`: {reason}")]
    Read { path: PathBuf, reason: String },
    #[error("certificate or key cannot be used")]
    Unusable(#[from] rustls::Error),
    #[error("`{0}` is no host name and no IP address")]
    ServerName(String),
}

/// The clock that certificates are judged by.
#[derive(Clone, Debug, Default)]
pub struct Floor(Arc<AtomicI64>);

impl Floor {
    /// Raises the floor to a time known to be past (Unix milliseconds).
    pub fn raise(&self, known_ms: i64) {
        self.0.fetch_max(known_ms, Ordering::Relaxed);
    }

    /// Wall time, but never before the floor (Unix milliseconds).
    pub fn now_ms(&self) -> i64 {
        clock::unix_millis().max(self.0.load(Ordering::Relaxed))
    }
}

impl TimeProvider for Floor {
    fn current_time(&self) -> Option<UnixTime> {
        let millis = u64::try_from(self.now_ms()).unwrap_or(0);
        Some(UnixTime::since_unix_epoch(Duration::from_millis(millis)))
    }
}

fn read_error(path: &std::path::Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Read {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// The certificates of a PEM file.
pub fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = std::fs::read(path).map_err(|e| read_error(path, &e))?;
    let found = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| read_error(path, &e))?;
    if found.is_empty() {
        let empty = io::Error::new(io::ErrorKind::InvalidData, "no certificate inside");
        return Err(read_error(path, &empty));
    }
    Ok(found)
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn roots(ca: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in ca {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// Verifies the server, presents the node's certificate.
pub fn mutual(files: &TlsFiles, floor: &Floor) -> Result<ClientConfig, TlsError> {
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| read_error(&files.key, &e))?;
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(floor.clone()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(certificates(&files.ca)?)?)
        .with_client_auth_cert(certificates(&files.cert)?, key)?;
    // One link for weeks: a session cache would only hold memory.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Verifies the server against `ca`, presents nothing.
pub fn trusting(ca: CertificateDer<'static>, floor: &Floor) -> Result<ClientConfig, TlsError> {
    Ok(
        ClientConfig::builder_with_details(provider(), Arc::new(floor.clone()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(vec![ca])?)
            .with_no_client_auth(),
    )
}

/// Splits `host:port` (IPv6 in brackets) and gives the name to verify.
pub fn server_name(authority: &str) -> Result<ServerName<'static>, TlsError> {
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::ServerName(host.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_in_1970_is_lifted_to_the_floor_and_a_right_one_is_kept() {
        let floor = Floor::default();
        let now = floor.now_ms();
        floor.raise(now - 1000);
        assert!(floor.now_ms() >= now, "a floor in the past changes nothing");
        let later = now + 86_400_000;
        floor.raise(later);
        floor.raise(5);
        assert_eq!(floor.now_ms(), later);
    }

    #[test]
    fn the_name_to_verify_is_the_host() {
        for (authority, expected) in [
            ("hub.example:10000", "hub.example"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:1", "::1"),
        ] {
            assert_eq!(server_name(authority).unwrap().to_str(), expected);
        }
        assert!(server_name("a b:1").is_err());
    }
}
