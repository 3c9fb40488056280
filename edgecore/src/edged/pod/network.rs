//! What a pod says of its network beyond its ports: annotations, as kubelet and containerd read
//! them. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::convert::ConfigError;
use crate::edged::quantity;
use crate::edged::runtime::NetworkWish;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Addresses with their prefix length, separated by commas, for plugins with the capability `ips`.
const ADDRESSES: &str = "outpost.dev/pod-addresses";
/// `pkg/util/bandwidth/utils.go`: bits a second.
const BITS_MIN: i64 = 1_000;
const BITS_MAX: i64 = 1_000_000_000_000_000;

/// What the pod wishes.
///
/// # Errors
/// An annotation that cannot be read.
pub fn of(pod: &Pod) -> Result<NetworkWish, ConfigError> {
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let addresses = annotations.get(ADDRESSES).map(String::as_str);
    let mut wish = NetworkWish {
        ingress_bits: bits(annotations, INGRESS)?,
        egress_bits: bits(annotations, EGRESS)?,
        ..NetworkWish::default()
    };
    let dns = pod.spec.as_ref().and_then(|s| s.dns_config.clone());
    if let Some(dns) = dns {
        wish.nameservers = dns.nameservers.unwrap_or_default();
        wish.searches = dns.searches.unwrap_or_default();
        let options = dns.options.into_iter().flatten();
        wish.dns_options = options
            .filter_map(|option| match (option.name?, option.value) {
                (name, Some(value)) if !value.is_empty() => Some(format!("{name}:{value}")),
                (name, _) => Some(name),
            })
            .collect();
    }
    for text in addresses.unwrap_or_default().split(',').map(str::trim) {
        let address = text.split('/').next().unwrap_or_default();
        if address.parse::<std::net::IpAddr>().is_ok() {
            wish.addresses.push(text.to_owned());
        } else if !text.is_empty() {
            return Err(ConfigError(format!(
                "{ADDRESSES}: \"{text}\" is no address"
            )));
        }
    }
    Ok(wish)
}

fn bits(annotations: &BTreeMap<String, String>, name: &str) -> Result<Option<u64>, ConfigError> {
    let Some(text) = annotations.get(name) else {
        return Ok(None);
    };
    let refused = |what: &str| ConfigError(format!("{name}: \"{text}\" is {what}"));
    let found = quantity::value(&Quantity(text.clone())).ok_or_else(|| refused("no quantity"))?;
    if found < BITS_MIN {
        return Err(refused("unreasonably small (< 1kbit)"));
    }
    if found > BITS_MAX {
        return Err(refused("unreasonably large (> 1Pbit)"));
    }
    Ok(u64::try_from(found).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_read_and_bounded() {
        let wish = |pairs: &[(&str, &str)]| {
            let mut pod = Pod::default();
            let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
            pod.metadata.annotations = Some(pairs.iter().map(owned).collect());
            of(&pod)
        };
        assert_eq!(wish(&[]), Ok(NetworkWish::default()));
        let found = wish(&[
            (INGRESS, "10M"),
            (EGRESS, "500k"),
            (ADDRESSES, "10.1.2.3/24, fd00::3/64"),
        ]);
        assert_eq!(
            found,
            Ok(NetworkWish {
                ingress_bits: Some(10_000_000),
                egress_bits: Some(500_000),
                addresses: vec!["10.1.2.3/24".to_owned(), "fd00::3/64".to_owned()],
                ..NetworkWish::default()
            })
        );
        for (name, text) in [
            (INGRESS, "1"),
            (EGRESS, "2P"),
            (INGRESS, "fast"),
            (ADDRESSES, "x"),
        ] {
            assert!(wish(&[(name, text)]).is_err(), "{name} {text}");
        }
    }
}
