//! What a pod wishes of its network beyond an address and ports.

use serde_json::{Map, Value, json};

/// How the network of a pod that was connected before stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkHealth {
    /// As it was, or it cannot be known.
    Good,
    /// Plugins say that something is not as they made it; what they made is there.
    Doubtful { reason: String },
    /// Plugins and kernel say that it is not there any more.
    Gone { reason: String },
}

/// Handed to the plugins that declare the capability.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkWish {
    /// Bits a second towards the pod, and away from it.
    pub ingress_bits: Option<u64>,
    pub egress_bits: Option<u64>,
    /// With prefix length.
    pub addresses: Vec<String>,
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub dns_options: Vec<String>,
}

impl NetworkWish {
    /// The capability `dns`; empty if nothing is wished.
    pub(super) fn dns(&self) -> Map<String, Value> {
        let lists = [
            ("servers", &self.nameservers),
            ("searches", &self.searches),
            ("options", &self.dns_options),
        ];
        lists
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| (name.to_owned(), json!(list)))
            .collect()
    }
}
