//! The node's own network, for nodes that are given none.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Cni, CniError};
use crate::edged::runtime::masquerade;

impl Cni {
    /// Bridge, host-local and portmap, written once to the state directory. The address range
    /// and the bridge's name come from the state directory's path, so that two nodes on one
    /// machine do not share them.
    pub(super) fn builtin(&self) -> Result<Value, CniError> {
        let path = self.state_dir.join("builtin.conflist");
        if let Ok(bytes) = std::fs::read(&path)
            && let Ok(conflist) = serde_json::from_slice(&bytes)
        {
            return Ok(conflist);
        }
        let hash = Sha256::digest(self.state_dir.as_os_str().as_encoded_bytes());
        let bridge = format!("edge{}", hex::encode(&hash[..4]));
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        let subnet = self.pod_cidr.clone().unwrap_or_else(|| {
            let third = free_subnet(&routes, &bridge, hash[4]);
            format!("10.88.{third}.0/24")
        });
        let has_iptables = masquerade::iptables().is_some();
        if !has_iptables {
            tracing::warn!("no iptables; pods reach only this node, host ports do not work");
        }
        let mut conflist =
            builtin_conflist(&bridge, &subnet, &self.state_dir.join("ipam"), has_iptables);
        // Bounded bandwidth where it can be had; no reason to be without a network.
        if self.find("bandwidth").is_ok()
            && let Some(plugins) = conflist.get_mut("plugins").and_then(Value::as_array_mut)
        {
            plugins.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
        }
        std::fs::create_dir_all(&self.state_dir)?;
        std::fs::write(path, conflist.to_string())?;
        Ok(conflist)
    }
}

/// The built-in network. Masquerading and host ports are both done by iptables.
pub(super) fn builtin_conflist(
    bridge: &str,
    subnet: &str,
    ipam_dir: &Path,
    has_iptables: bool,
) -> Value {
    let mut plugins = vec![json!({
        "type": "bridge",
        "bridge": bridge,
        "isGateway": true,
        "ipMasq": false,
        "hairpinMode": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": subnet }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": ipam_dir,
        },
    })];
    if has_iptables {
        plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    let mut list = json!({ "cniVersion": "0.4.0", "name": "edgecore", "plugins": plugins });
    if has_iptables {
        masquerade::ask(&mut list, subnet, bridge);
    }
    list
}

/// Third octet of a `10.88.x.0/24` that no other interface routes, `start` if possible.
/// `/proc/net/route` writes addresses as little-endian hex.
pub(super) fn free_subnet(routes: &str, bridge: &str, start: u8) -> u8 {
    (0..=u8::MAX)
        .map(|step| start.wrapping_add(step))
        .find(|third| {
            let destination = format!("00{third:02X}580A");
            !routes.lines().any(|line| {
                let mut columns = line.split_whitespace();
                let interface = columns.next();
                columns.next() == Some(destination.as_str()) && interface != Some(bridge)
            })
        })
        .unwrap_or(start)
}
