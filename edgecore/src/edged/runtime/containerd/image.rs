//! Images as the daemon knows them: its records, and what the documents behind one say.

use std::path::Path;
use std::sync::Arc;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as ImageRecord,
    ListImagesRequest, UpdateImageRequest,
};

use super::channel::{CALL, CallError, Daemon, PULL, millis, tolerate_missing};
use super::collect::PINNED;
use super::content;
pub(super) use super::document::{
    Descriptor, ImageConfig, Manifest, chain_ids, no_platform, pick_platform,
};
use super::reference::Reference;
use super::registry::RegistryError;
use super::spec::UserDatabase;
use crate::clock::UnixMillis;
use crate::edged::runtime::{Image, RuntimeError};

/// Why an image could not be read, fetched or unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Invalid(String),
    /// What each of the registries asked said.
    #[error("{}", told(.0))]
    Registry(Vec<RegistryError>),
    #[error(
        "not enough disk space: the image needs at least {} MiB, {} MiB are free; remove images \
         (`edgecore image prune`) or other files",
        needed >> 20, available >> 20
    )]
    Space { needed: u64, available: u64 },
    #[error("transfer broke: {0}")]
    Transfer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn told(errors: &[RegistryError]) -> String {
    if errors.is_empty() {
        return "no registry could be asked".to_owned();
    }
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    all.join("; ")
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

    /// The content store holds other bytes than it was told to expect.
    pub(super) fn is_failed_precondition(&self) -> bool {
        matches!(self, Self::Call(error) if error.is_failed_precondition())
    }

    /// Whether the same transfer, tried again, can go on.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Transfer(_) => true,
            Self::Call(error) => error.is_locked(),
            Self::Registry(errors) => errors.iter().any(RegistryError::is_passing),
            Self::Invalid(_) | Self::Space { .. } => false,
        }
    }

    /// Whether a later pull can go on from what this one brought.
    pub(super) fn is_worth_keeping(&self) -> bool {
        self.is_passing() || matches!(self, Self::Call(_) | Self::Space { .. })
    }

    /// As the answer to an import of the archive at `path`.
    pub(super) fn into_import(self, path: &Path) -> RuntimeError {
        let wrap = |reason| RuntimeError::Other {
            step: "image import",
            reason: format!("{}: {reason}", path.display()),
        };
        match self {
            Self::Call(error) => error.or(wrap),
            other @ (Self::Invalid(_)
            | Self::Space { .. }
            | Self::Registry(_)
            | Self::Transfer(_)) => wrap(other.to_string()),
        }
    }

    /// As the answer to a pull of `reference`.
    pub(super) fn into_pull(self, reference: &str) -> RuntimeError {
        let wrap = |reason| RuntimeError::Pull {
            reference: reference.to_owned(),
            reason,
        };
        match self {
            Self::Call(error) => error.or(wrap),
            // One that answered, if only to refuse, has the last word.
            Self::Registry(errors) if errors.iter().all(RegistryError::is_passing) => {
                RuntimeError::RegistryUnavailable {
                    reference: reference.to_owned(),
                    reason: told(&errors),
                }
            }
            other @ (Self::Invalid(_) | Self::Space { .. } | Self::Registry(_)) => {
                wrap(other.to_string())
            }
            Self::Transfer(source) => RuntimeError::RegistryUnavailable {
                reference: reference.to_owned(),
                reason: format!("the transfer broke, and goes on at the next attempt: {source}"),
            },
        }
    }
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

/// `docker.io/library/busybox@sha256:…`, as kubelet writes `imageID`.
pub(super) fn image_id(reference: &Reference, digest: &str) -> String {
    format!("{}/{}@{digest}", reference.registry, reference.repository)
}

/// The image record of `name` (normalized); one that is not there is an error.
async fn get(daemon: &Daemon, name: &str) -> Result<ImageRecord, CallError> {
    let request = GetImageRequest {
        name: name.to_owned(),
    };
    let got = daemon
        .call("image get", CALL, daemon.images().get(request))
        .await?;
    Ok(got.image.unwrap_or_default())
}

/// What `name` (normalized) points to, if there is a record of it.
pub(super) async fn target(daemon: &Daemon, name: &str) -> Result<Option<Descriptor>, CallError> {
    match get(daemon, name).await {
        Err(error) if error.is_not_found() => Ok(None),
        found => Ok(found?.target.as_ref().map(Descriptor::from_proto)),
    }
}

/// One image record.
pub(super) struct Record {
    pub(super) name: String,
    pub(super) target: Descriptor,
    /// When it was made, or made to point elsewhere.
    pub(super) at_ms: UnixMillis,
    pub(super) is_pinned: bool,
}

/// Every image record.
pub(super) async fn records(daemon: &Daemon) -> Result<Vec<Record>, CallError> {
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
        .filter_map(|image| {
            let times = [image.created_at, image.updated_at];
            Some(Record {
                target: Descriptor::from_proto(&image.target?),
                at_ms: times
                    .iter()
                    .filter_map(|time| millis(time.as_ref()))
                    .max()
                    .unwrap_or(0),
                is_pinned: image.labels.contains_key(PINNED),
                name: image.name,
            })
        })
        .collect())
}

/// Puts the label of images that are never collected on `name`, or takes it off.
pub(super) async fn pin(daemon: &Daemon, name: &str, pinned: bool) -> Result<(), CallError> {
    let mut image = get(daemon, name).await?;
    if pinned {
        image.labels.insert(PINNED.to_owned(), "true".to_owned());
    } else {
        image.labels.remove(PINNED);
    }
    update(daemon, image, "labels").await
}

/// Writes one field of an image record.
async fn update(daemon: &Daemon, image: ImageRecord, field: &str) -> Result<(), CallError> {
    let request = UpdateImageRequest {
        image: Some(image),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![field.to_owned()],
        }),
        source_date_epoch: None,
    };
    let mut images = daemon.images();
    daemon
        .call("image update", CALL, images.update(request))
        .await?;
    Ok(())
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
        let chosen =
            pick_platform(&manifest.manifests).ok_or_else(|| no_platform(&manifest.manifests))?;
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
    config.check()?;
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
        Err(error) if error.is_already_exists() => update(daemon, image, "target").await,
        other => other.map(|_| ()),
    }
}

/// The trait's view of a present image.
pub(super) fn describe(reference: &str, target: &Descriptor, facts: &Arc<ImageFacts>) -> Image {
    Image {
        reference: reference.to_owned(),
        digest: target.digest.clone(),
        user: facts.config.config.user.clone(),
        size_bytes: facts.size_bytes,
        pinned: false,
    }
}
