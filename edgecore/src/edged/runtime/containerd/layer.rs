//! How much a snapshot takes: a container's own layer, or one of an image's.

use std::time::Duration;

use containerd_client::services::v1::snapshots::UsageRequest;

use super::channel::{CallError, Daemon};

/// Bytes of the snapshot's own files. The snapshotter counts them when asked.
pub(super) async fn usage(
    daemon: &Daemon,
    snapshotter: &str,
    key: &str,
    limit: Duration,
) -> Result<u64, CallError> {
    let counted = daemon
        .call(
            "snapshot usage",
            limit,
            daemon.snapshots().usage(UsageRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
            }),
        )
        .await?;
    Ok(u64::try_from(counted.size).unwrap_or(0))
}
