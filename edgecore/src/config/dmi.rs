//! `modules.deviceTwin…`, `outpost.dmi…`: where mappers are served, and which.

use super::ConfigError;
use super::keys::{Keys, absolute};
use super::schema::{Field, field};
use crate::dmi::{Admission, DmiConfig, Pace};

/// Fewer would not do for a mapper with some devices.
const CALLS_PER_SECOND_MIN: u32 = 100;

pub(super) const FIELDS: &[Field] = &[
    field(
        "modules.deviceTwin.dmiSockPath",
        "\"/etc/kubeedge/\"",
        "directory of dmi.sock, where mappers register; a path that ends in .sock means its directory",
    ),
    field(
        "modules.deviceTwin.enable",
        "true",
        "false serves no mappers (Device Mapper Interface); devices on MQTT are not touched",
    ),
    field(
        "outpost.dmiCallsPerSecond",
        "200",
        "calls that each mapper may make; at least 100",
    ),
    field(
        "outpost.dmiGroups",
        "[]",
        "numeric groups besides root whose processes may be mappers",
    ),
    field(
        "outpost.dmiUsers",
        "[]",
        "numeric users besides root whose processes may be mappers; they report only for devices of their own",
    ),
];

/// `None`: no mappers. As KubeEdge reads the path: a directory, or the directory of a path that
/// ends in `.sock`; the file is always `dmi.sock`.
pub(super) fn check(keys: &Keys) -> Result<Option<DmiConfig>, ConfigError> {
    const PATH: &str = "modules.deviceTwin.dmiSockPath";
    let is_on: bool = keys.get("modules.deviceTwin.enable")?;
    if !is_on {
        return Ok(None);
    }
    let path = absolute(PATH, keys.text(PATH)?.trim_start_matches("unix://"))?;
    let is_file = path
        .extension()
        .is_some_and(|extension| extension == "sock");
    let directory = match path.parent() {
        Some(parent) if is_file => parent.to_owned(),
        _ => path,
    };
    let calls_per_second: u32 = keys.get("outpost.dmiCallsPerSecond")?;
    Ok(Some(DmiConfig {
        socket: directory.join("dmi.sock"),
        admission: Admission {
            uids: keys.get("outpost.dmiUsers")?,
            gids: keys.get("outpost.dmiGroups")?,
        },
        calls_per_second: calls_per_second.max(CALLS_PER_SECOND_MIN),
        pace: Pace::default(),
    }))
}
