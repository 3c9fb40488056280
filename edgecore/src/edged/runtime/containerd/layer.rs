//! How much a container wrote into its own layer.

use containerd_client::services::v1::snapshots::UsageRequest;

use super::channel::{CallError, Daemon, TASK};

/// Bytes of the snapshot's own files. The snapshotter counts them when asked.
pub(super) async fn usage(daemon: &Daemon, snapshotter: &str, id: &str) -> Result<u64, CallError> {
    let counted = daemon
        .call(
            "snapshot usage",
            TASK,
            daemon.snapshots().usage(UsageRequest {
                snapshotter: snapshotter.to_owned(),
                key: id.to_owned(),
            }),
        )
        .await?;
    Ok(u64::try_from(counted.size).unwrap_or(0))
}
