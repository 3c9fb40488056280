//! What went wrong at a registry, in words that say what to do. Never a credential, never a URL
//! (a signed one is a credential).

use std::error::Error as StdError;
use std::io;

use reqwest::StatusCode;
use rustls::{CertificateError, Error};

/// What a failure means for the pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// Nobody answered; perhaps later.
    Unreachable,
    /// An answer that says "not now": 429, 5xx.
    Busy,
    /// The TLS of one side does not suit the other.
    Tls,
    /// Credentials are missing, or refused.
    Denied,
    NotFound,
    /// An answer that no registry should give.
    Protocol,
    /// Our settings for it.
    Config,
}

/// One registry's refusal.
#[derive(Clone, Debug, thiserror::Error)]
#[error("registry `{host}` {text}")]
pub(in super::super) struct RegistryError {
    pub(in super::super) host: String,
    pub(in super::super) kind: Kind,
    text: String,
}

impl RegistryError {
    pub(in super::super) fn new(host: &str, kind: Kind, text: String) -> Self {
        Self {
            host: host.to_owned(),
            kind,
            text,
        }
    }

    /// Content that is not what its digest says.
    pub(in super::super) fn garbled(host: &str, digest: &str) -> Self {
        let text = format!("sent something else for {digest}");
        Self::new(host, Kind::Protocol, text)
    }

    /// Whether the same question may be answered later.
    pub(in super::super) fn is_passing(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Busy)
    }

    /// A request that got no answer, or broke off.
    pub(super) fn of_request(host: &str, error: &reqwest::Error) -> Self {
        if let Some(tls) = find::<Error>(error) {
            let text = explain_tls(tls);
            return Self::new(host, Kind::Tls, text);
        }
        let text = if error.is_timeout() {
            "did not answer in time; is it reachable from this node?".to_owned()
        } else {
            format!("cannot be reached: {}", innermost(error))
        };
        Self::new(host, Kind::Unreachable, text)
    }

    /// An answer other than success. `what` is what was asked for.
    pub(super) fn of_status(host: &str, status: StatusCode, what: &str, tried: usize) -> Self {
        let (kind, text) = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if tried == 0 => (
                Kind::Denied,
                format!(
                    "wants credentials for {what} ({status}); add an imagePullSecret, or the node's registryAuthFiles"
                ),
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (
                Kind::Denied,
                format!(
                    "refused {what} ({status}) with each of {tried} credentials; check user, password and access rights"
                ),
            ),
            StatusCode::NOT_FOUND if tried == 0 => (
                Kind::NotFound,
                format!("does not have {what} (404), or hides it from anonymous users"),
            ),
            StatusCode::NOT_FOUND => (Kind::NotFound, format!("does not have {what} (404)")),
            StatusCode::TOO_MANY_REQUESTS => (
                Kind::Busy,
                "has had too many requests from here (429); credentials or a mirror raise the limit"
                    .to_owned(),
            ),
            status if status.is_server_error() => {
                (Kind::Busy, format!("failed to serve {what} ({status})"))
            }
            status => (Kind::Protocol, format!("answered {what} with {status}")),
        };
        Self::new(host, kind, text)
    }
}

fn explain_tls(error: &Error) -> String {
    let text = error.to_string();
    if text.contains("CaUsedAsEndEntity") {
        return "uses a self-signed CA certificate as its own, which TLS here refuses even if it \
                is trusted; give it a certificate issued by that CA, or set skipVerify"
            .to_owned();
    }
    if let Error::InvalidCertificate(refused) = error {
        return explain_certificate(refused, &text);
    }
    if let Error::AlertReceived(alert) = error {
        return format!(
            "ended TLS with the alert {alert:?}; does it want a client certificate (certFile, \
             keyFile)?"
        );
    }
    if matches!(error, Error::InvalidMessage(_)) {
        return "does not speak TLS; if it is a plain http registry, set plainHttp for it"
            .to_owned();
    }
    format!("and this node do not agree on TLS: {text}")
}

fn explain_certificate(error: &CertificateError, text: &str) -> String {
    if matches!(error, CertificateError::UnknownIssuer) {
        return "has a certificate of an unknown authority; set caFile for it in \
                outpost.registries (or hosts.toml) to the authority's PEM"
            .to_owned();
    }
    if matches!(error, CertificateError::BadSignature) {
        return "has a certificate that the authority of this name here did not sign; was the \
                authority made anew? Set caFile to its present PEM"
            .to_owned();
    }
    if matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    ) {
        return format!(
            "has a certificate that is not valid now ({text}); check this node's clock"
        );
    }
    format!("has a certificate that does not suit: {text}")
}

/// The error of type `T` behind `error`; `io::Error` hides what it wraps from `source`.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        if let Some(inner) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            && let Some(found) = find::<T>(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The last cause: the others only say that something failed.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        for (status, tried, kind, said) in [
            (401, 0, Kind::Denied, "imagePullSecret"),
            (401, 2, Kind::Denied, "each of 2 credentials"),
            (403, 1, Kind::Denied, "access rights"),
            (404, 0, Kind::NotFound, "hides it"),
            (404, 1, Kind::NotFound, "does not have x:1 (404)"),
            (429, 0, Kind::Busy, "mirror"),
            (503, 0, Kind::Busy, "503"),
            (418, 0, Kind::Protocol, "418"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = RegistryError::of_status("r.io", status, "x:1", tried);
            assert_eq!(error.kind, kind, "{error}");
            let text = error.to_string();
            assert!(
                text.starts_with("registry `r.io` ") && text.contains(said),
                "{text}"
            );
        }
    }

    #[test]
    fn a_wrapped_tls_error_is_found() {
        let inner = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner));
        let found = find::<Error>(&wrapped).unwrap();
        assert!(explain_tls(found).contains("caFile"));
        let ca = Error::General(
            "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))".to_owned(),
        );
        assert!(explain_tls(&ca).contains("skipVerify"));
    }
}
