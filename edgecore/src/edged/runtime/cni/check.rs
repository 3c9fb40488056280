//! Whether what ADD made is still there. The plugins are asked (CNI spec 1.0.0, section 2: CHECK), and
//! the kernel is: a plugin may have a reason of its own to refuse, and only what both miss is gone.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::plugin::Command;
use super::{Cached, Cni, IF_NAME, addresses, concerns, is_namespace, plugins};
use crate::edged::runtime::NetworkHealth;

/// Versions that know no CHECK.
const VERSIONS_WITHOUT: [&str; 2] = ["0.3.0", "0.3.1"];

impl Cni {
    /// How the network of a pod stands that was connected before. Good, where nothing is known of it
    /// or its configuration does without CHECK.
    pub(in crate::edged::runtime) async fn check(&self, uid: &str) -> NetworkHealth {
        let path = self.cache_path(uid);
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
        let Some(cached) = read
            .ok()
            .and_then(Result::ok)
            .and_then(|bytes| serde_json::from_slice::<Cached>(&bytes).ok())
        else {
            return NetworkHealth::Good;
        };
        let Some(result) = cached
            .result
            .clone()
            .filter(|_| may_check(&cached.conflist))
        else {
            return NetworkHealth::Good;
        };
        // The rule of all pods is nobody's plugin; somebody may have emptied the tables.
        if let Err(reason) = self.masquerade.ensure(&cached.conflist).await {
            tracing::warn!(reason, "masquerading of the pods' network cannot be made");
        }
        let Err(complaint) = self.ask_all(uid, &cached, &result).await else {
            return NetworkHealth::Good;
        };
        let netns = cached.netns.clone();
        let look = tokio::task::spawn_blocking(move || missing(&result, &netns)).await;
        match look {
            Ok(Ok(Some(lost))) => NetworkHealth::Gone {
                reason: format!("{lost}; {complaint}"),
            },
            Ok(Ok(None) | Err(_)) | Err(_) => NetworkHealth::Doubtful { reason: complaint },
        }
    }

    async fn ask_all(&self, uid: &str, cached: &Cached, result: &Value) -> Result<(), String> {
        for plugin in plugins(&cached.conflist).filter(|plugin| concerns(plugin, cached)) {
            self.run(Command::Check, uid, plugin, cached, Some(result))
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

fn may_check(conflist: &Value) -> bool {
    let version = conflist.get("cniVersion").and_then(Value::as_str);
    let is_disabled = conflist.get("disableCheck").and_then(Value::as_bool) == Some(true);
    version.is_some_and(|version| !VERSIONS_WITHOUT.contains(&version)) && !is_disabled
}

/// What of a result is not there: an interface on either side, or an address. Blocks.
fn missing(result: &Value, netns: &Path) -> io::Result<Option<String>> {
    if !is_namespace(netns) {
        return Ok(Some("its network namespace is gone".to_owned()));
    }
    let mut inside = BTreeSet::from([IF_NAME.to_owned()]);
    let listed = result.get("interfaces").and_then(Value::as_array);
    for interface in listed.into_iter().flatten() {
        let text = |key: &str| {
            interface
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let name = text("name");
        if name.is_empty() || name.contains('/') {
            continue;
        }
        if !text("sandbox").is_empty() {
            inside.insert(name.to_owned());
        } else if !PathBuf::from("/sys/class/net").join(name).exists() {
            return Ok(Some(format!("the node has no interface {name}")));
        }
    }
    let (netns, ips) = (netns.to_owned(), addresses(result));
    // Never to go back to the runtime's pool.
    std::thread::Builder::new()
        .name("network-look".to_owned())
        .spawn(move || missing_inside(&netns, &inside, &ips))?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("namespace thread panicked")))
}

fn missing_inside(
    netns: &Path,
    interfaces: &BTreeSet<String>,
    ips: &[String],
) -> io::Result<Option<String>> {
    let namespace = rustix::fs::open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(LinkNameSpaceType::Network),
    )?;
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let present: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    if let Some(name) = interfaces
        .iter()
        .find(|name| !present.contains(name.as_str()))
    {
        return Ok(Some(format!("the pod has no interface {name}")));
    }
    for ip in ips {
        let Ok(address) = ip.parse::<IpAddr>() else {
            continue;
        };
        match UdpSocket::bind((address, 0)) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                return Ok(Some(format!("the pod has no address {ip}")));
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}
