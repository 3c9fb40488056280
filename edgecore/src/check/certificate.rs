//! The node's identity: present, its own, matching, in force, private.

use std::os::unix::fs::MetadataExt;

use super::Finding;
use crate::config::HubConfig;
use crate::hub::{join, tls};

const CHECK: &str = "certificate";
const JOIN: &str = "get a token (`cloudhub token create --node <node>`) and run `edgecore join`";
/// Time before expiry at which a certificate that was not renewed is worth a warning.
const EXPIRES_SOON_SECS: i64 = 14 * 86_400;

pub(super) fn check(hub: &HubConfig, node: &str, now_ms: i64) -> Vec<Finding> {
    let mut found = vec![identity(hub, node, now_ms)];
    if let Ok(metadata) = std::fs::metadata(&hub.tls.key)
        && metadata.mode() & 0o077 != 0
    {
        found.push(Finding::warn(
            CHECK,
            format!("{} can be read by others", hub.tls.key.display()),
            format!("chmod 600 {}", hub.tls.key.display()),
        ));
    }
    found
}

fn identity(hub: &HubConfig, node: &str, now_ms: i64) -> Finding {
    let chain = match tls::certificates(&hub.tls.cert) {
        Ok(chain) => chain,
        Err(_) if !hub.tls.cert.exists() => {
            return Finding::fail(CHECK, "this node has not joined a hub", JOIN);
        }
        Err(error) => return Finding::fail(CHECK, error.to_string(), JOIN),
    };
    if let Err(error) = tls::mutual(&hub.tls, &tls::Floor::default()) {
        return Finding::fail(CHECK, format!("{error:#}"), JOIN);
    }
    let Some(leaf) = chain.first() else {
        return Finding::fail(CHECK, "the certificate file is empty", JOIN);
    };
    let found = join::node_of_certificate(leaf).unwrap_or_default();
    if found != node {
        return Finding::fail(
            CHECK,
            format!("the certificate is for node `{found}`, this node is `{node}`"),
            "set modules.edged.hostnameOverride to the certificate's name, or join again",
        );
    }
    let Some((from, until)) = join::validity(leaf) else {
        return Finding::fail(CHECK, "the certificate has no readable validity", JOIN);
    };
    let now = now_ms / 1000;
    let day = |secs: i64| {
        jiff::Timestamp::from_second(secs).map_or_else(|_| secs.to_string(), |t| t.to_string())
    };
    if now < from {
        return Finding::warn(
            CHECK,
            format!("not valid before {}", day(from)),
            "the clock is behind; set it",
        );
    }
    if now > until {
        return Finding::fail(CHECK, format!("expired {}", day(until)), JOIN);
    }
    if until - now < EXPIRES_SOON_SECS {
        return Finding::warn(
            CHECK,
            format!("expires {}", day(until)),
            "it is renewed while the hub is reached; is the hub reachable?",
        );
    }
    Finding::pass(CHECK, format!("node `{node}`, valid until {}", day(until)))
}
