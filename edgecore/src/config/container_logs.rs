//! The containers' logs: who writes them, and what they may take.

use std::path::PathBuf;

use super::ConfigError;
use super::keys::{BYTES_MAX, Keys, wrong};
use super::schema::{Field, field, kubelet};

/// A file holds a line at least, whatever its length.
const FILE_BYTES_MIN: u64 = 32 << 10;
const FILES_MAX: u32 = 100;

pub(super) const FIELDS: &[Field] = &[
    field(
        kubelet!("containerLogMaxFiles"),
        "5",
        "files of one container's log, 2 or more",
    ),
    field(
        kubelet!("containerLogMaxSize"),
        "\"10Mi\"",
        "one of them is replaced by the next at this size",
    ),
    field(
        kubelet!("podLogsDir"),
        "\"/var/log/pods\"",
        "the containers' logs, in the CRI format",
    ),
    field(
        "outpost.loggerPath",
        "\"\"",
        "the program that writes container logs; empty: `edged-logger` beside this program",
    ),
    field(
        "outpost.nodeLogsBytesMax",
        "\"2Gi\"",
        "all container logs of the node together; the oldest rotated files go",
    ),
    field(
        "outpost.podLogsBytesMax",
        "\"256Mi\"",
        "all container logs of one pod together",
    ),
];

/// Bounds.
pub(super) struct Bounds {
    pub(super) file_bytes: u64,
    pub(super) files: u32,
    pub(super) pod_bytes: u64,
    pub(super) node_bytes: u64,
}

/// Files as kubelet checks them (`pkg/kubelet/logs`, `NewContainerLogManager`); what all may take
/// together is ours, and is no less than what one may.
pub(super) fn check(keys: &Keys) -> Result<Bounds, ConfigError> {
    const FILE: &str = kubelet!("containerLogMaxSize");
    const FILES: &str = kubelet!("containerLogMaxFiles");
    const POD: &str = "outpost.podLogsBytesMax";
    const NODE: &str = "outpost.nodeLogsBytesMax";
    let file_bytes = keys.bytes(FILE, FILE_BYTES_MIN..=BYTES_MAX)?;
    let files: u32 = keys.get(FILES)?;
    if !(2..=FILES_MAX).contains(&files) {
        let reason = format!("must be between 2 and {FILES_MAX}, is {files}");
        return Err(wrong(FILES, reason));
    }
    let pod_bytes = keys.bytes(POD, 0..=BYTES_MAX)?;
    let node_bytes = keys.bytes(NODE, 0..=BYTES_MAX)?;
    for (path, bytes, other, other_name, least) in [
        (POD, pod_bytes, FILE, "containerLogMaxSize", file_bytes),
        (NODE, node_bytes, POD, POD, pod_bytes),
    ] {
        if bytes < least {
            let (text, other) = (keys.text(path)?, keys.text(other)?);
            let reason = format!("{text} must not be less than {other_name}, {other}");
            return Err(wrong(path, reason));
        }
    }
    Ok(Bounds {
        file_bytes,
        files,
        pod_bytes,
        node_bytes,
    })
}

/// The program that writes them: beside this one unless something else is said.
pub(super) fn program(keys: &Keys) -> Result<PathBuf, ConfigError> {
    let said = keys.optional_file("outpost.loggerPath")?;
    Ok(said.unwrap_or_else(|| {
        std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(|dir| dir.join("edged-logger")))
            .unwrap_or_else(|| PathBuf::from("/usr/local/bin/edged-logger"))
    }))
}
