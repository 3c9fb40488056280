//! Addresses that a power cut left reserved. Network namespaces do not survive a reboot, and our
//! own notes lie on a tmpfs; `host-local` keeps what it gave out on disk where the site's
//! configuration says so, and would run out of addresses one reboot after another.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

/// Where `host-local` keeps its networks unless it is told otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// One reservation: whose it is and when it was made.
#[derive(Clone, Debug)]
struct Reservation<'a> {
    owner: &'a str,
    made: SystemTime,
}

/// Only what is surely nobody's: a pod's (our ids are uuids; the ids of other runtimes are not),
/// without a note of ours, and from before this boot. On a board without a clock "before" can lie
/// in the future.
fn is_stale(
    reservation: &Reservation<'_>,
    noted: &BTreeSet<String>,
    boot: SystemTime,
    now: SystemTime,
) -> bool {
    uuid::Uuid::parse_str(reservation.owner).is_ok()
        && !noted.contains(reservation.owner)
        && (reservation.made < boot || reservation.made > now)
}

/// When this host started, by the wall clock of now.
pub(super) fn boot_time(now: SystemTime) -> Option<SystemTime> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    now.checked_sub(Duration::try_from_secs_f64(seconds).ok()?)
}

/// Frees the stale reservations of a network; which ones.
pub(super) fn free_stale(
    conflist: &Value,
    noted: &BTreeSet<String>,
    boot: SystemTime,
    now: SystemTime,
) -> Vec<PathBuf> {
    let network = conflist.get("name").and_then(Value::as_str);
    let Some(network) = network.filter(|name| !name.contains('/') && *name != "..") else {
        return Vec::new();
    };
    let mut freed = Vec::new();
    for plugin in super::plugins(conflist) {
        if plugin.pointer("/ipam/type").and_then(Value::as_str) != Some("host-local") {
            continue;
        }
        let data_dir = plugin.pointer("/ipam/dataDir").and_then(Value::as_str);
        let directory = Path::new(data_dir.unwrap_or(DATA_DIR)).join(network);
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            // Others are the plugin's own files.
            let name = entry.file_name();
            let is_address = name
                .to_str()
                .is_some_and(|n| n.parse::<std::net::IpAddr>().is_ok());
            let made = entry.metadata().and_then(|metadata| metadata.modified());
            let (true, Ok(made)) = (is_address, made) else {
                continue;
            };
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let owner = text.lines().next().unwrap_or_default().trim();
            if is_stale(&Reservation { owner, made }, noted, boot, now)
                && std::fs::remove_file(entry.path()).is_ok()
            {
                freed.push(entry.path());
            }
        }
    }
    freed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POD: &str = "0f1e2d3c-0000-4000-8000-0123456789ab";

    #[test]
    fn only_pods_of_before_the_boot_without_a_note_lose_their_address() {
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let (boot, now) = (second(1000), second(2000));
        let none = BTreeSet::new();
        let noted = BTreeSet::from([POD.to_owned()]);
        let sandbox = "5f".repeat(32);
        for (owner, made, noted, expected) in [
            (POD, 900, &none, true),
            (POD, 3000, &none, true),
            (POD, 1500, &none, false),
            (POD, 900, &noted, false),
            (sandbox.as_str(), 900, &none, false),
            ("", 900, &none, false),
        ] {
            let reservation = Reservation {
                owner,
                made: second(made),
            };
            let found = is_stale(&reservation, noted, boot, now);
            assert_eq!(found, expected, "{owner} {made}");
        }
    }

    #[test]
    fn the_plugins_own_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let network = directory.path().join("net");
        std::fs::create_dir(&network).unwrap();
        for (name, text) in [
            ("10.1.0.2", format!("{POD}\r\neth0")),
            ("10.1.0.3", "5f5f\r\neth0".to_owned()),
            ("last_reserved_ip.0", POD.to_owned()),
            ("lock", String::new()),
        ] {
            std::fs::write(network.join(name), text).unwrap();
        }
        let list = json!({"name": "net", "plugins": [
            {"type": "bridge", "ipam": {"type": "host-local", "dataDir": directory.path()}}]});
        let later = SystemTime::now() + Duration::from_secs(60);
        let freed = free_stale(&list, &BTreeSet::new(), later, later);
        assert_eq!(freed, [network.join("10.1.0.2")]);
        assert_eq!(std::fs::read_dir(&network).unwrap().count(), 3);
        let elsewhere = json!({"name": "../net", "plugins": list["plugins"]});
        assert!(free_stale(&elsewhere, &BTreeSet::new(), later, later).is_empty());
        assert!(boot_time(SystemTime::now()).unwrap() < SystemTime::now());
    }
}
