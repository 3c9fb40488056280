//! `outpost.history…`, `outpost.twinConflict`: what is kept of readings, whose desired value stands,
//! and `outpost.twinValues…`: what a value may be.

use device_twin::ValueRule;

use super::ConfigError;
use super::keys::{BYTES_MAX, Keys, wrong};
use super::schema::{Field, field};
use crate::twin::HistoryBounds;

/// KubeEdge's bound is the least: devices of its world rely on it.
const VALUE_BYTES: std::ops::RangeInclusive<u64> = 512..=4 << 10;
/// Of one property.
const ROWS_MAX: u32 = 1_000_000;

pub(super) const FIELDS: &[Field] = &[
    field(
        "outpost.history.ageMax",
        "\"168h\"",
        "readings older than this are dropped",
    ),
    field(
        "outpost.history.bytesMax",
        "\"64Mi\"",
        "disk for the readings of all properties; then each gives up its oldest eighth",
    ),
    field(
        "outpost.history.rowsMax",
        "1000",
        "readings kept of each device property, for `edgecore history`; 0 keeps none",
    ),
    field(
        "outpost.twinConflict",
        "\"cloud\"",
        "whose desired value stands when the hub and somebody here both set one: cloud, edge or newest; the annotation outpost.dev/conflict of a Device comes first",
    ),
    field(
        "outpost.twinValues.bytesMax",
        "\"512\"",
        "longest value of a property, 512 to 4Ki; KubeEdge's is 512, and its hubs and mappers may rely on it",
    ),
    field(
        "outpost.twinValues.characters",
        "\"kubeedge\"",
        "kubeedge: letters, digits and - _ . , : / @ # in values; text: anything but control characters",
    ),
];

pub(super) fn history(keys: &Keys) -> Result<HistoryBounds, ConfigError> {
    const AGE: &str = "outpost.history.ageMax";
    let text = keys.text(AGE)?;
    let age: Result<jiff::SignedDuration, _> = text.parse();
    let age_max_ms = age
        .ok()
        .and_then(|age| i64::try_from(age.as_millis()).ok())
        .filter(|age_ms| *age_ms > 0)
        .ok_or_else(|| wrong(AGE, format!("must be a span such as 168h, is `{text}`")))?;
    let rows_max: u32 = keys.get("outpost.history.rowsMax")?;
    Ok(HistoryBounds {
        rows_max: rows_max.min(ROWS_MAX),
        age_max_ms,
        bytes_max: keys.bytes("outpost.history.bytesMax", 0..=BYTES_MAX)?,
    })
}

pub(super) fn conflict(keys: &Keys) -> Result<String, ConfigError> {
    const PATH: &str = "outpost.twinConflict";
    let text = keys.text(PATH)?;
    if device_twin::Conflict::parse(&text).is_some() {
        return Ok(text);
    }
    let reason = format!("must be cloud, edge or newest, is `{text}`");
    Err(wrong(PATH, reason))
}

pub(super) fn values(keys: &Keys) -> Result<ValueRule, ConfigError> {
    const CHARACTERS: &str = "outpost.twinValues.characters";
    let bytes_max = keys.bytes("outpost.twinValues.bytesMax", VALUE_BYTES)?;
    let is_text = match keys.text(CHARACTERS)?.as_str() {
        "kubeedge" => false,
        "text" => true,
        other => {
            let reason = format!("must be kubeedge or text, is `{other}`");
            return Err(wrong(CHARACTERS, reason));
        }
    };
    Ok(ValueRule {
        bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
        is_text,
    })
}
