//! Which resolvers a pod gets (`kubelet/network/dns/dns.go`). Pure.

use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use super::convert::ConfigError;

/// `validation.MaxDNSNameservers`, as many as libc asks.
const NAMESERVERS_MAX: usize = 3;
/// `validation.MaxDNSSearchPaths` and `MaxDNSSearchListChars`.
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;
/// What kubelet adds for names of the cluster.
const CLUSTER_OPTION: &str = "ndots:5";

/// What the node is told of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Empty: pods with `ClusterFirst` get the node's resolvers.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The node's own file.
    pub resolv_conf: PathBuf,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}

/// Content of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Something the pod's owner should know: reason and message of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub reason: &'static str,
    pub message: String,
}

impl Resolvers {
    /// Reads a file; of several `search` or `options` lines the last counts, as for libc.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => {
                    // A trailing dot says that a name is whole; all search names are.
                    let bare = |word: &str| match word {
                        "." => ".".to_owned(),
                        other => other.trim_end_matches('.').to_owned(),
                    };
                    found.searches = words.map(bare).collect();
                }
                Some("options") => found.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        found
    }

    /// As a file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }

    fn add(&mut self, config: &PodDNSConfig) {
        let append = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
            for value in more.iter().flatten() {
                if !list.contains(value) {
                    list.push(value.clone());
                }
            }
        };
        append(&mut self.nameservers, &config.nameservers);
        append(&mut self.searches, &config.searches);
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.as_deref().filter(|name| !name.is_empty()) else {
                continue;
            };
            let is_same = |old: &String| old.split(':').next() == Some(name);
            self.options.retain(|old| !is_same(old));
            self.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }

    /// Cuts to what libc reads; says what is left if something went.
    fn cut(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        if self.nameservers.len() > NAMESERVERS_MAX {
            self.nameservers.truncate(NAMESERVERS_MAX);
            notices.push(Notice {
                reason: "DNSConfigForming",
                message: format!(
                    "Nameserver limits were exceeded, some nameservers have been omitted, the \
                     applied nameserver line is: {}",
                    self.nameservers.join(" ")
                ),
            });
        }
        let before = self.searches.len();
        self.searches.truncate(SEARCHES_MAX);
        while self.searches.join(" ").len() > SEARCH_CHARS_MAX {
            self.searches.pop();
        }
        if self.searches.len() < before {
            notices.push(Notice {
                reason: "DNSConfigForming",
                message: format!(
                    "Search Line limits were exceeded, some search paths have been omitted, the \
                     applied search line is: {}",
                    self.searches.join(" ")
                ),
            });
        }
        notices
    }
}

/// Where the pod's names are looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Cluster,
    Node,
    Nowhere,
}

/// The pod's resolv.conf, and what its owner should know of it.
pub fn resolvers(pod: &Pod, node: &Resolvers, site: &Site) -> (Resolvers, Vec<Notice>) {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let policy = spec.and_then(|s| s.dns_policy.as_deref());
    let asked = match policy {
        Some("None") => Origin::Nowhere,
        Some("ClusterFirstWithHostNet") => Origin::Cluster,
        Some("Default") => Origin::Node,
        _ if host_network => Origin::Node,
        _ => Origin::Cluster,
    };
    let mut notices = Vec::new();
    let mut found = match asked {
        Origin::Nowhere => Resolvers::default(),
        Origin::Cluster if !site.cluster_dns.is_empty() => in_cluster(pod, node, site),
        Origin::Cluster | Origin::Node => node.clone(),
    };
    // `ClusterFirst` is what the API writes where nobody chose; only who chose is told, or every
    // pod of a node without a cluster's resolver would carry a warning (kubelet's do).
    let chose = policy == Some("ClusterFirstWithHostNet");
    if asked == Origin::Cluster && site.cluster_dns.is_empty() && chose {
        notices.push(missing_cluster_dns(pod, policy));
    }
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        found.add(config);
    }
    notices.extend(found.cut());
    (found, notices)
}

fn in_cluster(pod: &Pod, node: &Resolvers, site: &Site) -> Resolvers {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = site.cluster_domain.as_str();
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.to_owned(),
        ];
    }
    for search in &node.searches {
        if !searches.contains(search) {
            searches.push(search.clone());
        }
    }
    Resolvers {
        nameservers: site.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec![CLUSTER_OPTION.to_owned()],
    }
}

fn missing_cluster_dns(pod: &Pod, policy: Option<&str>) -> Notice {
    let meta = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Notice {
        reason: "MissingClusterDNS",
        message: format!(
            "pod: \"{}_{}({})\". edgecore does not have ClusterDNS IP configured and cannot \
             create Pod using \"{}\" policy. Falling back to \"Default\" policy.",
            text(&meta.name),
            text(&meta.namespace),
            text(&meta.uid),
            policy.unwrap_or("ClusterFirst"),
        ),
    }
}

/// How a pod is called (`GeneratePodHostNameAndDomain`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub host: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`, for pods that name a subdomain.
    pub domain: Option<String>,
    /// What `hostname` says in its containers: both together with `setHostnameAsFQDN`.
    pub kernel: String,
}

/// The pod's names. A pod on the node's network is called as the node.
pub fn names(pod: &Pod, node_hostname: &str, site: &Site) -> Names {
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.host_network) == Some(true) {
        return Names {
            host: node_hostname.to_owned(),
            domain: None,
            kernel: node_hostname.to_owned(),
        };
    }
    let given = |name: Option<&String>| name.filter(|name| !name.is_empty()).cloned();
    let wanted = given(spec.and_then(|s| s.hostname.as_ref())).or(pod.metadata.name.clone());
    // Names are ASCII; anything else was refused by the API, and is cut safely here.
    let cut: String = wanted.unwrap_or_default().chars().take(63).collect();
    let host = cut.trim_end_matches(['-', '.']).to_owned();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = given(spec.and_then(|s| s.subdomain.as_ref()))
        .map(|subdomain| format!("{subdomain}.{namespace}.svc.{}", site.cluster_domain));
    let whole = spec.and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    let kernel = match &domain {
        Some(domain) if whole => format!("{host}.{domain}"),
        _ => host.clone(),
    };
    Names {
        host,
        domain,
        kernel,
    }
}

impl Names {
    /// Whether the kernel takes the name.
    ///
    /// # Errors
    /// kubelet's text.
    pub fn check(&self) -> Result<(), ConfigError> {
        const HOSTNAME_MAX: usize = 64;
        if self.kernel.len() <= HOSTNAME_MAX {
            return Ok(());
        }
        Err(ConfigError(format!(
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {} is too long \
             ({HOSTNAME_MAX} characters is the max, {} characters requested)",
            self.kernel,
            self.kernel.len()
        )))
    }
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
