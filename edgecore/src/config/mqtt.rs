//! `outpost.mqtt…`: who may come to the broker inside, from where, and how much of it.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;
use super::valid::{absolute, host_port, quantity, wrong};

/// As written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawMqtt {
    pub anonymous: String,
    pub bytes_per_second: String,
    pub client_ca_file: String,
    pub packet_bytes_max: String,
    pub packets_per_second: u32,
    pub password_file: String,
    pub session_expiry_max_seconds: u32,
    pub tls_cert_file: String,
    pub tls_key_file: String,
    pub tls_listen: String,
    pub users: Vec<MqttUser>,
    pub web_socket_listen: String,
    pub web_socket_origins: Vec<String>,
    pub web_socket_tls_listen: String,
}

/// What a client without a name may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// Nothing.
    No,
    /// Everything an administrator may, from the node itself.
    Loopback,
    /// Everything an administrator may, from everywhere.
    Yes,
}

/// What one user of the broker inside may do beyond its own device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MqttUser {
    /// User name, or the common name of a certificate.
    pub name: String,
    /// May publish whatever a client may, and read everything.
    #[serde(default)]
    pub admin: bool,
    /// Devices it speaks for, `<namespace>/<name>`; empty: the one it is named after.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Filters of further topics it may publish to.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Further filters it may subscribe to.
    #[serde(default)]
    pub subscribe: Vec<String>,
}

/// Certificate of the TLS listeners, and whom they believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Authority of client certificates; without it none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// The broker inside, as checked.
#[derive(Clone, Debug)]
pub struct MqttConfig {
    pub anonymous: Anonymous,
    pub passwords: Option<PathBuf>,
    pub users: Vec<MqttUser>,
    pub tls: Option<MqttTls>,
    pub tls_listen: Option<String>,
    pub web_socket_listen: Option<String>,
    pub web_socket_tls_listen: Option<String>,
    /// Pages that may open a WebSocket, `scheme://host[:port]`; `*` is all.
    pub web_socket_origins: Vec<String>,
    pub packet_bytes_max: u32,
    /// 0 is no limit.
    pub packets_per_second: u32,
    /// 0 is no limit.
    pub bytes_per_second: u32,
    /// `u32::MAX` is for ever.
    pub session_expiry_max_secs: u32,
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            anonymous: Anonymous::Loopback,
            passwords: None,
            users: Vec::new(),
            tls: None,
            tls_listen: None,
            web_socket_listen: None,
            web_socket_tls_listen: None,
            web_socket_origins: Vec::new(),
            packet_bytes_max: broker::limits::PACKET_BYTES_MAX,
            packets_per_second: 5000,
            bytes_per_second: 8 << 20,
            session_expiry_max_secs: u32::MAX,
        }
    }
}

pub(super) fn check(raw: &RawMqtt) -> Result<MqttConfig, ConfigError> {
    let optional = |path, value: &str| {
        (!value.is_empty())
            .then(|| absolute(path, value))
            .transpose()
    };
    let listen = |path, value: &str| {
        (!value.is_empty())
            .then(|| host_port(path, value))
            .transpose()
    };
    let passwords = optional("outpost.mqtt.passwordFile", &raw.password_file)?;
    let tls = tls(raw)?;
    let tls_listen = listen("outpost.mqtt.tlsListen", &raw.tls_listen)?;
    let web_socket_tls_listen = listen(
        "outpost.mqtt.webSocketTlsListen",
        &raw.web_socket_tls_listen,
    )?;
    if tls.is_none() && (tls_listen.is_some() || web_socket_tls_listen.is_some()) {
        let reason = "a TLS listener needs tlsCertFile and tlsKeyFile";
        return Err(wrong("outpost.mqtt.tlsCertFile", reason));
    }
    let has_names = passwords.is_some() || tls.as_ref().is_some_and(|t| t.client_ca.is_some());
    let anonymous = match raw.anonymous.as_str() {
        "auto" if has_names => Anonymous::No,
        "auto" | "loopback" => Anonymous::Loopback,
        "no" => Anonymous::No,
        "yes" => Anonymous::Yes,
        other => {
            let reason = format!("must be auto, no, loopback or yes, is `{other}`");
            return Err(wrong("outpost.mqtt.anonymous", reason));
        }
    };
    users(&raw.users)?;
    let small = |path, text: &str| {
        let bytes = quantity(path, text)?;
        u32::try_from(bytes).map_err(|_| wrong(path, format!("must be below 4Gi, is `{text}`")))
    };
    let packet_bytes_max = small("outpost.mqtt.packetBytesMax", &raw.packet_bytes_max)?;
    if !(1024..=16 << 20).contains(&packet_bytes_max) {
        let reason = format!("must be from 1Ki to 16Mi, is `{}`", raw.packet_bytes_max);
        return Err(wrong("outpost.mqtt.packetBytesMax", reason));
    }
    Ok(MqttConfig {
        anonymous,
        passwords,
        users: raw.users.clone(),
        tls,
        tls_listen,
        web_socket_listen: listen("outpost.mqtt.webSocketListen", &raw.web_socket_listen)?,
        web_socket_tls_listen,
        web_socket_origins: raw.web_socket_origins.clone(),
        packet_bytes_max,
        packets_per_second: raw.packets_per_second,
        bytes_per_second: small("outpost.mqtt.bytesPerSecond", &raw.bytes_per_second)?,
        session_expiry_max_secs: match raw.session_expiry_max_seconds {
            0 => u32::MAX,
            secs => secs,
        },
    })
}

fn tls(raw: &RawMqtt) -> Result<Option<MqttTls>, ConfigError> {
    if raw.tls_cert_file.is_empty() && raw.tls_key_file.is_empty() {
        if raw.client_ca_file.is_empty() {
            return Ok(None);
        }
        let reason = "needs tlsCertFile and tlsKeyFile beside it";
        return Err(wrong("outpost.mqtt.clientCaFile", reason));
    }
    Ok(Some(MqttTls {
        cert: absolute("outpost.mqtt.tlsCertFile", &raw.tls_cert_file)?,
        key: absolute("outpost.mqtt.tlsKeyFile", &raw.tls_key_file)?,
        client_ca: (!raw.client_ca_file.is_empty())
            .then(|| absolute("outpost.mqtt.clientCaFile", &raw.client_ca_file))
            .transpose()?,
    }))
}

fn users(users: &[MqttUser]) -> Result<(), ConfigError> {
    const KEY: &str = "outpost.mqtt.users";
    for (index, user) in users.iter().enumerate() {
        let at = |reason: String| wrong(KEY, format!("entry {index}: {reason}"));
        if user.name.is_empty() || user.name.contains(char::is_control) {
            return Err(at("name is empty or not printable".into()));
        }
        if users[..index].iter().any(|other| other.name == user.name) {
            return Err(at(format!("`{}` is there twice", user.name)));
        }
        let devices = user.devices.iter();
        if let Some(bad) = devices
            .filter(|device| *device != "*")
            .find(|device| wire::topic::DeviceRef::parse(device).is_none())
        {
            return Err(at(format!("`{bad}` is not <namespace>/<name>")));
        }
        let mut filters = user.publish.iter().chain(&user.subscribe);
        if let Some(bad) = filters.find(|filter| !broker::topic::is_valid_filter(filter)) {
            return Err(at(format!("`{bad}` is no topic filter")));
        }
    }
    Ok(())
}
