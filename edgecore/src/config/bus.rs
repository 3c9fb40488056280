//! `modules.eventBus…`: which MQTT brokers there are. More about the one inside is in
//! [`super::mqtt`].

use super::ConfigError;
use super::hub::TlsFiles;
use super::keys::{Keys, wrong};
use super::mqtt::{self, MqttConfig};
use super::schema::{Field, field, usual};

pub(super) const FIELDS: &[Field] = &[
    field(
        "modules.eventBus.enable",
        "true",
        "false runs no MQTT and no devices",
    ),
    field(
        "modules.eventBus.eventBusTLS.enable",
        "false",
        "TLS towards the external broker",
    ),
    field("modules.eventBus.eventBusTLS.tlsMqttCAFile", "\"\"", ""),
    field("modules.eventBus.eventBusTLS.tlsMqttCertFile", "\"\"", ""),
    field(
        "modules.eventBus.eventBusTLS.tlsMqttPrivateKeyFile",
        "\"\"",
        "",
    ),
    usual(
        "modules.eventBus.mqttMode",
        "0",
        "0: the broker inside; 1: both; 2: an external broker only",
    ),
    field(
        "modules.eventBus.mqttPassword",
        "\"\"",
        "for the external broker",
    ),
    field(
        "modules.eventBus.mqttServerExternal",
        "\"tcp://127.0.0.1:1884\"",
        "used with mqttMode 1 and 2",
    ),
    usual(
        "modules.eventBus.mqttServerInternal",
        "\"tcp://127.0.0.1:1883\"",
        "listener of the broker inside; keep it on loopback",
    ),
    field(
        "modules.eventBus.mqttSubClientID",
        "\"\"",
        "client id towards the external broker; empty makes one from the node name",
    ),
    field(
        "modules.eventBus.mqttUsername",
        "\"\"",
        "for the external broker",
    ),
];

/// Which brokers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusMode {
    Internal,
    Both,
    External,
}

/// MQTT.
#[derive(Clone)]
pub struct BusConfig {
    pub mode: BusMode,
    /// `host:port` the broker inside listens on.
    pub listen: String,
    /// URL of the external broker, as written (`tcp://`, `ssl://`).
    pub external: String,
    pub client_id: String,
    pub username: String,
    pub password: String,
    /// TLS towards the external broker.
    pub tls: Option<TlsFiles>,
    /// More about the broker inside.
    pub inside: MqttConfig,
}

impl std::fmt::Debug for BusConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusConfig")
            .field("mode", &self.mode)
            .field("listen", &self.listen)
            .field("external", &self.external)
            .finish_non_exhaustive()
    }
}

/// `None`: no MQTT and no devices.
pub(super) fn check(keys: &Keys, node_name: &str) -> Result<Option<BusConfig>, ConfigError> {
    let is_on: bool = keys.get("modules.eventBus.enable")?;
    if !is_on {
        return Ok(None);
    }
    let mode = match keys.get("modules.eventBus.mqttMode")? {
        0_u8 => BusMode::Internal,
        1 => BusMode::Both,
        2 => BusMode::External,
        other => {
            let reason = format!("must be 0, 1 or 2, is {other}");
            return Err(wrong("modules.eventBus.mqttMode", reason));
        }
    };
    let client_id = keys.optional("modules.eventBus.mqttSubClientID")?;
    Ok(Some(BusConfig {
        mode,
        listen: keys.host_port("modules.eventBus.mqttServerInternal")?,
        external: keys.text("modules.eventBus.mqttServerExternal")?,
        client_id: client_id.unwrap_or_else(|| format!("edgecore-{node_name}")),
        username: keys.text("modules.eventBus.mqttUsername")?,
        password: keys.text("modules.eventBus.mqttPassword")?,
        tls: tls(keys)?,
        inside: mqtt::check(keys)?,
    }))
}

/// Empty paths are left to the system's certificates, and to no certificate of the client.
fn tls(keys: &Keys) -> Result<Option<TlsFiles>, ConfigError> {
    let is_on: bool = keys.get("modules.eventBus.eventBusTLS.enable")?;
    let files = TlsFiles {
        ca: keys.get("modules.eventBus.eventBusTLS.tlsMqttCAFile")?,
        cert: keys.get("modules.eventBus.eventBusTLS.tlsMqttCertFile")?,
        key: keys.get("modules.eventBus.eventBusTLS.tlsMqttPrivateKeyFile")?,
    };
    Ok(is_on.then_some(files))
}
