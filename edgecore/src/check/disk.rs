//! Room for the database and the pods, and the right to write there.

use std::path::Path;

use super::Finding;
use crate::config::Config;

const CHECK: &str = "disk";
/// Below this a busy outbox may fill the disk within hours.
const FREE_BYTES_WARN: u64 = 512 << 20;
/// Below this neither an image nor a day of readings fits.
const FREE_BYTES_FAIL: u64 = 64 << 20;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut places = vec![config.data_dir()];
    if let Some(runtime) = &config.runtime {
        places.push(&runtime.root_dir);
    }
    places.dedup();
    places.into_iter().map(check_one).collect()
}

fn check_one(path: &Path) -> Finding {
    let shown = path.display();
    if let Err(error) = crate::files::make_dir(path, 0o755) {
        return Finding::fail(
            CHECK,
            format!("cannot make {shown}: {error}"),
            "run as root, or choose another directory in the configuration",
        );
    }
    let probe = path.join(".edgecore-check");
    if let Err(error) = crate::files::write_atomic(&probe, b"ok", 0o600) {
        return Finding::fail(
            CHECK,
            format!("cannot write in {shown}: {error}"),
            "free space, remount read-write, or run as root",
        );
    }
    // A probe that stays is two bytes; the next check replaces it.
    drop(std::fs::remove_file(&probe));
    let Ok(stat) = rustix::fs::statvfs(path) else {
        return Finding::warn(CHECK, format!("{shown}: free space unknown"), "");
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{shown}: {} MiB free", free >> 20);
    if free < FREE_BYTES_FAIL {
        Finding::fail(CHECK, detail, "free space: `du -xh / | sort -h | tail`")
    } else if free < FREE_BYTES_WARN {
        Finding::warn(
            CHECK,
            detail,
            "little room is left for images and queued readings",
        )
    } else if stat.f_files > 0 && stat.f_favail < 1000 {
        Finding::fail(
            CHECK,
            format!("{shown}: no inodes left"),
            "remove small files",
        )
    } else {
        Finding::pass(CHECK, detail)
    }
}
