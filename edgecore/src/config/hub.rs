//! `modules.edgeHub…`: how the hub is reached, and what is asked of it.

use std::path::PathBuf;
use std::time::Duration;

use super::ConfigError;
use super::keys::{Keys, wrong};
use super::schema::{Field, field, usual};

const HEARTBEAT: &str = "modules.edgeHub.heartbeat";
const QUERY_TIMEOUT: &str = "modules.metaManager.remoteQueryTimeout";

pub(super) const FIELDS: &[Field] = &[
    field(
        "modules.edgeHub.enable",
        "true",
        "false runs the node alone, without any hub",
    ),
    field(
        HEARTBEAT,
        "15",
        "keepalives go to a plain KubeEdge hub every 15 s; another value is listed as ignored",
    ),
    usual(
        "modules.edgeHub.httpServer",
        "\"https://127.0.0.1:10002\"",
        "where certificates are requested",
    ),
    field(
        "modules.edgeHub.projectID",
        "\"e632aba927ea4ac2b575ec1603d56f10\"",
        "part of the URL; the hub ignores it",
    ),
    field(
        "modules.edgeHub.rotateCertificates",
        "true",
        "renew the node's certificate before it expires",
    ),
    usual(
        "modules.edgeHub.tlsCaFile",
        "\"/var/lib/edgecore/pki/ca.crt\"",
        "the hub's certificate authority (PEM)",
    ),
    usual(
        "modules.edgeHub.tlsCertFile",
        "\"/var/lib/edgecore/pki/node.crt\"",
        "this node's certificate (PEM)",
    ),
    usual(
        "modules.edgeHub.tlsPrivateKeyFile",
        "\"/var/lib/edgecore/pki/node.key\"",
        "its key (PEM, mode 0600)",
    ),
    field(
        "modules.edgeHub.token",
        "\"\"",
        "join token, used once while there is no certificate; `edgecore join` does without it",
    ),
    field(
        "modules.edgeHub.websocket.enable",
        "true",
        "the only transport; false is the same as edgeHub.enable: false",
    ),
    field(
        "modules.edgeHub.websocket.handshakeTimeout",
        "30",
        "seconds for TCP, TLS and the upgrade together",
    ),
    usual(
        "modules.edgeHub.websocket.server",
        "\"127.0.0.1:10000\"",
        "host:port of the hub",
    ),
    field(
        "modules.edgeHub.websocket.writeDeadline",
        "15",
        "seconds one write may take before the link counts as dead",
    ),
    field(
        QUERY_TIMEOUT,
        "60",
        "an object asked of the hub is waited for 60 s; another value is listed as ignored",
    ),
    field(
        "outpost.historyRowsPerSecond",
        "10000",
        "after a long outage the newest values go first; what came before follows at this rate",
    ),
];

/// How to reach the hub.
#[derive(Clone)]
pub struct HubConfig {
    /// `host:port` of the WebSocket.
    pub server: String,
    /// Base URL of the certificate service.
    pub http_server: String,
    pub project_id: String,
    pub heartbeat: Duration,
    pub handshake_timeout: Duration,
    pub write_deadline: Duration,
    pub query_timeout: Duration,
    pub rotate_certificates: bool,
    /// At most so many rows of a backlog leave in a second.
    pub history_rows_per_second: u32,
    pub tls: TlsFiles,
    /// Empty unless the file carries a join token.
    pub token: String,
}

impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("server", &self.server)
            .field("http_server", &self.http_server)
            .field("token", &if self.token.is_empty() { "" } else { "…" })
            .finish_non_exhaustive()
    }
}

/// The node's identity on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The keys whose value the protocol fixes and that say something else.
pub(super) fn fixed(keys: &Keys) -> Result<impl Iterator<Item = &'static str>, ConfigError> {
    let heartbeat = keys.seconds(HEARTBEAT)?;
    let query_timeout = keys.seconds(QUERY_TIMEOUT)?;
    let told = [
        (HEARTBEAT, heartbeat != Duration::from_secs(15)),
        (QUERY_TIMEOUT, query_timeout != Duration::from_secs(60)),
    ];
    Ok(told
        .into_iter()
        .filter_map(|(path, is_other)| is_other.then_some(path)))
}

/// `None`: this node works alone.
pub(super) fn check(keys: &Keys) -> Result<Option<HubConfig>, ConfigError> {
    const HTTP: &str = "modules.edgeHub.httpServer";
    const ROWS: &str = "outpost.historyRowsPerSecond";
    let is_on: bool = keys.get("modules.edgeHub.enable")?;
    let has_websocket: bool = keys.get("modules.edgeHub.websocket.enable")?;
    if !(is_on && has_websocket) {
        return Ok(None);
    }
    let http_server = keys.text(HTTP)?;
    if !http_server.starts_with("https://") {
        let reason = format!("must start with https://, is `{http_server}`");
        return Err(wrong(HTTP, reason));
    }
    let history_rows_per_second = keys.get(ROWS)?;
    if history_rows_per_second == 0 {
        return Err(wrong(ROWS, "must be 1 or more"));
    }
    Ok(Some(HubConfig {
        server: keys.host_port("modules.edgeHub.websocket.server")?,
        http_server: http_server.trim_end_matches('/').to_owned(),
        project_id: keys.text("modules.edgeHub.projectID")?,
        heartbeat: keys.seconds(HEARTBEAT)?,
        handshake_timeout: keys.seconds("modules.edgeHub.websocket.handshakeTimeout")?,
        write_deadline: keys.seconds("modules.edgeHub.websocket.writeDeadline")?,
        query_timeout: keys.seconds(QUERY_TIMEOUT)?,
        rotate_certificates: keys.get("modules.edgeHub.rotateCertificates")?,
        history_rows_per_second,
        tls: TlsFiles {
            ca: keys.absolute("modules.edgeHub.tlsCaFile")?,
            cert: keys.absolute("modules.edgeHub.tlsCertFile")?,
            key: keys.absolute("modules.edgeHub.tlsPrivateKeyFile")?,
        },
        token: keys.text("modules.edgeHub.token")?,
    }))
}
