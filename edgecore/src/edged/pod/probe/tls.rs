//! TLS to a container without looking at its certificate, as kubelet probes: what is asked is
//! whether it answers, and it is reached over the node's own network.

use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::unverified_tls;

/// Does the handshake.
pub(super) async fn connect(host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(config()?);
    let connected = connector.connect(name, stream).await;
    connected.map_err(|error| format!("tls: {error}"))
}

/// Made at the first HTTPS probe and kept: probes come every few seconds.
fn config() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let config = unverified_tls::client_config();
            config.map(Arc::new).map_err(|error| error.to_string())
        })
        .clone()
}
