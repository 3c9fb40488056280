//! Registries: which hosts are asked for an image, how each is reached, and what their refusals
//! mean. Configured per registry in ours or in containerd's `certs.d/<host>/hosts.toml`.
//!
//! Everything that belongs to files is read at each pull: what an operator repairs is used by the
//! next attempt, without a restart.

mod client;
mod error;
mod hosts;
mod token;
mod transport;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub(super) use self::client::{Client, MANIFEST_TYPES};
pub(super) use self::error::{Kind, RegistryError};
pub(super) use self::token::Tokens;
use crate::edged::runtime::{Keyring, RegistryAuth};

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Registries {
    /// Registries with settings of their own.
    pub hosts: Vec<RegistryHost>,
    /// `host` or `host:port` spoken to over plain http. Loopback addresses are, unless they have
    /// TLS settings.
    pub insecure_hosts: Vec<String>,
    /// containerd's directory of `<host>/hosts.toml`; used for hosts without settings of ours.
    pub config_dir: Option<PathBuf>,
    /// Docker `config.json` files with credentials of the node; absent ones are fine.
    pub auth_files: Vec<PathBuf>,
    /// A transfer that brings nothing for this long has broken, and is tried again.
    pub stall: Duration,
    /// Before the second attempt of a broken transfer; doubled from one to the next.
    pub first_delay: Duration,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            insecure_hosts: Vec::new(),
            config_dir: None,
            auth_files: Vec::new(),
            stall: Duration::from_secs(30),
            first_delay: Duration::from_secs(1),
        }
    }
}

/// One entry of `outpost.registries`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryHost {
    /// As images name it: `docker.io`, `registry.example.org:5000`. A mirror may have an entry too.
    pub host: String,
    /// Asked first, in this order: `host[:port]` or a URL, with a path where the mirror needs one.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// PEM certificates trusted for this host in addition to the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The node's certificate for this host, and its key.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Any certificate is taken: only for a trial.
    #[serde(default)]
    pub skip_verify: bool,
    /// No TLS at all.
    #[serde(default)]
    pub plain_http: bool,
}

/// TLS towards one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tls {
    ca_files: Vec<PathBuf>,
    /// Certificate, and its key unless it is in the same file.
    identities: Vec<(PathBuf, Option<PathBuf>)>,
    skip_verify: bool,
}

impl Tls {
    fn of(host: &RegistryHost) -> Self {
        Self {
            ca_files: host.ca_file.iter().cloned().collect(),
            identities: host
                .cert_file
                .iter()
                .map(|cert| (cert.clone(), host.key_file.clone()))
                .collect(),
            skip_verify: host.skip_verify,
        }
    }
}

/// One place where an image can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `https://host[:port][/path]/v2`, without a slash at the end.
    base: String,
    /// For errors and credentials.
    host: String,
    is_mirror: bool,
    /// Whether it is asked what a tag stands for.
    resolves: bool,
    tls: Tls,
    headers: Vec<(String, String)>,
}

impl Endpoint {
    fn new(url: &str, is_mirror: bool, append_v2: bool) -> Result<Self, String> {
        let parsed = reqwest::Url::parse(url).map_err(|error| format!("`{url}`: {error}"))?;
        let Some(name) = parsed
            .host_str()
            .filter(|_| matches!(parsed.scheme(), "http" | "https"))
        else {
            return Err(format!("`{url}` is not an http or https URL"));
        };
        let host = match parsed.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        let path = parsed.path().trim_end_matches('/');
        let v2 = if append_v2 && !path.ends_with("/v2") {
            "/v2"
        } else {
            ""
        };
        Ok(Self {
            base: format!("{}://{host}{path}{v2}", parsed.scheme()),
            host,
            is_mirror,
            resolves: true,
            tls: Tls::default(),
            headers: Vec::new(),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn resolves(&self) -> bool {
        self.resolves
    }
}

impl Registries {
    /// Where images of `registry` are asked for, in order; the registry itself comes last.
    pub(super) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, RegistryError> {
        let wrong = |text: String| {
            RegistryError::new(
                registry,
                Kind::Config,
                format!("is not configured well: {text}"),
            )
        };
        let own = self.hosts.iter().find(|host| host.host == registry);
        if own.is_none()
            && let Some(directory) = &self.config_dir
            && let Some(found) = hosts::read(directory, registry).map_err(wrong)?
        {
            return Ok(found);
        }
        let mut endpoints = Vec::new();
        for mirror in own.into_iter().flat_map(|host| &host.mirrors) {
            let url = if mirror.contains("://") {
                mirror.clone()
            } else {
                let host = mirror.split('/').next().unwrap_or(mirror);
                format!("{}://{mirror}", self.scheme(host))
            };
            let mut endpoint = Endpoint::new(&url, true, true).map_err(wrong)?;
            endpoint.tls = self.tls(&endpoint.host);
            endpoints.push(endpoint);
        }
        let server = server_of(registry);
        let url = format!("{}://{server}", self.scheme(registry));
        let mut origin = Endpoint::new(&url, false, true).map_err(wrong)?;
        origin.tls = self.tls(registry);
        endpoints.push(origin);
        Ok(endpoints)
    }

    fn settings(&self, host: &str) -> Option<&RegistryHost> {
        self.hosts.iter().find(|entry| entry.host == host)
    }

    fn tls(&self, host: &str) -> Tls {
        self.settings(host).map(Tls::of).unwrap_or_default()
    }

    fn scheme(&self, host: &str) -> &'static str {
        let plain = self.insecure_hosts.iter().any(|plain| plain == host)
            || match self.settings(host) {
                Some(own) if own.plain_http => true,
                Some(own) => Tls::of(own) == Tls::default() && is_loopback(host),
                None => is_loopback(host),
            };
        if plain { "http" } else { "https" }
    }

    /// Credentials of the node for `repository` at `host`. A file that cannot be read is told and
    /// passed over: the image may be public.
    pub(super) fn node_auths(&self, host: &str, repository: &str) -> Vec<RegistryAuth> {
        let mut ring = Keyring::default();
        for path in &self.auth_files {
            match read_bounded(path) {
                Ok(bytes) if ring.add_config(&bytes) => {}
                Ok(_) => {
                    tracing::warn!(path = %path.display(), "registry credentials are not docker's JSON");
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "registry credentials not read");
                }
            }
        }
        ring.lookup(host, repository)
    }
}

/// Who serves `docker.io` (containerd `core/remotes/docker/registry.go`, `DefaultHost`).
fn server_of(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// Kubernetes' runtimes treat a registry on loopback as plain http (containerd `docker.MatchLocalhost`).
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Configuration, certificates, keys: nothing of these is larger.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    const FILE_BYTES_MAX: u64 = 4 << 20;
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(registries: &Registries, registry: &str) -> Vec<String> {
        let found = registries.endpoints(registry).unwrap();
        found.into_iter().map(|endpoint| endpoint.base).collect()
    }

    #[test]
    fn loopback_is_plain_and_nothing_else() {
        for (registry, expected) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("docker.io", false),
            ("localhost.example.org", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(registry), expected, "{registry}");
        }
    }

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let entry = |host: &str| RegistryHost {
            host: host.to_owned(),
            ..RegistryHost::default()
        };
        let registries = Registries {
            hosts: vec![
                RegistryHost {
                    mirrors: vec![
                        "mirror.local:5000".to_owned(),
                        "http://plain.local/cache/".to_owned(),
                        "old.local".to_owned(),
                    ],
                    ..entry("docker.io")
                },
                RegistryHost {
                    ca_file: Some("/ca".into()),
                    ..entry("mirror.local:5000")
                },
                RegistryHost {
                    plain_http: true,
                    ..entry("old.local")
                },
                RegistryHost {
                    skip_verify: true,
                    ..entry("127.0.0.1:5443")
                },
            ],
            insecure_hosts: vec!["10.0.0.1:5000".to_owned()],
            ..Registries::default()
        };
        assert_eq!(
            bases(&registries, "docker.io"),
            [
                "https://mirror.local:5000/v2",
                "http://plain.local/cache/v2",
                "http://old.local/v2",
                "https://registry-1.docker.io/v2"
            ]
        );
        let mirror = &registries.endpoints("docker.io").unwrap()[0];
        assert_eq!(mirror.tls.ca_files, [PathBuf::from("/ca")]);
        for (registry, base) in [
            ("quay.io", "https://quay.io/v2"),
            ("10.0.0.1:5000", "http://10.0.0.1:5000/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("127.0.0.1:5443", "https://127.0.0.1:5443/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
        ] {
            assert_eq!(bases(&registries, registry), [base]);
        }
    }
}
