//! The configuration as checked: what the rest of the daemon is given. What belongs to the node as
//! a whole stands here, the rest in a file for each section.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::bus::{self, BusConfig};
use super::hub::{self, HubConfig};
use super::keys::{Keys, address, wrong};
use super::log::{self, LogConfig};
use super::runtime::{self, RuntimeConfig};
use super::schema::{Field, field, usual};
use super::{ConfigError, dmi, outbox, service_bus, twin};
use crate::dmi::DmiConfig;
use crate::outbox::Rule;
use crate::servicebus::ServiceBusConfig;
use crate::twin::HistoryBounds;

pub(super) const FIELDS: &[Field] = &[
    usual(
        "apiVersion",
        "\"edgecore.config.kubeedge.io/v1alpha2\"",
        "KubeEdge's own format; a file written for KubeEdge is read as it is",
    ),
    usual(
        "database.dataSource",
        "\"/var/lib/edgecore/edgecore.db\"",
        "the node's one database; its directory also holds the key that seals secrets",
    ),
    usual("kind", "\"EdgeCore\"", "what this file is for"),
    usual(
        "modules.edged.hostnameOverride",
        "\"\"",
        "the node's name; empty takes the host's name",
    ),
    field(
        "modules.edged.nodeIP",
        "\"\"",
        "address told to the hub; empty takes the one that routes outwards",
    ),
    field(
        "modules.edged.nodeLabels",
        "{}",
        "labels put on the node at registration",
    ),
    field(
        "modules.edged.registerSchedulable",
        "true",
        "false registers the node as unschedulable",
    ),
    field(
        "outpost.runDirectory",
        "\"/run/edgecore\"",
        "the socket that `edgecore status` asks; network pins; volumes that must not touch the disk",
    ),
];

/// Everything the daemon needs to know at start.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ip: Option<IpAddr>,
    pub node_labels: BTreeMap<String, String>,
    pub register_schedulable: bool,
    /// The database file; its directory is [`Config::data_dir`].
    pub database: PathBuf,
    pub run_dir: PathBuf,
    /// `None`: this node works alone.
    pub hub: Option<HubConfig>,
    /// `None`: no pods on this node.
    pub runtime: Option<RuntimeConfig>,
    /// `None`: no MQTT and no devices.
    pub bus: Option<BusConfig>,
    /// `None`: no mappers.
    pub dmi: Option<DmiConfig>,
    /// `None`: no HTTP between this node and the cloud.
    pub service_bus: Option<ServiceBusConfig>,
    pub log: LogConfig,
    /// Bound of the outbox; 1 MiB or more.
    pub outbox_bytes_max: u64,
    /// Policies of the outbox's streams, the first that matches counts.
    pub streams: Vec<Rule>,
    /// What is kept of the properties' readings.
    pub history: HistoryBounds,
    /// `cloud`, `edge` or `newest`: whose desired value stands.
    pub twin_conflict: String,
    /// What values devices may report.
    pub twin_values: device_twin::ValueRule,
    /// KubeEdge's keys that were present and mean nothing here, sorted.
    pub ignored: Vec<String>,
}

impl Config {
    /// The directory of everything durable that is not a pod's.
    pub fn data_dir(&self) -> &Path {
        self.database.parent().unwrap_or(Path::new("/"))
    }

    /// The local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("edgecore.sock")
    }
}

/// Checks a node name as Kubernetes does (RFC 1123 subdomain).
pub(crate) fn is_node_name(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// The host's name, lower case, as kubelet derives a node's name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .trim()
        .to_lowercase()
}

fn node_name(keys: &Keys) -> Result<String, ConfigError> {
    const PATH: &str = "modules.edged.hostnameOverride";
    let name = keys.optional(PATH)?.unwrap_or_else(host_name);
    if is_node_name(&name) {
        return Ok(name);
    }
    let reason = format!(
        "`{name}` is no valid node name (lower-case letters, digits, `-` and `.`, at most 253)"
    );
    Err(wrong(PATH, reason))
}

fn is(keys: &Keys, path: &'static str, expected: &str) -> Result<(), ConfigError> {
    let found = keys.text(path)?;
    if found == expected {
        return Ok(());
    }
    Err(wrong(path, format!("must be {expected}, is `{found}`")))
}

/// Merged layers to checked; `ignored` are the keys of the file that mean nothing here.
pub(super) fn check(keys: &Keys, mut ignored: Vec<String>) -> Result<Config, ConfigError> {
    is(keys, "apiVersion", "edgecore.config.kubeedge.io/v1alpha2")?;
    is(keys, "kind", "EdgeCore")?;
    let node_name = node_name(keys)?;
    let node_ip = keys.optional("modules.edged.nodeIP")?;
    ignored.extend(hub::fixed(keys)?.map(ToOwned::to_owned));
    Ok(Config {
        node_ip: node_ip
            .map(|text| address("modules.edged.nodeIP", &text))
            .transpose()?,
        node_labels: keys.get("modules.edged.nodeLabels")?,
        register_schedulable: keys.get("modules.edged.registerSchedulable")?,
        database: keys.absolute("database.dataSource")?,
        run_dir: keys.absolute("outpost.runDirectory")?,
        hub: hub::check(keys)?,
        runtime: runtime::check(keys)?,
        bus: bus::check(keys, &node_name)?,
        dmi: dmi::check(keys)?,
        service_bus: service_bus::check(keys)?,
        log: log::check(keys)?,
        outbox_bytes_max: outbox::bytes_max(keys)?,
        streams: outbox::streams(keys)?,
        history: twin::history(keys)?,
        twin_conflict: twin::conflict(keys)?,
        twin_values: twin::values(keys)?,
        node_name,
        ignored,
    })
}
