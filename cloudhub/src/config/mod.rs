//! Configuration: defaults < file < environment (`CLOUDHUB__LISTEN__API=…`) < flags.
//!
//! Unknown keys are refused with their path. Empty strings in `advertise` are refused.

mod layers;

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use layers::{ConfigError, Overrides, load};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where the store, the keys and the kubeconfig are.
    pub data_dir: PathBuf,
    /// Names and addresses by which nodes and people reach the hub; they go into its certificate
    /// beside `localhost`, `127.0.0.1` and the host's name.
    pub advertise: Vec<String>,
    /// Where to listen.
    pub listen: Listen,
    /// Sessions with nodes.
    pub session: Session,
    /// How much history is kept.
    pub history: History,
    /// Readings of devices and uploads.
    pub telemetry: Telemetry,
    /// Rules whose source is HTTP.
    pub router: Router,
}

/// Rules whose source is HTTP. They are always served on the API's listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Router {
    /// A port of its own, plain HTTP, where KubeEdge has it (`0.0.0.0:9443`):
    /// `http://<hub>:9443/<node>/<namespace>/<path>`. Without, there is none.
    pub listen: Option<SocketAddr>,
    /// On that port nobody has to say who they are, as with KubeEdge. False: a bearer token, as
    /// the API takes it.
    pub anonymous: bool,
    /// How long a service of a node is waited for.
    pub answer_secs_max: u64,
}

/// Listening addresses; port 0 takes a free one, written to `<data_dir>/ports.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Listen {
    /// Kubernetes API.
    pub api: SocketAddr,
    /// Nodes' sessions (WebSocket).
    pub websocket: SocketAddr,
    /// Joining (HTTPS).
    pub bootstrap: SocketAddr,
}

/// Sessions with nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Session {
    /// Most nodes connected at once.
    pub nodes_max: usize,
    /// Most TLS and WebSocket handshakes at once; more wait.
    pub handshakes_max: usize,
    /// A node silent for so long is Unknown.
    pub silent_secs: u64,
    /// A node whose connection ended and did not come back for so long is Unknown.
    pub gone_secs: u64,
}

/// How much history is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct History {
    /// Last readings kept per node in the ledger.
    pub readings_per_node: usize,
    /// Events older than this are removed.
    pub event_ttl_secs: u64,
}

/// Readings of devices and uploads, in `<data_dir>/readings.db`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    /// Whether they are kept at all.
    pub enabled: bool,
    /// Older readings go.
    pub age_secs_max: u64,
    /// Beyond so many bytes the oldest go.
    pub bytes_max: u64,
    /// Whom they are handed on to.
    pub forward: Vec<Forward>,
}

/// Somebody whom readings are handed on to: `url` or `broker` says who.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Forward {
    /// Unique; progress is kept under this name.
    pub name: String,
    /// An HTTP endpoint, which is sent JSON arrays.
    pub url: String,
    /// File with a bearer token for it.
    pub token_file: PathBuf,
    /// An MQTT broker, `host:port`.
    pub broker: String,
    /// Whether the broker speaks TLS.
    pub tls: bool,
    /// Prefix of the topics.
    pub topic_prefix: String,
    /// User of the broker.
    pub user: String,
    /// File with their password.
    pub password_file: PathBuf,
    /// File with certificates trusted beside the system's.
    pub ca_file: PathBuf,
    /// Readings that wait longer are not handed on; 0: as long as they are kept.
    pub ttl_secs: u64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            enabled: true,
            age_secs_max: 7 * 24 * 3600,
            bytes_max: 1 << 30,
            forward: Vec::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/cloudhub"),
            advertise: Vec::new(),
            listen: Listen::default(),
            session: Session::default(),
            history: History::default(),
            telemetry: Telemetry::default(),
            router: Router::default(),
        }
    }
}

impl Default for Router {
    fn default() -> Self {
        Self {
            listen: None,
            anonymous: false,
            answer_secs_max: 60,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            api: any(6443),
            websocket: any(10_000),
            bootstrap: any(10_002),
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self {
            nodes_max: 100_000,
            handshakes_max: 64,
            silent_secs: 40,
            gone_secs: 20,
        }
    }
}

impl Default for History {
    fn default() -> Self {
        Self {
            readings_per_node: 10_000,
            event_ttl_secs: 3600,
        }
    }
}

impl Config {
    /// All names and addresses for the server certificate.
    pub fn server_names(&self) -> Vec<String> {
        let mut names = vec![
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim().to_lowercase();
        if crate::pki::valid_node_name(&host) {
            names.push(host);
        }
        for address in [
            self.listen.api,
            self.listen.websocket,
            self.listen.bootstrap,
        ] {
            if !address.ip().is_unspecified() {
                names.push(address.ip().to_string());
            }
        }
        names.extend(self.advertise.iter().cloned());
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}
