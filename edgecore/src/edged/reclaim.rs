//! Removes the data of volumes that were deleted, when the hub says so and no pod here uses them;
//! then tells that it is gone. Woken by the store's generation, and by a timer after a failure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::deps::DesiredError;
use super::pod::worker::Context;
use super::volumes::claim;

/// Tried again after something was in the way.
const RETRY: Duration = Duration::from_secs(30);

/// Runs until `stop`.
pub(super) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut generation = context.desired.generation();
    loop {
        generation.mark_unchanged();
        let again = match look(&context).await {
            Ok(again) => again,
            Err(error) => {
                warn!(error = %error, "volumes cannot be read; no data is removed");
                true
            }
        };
        let timer = async {
            if again {
                tokio::time::sleep(RETRY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        // Cancel-safe: a watch, a token and a timer keep nothing.
        tokio::select! {
            () = stop.cancelled() => return,
            changed = generation.changed() => if changed.is_err() { return; },
            () = timer => {}
        }
    }
}

/// Everything once; whether to look again soon.
async fn look(context: &Context) -> Result<bool, DesiredError> {
    let volumes = context.desired.volumes().await?;
    let mut again = false;
    for volume in volumes.into_iter().filter(claim::is_doomed) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let uid = volume.metadata.uid.clone().unwrap_or_default();
        if context
            .desired
            .pods()
            .await?
            .iter()
            .any(|pod| uses(pod, &volume))
        {
            // Its end changes the generation.
            continue;
        }
        let dirs = context.dirs.clone();
        let removed = tokio::task::spawn_blocking(move || claim::reclaim(&volume, &dirs)).await;
        match removed {
            Ok(Ok(())) => {
                info!(volume = %name, "data of a deleted volume removed");
                context.sink.volume_gone(&name, &uid);
            }
            Ok(Err(error)) => {
                warn!(volume = %name, error = %error, "data of a deleted volume not removed; trying again");
                again = true;
            }
            Err(_) => again = true,
        }
    }
    Ok(again)
}

fn uses(pod: &Pod, volume: &PersistentVolume) -> bool {
    let claim = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let Some(claim) = claim else { return false };
    pod.metadata.namespace == claim.namespace
        && pod
            .spec
            .iter()
            .flat_map(|s| s.volumes.iter().flatten())
            .filter_map(|v| v.persistent_volume_claim.as_ref())
            .any(|source| Some(&source.claim_name) == claim.name.as_ref())
}
