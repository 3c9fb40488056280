//! Who may do what.

use std::net::SocketAddr;

/// A client that asks to connect.
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest<'a> {
    /// Client identifier; empty when the broker is asked to assign one.
    pub client: &'a str,
    /// User name, if sent.
    pub username: Option<&'a str>,
    /// Password, if sent.
    pub password: Option<&'a [u8]>,
    /// Where the connection comes from.
    pub peer: SocketAddr,
}

/// Decides on connects, publishes and subscriptions of network clients. Called on the hot path:
/// must be quick and must not block. The embedding program's own publishes are not asked about.
pub trait Access: Send + Sync + 'static {
    /// Whether the client may connect.
    fn may_connect(&self, request: &ConnectRequest<'_>) -> bool;
    /// Whether the client may publish (or leave a will) to the topic.
    fn may_publish(&self, client: &str, topic: &str) -> bool;
    /// Whether the client may subscribe to the filter.
    fn may_subscribe(&self, client: &str, filter: &str) -> bool;
}

/// Everybody may do everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl Access for AllowAll {
    fn may_connect(&self, _request: &ConnectRequest<'_>) -> bool {
        true
    }
    fn may_publish(&self, _client: &str, _topic: &str) -> bool {
        true
    }
    fn may_subscribe(&self, _client: &str, _filter: &str) -> bool {
        true
    }
}
