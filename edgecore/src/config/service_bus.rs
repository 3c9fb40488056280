//! `modules.serviceBus`: KubeEdge's keys, off by default as there.

use serde::Deserialize;

use super::ConfigError;
use super::valid::{absolute, seconds, wrong};
use crate::servicebus::ServiceBusConfig;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawServiceBus {
    pub enable: bool,
    pub server: String,
    pub port: u16,
    pub timeout: u32,
    pub tls_cert_file: String,
    pub tls_private_key_file: String,
}

/// `None`: off.
pub(super) fn service_bus(raw: &RawServiceBus) -> Result<Option<ServiceBusConfig>, ConfigError> {
    if !raw.enable {
        return Ok(None);
    }
    if raw.server.is_empty() || raw.port == 0 {
        let path = "modules.serviceBus.server";
        return Err(wrong(
            path,
            "server and port say where to listen".to_owned(),
        ));
    }
    let host = if raw.server.contains(':') && !raw.server.starts_with('[') {
        format!("[{}]", raw.server)
    } else {
        raw.server.clone()
    };
    let tls = match (
        raw.tls_cert_file.as_str(),
        raw.tls_private_key_file.as_str(),
    ) {
        ("", "") => None,
        (cert, key) => Some((
            absolute("modules.serviceBus.tlsCertFile", cert)?,
            absolute("modules.serviceBus.tlsPrivateKeyFile", key)?,
        )),
    };
    Ok(Some(ServiceBusConfig {
        listen: format!("{host}:{}", raw.port),
        timeout: seconds("modules.serviceBus.timeout", raw.timeout, 1)?,
        tls,
    }))
}
