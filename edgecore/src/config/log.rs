//! `outpost.log…`: the daemon's own log.

use super::ConfigError;
use super::keys::{Keys, wrong};
use super::schema::{Field, field};

pub(super) const FIELDS: &[Field] = &[
    field("outpost.logFormat", "\"text\"", "text or json"),
    field(
        "outpost.logLevel",
        "\"info\"",
        "error, warn, info, debug, trace, or a tracing filter",
    ),
];

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct LogConfig {
    pub filter: String,
    pub format: LogFormat,
}

pub(super) fn check(keys: &Keys) -> Result<LogConfig, ConfigError> {
    let format = match keys.text("outpost.logFormat")?.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            let reason = format!("must be text or json, is `{other}`");
            return Err(wrong("outpost.logFormat", reason));
        }
    };
    Ok(LogConfig {
        filter: keys.text("outpost.logLevel")?,
        format,
    })
}
