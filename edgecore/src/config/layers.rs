//! Merging the layers with the `config` crate: YAML by an own `Format`, the environment by an own
//! `Source` (the crate's own lower-cases every key, which loses camelCase).

use std::collections::BTreeSet;
use std::error::Error;

use config::{Map, Source, Value, ValueKind};

use super::keys::Keys;
use super::schema::{self, Known};
use super::{ConfigError, Flags};

const ENV_PREFIX: &str = "EDGECORE__";

/// YAML 1.2 by serde-saphyr; the one place that names that crate.
#[derive(Clone, Debug)]
struct Yaml;

impl config::Format for Yaml {
    fn parse(
        &self,
        _uri: Option<&String>,
        text: &str,
    ) -> Result<Map<String, Value>, Box<dyn Error + Send + Sync>> {
        if text
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
        {
            return Ok(Map::new());
        }
        let mut map = serde_saphyr::from_str::<Map<String, Value>>(text)?;
        drop_nulls(&mut map);
        Ok(map)
    }
}

/// `key:` with nothing behind it means "the default", as it does for KubeEdge.
fn drop_nulls(map: &mut Map<String, Value>) {
    map.retain(|_, value| !matches!(value.kind, ValueKind::Nil));
    for value in map.values_mut() {
        if let ValueKind::Table(inner) = &mut value.kind {
            drop_nulls(inner);
        }
    }
}

/// A parsed layer.
#[derive(Clone, Debug)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }
    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// Merges everything and says which keys were ignored.
pub(super) fn merge(
    file: Option<(&str, &str)>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &Flags,
) -> Result<(Keys, Vec<String>), ConfigError> {
    let broken = |error: config::ConfigError| ConfigError::Type(error.to_string());
    let mut ignored = BTreeSet::new();
    let mut builder = config::Config::builder();
    builder = builder.add_source(Layer(parse("defaults", &super::default_file())?));
    if let Some((origin, text)) = file {
        let map = parse(origin, text)?;
        inspect(origin, "", &map, &mut ignored)?;
        builder = builder.add_source(Layer(without_ignored("", map)));
    }
    builder = builder.add_source(Layer(environment(env)?));
    builder = builder.add_source(Layer(assignments("--set", flags.set.iter().cloned())?));
    for (path, value) in [
        ("modules.edged.hostnameOverride", &flags.node_name),
        ("outpost.logLevel", &flags.log_level),
        ("outpost.logFormat", &flags.log_format),
    ] {
        builder = builder
            .set_override_option(path, value.clone())
            .map_err(broken)?;
    }
    let merged = builder.build().map_err(broken)?;
    Ok((Keys::new(merged), ignored.into_iter().collect()))
}

fn parse(origin: &str, text: &str) -> Result<Map<String, Value>, ConfigError> {
    config::Format::parse(&Yaml, None, text).map_err(|error| ConfigError::Yaml {
        origin: origin.to_owned(),
        reason: error.to_string(),
    })
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

fn inspect(
    origin: &str,
    prefix: &str,
    map: &Map<String, Value>,
    ignored: &mut BTreeSet<String>,
) -> Result<(), ConfigError> {
    for (key, value) in map {
        let path = join(prefix, key);
        match (schema::classify(&path), &value.kind) {
            (Known::Leaf, _) => {}
            (Known::Ignored, _) => {
                ignored.insert(path);
            }
            (Known::Branch, ValueKind::Table(inner)) => inspect(origin, &path, inner, ignored)?,
            (Known::Branch, _) => {
                return Err(ConfigError::Type(format!(
                    "`{path}` must be a table of further keys (in {origin})"
                )));
            }
            (Known::Unknown, _) => {
                return Err(ConfigError::UnknownField {
                    origin: origin.to_owned(),
                    suggestion: schema::suggestion(&path),
                    path,
                });
            }
        }
    }
    Ok(())
}

fn without_ignored(prefix: &str, map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter_map(|(key, mut value)| {
            let path = join(prefix, &key);
            match schema::classify(&path) {
                Known::Ignored | Known::Unknown => None,
                Known::Leaf => Some((key, value)),
                Known::Branch => {
                    if let ValueKind::Table(inner) = value.kind {
                        value.kind = ValueKind::Table(without_ignored(&path, inner));
                    }
                    Some((key, value))
                }
            }
        })
        .collect()
}

/// `EDGECORE__A__B=value` to path and value.
fn environment(
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Map<String, Value>, ConfigError> {
    let ours = env.into_iter().filter_map(|(variable, text)| {
        let path = variable.strip_prefix(ENV_PREFIX)?.replace("__", ".");
        Some((path, text))
    });
    assignments("environment variable EDGECORE__…", ours)
}

/// Path and text to path and value; paths match without regard to case. A key whose default is a
/// string takes the text as it is; any other is read as YAML, so lists and maps may be given in
/// flow style.
pub(super) fn assignments(
    origin: &str,
    pairs: impl IntoIterator<Item = (String, String)>,
) -> Result<Map<String, Value>, ConfigError> {
    let mut layer = Map::new();
    for (path, text) in pairs {
        let field = schema::fields()
            .find(|field| field.path.eq_ignore_ascii_case(&path))
            .ok_or_else(|| ConfigError::UnknownField {
                origin: origin.to_owned(),
                suggestion: schema::suggestion(&path),
                path: path.clone(),
            })?;
        let value = if field.default.starts_with('"') {
            Value::new(Some(&origin.to_owned()), text)
        } else {
            serde_saphyr::from_str::<Value>(&text).map_err(|error| ConfigError::Yaml {
                origin: format!("{origin} {path}"),
                reason: error.to_string(),
            })?
        };
        layer.insert(field.path.to_owned(), value);
    }
    Ok(layer)
}
