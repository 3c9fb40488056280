//! `outpost.history…`, `outpost.twinConflict`: what is kept of readings, whose desired value stands.

use super::ConfigError;
use super::keys::{BYTES_MAX, Keys, wrong};
use super::schema::{Field, field};
use crate::twin::HistoryBounds;

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
