//! `outpost.mqtt…`: who may come to the broker inside, from where, and how much of it.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;
use super::keys::{Keys, wrong};
use super::schema::{Field, field};

pub(super) const FIELDS: &[Field] = &[
    field(
        "outpost.mqtt.anonymous",
        "\"auto\"",
        "MQTT clients without a name: no, loopback (from the node itself), yes; auto: no where there is a passwordFile or clientCaFile, else loopback",
    ),
    field(
        "outpost.mqtt.bytesPerSecond",
        "\"8Mi\"",
        "what one MQTT client is read, with one second of credit; 0: no limit",
    ),
    field(
        "outpost.mqtt.clientCaFile",
        "\"\"",
        "authority of client certificates on the TLS listeners; the common name is the user",
    ),
    field(
        "outpost.mqtt.packetBytesMax",
        "\"256Ki\"",
        "largest MQTT packet",
    ),
    field(
        "outpost.mqtt.packetsPerSecond",
        "5000",
        "packets one MQTT client is read, with one second of credit; 0: no limit",
    ),
    field(
        "outpost.mqtt.passwordFile",
        "\"\"",
        "users and hashed passwords, as `edgecore mqtt passwd` and mosquitto_passwd write it; read again when it changes",
    ),
    field(
        "outpost.mqtt.sessionExpiryMaxSeconds",
        "0",
        "an MQTT session outlives its connection so long at most; 0: as long as the client asks",
    ),
    field(
        "outpost.mqtt.tlsCertFile",
        "\"\"",
        "certificate chain of the TLS listeners",
    ),
    field("outpost.mqtt.tlsKeyFile", "\"\"", "its key"),
    field(
        "outpost.mqtt.tlsListen",
        "\"\"",
        "host:port for MQTT over TLS; empty: none",
    ),
    field(
        "outpost.mqtt.users",
        "[]",
        "per user: name, admin, devices (namespace/name), publish, subscribe; who is not listed speaks for the device it is named after",
    ),
    field(
        "outpost.mqtt.webSocketListen",
        "\"\"",
        "host:port for MQTT over WebSocket; empty: none",
    ),
    field(
        "outpost.mqtt.webSocketOrigins",
        "[]",
        "pages that may connect, scheme://host[:port]; a page of the same host always may",
    ),
    field(
        "outpost.mqtt.webSocketTlsListen",
        "\"\"",
        "host:port for MQTT over WebSocket with TLS; empty: none",
    ),
];

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

/// Certificate of a port of this node, and whom it believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
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
    pub tls: Option<ServerTls>,
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

pub(super) fn check(keys: &Keys) -> Result<MqttConfig, ConfigError> {
    let passwords = keys.optional_file("outpost.mqtt.passwordFile")?;
    let tls = tls(keys)?;
    let tls_listen = keys.optional_host_port("outpost.mqtt.tlsListen")?;
    let web_socket_tls_listen = keys.optional_host_port("outpost.mqtt.webSocketTlsListen")?;
    if tls.is_none() && (tls_listen.is_some() || web_socket_tls_listen.is_some()) {
        let reason = "a TLS listener needs tlsCertFile and tlsKeyFile";
        return Err(wrong("outpost.mqtt.tlsCertFile", reason));
    }
    let has_names = passwords.is_some() || tls.as_ref().is_some_and(|t| t.client_ca.is_some());
    let session_expiry_max_secs = match keys.get("outpost.mqtt.sessionExpiryMaxSeconds")? {
        0 => u32::MAX,
        secs => secs,
    };
    Ok(MqttConfig {
        anonymous: anonymous(keys, has_names)?,
        passwords,
        users: users(keys)?,
        tls,
        tls_listen,
        web_socket_listen: keys.optional_host_port("outpost.mqtt.webSocketListen")?,
        web_socket_tls_listen,
        web_socket_origins: keys.get("outpost.mqtt.webSocketOrigins")?,
        packet_bytes_max: bytes(keys, "outpost.mqtt.packetBytesMax", 1 << 10..=16 << 20)?,
        packets_per_second: keys.get("outpost.mqtt.packetsPerSecond")?,
        bytes_per_second: bytes(keys, "outpost.mqtt.bytesPerSecond", 0..=2 << 30)?,
        session_expiry_max_secs,
    })
}

fn anonymous(keys: &Keys, has_names: bool) -> Result<Anonymous, ConfigError> {
    const PATH: &str = "outpost.mqtt.anonymous";
    match keys.text(PATH)?.as_str() {
        "auto" if has_names => Ok(Anonymous::No),
        "auto" | "loopback" => Ok(Anonymous::Loopback),
        "no" => Ok(Anonymous::No),
        "yes" => Ok(Anonymous::Yes),
        other => {
            let reason = format!("must be auto, no, loopback or yes, is `{other}`");
            Err(wrong(PATH, reason))
        }
    }
}

fn bytes(
    keys: &Keys,
    path: &'static str,
    allowed: RangeInclusive<u32>,
) -> Result<u32, ConfigError> {
    let (least, most) = allowed.into_inner();
    let bytes = keys.bytes(path, least.into()..=most.into())?;
    Ok(u32::try_from(bytes).unwrap_or(most))
}

fn tls(keys: &Keys) -> Result<Option<ServerTls>, ConfigError> {
    const CERT: &str = "outpost.mqtt.tlsCertFile";
    const KEY: &str = "outpost.mqtt.tlsKeyFile";
    const CLIENT_CA: &str = "outpost.mqtt.clientCaFile";
    let client_ca = keys.optional_file(CLIENT_CA)?;
    if keys.optional(CERT)?.is_none() && keys.optional(KEY)?.is_none() {
        if client_ca.is_none() {
            return Ok(None);
        }
        let reason = "needs tlsCertFile and tlsKeyFile beside it";
        return Err(wrong(CLIENT_CA, reason));
    }
    Ok(Some(ServerTls {
        cert: keys.absolute(CERT)?,
        key: keys.absolute(KEY)?,
        client_ca,
    }))
}

fn users(keys: &Keys) -> Result<Vec<MqttUser>, ConfigError> {
    const KEY: &str = "outpost.mqtt.users";
    let users: Vec<MqttUser> = keys.get(KEY)?;
    for (index, user) in users.iter().enumerate() {
        let at = |reason: String| wrong(KEY, format!("entry {index}: {reason}"));
        if user.name.is_empty() || user.name.contains(char::is_control) {
            return Err(at("name is empty or not printable".to_owned()));
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
    Ok(users)
}
