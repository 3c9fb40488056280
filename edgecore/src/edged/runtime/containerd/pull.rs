//! Pulling from registries: authentication, resolving the reference, blobs from an offset.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth as Secret;
use oci_client::{Client, Reference};

use super::content::{ByteStream, Patience, digest_of};
use super::image::{Descriptor, ImageError, Manifest};
use super::import::Source;
use crate::edged::runtime::RegistryAuth;

const CONNECT: Duration = Duration::from_secs(10);
/// What a registry may answer a manifest request with: OCI and docker, single and list.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Registries {
    /// `host` or `host:port` spoken to over plain http. Loopback addresses always are.
    pub insecure_hosts: Vec<String>,
    /// Credentials by registry host, used when the pod brings none.
    pub auths: BTreeMap<String, RegistryAuth>,
    /// PEM certificates trusted in addition to the system's.
    pub extra_roots_pem: Vec<Vec<u8>>,
    /// A transfer that brings nothing for this long has broken, and is tried again.
    pub stall: Duration,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            insecure_hosts: Vec::new(),
            auths: BTreeMap::new(),
            extra_roots_pem: Vec::new(),
            stall: Duration::from_secs(30),
        }
    }
}

/// Attempts in a row that bring nothing, and the delay before the second: together two minutes.
const ATTEMPTS: u32 = 7;
const FIRST_DELAY: Duration = Duration::from_secs(1);

impl Registries {
    fn is_plain(&self, registry: &str) -> bool {
        self.insecure_hosts.iter().any(|host| host == registry) || is_loopback(registry)
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

/// One reference at its registry.
pub(super) struct Remote {
    client: Client,
    reference: Reference,
    secret: Secret,
    patience: Patience,
}

impl Remote {
    pub(super) fn new(
        registries: &Registries,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Self {
        let registry = reference.resolve_registry().to_owned();
        let plain = if registries.is_plain(&registry) {
            vec![registry.clone()]
        } else {
            Vec::new()
        };
        let certificates = registries
            .extra_roots_pem
            .iter()
            .map(|pem| oci_client::client::Certificate {
                encoding: oci_client::client::CertificateEncoding::Pem,
                data: pem.clone(),
            })
            .collect();
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Lost only to somebody who installed one at the same moment: then one is there.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain),
            platform_resolver: None,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(registries.stall),
            extra_root_certificates: certificates,
            user_agent: concat!("outpost-edgecore/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let auth = auth.or_else(|| {
            registries
                .auths
                .get(reference.registry())
                .or_else(|| registries.auths.get(&registry))
        });
        let secret = auth.map_or(Secret::Anonymous, |auth| {
            Secret::Basic(auth.username.clone(), auth.password.clone())
        });
        Self {
            client,
            reference: reference.clone(),
            secret,
            patience: Patience {
                stall: registries.stall,
                attempts: ATTEMPTS,
                first_delay: FIRST_DELAY,
            },
        }
    }

    /// What the reference stands for now.
    pub(super) async fn resolve(&self) -> Result<Descriptor, ImageError> {
        let (bytes, _) = self
            .client
            .pull_manifest_raw(&self.reference, &self.secret, &MANIFEST_TYPES)
            .await
            .map_err(ImageError::transfer)?;
        let manifest = Manifest::parse(&bytes)?;
        let digest = digest_of(&bytes);
        if let Some(asked) = self.reference.digest()
            && asked != digest
        {
            return Err(ImageError::invalid(format!(
                "registry answered {digest} for {asked}"
            )));
        }
        let media_type = match (manifest.media_type.as_str(), manifest.is_index()) {
            ("", true) => MANIFEST_TYPES[0].to_owned(),
            ("", false) => MANIFEST_TYPES[2].to_owned(),
            (written, _) => written.to_owned(),
        };
        Ok(Descriptor {
            media_type,
            digest,
            size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
            ..Descriptor::default()
        })
    }
}

#[async_trait]
impl Source for Remote {
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
        let by_digest = self.reference.clone_with_digest(descriptor.digest.clone());
        let (bytes, _) = self
            .client
            .pull_manifest_raw(&by_digest, &self.secret, &MANIFEST_TYPES)
            .await
            .map_err(ImageError::transfer)?;
        Ok(bytes)
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<ByteStream, ImageError> {
        if offset == 0 {
            let whole = self
                .client
                .pull_blob_stream(&self.reference, descriptor.digest.as_str())
                .await
                .map_err(ImageError::transfer)?;
            return Ok(whole.stream);
        }
        let answer = self
            .client
            .pull_blob_stream_partial(&self.reference, descriptor.digest.as_str(), offset, None)
            .await
            .map_err(ImageError::transfer)?;
        Ok(match answer {
            BlobResponse::Partial(rest) => rest.stream,
            // The registry does not know ranges: what we hold already is read and dropped.
            BlobResponse::Full(whole) => skip(whole.stream, offset),
        })
    }

    fn patience(&self) -> Option<Patience> {
        Some(self.patience)
    }

    fn origin(&self) -> Option<(String, String)> {
        Some((
            format!(
                "containerd.io/distribution.source.{}",
                self.reference.registry()
            ),
            self.reference.repository().to_owned(),
        ))
    }
}

fn skip(stream: ByteStream, offset: u64) -> ByteStream {
    let mut left = offset;
    stream
        .map_ok(move |mut part| {
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            let dropped = left.min(length);
            left -= dropped;
            part.split_off(usize::try_from(dropped).unwrap_or(usize::MAX))
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

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

    #[tokio::test]
    async fn skip_drops_exactly_the_offset() {
        let parts = ["abc", "def", "ghi"].map(|s| Ok(Bytes::from_static(s.as_bytes())));
        let rest: Vec<Bytes> = skip(stream::iter(parts).boxed(), 4)
            .try_collect()
            .await
            .unwrap();
        assert_eq!(rest.concat(), b"efghi");
    }
}
