//! Configuration in KubeEdge's own file format, in layers: defaults < file < environment < flags
//! (design D9). [`Config`] is what was checked; nothing else in the daemon sees the layers. Each
//! section is a file: its keys with their defaults, its type, its checks.
//!
//! - A key of KubeEdge's that has no meaning here is accepted and listed in [`Config::ignored`].
//! - A key that nobody knows is an error that names its path and the closest known key.
//! - Environment: `EDGECORE__MODULES__EDGEHUB__HEARTBEAT=20`; segments match without regard to
//!   case, because variables have none.

mod bus;
mod container_logs;
mod dmi;
mod hub;
mod images;
mod keys;
mod layers;
mod log;
mod mqtt;
mod network;
mod outbox;
mod resources;
mod runtime;
mod schema;
mod service_bus;
mod twin;
mod valid;

use std::path::Path;

pub use bus::{BusConfig, BusMode};
pub use hub::{HubConfig, TlsFiles};
pub use log::{LogConfig, LogFormat};
pub use mqtt::{Anonymous, MqttConfig, MqttUser, ServerTls};
pub use resources::NodeResources;
pub use runtime::RuntimeConfig;
pub(crate) use valid::is_node_name;
pub use valid::{Config, host_name};

/// Where `edgecore run` looks when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/edgecore/edgecore.yaml";

/// Why the configuration cannot be used. All of these are the operator's to mend (exit code 64).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("cannot read configuration file `{path}` (`edgecore join` writes one)")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{origin}` is not valid YAML: {reason}")]
    Yaml { origin: String, reason: String },
    #[error("{origin}: unknown field `{path}`{}", did_you_mean(.suggestion.as_deref()))]
    UnknownField {
        origin: String,
        path: String,
        suggestion: Option<String>,
    },
    #[error("configuration is ill-typed: {0}")]
    Type(String),
    #[error("`{path}`: {reason}")]
    Value {
        path: std::borrow::Cow<'static, str>,
        reason: String,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |s| format!(", did you mean `{s}`?"))
}

/// Values given by flags, the highest layer.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub node_name: Option<String>,
    pub log_level: Option<String>,
    pub log_format: Option<String>,
    /// `--set key=value`, in order.
    pub set: Vec<(String, String)>,
}

/// Reads all layers. `file: None` means that there is no file (defaults, environment and flags
/// alone); `env` is the process environment, as an argument so that tests own it.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &Flags,
) -> Result<Config, ConfigError> {
    let text = match file {
        None => None,
        Some(path) => Some((
            path.display().to_string(),
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.display().to_string(),
                source,
            })?,
        )),
    };
    let (keys, ignored) = layers::merge(
        text.as_ref().map(|(o, t)| (o.as_str(), t.as_str())),
        env,
        flags,
    )?;
    valid::check(&keys, ignored)
}

/// The commented file that `--defaultconfig` prints.
pub fn default_file() -> String {
    schema::print(
        "edgecore: every key with its default. Order: defaults < this file < EDGECORE__… variables < flags.",
        |field| Some(field.default.to_owned()),
    )
}

/// The commented file that `--minconfig` prints.
pub fn minimal_file() -> String {
    schema::print(
        "edgecore: the keys a node usually sets. `edgecore --defaultconfig` prints them all.",
        |field| field.is_usual.then(|| field.default.to_owned()),
    )
}

/// The file that `edgecore join` writes: the given keys and nothing else.
pub fn file_with(values: &[(String, String)]) -> Result<String, ConfigError> {
    let layer = layers::assignments("--set", values.iter().cloned())?;
    let mut chosen = std::collections::BTreeMap::new();
    for (path, value) in layer {
        let json: serde_json::Value = value
            .try_deserialize()
            .map_err(|error| ConfigError::Type(error.to_string()))?;
        chosen.insert(path, json.to_string());
    }
    Ok(schema::print(
        "Written by `edgecore join`. `edgecore --defaultconfig` shows every key.",
        |field| {
            let always = matches!(field.path, "apiVersion" | "kind");
            let default = always.then(|| field.default.to_owned());
            chosen.get(field.path).cloned().or(default)
        },
    ))
}

#[cfg(test)]
mod tests;
