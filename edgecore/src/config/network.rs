//! The pods' network: plugins, addresses, names.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::ConfigError;
use super::keys::{Keys, address, wrong};
use super::schema::{Field, field, kubelet};

pub(super) const FIELDS: &[Field] = &[
    field(
        kubelet!("clusterDNS"),
        "[]",
        "DNS servers for pods with ClusterFirst; empty uses resolvConf",
    ),
    field(
        kubelet!("clusterDomain"),
        "\"cluster.local\"",
        "the last part of names that clusterDNS resolves",
    ),
    field(
        kubelet!("podCIDR"),
        "\"\"",
        "addresses of the built-in pod network, e.g. 10.42.7.0/24; empty takes a free 10.88.x.0/24",
    ),
    field(
        kubelet!("resolvConf"),
        "\"/etc/resolv.conf\"",
        "resolvers of the node, which pods inherit",
    ),
    field(
        "outpost.cniBinDirectory",
        "\"/opt/cni/bin\"",
        "CNI plugins; also looked for in /usr/lib/cni",
    ),
    field(
        "outpost.cniConfDirectory",
        "\"/etc/cni/net.d\"",
        "the first usable file by name is the pods' network; none: one of our own",
    ),
];

/// Where plugins are looked for, in this order.
pub(super) fn plugin_dirs(keys: &Keys) -> Result<Vec<PathBuf>, ConfigError> {
    let ours = keys.absolute("outpost.cniBinDirectory")?;
    Ok(vec![ours, PathBuf::from("/usr/lib/cni")])
}

pub(super) fn cluster_dns(keys: &Keys) -> Result<Vec<IpAddr>, ConfigError> {
    const PATH: &str = kubelet!("clusterDNS");
    let texts: Vec<String> = keys.get(PATH)?;
    texts.iter().map(|text| address(PATH, text)).collect()
}

/// `address/prefix`, big enough for a gateway and a pod.
pub(super) fn pod_cidr(keys: &Keys) -> Result<Option<String>, ConfigError> {
    const PATH: &str = kubelet!("podCIDR");
    let Some(text) = keys.optional(PATH)? else {
        return Ok(None);
    };
    let is_network = text.split_once('/').is_some_and(|(ip, prefix)| {
        let prefix = prefix.parse().ok();
        ip.parse::<Ipv4Addr>().is_ok() && prefix.is_some_and(|bits: u8| (8..=30).contains(&bits))
    });
    if !is_network {
        let reason = format!("must be a network such as 10.42.7.0/24, is `{text}`");
        return Err(wrong(PATH, reason));
    }
    Ok(Some(text))
}
