//! The documents of an image: descriptors, indexes, manifests, configs (OCI image-spec). What they say
//! comes from a network or an archive and is checked here.

use std::collections::BTreeMap;

use containerd_client::types;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::image::ImageError;
use super::platform;
use super::spec::{ImageDefaults, null_is_default};

/// Nothing that a node could hold is larger; sums of as many as a document names stay numbers.
const CONTENT_BYTES_MAX: i64 = 1 << 40;

/// Only the one algorithm we verify: digests end up in references, labels and snapshot keys.
fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// OCI content descriptor (image-spec `descriptor.md`), the fields we use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    /// Where a layer lies that registries may not serve.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(super) urls: Vec<String>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(super) fn to_proto(&self) -> types::Descriptor {
        types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            ..types::Descriptor::default()
        }
    }

    pub(super) fn from_proto(target: &types::Descriptor) -> Self {
        Self {
            media_type: target.media_type.clone(),
            digest: target.digest.clone(),
            size: target.size,
            ..Self::default()
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        u64::try_from(self.size).unwrap_or(0)
    }

    pub(super) fn check(&self) -> Result<(), ImageError> {
        if is_digest(&self.digest) && (0..=CONTENT_BYTES_MAX).contains(&self.size) {
            Ok(())
        } else {
            Err(ImageError::invalid(format!(
                "descriptor `{}` of {} bytes is not valid",
                self.digest, self.size
            )))
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: String,
}

/// An image index or an image manifest; which one is told by the fields that are there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) schema_version: i64,
    #[serde(default)]
    pub(super) media_type: String,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(super) manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<Descriptor>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(super) layers: Vec<Descriptor>,
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| ImageError::invalid(format!("manifest: {error}")))?;
        if manifest.schema_version == 1 {
            return Err(ImageError::invalid(
                "the image has docker's schema 1 manifest, which no runtime takes any more; push \
                 it again with a current tool"
                    .to_owned(),
            ));
        }
        let all = manifest.manifests.iter().chain(&manifest.layers);
        for descriptor in all.chain(&manifest.config) {
            descriptor.check()?;
        }
        Ok(manifest)
    }

    pub(super) fn is_index(&self) -> bool {
        self.config.is_none()
    }
}

/// Image config (image-spec `config.md`), the fields we use.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ImageConfig {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) config: ImageDefaults,
    pub(super) rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) diff_ids: Vec<String>,
}

impl ImageConfig {
    /// Refuses an image for another kind of machine: better now than as "exec format error". And
    /// one whose layers are named by something else than digests: they become keys of snapshots,
    /// beside those of containers.
    pub(super) fn check(&self) -> Result<(), ImageError> {
        if let Some(wrong) = self.rootfs.diff_ids.iter().find(|id| !is_digest(id)) {
            let shown: String = wrong.chars().take(80).collect();
            return Err(ImageError::invalid(format!(
                "image config: diff id `{shown}` is no sha256 digest"
            )));
        }
        let fits = |architecture: &str| platform::own().iter().any(|(own, _)| *own == architecture);
        let (os, architecture) = (self.os.as_str(), self.architecture.as_str());
        if (os.is_empty() || os == "linux") && (architecture.is_empty() || fits(architecture)) {
            return Ok(());
        }
        Err(ImageError::invalid(format!(
            "the image is for {os}/{architecture}, this machine is {}",
            platform::name()
        )))
    }
}

/// Chain ids of layers, bottom first (image-spec `config.md`, "Layer ChainID").
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => format!(
                "sha256:{}",
                hex::encode(Sha256::digest(format!("{parent} {diff_id}").as_bytes()))
            ),
        };
        chain.push(id);
    }
    chain
}

/// The manifest of an index that fits this machine best.
pub(super) fn pick_platform(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let chosen = platform::own().iter().find_map(|(architecture, variant)| {
        manifests.iter().find(|descriptor| {
            descriptor.platform.as_ref().is_some_and(|platform| {
                platform.os == "linux"
                    && platform.architecture == *architecture
                    && platform.variant == *variant
            })
        })
    });
    chosen.or_else(|| match manifests {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    })
}

/// None of `manifests` is for this machine; says which there are.
pub(super) fn no_platform(manifests: &[Descriptor]) -> ImageError {
    let offered: Vec<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(|platform| {
            let variant = match platform.variant.as_str() {
                "" => String::new(),
                variant => format!("/{variant}"),
            };
            format!("{}/{}{variant}", platform.os, platform.architecture)
        })
        .collect();
    ImageError::invalid(format!(
        "no manifest for this machine (linux/{}); the image is for {}",
        std::env::consts::ARCH,
        offered.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_of_one_is_the_diff_id_and_two_hash() {
        let a = "sha256:aa".to_owned();
        let b = "sha256:bb".to_owned();
        let chain = chain_ids(&[a.clone(), b]);
        assert_eq!(chain[0], a);
        assert_eq!(
            chain[1],
            format!(
                "sha256:{}",
                hex::encode(Sha256::digest(b"sha256:aa sha256:bb"))
            )
        );
    }

    #[test]
    fn descriptors_are_checked() {
        let bad = r#"{"config":{"digest":"sha256:../../x","size":1},"layers":[]}"#;
        assert!(Manifest::parse(bad.as_bytes()).is_err());
        let hex = "a".repeat(64);
        for (size, expected) in [
            (0, true),
            (CONTENT_BYTES_MAX, true),
            (CONTENT_BYTES_MAX + 1, false),
            (i64::MAX, false),
            (-1, false),
        ] {
            let sized = format!(
                r#"{{"config":{{"digest":"sha256:{hex}","size":1}},"layers":[{{"digest":"sha256:{hex}","size":{size}}}]}}"#
            );
            let parsed = Manifest::parse(sized.as_bytes());
            assert_eq!(parsed.is_ok(), expected, "{size}");
        }
    }

    #[test]
    fn diff_ids_that_are_no_digests_are_refused() {
        let hex = "a".repeat(64);
        for (diff_id, expected) in [
            (format!("sha256:{hex}"), true),
            (
                "0f1e2d3c-0000-4000-8000-0123456789ab-0123456789ab".to_owned(),
                false,
            ),
            (format!("sha512:{hex}"), false),
            (String::new(), false),
        ] {
            let text = serde_json::json!({"rootfs": {"diff_ids": [diff_id]}}).to_string();
            let config: ImageConfig = serde_json::from_str(&text).unwrap();
            assert_eq!(config.check().is_ok(), expected, "{diff_id}");
        }
    }
}
