//! The hub's own certificate authority and what it hands out: the hub's server certificate, the
//! administrator's client certificate and kubeconfig, node certificates for join tokens.
//!
//! Everything is ECDSA P-256 (KubeEdge edges offer only ECDSA suites for TLS 1.2, wire
//! specification §1), signed by *ring* through `rcgen`. Private files are created 0600.

pub mod ca;
pub mod csr;
pub mod enroll;
pub mod files;
pub mod tokens;

pub use ca::{Authority, Leaf};
pub use enroll::{EnrollError, Enrollment};
pub use files::{Pki, PkiError};
pub use tokens::{TokenError, TokenSecret};

/// Prefix of the common name of a node certificate (`system:node:<name>`).
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Organisation of every node certificate.
pub const NODE_GROUP: &str = "system:nodes";
/// Organisation that may do everything.
pub const ADMIN_GROUP: &str = "system:masters";

/// Who a verified certificate belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Common name: the user.
    pub user: String,
    /// Organisations: the groups.
    pub groups: Vec<String>,
    /// Serial number, lower-case hexadecimal without leading zeros.
    pub serial: String,
}

impl Identity {
    /// Reads user and groups from an already verified certificate (DER).
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_owned))
            .collect();
        Some(Self {
            user,
            groups,
            serial: serial_text(certificate.raw_serial()),
        })
    }

    /// The node this identity is, if it is one.
    pub fn node(&self) -> Option<&str> {
        let node = self.user.strip_prefix(NODE_USER_PREFIX)?;
        (self.groups.iter().any(|g| g == NODE_GROUP) && valid_node_name(node)).then_some(node)
    }
}

/// Serial numbers are compared as text: hexadecimal, lower case, no leading zeros.
pub(crate) fn serial_text(raw: &[u8]) -> String {
    let text = hex::encode(raw);
    let trimmed = text.trim_start_matches('0');
    if trimmed.is_empty() {
        "0".to_owned()
    } else {
        trimmed.to_owned()
    }
}

/// Whether `name` may be a node name: a lower-case RFC 1123 subdomain.
pub fn valid_node_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}
