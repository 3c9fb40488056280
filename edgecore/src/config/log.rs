//! `outpost.log…`: the daemon's own log.

use tracing_subscriber::filter::{LevelFilter, Targets};

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
        filter: filter(keys)?,
        format,
    })
}

/// A word alone would be the name of a module and turn off all others: more likely a level that is
/// misspelt.
fn filter(keys: &Keys) -> Result<String, ConfigError> {
    const PATH: &str = "outpost.logLevel";
    let text = keys.text(PATH)?;
    let is_known = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
    if text.parse::<Targets>().is_ok() && text.split(',').all(is_known) {
        return Ok(text);
    }
    let reason = format!(
        "must be error, warn, info, debug or trace, or a filter such as info,edgecore::hub=debug, \
         is `{text}`"
    );
    Err(wrong(PATH, reason))
}
