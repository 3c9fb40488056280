//! One task that turns the daemon's events into a rising number. Events are hints: they may be
//! missed while the daemon is down (1.7 and later deliver nothing for exits in that time), so every
//! (re)connect counts as a change too, and a slow comparison runs while something runs.

use std::collections::BTreeMap;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::to_any;
use containerd_client::tonic::Streaming;
use containerd_client::types::Envelope;
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;

use super::channel::{CALL, CallError, Daemon};
use super::task;

/// Topic of the marker that proves a subscription live.
const MARKER: &str = "/edged/sync";
/// How long one marker is waited for before the next is sent.
const MARKER_WAIT: Duration = Duration::from_millis(20);
/// A subscription that shows no marker in this time is given up.
const PROOF_MAX: Duration = Duration::from_secs(10);
/// Backoff between attempts to reach an absent daemon.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often task states are compared with what was last seen. Only while something runs; one
/// call (1-5 ms), and no change is announced when nothing differs. It covers events that the
/// daemon dropped without ending the stream, which nothing else would ever show.
const SAFETY_RELIST: Duration = Duration::from_secs(60);
/// Time after a start or an exit at which the states are compared once more.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Runs until the runtime is dropped.
pub(super) async fn watch_events(daemon: Daemon, namespace: String, changes: watch::Sender<u64>) {
    let mut retry = RETRY_MIN;
    let mut was_up = true;
    loop {
        match subscribe(&daemon, &namespace).await {
            Ok(stream) => {
                tracing::info!(address = daemon.address(), "containerd events connected");
                retry = RETRY_MIN;
                was_up = true;
                bump(&changes);
                follow(&daemon, stream, &changes).await;
                bump(&changes);
            }
            Err(error) => {
                if was_up {
                    tracing::warn!(%error, "containerd does not answer; will keep trying");
                    was_up = false;
                }
            }
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

fn bump(changes: &watch::Sender<u64>) {
    changes.send_modify(|generation| *generation = generation.wrapping_add(1));
}

/// Opens a subscription and proves it live. The server sends its headers with the first event,
/// so without a marker of our own this would hang until something happens.
async fn subscribe(daemon: &Daemon, namespace: &str) -> Result<Streaming<Envelope>, CallError> {
    let filters = vec![
        format!("namespace=={namespace},topic~=\"^/tasks/\""),
        format!("namespace=={namespace},topic==\"{MARKER}\""),
    ];
    let mut client = daemon.events();
    let subscription = daemon.call(
        "event subscription",
        PROOF_MAX,
        client.subscribe(SubscribeRequest { filters }),
    );
    tokio::pin!(subscription);
    loop {
        // Cancelling the wait never cancels the subscription: it is polled by reference.
        tokio::select! {
            stream = &mut subscription => return stream,
            () = tokio::time::sleep(MARKER_WAIT) => {}
        }
        daemon
            .call(
                "event marker",
                CALL,
                daemon.events().publish(PublishRequest {
                    topic: MARKER.to_owned(),
                    event: Some(to_any(&TaskOom::default())),
                }),
            )
            .await?;
    }
}

/// Reads events until the stream ends.
async fn follow(daemon: &Daemon, mut stream: Streaming<Envelope>, changes: &watch::Sender<u64>) {
    // Not known is not "nothing runs": the comparison then makes up for it.
    let mut known = task::states(daemon).await.ok();
    let mut due = Instant::now() + SAFETY_RELIST;
    loop {
        let has_running = may_run(known.as_ref());
        tokio::select! {
            // Dropping the wait for a message loses none: the stream keeps it.
            message = stream.message() => match message {
                Ok(Some(envelope)) => {
                    if is_change(&envelope) {
                        bump(changes);
                    }
                    if envelope.topic == "/tasks/start"
                        && let Some(known) = &mut known
                    {
                        note_start(known, &envelope);
                    }
                    // A process that ends as it starts may be listed as running once more after
                    // its exit was told; a second look follows every start and exit.
                    due = due.min(Instant::now() + SECOND_LOOK);
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "containerd event stream broke");
                    return;
                }
            },
            () = tokio::time::sleep_until(due), if has_running => {
                due = Instant::now() + SAFETY_RELIST;
                if let Ok(now) = task::states(daemon).await {
                    if known.as_ref() != Some(&now) {
                        bump(changes);
                    }
                    known = Some(now);
                }
            }
        }
    }
}

/// Whether a task may be running whose end could be missed.
fn may_run(known: Option<&BTreeMap<String, i32>>) -> bool {
    known.is_none_or(|known| known.values().any(|state| *state == task::RUNNING))
}

fn note_start(known: &mut BTreeMap<String, i32>, envelope: &Envelope) {
    let started = envelope.event.as_ref().and_then(|event| {
        containerd_client::events::TaskStart::decode(event.value.as_slice()).ok()
    });
    if let Some(started) = started {
        known.insert(started.container_id, task::RUNNING);
    }
}

/// Whether a container's own process ended; exits of exec'd processes are nobody's news.
fn is_change(envelope: &Envelope) -> bool {
    if envelope.topic != "/tasks/exit" {
        return false;
    }
    let Some(event) = &envelope.event else {
        return true;
    };
    TaskExit::decode(event.value.as_slice()).map_or(true, |exit| exit.id == exit.container_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(id: &str) -> Envelope {
        Envelope {
            topic: "/tasks/exit".to_owned(),
            event: Some(to_any(&TaskExit {
                container_id: "c".to_owned(),
                id: id.to_owned(),
                ..TaskExit::default()
            })),
            ..Envelope::default()
        }
    }

    #[test]
    fn what_could_not_be_listed_may_run() {
        let of = |state| BTreeMap::from([("c".to_owned(), state)]);
        assert!(may_run(None));
        assert!(may_run(Some(&of(task::RUNNING))));
        assert!(!may_run(Some(&of(task::RUNNING + 1))));
        assert!(!may_run(Some(&BTreeMap::new())));
    }

    #[test]
    fn only_the_first_process_counts() {
        assert!(is_change(&exit("c")));
        assert!(!is_change(&exit("probe-1")));
        assert!(!is_change(&Envelope {
            topic: MARKER.to_owned(),
            ..Envelope::default()
        }));
    }
}
