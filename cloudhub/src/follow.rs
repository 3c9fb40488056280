//! How a controller goes on when what it follows breaks off.

use std::ops::ControlFlow;

use apiserver::store::StoreError;
use tokio_util::sync::CancellationToken;

/// Whether following the store is over, and how. A watch that was too slow is begun anew, with
/// everything read again; a store that stops because the hub does is no failure.
pub fn is_over(
    followed: Result<(), StoreError>,
    stop: &CancellationToken,
) -> ControlFlow<Result<(), anyhow::Error>> {
    match followed {
        Ok(()) => ControlFlow::Break(Ok(())),
        Err(StoreError::Expired { .. }) => ControlFlow::Continue(()),
        Err(StoreError::Stopped) if stop.is_cancelled() => ControlFlow::Break(Ok(())),
        Err(error) => ControlFlow::Break(Err(error.into())),
    }
}
