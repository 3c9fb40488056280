//! From a source of manifests and blobs (registry, archive, another namespace) into the content
//! store, unpacked and named.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::watch;

use super::channel::{Daemon, PULL};
use super::content::{self, ByteStream, DOCUMENT_BYTES_MAX, Patience, digest_of, ingest};
use super::flight::KeyLocks;
use super::image::{
    self, Descriptor, ImageConfig, ImageError, ImageFacts, Manifest, chain_ids, pick_platform,
};
use super::snapshot::{self, Lease};
use crate::edged::runtime::PullProgress;

/// Deadline of a small document, however slowly it drips.
const DOCUMENT_WITHIN: Duration = PULL;

/// Where an image comes from.
#[async_trait]
pub(super) trait Source: Send + Sync {
    /// The bytes of a manifest or index.
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, ImageError>;
    /// A config or layer from `offset` on.
    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<ByteStream, ImageError>;
    /// Label that tells later transfers where a blob can be had; none for archives.
    fn origin(&self) -> Option<(String, String)> {
        None
    }
    /// The transfer that was opened last broke.
    fn broke(&self) {}
    /// How a broken transfer is carried on; `None` where trying again cannot help.
    fn patience(&self) -> Option<Patience> {
        None
    }
}

/// What all transfers share.
pub(super) struct Bring<'a> {
    pub(super) daemon: &'a Daemon,
    pub(super) snapshotter: &'a str,
    pub(super) locks: &'a KeyLocks,
    /// Layers of one image fetched at the same time.
    pub(super) layers_at_once: usize,
    pub(super) progress: &'a watch::Sender<PullProgress>,
    pub(super) source: &'a dyn Source,
    /// Free space of the filesystem that images go to, if it is known.
    pub(super) available: Option<u64>,
}

impl Bring<'_> {
    /// Brings `root` in, unpacks it and names it `name`. What a broken transfer brought stays
    /// under its lease, so that the next one goes on from there.
    pub(super) async fn image(
        &self,
        root: &Descriptor,
        name: &str,
    ) -> Result<ImageFacts, ImageError> {
        let lease = Lease::of_pull(self.daemon, &root.digest).await?;
        let leased = Bring {
            daemon: &lease.daemon,
            ..*self
        };
        let done = leased.fetch_all(root, name).await;
        // What no later attempt can carry on need not be kept.
        if done
            .as_ref()
            .err()
            .is_none_or(|error| !error.is_worth_keeping())
        {
            lease.release().await;
        }
        done
    }

    async fn fetch_all(&self, root: &Descriptor, name: &str) -> Result<ImageFacts, ImageError> {
        self.fetch_tree(root).await?;
        let facts = image::read_facts(self.daemon, root).await?;
        snapshot::unpack(self.daemon, self.snapshotter, self.locks, &facts).await?;
        image::record(self.daemon, name, root).await?;
        Ok(facts)
    }

    async fn fetch_tree(&self, root: &Descriptor) -> Result<(), ImageError> {
        let bytes = self.source.manifest(root).await?;
        let document = Manifest::parse(&bytes)?;
        if !document.is_index() {
            return self.fetch_image(root, bytes, &document).await;
        }
        let (position, chosen) = pick_platform(&document.manifests)
            .and_then(|chosen| {
                let position = document.manifests.iter().position(|d| d == chosen)?;
                Some((position, chosen))
            })
            .ok_or_else(|| image::no_platform(&document.manifests))?;
        let inner = self.source.manifest(chosen).await?;
        let manifest = Manifest::parse(&inner)?;
        if manifest.is_index() {
            return Err(ImageError::invalid("index inside an index".to_owned()));
        }
        self.fetch_image(chosen, inner, &manifest).await?;
        let labels = HashMap::from([(
            format!("containerd.io/gc.ref.content.m.{position}"),
            chosen.digest.clone(),
        )]);
        self.ingest_bytes(root, labels, bytes).await
    }

    async fn fetch_image(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        manifest: &Manifest,
    ) -> Result<(), ImageError> {
        let config = manifest
            .config
            .as_ref()
            .ok_or_else(|| ImageError::invalid("manifest names no config".to_owned()))?;
        // The config first: it is small, and tells whether the image is for this machine.
        let config_bytes = collect(self.source.blob(config, 0).await?, config);
        let config_bytes = tokio::time::timeout(DOCUMENT_WITHIN, config_bytes)
            .await
            .map_err(|_| {
                ImageError::transfer(format!("no config came within {DOCUMENT_WITHIN:?}"))
            })??;
        let parsed: ImageConfig = serde_json::from_slice(&config_bytes)
            .map_err(|error| ImageError::invalid(format!("image config: {error}")))?;
        parsed.check()?;
        self.check_space(&manifest.layers).await?;
        let total = manifest.layers.iter().map(Descriptor::bytes).sum();
        self.progress
            .send_modify(|progress| progress.total_bytes = total);
        let mut transfers = Vec::with_capacity(manifest.layers.len());
        for layer in &manifest.layers {
            transfers.push(self.fetch_layer(layer).boxed());
        }
        stream::iter(transfers)
            .buffer_unordered(self.layers_at_once.max(1))
            .try_collect::<()>()
            .await?;

        let mut labels = HashMap::from([(
            "containerd.io/gc.ref.content.config".to_owned(),
            config.digest.clone(),
        )]);
        for (position, layer) in manifest.layers.iter().enumerate() {
            labels.insert(
                format!("containerd.io/gc.ref.content.l.{position}"),
                layer.digest.clone(),
            );
        }
        let mut config_labels = HashMap::new();
        if let Some(chain_id) = chain_ids(&parsed.rootfs.diff_ids).pop() {
            config_labels.insert(
                format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter),
                chain_id,
            );
        }
        self.ingest_bytes(config, config_labels, config_bytes)
            .await?;
        self.ingest_bytes(descriptor, labels, bytes).await
    }

    /// Refuses what cannot fit: the layers that are missing, and at least as much unpacked.
    async fn check_space(&self, layers: &[Descriptor]) -> Result<(), ImageError> {
        let Some(available) = self.available else {
            return Ok(());
        };
        let mut missing: u64 = 0;
        for layer in layers {
            if !content::exists(self.daemon, &layer.digest).await? {
                missing = missing.saturating_add(layer.bytes());
            }
        }
        let needed = missing.saturating_mul(2);
        if needed > available {
            return Err(ImageError::Space { needed, available });
        }
        Ok(())
    }

    async fn fetch_layer(&self, layer: &Descriptor) -> Result<(), ImageError> {
        let _mine = self.locks.lock(&layer.digest).await;
        let labels: HashMap<String, String> = self.source.origin().into_iter().collect();
        let mut counted = 0;
        let mut reached = |offset: u64| {
            self.progress.send_modify(|progress| {
                progress.done_bytes = (progress.done_bytes + offset).saturating_sub(counted);
            });
            counted = offset;
        };
        let patience = self.source.patience();
        let begun = AtomicBool::new(false);
        let open = |offset| {
            if begun.swap(true, Ordering::Relaxed) {
                self.source.broke();
            }
            self.source.blob(layer, offset)
        };
        ingest(self.daemon, layer, &labels, patience, &mut reached, open).await
    }

    async fn ingest_bytes(
        &self,
        descriptor: &Descriptor,
        labels: HashMap<String, String>,
        bytes: Bytes,
    ) -> Result<(), ImageError> {
        if digest_of(&bytes) != descriptor.digest {
            return Err(ImageError::invalid(format!(
                "content of {} does not match its digest",
                descriptor.digest
            )));
        }
        let _mine = self.locks.lock(&descriptor.digest).await;
        let patience = self.source.patience();
        let open = |offset| {
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let rest = bytes.slice(from..);
            async move { Ok(stream::once(async move { Ok(rest) }).boxed()) }
        };
        ingest(
            self.daemon,
            descriptor,
            &labels,
            patience,
            &mut |_| {},
            open,
        )
        .await
    }
}

async fn collect(mut stream: ByteStream, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
    if descriptor.size > DOCUMENT_BYTES_MAX {
        return Err(ImageError::invalid(format!(
            "document {} has {} bytes",
            descriptor.digest, descriptor.size
        )));
    }
    let limit = usize::try_from(descriptor.size).unwrap_or(0);
    let mut bytes = Vec::with_capacity(limit);
    while let Some(part) = stream.next().await {
        bytes.extend_from_slice(&part.map_err(ImageError::transfer)?);
        if bytes.len() > limit {
            return Err(ImageError::invalid(format!(
                "document {} is longer than its descriptor says",
                descriptor.digest
            )));
        }
    }
    Ok(bytes.into())
}

/// Another containerd namespace of the same daemon. Its blobs are shared by content (default
/// policy), so nothing is copied.
pub(super) struct Neighbour(pub(super) Daemon);

#[async_trait]
impl Source for Neighbour {
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
        Ok(content::read_document(&self.0, &descriptor.digest)
            .await?
            .into())
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<ByteStream, ImageError> {
        content::read_blob(&self.0, &descriptor.digest, offset).await
    }
}
