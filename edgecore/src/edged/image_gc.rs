//! Images that nobody needs give way when the disk fills, least recently used first (kubelet
//! `pkg/kubelet/images/image_gc_manager.go`); and the list of images for the node's status.
//!
//! Only images of our own containerd namespace are touched; never one that a container was made
//! from, that a pod of this node names (started or not), or that is labelled
//! `outpost.dev/pinned`. While the store does not know all pods, nothing is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::deps::{DesiredError, DesiredState};
use super::pod::worker::Context;
use super::runtime::{FsUsage, Image, PullProgress, Reclaim, Runtime, RuntimeError};

/// Looked at although nothing happened: disks fill by other hands too (kubelet: 5 minutes).
const LOOK_EVERY: Duration = Duration::from_secs(300);

/// When images are removed, and how many are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePolicy {
    /// Usage of containerd's disk at which removal begins, and the one it ends at.
    pub high_percent: u8,
    pub low_percent: u8,
    /// Younger images stay.
    pub min_age: Duration,
    /// Images that nobody has used for so long go even while there is room; `None` keeps them.
    pub max_age: Option<Duration>,
    /// Images in the node's status; `None` tells all.
    pub listed_max: Option<usize>,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            min_age: Duration::from_secs(120),
            max_age: None,
            listed_max: Some(50),
        }
    }
}

impl ImagePolicy {
    /// What has to be freed, if anything.
    fn excess(&self, disk: FsUsage) -> Option<u64> {
        let percent = |part: u64| part.saturating_mul(100) / disk.capacity_bytes.max(1);
        let used = disk.capacity_bytes.saturating_sub(disk.available_bytes);
        if self.high_percent >= 100 || percent(used) < u64::from(self.high_percent) {
            return None;
        }
        let low = disk.capacity_bytes / 100 * u64::from(self.low_percent);
        Some(used.saturating_sub(low)).filter(|excess| *excess > 0)
    }
}

/// What is known of the images, for everybody in Edged.
#[derive(Default)]
pub(crate) struct Board {
    asked: Notify,
    list: watch::Sender<Vec<Image>>,
}

impl Board {
    /// An image came or went.
    pub(crate) fn changed(&self) {
        self.asked.notify_one();
    }

    /// The images as last listed.
    pub(crate) fn list(&self) -> Vec<Image> {
        self.list.borrow().clone()
    }
}

/// Why images could not be reclaimed.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Desired(#[from] DesiredError),
}

/// Removes images that nobody needs until `bytes` are free (`None`: all of them); returns what was
/// freed. What eviction calls before it ends a pod.
pub async fn reclaim(
    runtime: &dyn Runtime,
    desired: &dyn DesiredState,
    min_age: Duration,
    bytes: Option<u64>,
) -> Result<u64, ReclaimError> {
    if !desired.is_complete() {
        debug!("the node does not know all its pods yet; no image is removed");
        return Ok(0);
    }
    let reclaim = Reclaim {
        keep: named(&desired.pods().await?),
        min_age,
        bytes,
    };
    Ok(runtime.reclaim_images(&reclaim).await?)
}

/// Every image that these pods name.
pub(crate) fn named(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter()
        .filter_map(|pod| pod.spec.as_ref())
        .flat_map(images_of)
        .collect()
}

fn images_of(spec: &PodSpec) -> Vec<String> {
    let containers = spec.init_containers.iter().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let volumes = spec.volumes.iter().flatten();
    containers
        .chain(&spec.containers)
        .filter_map(|container| container.image.clone())
        .chain(ephemeral.filter_map(|container| container.image.clone()))
        .chain(volumes.filter_map(|volume| volume.image.as_ref()?.reference.clone()))
        .collect()
}

/// `status.images`: one entry per digest with all its names, the largest first (kubelet
/// `pkg/kubelet/nodestatus/setters.go`, `Images`).
pub(crate) fn status(images: &[Image], listed_max: Option<usize>) -> Vec<Value> {
    const NAMES_MAX: usize = 5;
    let mut by_digest: BTreeMap<&str, (u64, BTreeSet<String>)> = BTreeMap::new();
    for image in images {
        let (size, names) = by_digest.entry(&image.digest).or_default();
        *size = (*size).max(image.size_bytes);
        let bare = image.reference.split('@').next().unwrap_or_default();
        let (repository, tagged) = match bare.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, true),
            _ => (bare, false),
        };
        names.insert(format!("{repository}@{}", image.digest));
        if tagged {
            names.insert(bare.to_owned());
        }
    }
    let mut entries: Vec<(u64, Vec<String>)> = by_digest
        .into_values()
        .map(|(size, names)| (size, names.into_iter().take(NAMES_MAX).collect()))
        .collect();
    entries.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.cmp(y)));
    entries.truncate(listed_max.unwrap_or(usize::MAX));
    entries
        .into_iter()
        .map(|(size, names)| json!({"names": names, "sizeBytes": size}))
        .collect()
}

/// `Pulling image "x": 12.3 of 26 MiB`
pub(crate) fn progress_text(reference: &str, progress: PullProgress) -> String {
    const MIB: u64 = 1 << 20;
    let tenths = |bytes: u64| {
        let tenths = bytes.saturating_mul(10) / MIB;
        match tenths % 10 {
            0 => format!("{}", tenths / 10),
            rest => format!("{}.{rest}", tenths / 10),
        }
    };
    let (done, total) = (tenths(progress.done_bytes), tenths(progress.total_bytes));
    format!("Pulling image \"{reference}\": {done} of {total} MiB")
}

/// Keeps the list fresh and the disk below its mark until `stop`.
pub(crate) async fn run(context: Arc<Context>, policy: ImagePolicy, stop: CancellationToken) {
    loop {
        look(&context, &policy).await;
        // Cancel-safe: a token, a notification, a timer.
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.images.asked.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn look(context: &Context, policy: &ImagePolicy) {
    let runtime = &*context.runtime;
    if let Some(max_age) = policy.max_age {
        match reclaim(runtime, &*context.desired, max_age, None).await {
            Ok(0) => {}
            Ok(freed) => info!(freed, "images removed that nobody has used for long"),
            Err(error) => debug!(%error, "old images not removed"),
        }
    }
    match runtime.image_fs().await {
        Ok(disk) => {
            if let Some(excess) = policy.excess(disk) {
                collect(context, policy, excess).await;
            }
        }
        Err(error) => debug!(%error, "containerd's disk cannot be looked at"),
    }
    match runtime.images().await {
        Ok(images) => {
            let is_news = context.images.list.send_if_modified(|list| {
                let is_news = *list != images;
                *list = images;
                is_news
            });
            if is_news {
                // The main loop tells the node's status.
                context.poke.notify_one();
            }
        }
        Err(error) => debug!(%error, "images cannot be listed"),
    }
}

async fn collect(context: &Context, policy: &ImagePolicy, excess: u64) {
    let (runtime, desired) = (&*context.runtime, &*context.desired);
    match reclaim(runtime, desired, policy.min_age, Some(excess)).await {
        Ok(freed) if freed < excess => {
            warn!(
                freed,
                excess, "disk stays above its mark; what is left is in use"
            );
        }
        Ok(freed) => info!(freed, "images removed to free disk space"),
        Err(error) => warn!(%error, "images not removed"),
    }
}

#[cfg(test)]
#[path = "image_gc_tests.rs"]
mod tests;
