//! Where clients come from: a TCP port, and what has to be done before MQTT begins on it.
//!
//! The broker does no TLS and no WebSocket itself; the embedding program hands over an
//! [`Upgrade`] that turns a fresh connection into a stream of MQTT bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A stream of MQTT bytes in both directions.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Transport for T {}

/// A connection on which MQTT may begin.
pub struct Upgraded {
    /// The bytes.
    pub transport: Box<dyn Transport>,
    /// The name that the client's certificate proves.
    pub certificate: Option<String>,
}

/// Result of [`Upgrade::upgrade`].
pub type UpgradeFuture = Pin<Box<dyn Future<Output = io::Result<Upgraded>> + Send>>;

/// What comes before MQTT: a TLS handshake, a WebSocket request, or both.
pub trait Upgrade: Send + Sync + 'static {
    /// Does it; the broker gives it the time of [`crate::Limits::connect_timeout`], CONNECT
    /// included.
    fn upgrade(&self, stream: TcpStream) -> UpgradeFuture;
}

/// A port on which clients arrive.
pub struct Listener {
    pub(crate) tcp: TcpListener,
    pub(crate) upgrade: Option<Arc<dyn Upgrade>>,
}

impl Listener {
    /// A port whose connections begin with something else than MQTT.
    pub fn upgraded(tcp: TcpListener, upgrade: Arc<dyn Upgrade>) -> Self {
        Self {
            tcp,
            upgrade: Some(upgrade),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, upgrade: None }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}
