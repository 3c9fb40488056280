//! Kubernetes Events on their way to the hub: through the outbox, stream [`EVENTS_STREAM`], so that
//! what happened without a hub is told when there is one (design D12).

use std::convert::Infallible;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wire::extension::EVENTS_STREAM;
use wire::message::Message;

use super::HubHandle;
use crate::clock;
use crate::outbox;
use crate::store::{Store, StoreError};

/// Events come in groups (pulled, created, started): so long is waited for more, for one write.
const GATHER: Duration = Duration::from_millis(200);
/// After a write that failed; what waits is bounded meanwhile.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Writes events into the outbox until `stop`, then those that still wait. Never fails: what
/// cannot be written waits, and beyond its bound the oldest goes.
pub async fn keep_events(
    hub: HubHandle,
    store: Store,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let wake = hub.outbox_wake();
    let mut pause = GATHER;
    loop {
        // Cancel-safe: a notification that stays, a token.
        tokio::select! {
            () = hub.events_waiting() => {}
            () = stop.cancelled() => {}
        }
        // Not at the end: there is no time to lose then.
        let _more = tokio::time::timeout(pause, stop.cancelled()).await;
        let events = hub.take_events();
        let is_last = stop.is_cancelled();
        match write(&store, &events).await {
            Ok(()) => {
                pause = GATHER;
                if !events.is_empty() {
                    wake.notify_one();
                }
            }
            Err(error) => {
                tracing::warn!(%error, events = events.len(), "events cannot be written yet");
                pause = RETRY_AFTER;
                hub.put_back(events);
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

async fn write(store: &Store, events: &[Message]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let now = clock::unix_millis();
    let rows: Vec<(String, Vec<u8>)> = events
        .iter()
        .map(|event| (event.route.resource.clone(), event.encode()))
        .collect();
    store
        .write(move |tx| {
            for (about, message) in &rows {
                match outbox::append_about(tx, EVENTS_STREAM, about, message, now) {
                    // The stream's own policy, counted there.
                    Ok(_) | Err(StoreError::Quota { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await
}
