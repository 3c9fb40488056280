//! `modules.serviceBus…`: KubeEdge's keys, off by default as there.

use super::keys::{Keys, absolute, wrong};
use super::schema::{Field, field};
use super::{ConfigError, ServerTls};
use crate::servicebus::ServiceBusConfig;

pub(super) const FIELDS: &[Field] = &[
    field(
        "modules.serviceBus.enable",
        "false",
        "HTTP between this node and the cloud, by rules (docs/operating.md)",
    ),
    field(
        "modules.serviceBus.port",
        "9060",
        "where local applications ask; open while a rule of the cloud has a URL for them",
    ),
    field(
        "modules.serviceBus.server",
        "\"127.0.0.1\"",
        "address to listen at; nobody is asked who they are: keep it on loopback",
    ),
    field(
        "modules.serviceBus.timeout",
        "60",
        "seconds that a local application waits for the cloud",
    ),
    field(
        "modules.serviceBus.tlsCertFile",
        "\"\"",
        "with a key: HTTPS",
    ),
    field("modules.serviceBus.tlsPrivateKeyFile", "\"\"", "its key"),
];

/// `None`: off.
pub(super) fn check(keys: &Keys) -> Result<Option<ServiceBusConfig>, ConfigError> {
    const SERVER: &str = "modules.serviceBus.server";
    const CERT: &str = "modules.serviceBus.tlsCertFile";
    const KEY: &str = "modules.serviceBus.tlsPrivateKeyFile";
    let is_on: bool = keys.get("modules.serviceBus.enable")?;
    if !is_on {
        return Ok(None);
    }
    let server = keys.text(SERVER)?;
    let port: u16 = keys.get("modules.serviceBus.port")?;
    if server.is_empty() || port == 0 {
        return Err(wrong(SERVER, "server and port say where to listen"));
    }
    let host = if server.contains(':') && !server.starts_with('[') {
        format!("[{server}]")
    } else {
        server
    };
    let tls = match (keys.text(CERT)?.as_str(), keys.text(KEY)?.as_str()) {
        ("", "") => None,
        (cert, key) => Some(ServerTls {
            cert: absolute(CERT, cert)?,
            key: absolute(KEY, key)?,
            client_ca: None,
        }),
    };
    Ok(Some(ServiceBusConfig {
        listen: format!("{host}:{port}"),
        timeout: keys.seconds("modules.serviceBus.timeout")?,
        tls,
    }))
}
