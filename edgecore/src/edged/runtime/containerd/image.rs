//! Images: what the documents say, what is present, unpacking into snapshots.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    ViewSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, CreateImageRequest, CreateRequest, DeleteImageRequest, DeleteRequest,
    GetImageRequest, Image as ImageRecord, ListImagesRequest, UpdateImageRequest,
};
use containerd_client::types;
use oci_client::Reference;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::channel::{CALL, CallError, Daemon, PULL, tolerate_missing};
use super::content;
use super::spec::{ImageDefaults, UserDatabase, null_is_default};
use crate::edged::runtime::{Image, RuntimeError};

/// Why an image could not be read, fetched or unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Invalid(String),
    #[error("transfer broke: {0}")]
    Transfer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ImageError {
    pub(super) fn invalid(reason: String) -> Self {
        Self::Invalid(reason)
    }

    pub(super) fn transfer(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Transfer(source.into())
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Call(error) if error.is_not_found())
    }

    /// As the answer to a pull of `reference`.
    pub(super) fn into_pull(self, reference: &str) -> RuntimeError {
        let wrap = |reason| RuntimeError::Pull {
            reference: reference.to_owned(),
            reason,
        };
        match self {
            Self::Call(error) => error.or(wrap),
            other @ (Self::Invalid(_) | Self::Transfer(_)) => wrap(other.to_string()),
        }
    }
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
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn to_proto(&self) -> types::Descriptor {
        types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            ..types::Descriptor::default()
        }
    }

    fn from_proto(target: &types::Descriptor) -> Self {
        Self {
            media_type: target.media_type.clone(),
            digest: target.digest.clone(),
            size: target.size,
            ..Self::default()
        }
    }

    /// A digest ends up in references and snapshot keys: only the one algorithm we verify.
    pub(super) fn check(&self) -> Result<(), ImageError> {
        let valid = self.digest.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64
                && hex
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if valid && self.size >= 0 {
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
    pub(super) config: ImageDefaults,
    pub(super) rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) diff_ids: Vec<String>,
}

/// Everything that starting a container needs to know of one image. Immutable: keyed by digest.
#[derive(Debug)]
pub(super) struct ImageFacts {
    pub(super) config: ImageConfig,
    pub(super) manifest: Manifest,
    /// Key of the snapshot that holds the unpacked image.
    pub(super) chain_id: String,
    pub(super) size_bytes: u64,
    /// `/etc/passwd` and `/etc/group`, read the first time a user must be resolved.
    pub(super) users: tokio::sync::OnceCell<UserDatabase>,
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

/// The manifest of an index that fits this machine, best first: exact variant, then what an
/// older variant of arm offers.
pub(super) fn pick_platform(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let (architecture, variants): (&str, &[&str]) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", &["", "v1"]),
        "aarch64" => ("arm64", &["v8", ""]),
        "arm" => ("arm", &["v7", "v6", "v5", ""]),
        other => (other, &[""]),
    };
    let fits = |descriptor: &&Descriptor, variant: &str| {
        descriptor.platform.as_ref().is_some_and(|platform| {
            platform.os == "linux"
                && platform.architecture == architecture
                && platform.variant == variant
        })
    };
    variants
        .iter()
        .find_map(|variant| manifests.iter().find(|d| fits(d, variant)))
        .or_else(|| match manifests {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
}

/// `busybox:1` -> `docker.io/library/busybox:1`.
pub(super) fn normalize(reference: &str) -> Result<Reference, RuntimeError> {
    reference
        .parse::<Reference>()
        .map_err(|error| RuntimeError::InvalidImageName {
            reference: reference.to_owned(),
            reason: error.to_string(),
        })
}

/// `docker.io/library/busybox@sha256:…`, as kubelet writes `imageID`.
pub(super) fn image_id(reference: &Reference, digest: &str) -> String {
    format!(
        "{}/{}@{digest}",
        reference.registry(),
        reference.repository()
    )
}

/// The image record of `name` (normalized), if there is one.
pub(super) async fn target(daemon: &Daemon, name: &str) -> Result<Option<Descriptor>, CallError> {
    let got = daemon
        .call(
            "image get",
            CALL,
            daemon.images().get(GetImageRequest {
                name: name.to_owned(),
            }),
        )
        .await;
    match got {
        Err(error) if error.is_not_found() => Ok(None),
        other => Ok(other?
            .image
            .and_then(|image| image.target)
            .map(|target| Descriptor::from_proto(&target))),
    }
}

/// Every image record: name and target.
pub(super) async fn list(daemon: &Daemon) -> Result<Vec<(String, Descriptor)>, CallError> {
    let listed = daemon
        .call(
            "image list",
            CALL,
            daemon.images().list(ListImagesRequest::default()),
        )
        .await?;
    Ok(listed
        .images
        .into_iter()
        .filter_map(|image| Some((image.name, Descriptor::from_proto(&image.target?))))
        .collect())
}

/// Deletes an image record and waits for the garbage collection that it allows. Blobs are never
/// touched directly.
pub(super) async fn forget(daemon: &Daemon, name: &str) -> Result<(), CallError> {
    let deleted = daemon
        .call(
            "image delete",
            PULL,
            daemon.images().delete(DeleteImageRequest {
                name: name.to_owned(),
                sync: true,
                ..DeleteImageRequest::default()
            }),
        )
        .await;
    tolerate_missing(deleted)
}

/// Reads manifest (through an index, if it is one) and config.
pub(super) async fn read_facts(
    daemon: &Daemon,
    target: &Descriptor,
) -> Result<ImageFacts, ImageError> {
    let mut size = target.size;
    let mut manifest = Manifest::parse(&content::read_document(daemon, &target.digest).await?)?;
    if manifest.is_index() {
        let chosen = pick_platform(&manifest.manifests)
            .ok_or_else(|| ImageError::invalid("no manifest for this platform".to_owned()))?;
        size += chosen.size;
        manifest = Manifest::parse(&content::read_document(daemon, &chosen.digest).await?)?;
    }
    let config = manifest
        .config
        .as_ref()
        .ok_or_else(|| ImageError::invalid("manifest names no config".to_owned()))?;
    let bytes = content::read_document(daemon, &config.digest).await?;
    size += config.size + manifest.layers.iter().map(|layer| layer.size).sum::<i64>();
    let config: ImageConfig = serde_json::from_slice(&bytes)
        .map_err(|error| ImageError::invalid(format!("image config: {error}")))?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(ImageError::invalid(format!(
            "{} layers but {} diff ids",
            manifest.layers.len(),
            config.rootfs.diff_ids.len()
        )));
    }
    let chain_id = chain_ids(&config.rootfs.diff_ids)
        .pop()
        .ok_or_else(|| ImageError::invalid("image has no layers".to_owned()))?;
    Ok(ImageFacts {
        config,
        manifest,
        chain_id,
        size_bytes: u64::try_from(size).unwrap_or(0),
        users: tokio::sync::OnceCell::new(),
    })
}

/// Whether the unpacked image is there.
pub(super) async fn is_unpacked(
    daemon: &Daemon,
    snapshotter: &str,
    chain_id: &str,
) -> Result<bool, CallError> {
    let stat = daemon
        .call(
            "snapshot stat",
            CALL,
            daemon.snapshots().stat(StatSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: chain_id.to_owned(),
            }),
        )
        .await;
    match stat {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Unpacks every layer that is not there yet. `daemon` should carry a lease.
pub(super) async fn unpack(
    daemon: &Daemon,
    snapshotter: &str,
    facts: &ImageFacts,
) -> Result<(), ImageError> {
    if is_unpacked(daemon, snapshotter, &facts.chain_id).await? {
        return Ok(());
    }
    let chain = chain_ids(&facts.config.rootfs.diff_ids);
    let mut parent = String::new();
    let layers = facts
        .manifest
        .layers
        .iter()
        .zip(&facts.config.rootfs.diff_ids);
    for ((layer, diff_id), chain_id) in layers.zip(chain) {
        if !is_unpacked(daemon, snapshotter, &chain_id).await? {
            let key = format!("extract-{}-{chain_id}", uuid::Uuid::new_v4().simple());
            let done = apply(
                daemon,
                snapshotter,
                &key,
                &parent,
                layer,
                diff_id,
                &chain_id,
            )
            .await;
            if done.is_err() {
                let removed = remove_snapshot(daemon, snapshotter, &key).await;
                if let Err(error) = removed {
                    tracing::debug!(%error, key, "half-unpacked layer left to garbage collection");
                }
            }
            done?;
        }
        parent = chain_id;
    }
    Ok(())
}

async fn apply(
    daemon: &Daemon,
    snapshotter: &str,
    key: &str,
    parent: &str,
    layer: &Descriptor,
    diff_id: &str,
    chain_id: &str,
) -> Result<(), ImageError> {
    let prepared = daemon
        .call(
            "snapshot prepare",
            CALL,
            daemon.snapshots().prepare(PrepareSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
                parent: parent.to_owned(),
                ..PrepareSnapshotRequest::default()
            }),
        )
        .await?;
    let applied = daemon
        .call(
            "layer unpack",
            PULL,
            daemon.diff().apply(ApplyRequest {
                diff: Some(layer.to_proto()),
                mounts: prepared.mounts,
                ..ApplyRequest::default()
            }),
        )
        .await?;
    let found = applied.applied.map(|d| d.digest).unwrap_or_default();
    if found != diff_id {
        return Err(ImageError::invalid(format!(
            "layer {} unpacks to {found}, the config says {diff_id}",
            layer.digest
        )));
    }
    let committed = daemon
        .call(
            "snapshot commit",
            PULL,
            daemon.snapshots().commit(CommitSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                name: chain_id.to_owned(),
                key: key.to_owned(),
                ..CommitSnapshotRequest::default()
            }),
        )
        .await;
    match committed {
        Err(error) if error.is_already_exists() => {
            Ok(remove_snapshot(daemon, snapshotter, key).await?)
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

/// Removes a snapshot; one that garbage collection took first is fine.
pub(super) async fn remove_snapshot(
    daemon: &Daemon,
    snapshotter: &str,
    key: &str,
) -> Result<(), CallError> {
    let removed = daemon
        .call(
            "snapshot remove",
            CALL,
            daemon.snapshots().remove(RemoveSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
            }),
        )
        .await;
    tolerate_missing(removed)
}

/// Makes `name` point at `target`.
pub(super) async fn record(
    daemon: &Daemon,
    name: &str,
    target: &Descriptor,
) -> Result<(), CallError> {
    let image = ImageRecord {
        name: name.to_owned(),
        target: Some(target.to_proto()),
        ..ImageRecord::default()
    };
    let created = daemon
        .call(
            "image create",
            CALL,
            daemon.images().create(CreateImageRequest {
                image: Some(image.clone()),
                source_date_epoch: None,
            }),
        )
        .await;
    match created {
        Err(error) if error.is_already_exists() => daemon
            .call(
                "image update",
                CALL,
                daemon.images().update(UpdateImageRequest {
                    image: Some(image),
                    update_mask: Some(prost_types::FieldMask {
                        paths: vec!["target".to_owned()],
                    }),
                    source_date_epoch: None,
                }),
            )
            .await
            .map(|_| ()),
        other => other.map(|_| ()),
    }
}

/// A lease that keeps what a pull has brought so far from garbage collection. It expires by
/// itself if we die (containerd's `gc.expire` label).
pub(super) struct Lease {
    id: String,
    pub(super) daemon: Daemon,
}

/// A pull that takes longer than this has lost its protection and starts over from the offsets
/// the content store kept.
const LEASE_SECS: i64 = 3600;

impl Lease {
    pub(super) async fn take(daemon: &Daemon) -> Result<Self, CallError> {
        let id = format!("edgecore-{}", uuid::Uuid::new_v4().simple());
        let expire = jiff::Timestamp::from_second(crate::clock::unix_millis() / 1000 + LEASE_SECS)
            .map(|at| at.to_string())
            .unwrap_or_default();
        daemon
            .call(
                "lease create",
                CALL,
                daemon.leases().create(CreateRequest {
                    id: id.clone(),
                    labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expire)]),
                }),
            )
            .await?;
        let leased = daemon.with_lease(&id)?;
        Ok(Self { id, daemon: leased })
    }

    pub(super) async fn release(self) {
        let deleted = self
            .daemon
            .call(
                "lease delete",
                CALL,
                self.daemon.leases().delete(DeleteRequest {
                    id: self.id.clone(),
                    sync: false,
                }),
            )
            .await;
        if let Err(error) = tolerate_missing(deleted) {
            tracing::debug!(%error, lease = self.id, "lease not released; it expires by itself");
        }
    }
}

/// Reads `/etc/passwd` and `/etc/group` from the layers of an unpacked image, topmost first,
/// without mounting anything.
pub(super) async fn read_users(
    daemon: &Daemon,
    snapshotter: &str,
    chain_id: &str,
) -> Result<UserDatabase, ImageError> {
    let lease = Lease::take(daemon).await?;
    let key = format!("view-{}", uuid::Uuid::new_v4().simple());
    let viewed = lease
        .daemon
        .call(
            "snapshot view",
            CALL,
            lease.daemon.snapshots().view(ViewSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.clone(),
                parent: chain_id.to_owned(),
                ..ViewSnapshotRequest::default()
            }),
        )
        .await;
    let users = viewed.map(|view| {
        let directories = lower_directories(&view.mounts);
        UserDatabase {
            passwd: first_file(&directories, "etc/passwd"),
            group: first_file(&directories, "etc/group"),
        }
    });
    if let Err(error) = remove_snapshot(&lease.daemon, snapshotter, &key).await {
        tracing::debug!(%error, key, "view left to its lease");
    }
    lease.release().await;
    Ok(users?)
}

/// Layer directories behind a snapshot's mounts, topmost first.
fn lower_directories(mounts: &[types::Mount]) -> Vec<String> {
    let mut directories = Vec::new();
    for mount in mounts {
        if mount.r#type == "bind" {
            directories.push(mount.source.clone());
        }
        for option in &mount.options {
            if let Some(upper) = option.strip_prefix("upperdir=") {
                directories.insert(0, upper.to_owned());
            } else if let Some(lower) = option.strip_prefix("lowerdir=") {
                directories.extend(lower.split(':').map(str::to_owned));
            }
        }
    }
    directories
}

/// Only regular files, never through a symlink: the layer's links point into the container's
/// root, not into ours.
fn first_file(directories: &[String], name: &str) -> String {
    const FILE_BYTES_MAX: u64 = 1 << 20;
    for directory in directories {
        let path = std::path::Path::new(directory).join(name);
        let parent_is_link = path
            .parent()
            .is_some_and(|parent| parent.symlink_metadata().is_ok_and(|m| m.is_symlink()));
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        if metadata.is_file() && !parent_is_link && metadata.len() <= FILE_BYTES_MAX {
            return std::fs::read(&path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default();
        }
    }
    String::new()
}

/// The trait's view of a present image.
pub(super) fn describe(reference: &str, target: &Descriptor, facts: &Arc<ImageFacts>) -> Image {
    Image {
        reference: reference.to_owned(),
        digest: target.digest.clone(),
        user: facts.config.config.user.clone(),
        size_bytes: facts.size_bytes,
    }
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
    fn references_are_normalized() {
        for (written, whole) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ] {
            assert_eq!(normalize(written).unwrap().whole(), whole);
        }
        assert!(normalize("UPPER case").is_err());
    }

    #[test]
    fn layer_directories_come_topmost_first() {
        let mount = types::Mount {
            r#type: "overlay".to_owned(),
            options: vec!["index=off".to_owned(), "lowerdir=/b:/a".to_owned()],
            ..types::Mount::default()
        };
        assert_eq!(lower_directories(&[mount]), ["/b", "/a"]);
    }

    #[test]
    fn descriptors_are_checked() {
        let bad = r#"{"config":{"digest":"sha256:../../x","size":1},"layers":[]}"#;
        assert!(Manifest::parse(bad.as_bytes()).is_err());
    }
}
