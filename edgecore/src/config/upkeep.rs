//! What may grow on the node's disk: the part of kubelet's configuration about images and logs.

use std::time::Duration;

use super::ConfigError;
use super::raw::{Kubelet, Raw};
use super::valid::{quantity, wrong};
use crate::edged::eviction::threshold;
use crate::edged::image_gc::ImagePolicy;

const PREFIX: &str = "modules.edged.tailoredKubeletConfig";
/// Pulls at the same time unless something else is said; links at the edge are thin.
const PULLS: u32 = 2;
const PULLS_MAX: u32 = 32;
const LOG_SIZE: &str = "modules.edged.tailoredKubeletConfig.containerLogMaxSize";
/// A file holds a line at least, whatever its length.
const LOG_BYTES_MIN: u64 = 32 << 10;
const LOG_FILES_MAX: u32 = 100;

fn bad(key: &str, reason: String) -> ConfigError {
    wrong(format!("{PREFIX}.{key}"), reason)
}

fn span(key: &str, text: &str) -> Result<Duration, ConfigError> {
    threshold::duration(text)
        .ok_or_else(|| bad(key, format!("`{text}` is no duration, such as 2m0s")))
}

/// As kubelet checks them (`pkg/kubelet/images/image_gc_manager.go`, `NewImageGCManager`;
/// `pkg/kubelet/apis/config/validation`).
pub(super) fn image_policy(kubelet: &Kubelet) -> Result<ImagePolicy, ConfigError> {
    let (high, low) = (kubelet.image_gc_high, kubelet.image_gc_low);
    if high > 100 || low > high {
        return Err(bad(
            "imageGCHighThresholdPercent",
            format!("{high} must be at most 100 and not below imageGCLowThresholdPercent, {low}"),
        ));
    }
    let (youngest, oldest) = (&kubelet.image_minimum_gc_age, &kubelet.image_maximum_gc_age);
    let min_age = span("imageMinimumGCAge", youngest)?;
    let max_age = Some(span("imageMaximumGCAge", oldest)?).filter(|age| !age.is_zero());
    if max_age.is_some_and(|max_age| max_age <= min_age) {
        return Err(bad(
            "imageMaximumGCAge",
            format!("{oldest} must be more than imageMinimumGCAge, {youngest}"),
        ));
    }
    Ok(ImagePolicy {
        high_percent: high,
        low_percent: low,
        min_age,
        max_age,
        listed_max: usize::try_from(kubelet.node_status_max_images).ok(),
    })
}

pub(super) fn image_pulls(kubelet: &Kubelet) -> Result<u32, ConfigError> {
    let asked = kubelet.max_parallel_image_pulls;
    let reason = match (kubelet.serialize_image_pulls, asked) {
        (true, 0 | 1) => return Ok(1),
        (false, 0) => return Ok(PULLS),
        (true, _) => format!("{asked} contradicts serializeImagePulls: true"),
        (false, 1..=PULLS_MAX) => return Ok(asked),
        (false, _) => format!("must be at most {PULLS_MAX}, is {asked}"),
    };
    Err(bad("maxParallelImagePulls", reason))
}

/// Bounds of container logs.
pub(super) struct Logs {
    pub(super) file_bytes: u64,
    pub(super) files: u32,
    pub(super) pod_bytes: u64,
    pub(super) node_bytes: u64,
}

/// Files as kubelet checks them (`pkg/kubelet/logs`, `NewContainerLogManager`); what all may take
/// together is ours, and is no less than what one may.
pub(super) fn logs(raw: &Raw) -> Result<Logs, ConfigError> {
    const POD: &str = "outpost.podLogsBytesMax";
    const NODE: &str = "outpost.nodeLogsBytesMax";
    let kubelet = &raw.modules.edged.tailored_kubelet_config;
    let (size, files) = (
        &kubelet.container_log_max_size,
        kubelet.container_log_max_files,
    );
    let file_bytes = quantity(LOG_SIZE, size)?;
    if file_bytes < LOG_BYTES_MIN {
        return Err(wrong(
            LOG_SIZE,
            format!("must be 32Ki or more, is `{size}`"),
        ));
    }
    if !(2..=LOG_FILES_MAX).contains(&files) {
        let reason = format!("must be between 2 and {LOG_FILES_MAX}, is {files}");
        return Err(bad("containerLogMaxFiles", reason));
    }
    let (pod, node) = (
        &raw.outpost.pod_logs_bytes_max,
        &raw.outpost.node_logs_bytes_max,
    );
    let (pod_bytes, node_bytes) = (quantity(POD, pod)?, quantity(NODE, node)?);
    if pod_bytes < file_bytes {
        let reason = format!("{pod} must not be less than containerLogMaxSize, {size}");
        return Err(wrong(POD, reason));
    }
    if node_bytes < pod_bytes {
        let reason = format!("{node} must not be less than outpost.podLogsBytesMax, {pod}");
        return Err(wrong(NODE, reason));
    }
    Ok(Logs {
        file_bytes,
        files,
        pod_bytes,
        node_bytes,
    })
}
