//! From a source of manifests and blobs (registry, archive, another namespace) into the content
//! store, unpacked and named.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::channel::Daemon;
use super::content::{self, ByteStream, DOCUMENT_BYTES_MAX, digest_of, ingest};
use super::image::{
    self, Descriptor, ImageConfig, ImageError, ImageFacts, Manifest, chain_ids, pick_platform,
};
use super::snapshot::{self, Lease};

/// Blobs fetched at the same time for one image.
const LAYERS_AT_ONCE: usize = 3;

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
}

/// Brings `root` in, unpacks it and names it `name`.
pub(super) async fn bring(
    daemon: &Daemon,
    snapshotter: &str,
    source: &dyn Source,
    root: &Descriptor,
    name: &str,
) -> Result<ImageFacts, ImageError> {
    let lease = Lease::take(daemon).await?;
    let done = async {
        fetch_tree(&lease.daemon, snapshotter, source, root).await?;
        let facts = image::read_facts(&lease.daemon, root).await?;
        snapshot::unpack(&lease.daemon, snapshotter, &facts).await?;
        image::record(&lease.daemon, name, root).await?;
        Ok(facts)
    }
    .await;
    lease.release().await;
    done
}

async fn fetch_tree(
    daemon: &Daemon,
    snapshotter: &str,
    source: &dyn Source,
    root: &Descriptor,
) -> Result<(), ImageError> {
    let bytes = source.manifest(root).await?;
    let document = Manifest::parse(&bytes)?;
    if !document.is_index() {
        return fetch_image(daemon, snapshotter, source, root, bytes, &document).await;
    }
    let (position, chosen) = pick_platform(&document.manifests)
        .and_then(|chosen| {
            let position = document.manifests.iter().position(|d| d == chosen)?;
            Some((position, chosen))
        })
        .ok_or_else(|| ImageError::invalid("no manifest for this platform".to_owned()))?;
    let inner = source.manifest(chosen).await?;
    let manifest = Manifest::parse(&inner)?;
    if manifest.is_index() {
        return Err(ImageError::invalid("index inside an index".to_owned()));
    }
    fetch_image(daemon, snapshotter, source, chosen, inner, &manifest).await?;
    let labels = HashMap::from([(
        format!("containerd.io/gc.ref.content.m.{position}"),
        chosen.digest.clone(),
    )]);
    ingest_bytes(daemon, root, labels, bytes).await
}

async fn fetch_image(
    daemon: &Daemon,
    snapshotter: &str,
    source: &dyn Source,
    descriptor: &Descriptor,
    bytes: Bytes,
    manifest: &Manifest,
) -> Result<(), ImageError> {
    let config = manifest
        .config
        .as_ref()
        .ok_or_else(|| ImageError::invalid("manifest names no config".to_owned()))?;
    let origin: HashMap<String, String> = source.origin().into_iter().collect();
    let mut transfers = Vec::with_capacity(manifest.layers.len());
    for layer in &manifest.layers {
        let open = |offset| source.blob(layer, offset);
        transfers.push(ingest(daemon, layer, origin.clone(), open).boxed());
    }
    stream::iter(transfers)
        .buffer_unordered(LAYERS_AT_ONCE)
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
    let config_bytes = collect(source.blob(config, 0).await?, config).await?;
    let parsed: ImageConfig = serde_json::from_slice(&config_bytes)
        .map_err(|error| ImageError::invalid(format!("image config: {error}")))?;
    let mut config_labels = HashMap::new();
    if let Some(chain_id) = chain_ids(&parsed.rootfs.diff_ids).pop() {
        config_labels.insert(
            format!("containerd.io/gc.ref.snapshot.{snapshotter}"),
            chain_id,
        );
    }
    ingest_bytes(daemon, config, config_labels, config_bytes).await?;
    ingest_bytes(daemon, descriptor, labels, bytes).await
}

async fn ingest_bytes(
    daemon: &Daemon,
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
    ingest(daemon, descriptor, labels, |offset| async move {
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        Ok(stream::once(async move { Ok(bytes.slice(from..)) }).boxed())
    })
    .await
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
