//! The layers, merged by the `config` crate.

use std::path::{Path, PathBuf};

use config::{ConfigBuilder, Map, Value, builder::DefaultState};

use super::Config;

/// Prefix of environment variables.
const ENV_PREFIX: &str = "CLOUDHUB__";

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file `{path}` could not be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not YAML, or not a mapping.
    #[error("configuration file `{path}` is not valid YAML: {message}")]
    Yaml {
        /// Which.
        path: PathBuf,
        /// Position and excerpt.
        message: String,
    },
    /// An environment variable names nothing.
    #[error("environment variable `{0}` names no setting")]
    Variable(String),
    /// A key is unknown or a value has the wrong type.
    #[error("configuration: {path}: {message}")]
    Invalid {
        /// The key.
        path: String,
        /// What is wrong.
        message: String,
    },
}

/// What the command line sets; it wins over everything else.
#[derive(Debug, Clone, Default)]
pub struct Overrides(pub Vec<(&'static str, Value)>);

/// Loads the configuration: defaults, then `file`, then `environment`, then `overrides`.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    overrides: Overrides,
) -> Result<Config, ConfigError> {
    let tree = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut builder = ConfigBuilder::<DefaultState>::default();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        if !text.trim().is_empty() {
            let map: Map<String, Value> =
                serde_saphyr::from_str(&text).map_err(|error| ConfigError::Yaml {
                    path: path.to_owned(),
                    message: error.to_string(),
                })?;
            for (key, value) in map {
                builder = set(builder, &key, value)?;
            }
        }
    }
    for (variable, value) in environment {
        let Some(rest) = variable.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        let path = resolve(&tree, rest).ok_or_else(|| ConfigError::Variable(variable.clone()))?;
        builder = set(builder, &path, Value::from(value))?;
    }
    for (key, value) in overrides.0 {
        builder = set(builder, key, value)?;
    }
    let built = builder.build().map_err(|error| invalid("", &error))?;
    let config: Config = serde_path_to_error::deserialize(built).map_err(|error| {
        let path = error.path().to_string();
        invalid(&path, error.inner())
    })?;
    valid(config)
}

fn set(
    builder: ConfigBuilder<DefaultState>,
    key: &str,
    value: Value,
) -> Result<ConfigBuilder<DefaultState>, ConfigError> {
    // Later calls win, and merge below the key they name.
    if let config::ValueKind::Table(table) = value.kind {
        return table.into_iter().try_fold(builder, |builder, (k, v)| {
            set(builder, &format!("{key}.{k}"), v)
        });
    }
    builder
        .set_override(key, value)
        .map_err(|error| invalid(key, &error))
}

fn invalid(path: &str, error: &impl std::fmt::Display) -> ConfigError {
    let path = if path.is_empty() || path == "." {
        "(top level)"
    } else {
        path
    };
    let mut message = error.to_string();
    if message.contains("socket address") {
        "must be an address and a port, such as `0.0.0.0:6443`".clone_into(&mut message);
    }
    ConfigError::Invalid {
        path: path.to_owned(),
        message,
    }
}

/// Matches `LISTEN__API` without case against the keys of the defaults.
fn resolve(tree: &serde_json::Value, rest: &str) -> Option<String> {
    let mut at = tree;
    let mut path = Vec::new();
    for segment in rest.split("__") {
        let (key, next) = at
            .as_object()?
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(segment))?;
        path.push(key.as_str());
        at = next;
    }
    Some(path.join("."))
}

fn valid(config: Config) -> Result<Config, ConfigError> {
    let check = |ok: bool, path: &str, message: &str| {
        if ok {
            Ok(())
        } else {
            Err(ConfigError::Invalid {
                path: path.to_owned(),
                message: message.to_owned(),
            })
        }
    };
    for name in &config.advertise {
        let ok = name.parse::<std::net::IpAddr>().is_ok()
            || crate::pki::valid_node_name(&name.to_lowercase());
        check(
            ok,
            "advertise",
            &format!("`{name}` is neither a DNS name nor an IP address"),
        )?;
    }
    check(
        config.session.nodes_max > 0,
        "session.nodesMax",
        "must be at least 1",
    )?;
    check(
        config.session.handshakes_max > 0,
        "session.handshakesMax",
        "must be at least 1",
    )?;
    check(
        config.session.silent_secs > 0,
        "session.silentSecs",
        "must be at least 1",
    )?;
    check(
        (100..=1_000_000).contains(&config.history.readings_per_node),
        "history.readingsPerNode",
        "must be between 100 and 1000000",
    )?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        pairs.into_iter()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn layers_win_in_order() {
        let file = file("dataDir: /a\nlisten: {api: '127.0.0.1:1'}\nsession: {goneSecs: 7}\n");
        let config = load(
            Some(file.path()),
            env(&[("CLOUDHUB__LISTEN__API", "127.0.0.1:2"), ("OTHER", "x")]),
            Overrides(vec![("dataDir", "/b".into())]),
        )
        .unwrap();
        assert_eq!(config.data_dir, Path::new("/b"));
        assert_eq!(config.listen.api.port(), 2);
        assert_eq!(config.listen.websocket.port(), 10_000);
        assert_eq!(
            (config.session.gone_secs, config.session.silent_secs),
            (7, 40)
        );
    }

    #[test]
    fn wrong_keys_and_values_are_refused_with_their_path() {
        for (text, want) in [
            ("listen: {apis: '127.0.0.1:1'}\n", "listen"),
            ("nonsense: 1\n", "nonsense"),
            (
                "listen: {api: 12}\n",
                "listen.api: must be an address and a port",
            ),
            ("advertise: ['bad name']\n", "advertise"),
            ("history: {readingsPerNode: 1}\n", "history.readingsPerNode"),
            ("a: [\n", "not valid YAML"),
        ] {
            let file = file(text);
            let error = load(Some(file.path()), env(&[]), Overrides::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        let error = load(
            None,
            env(&[("CLOUDHUB__LISTEN__WHAT", "1")]),
            Overrides::default(),
        );
        assert!(matches!(error, Err(ConfigError::Variable(_))));
    }
}
