//! What a pod wishes of its network beyond an address and ports.

use serde_json::{Map, Value, json};

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
