//! Who may do what.

use std::net::SocketAddr;
use std::sync::Arc;

/// A client that asks to connect.
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest<'a> {
    /// Client identifier; empty when the broker is asked to assign one.
    pub client: &'a str,
    /// User name, if sent.
    pub username: Option<&'a str>,
    /// Password, if sent.
    pub password: Option<&'a [u8]>,
    /// The name that the client's certificate proves, if the listener asked for one.
    pub certificate: Option<&'a str>,
    /// Where the connection comes from.
    pub peer: SocketAddr,
}

/// Why a client may not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// User name, password or certificate are not right (0x86).
    Credentials,
    /// The client is known or anonymous, and not wanted (0x87).
    NotAuthorized,
}

/// A client that may connect.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Who it is. Sessions belong to their user: the same client identifier of another user is
    /// another session. `None` for a client that did not say.
    pub user: Option<Arc<str>>,
    /// What it may do until it disconnects.
    pub rights: Arc<dyn Rights>,
}

impl Grant {
    /// A client without a name and these rights.
    pub fn anonymous(rights: Arc<dyn Rights>) -> Self {
        Self { user: None, rights }
    }
}

/// What one connection may do. Asked for each publish and each filter: must be quick and must not
/// block. The embedding program's own publishes are not asked about.
pub trait Rights: Send + Sync + std::fmt::Debug + 'static {
    /// Whether the client may publish (or leave a will) to the topic.
    fn may_publish(&self, topic: &str) -> bool;
    /// Whether the client may subscribe to the filter. A shared filter is asked about without
    /// `$share/<group>/`.
    fn may_subscribe(&self, filter: &str) -> bool;
}

/// Decides who may connect, and as whom.
pub trait Access: Send + Sync + 'static {
    /// Called where blocking is allowed when the client sent a password: comparing it with a slow
    /// hash is the purpose. A few are asked about at once, the others wait.
    fn connect(&self, request: &ConnectRequest<'_>) -> Result<Grant, Refused>;
}

/// Everybody may do everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl Access for AllowAll {
    fn connect(&self, _request: &ConnectRequest<'_>) -> Result<Grant, Refused> {
        Ok(Grant::anonymous(Arc::new(Self)))
    }
}

impl Rights for AllowAll {
    fn may_publish(&self, _topic: &str) -> bool {
        true
    }
    fn may_subscribe(&self, _filter: &str) -> bool {
        true
    }
}
