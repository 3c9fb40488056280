//! `modules.eventBus…`: which MQTT brokers there are. More about the one inside is in
//! [`super::mqtt`].

use super::ConfigError;
use super::hub::TlsFiles;
use super::keys::{Keys, absolute, wrong};
use super::mqtt::{self, MqttConfig};
use super::schema::{Field, field, usual};

const EXTERNAL: &str = "modules.eventBus.mqttServerExternal";

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
    field(
        "modules.eventBus.eventBusTLS.tlsMqttCAFile",
        "\"\"",
        "the broker's certificate authority (PEM)",
    ),
    field(
        "modules.eventBus.eventBusTLS.tlsMqttCertFile",
        "\"\"",
        "client certificate (PEM)",
    ),
    field(
        "modules.eventBus.eventBusTLS.tlsMqttPrivateKeyFile",
        "\"\"",
        "its key",
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
        EXTERNAL,
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
    let external = keys.text(EXTERNAL)?;
    let tls = tls(keys)?;
    if mode != BusMode::Internal {
        check_external(&external, tls.is_some())?;
    }
    let client_id = keys.optional("modules.eventBus.mqttSubClientID")?;
    Ok(Some(BusConfig {
        mode,
        listen: keys.host_port("modules.eventBus.mqttServerInternal")?,
        external,
        client_id: client_id.unwrap_or_else(|| format!("edgecore-{node_name}")),
        username: keys.text("modules.eventBus.mqttUsername")?,
        password: keys.text("modules.eventBus.mqttPassword")?,
        tls,
        inside: mqtt::check(keys)?,
    }))
}

fn check_external(url: &str, has_tls: bool) -> Result<(), ConfigError> {
    let reason = match (crate::bus::external_address(url), has_tls) {
        (None, _) => format!("must be tcp://host:port or ssl://host:port, is `{url}`"),
        (Some(address), false) if address.is_tls => {
            format!("`{url}` needs modules.eventBus.eventBusTLS")
        }
        (Some(address), true) if !address.is_tls => {
            format!("`{url}` is plain, and eventBusTLS.enable is true: ssl://host:port is TLS")
        }
        (Some(_), _) => return Ok(()),
    };
    Err(wrong(EXTERNAL, reason))
}

fn tls(keys: &Keys) -> Result<Option<TlsFiles>, ConfigError> {
    const CA: &str = "modules.eventBus.eventBusTLS.tlsMqttCAFile";
    const CERT: &str = "modules.eventBus.eventBusTLS.tlsMqttCertFile";
    const KEY: &str = "modules.eventBus.eventBusTLS.tlsMqttPrivateKeyFile";
    let is_on: bool = keys.get("modules.eventBus.eventBusTLS.enable")?;
    let (ca, cert, key) = (keys.text(CA)?, keys.text(CERT)?, keys.text(KEY)?);
    if !is_on {
        return Ok(None);
    }
    Ok(Some(TlsFiles {
        ca: absolute(CA, &ca)?,
        cert: absolute(CERT, &cert)?,
        key: absolute(KEY, &key)?,
    }))
}
