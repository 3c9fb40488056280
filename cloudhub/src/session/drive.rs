//! The loop of one session.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_util::sync::CancellationToken;
use wire::{
    message::Message,
    session::{
        Ids, Transmit,
        hub::{Event, HubSession},
    },
};

use super::{Close, Registry, SessionHandle, Socket, socket::close_for};
use crate::{
    clock,
    downstream::Downstream,
    ledger::Ledger,
    readings::Intake,
    rules::rest::Waiting,
    upstream::{Upstream, is_event},
};

/// Events of a plain peer that wait to be stored. Nobody waits for them, and they wait for nobody: a
/// status does not stand behind six events of each pod. Beyond this many they are handled in turn.
const EVENTS_MAX: usize = 256;

/// The last events of a session may take this long.
const EVENTS_WITHIN: Duration = Duration::from_secs(1);

/// What a session needs from the rest of the hub.
pub struct Services {
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Takes requests and reports.
    pub upstream: Upstream,
    /// Takes durable batches.
    pub ledger: Arc<Ledger>,
    /// Keeps the readings in them.
    pub intake: Intake,
    /// Callers that wait for the node.
    pub waiting: Waiting,
    /// Brings a node up to date.
    pub downstream: Downstream,
}

/// Drives the session until it ends, one way or another.
pub async fn run<S>(
    mut socket: Socket<S>,
    handle: Arc<SessionHandle>,
    (stored, connection): (Option<(String, u64)>, Option<u64>),
    services: Arc<Services>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let ids = Ids::new(format!("{:016x}", rand::random::<u64>()));
    let mut hub = HubSession::new(ids, handle.extensions, Instant::now());
    if let Some((epoch, sequence)) = stored {
        hub = hub.with_stored(epoch, sequence);
    }
    if !handle.extensions.inventory {
        // A plain peer cannot say what it holds: it is sent everything.
        services.downstream.sync(&handle, None).await;
    }
    tracing::info!(node = %handle.node, extensions = %handle.extensions.to_header(), "node connected");
    let (events, waiting) = mpsc::channel(EVENTS_MAX);
    let mut storing = JoinSet::new();
    storing.spawn(store_events(
        waiting,
        Arc::clone(&handle),
        Arc::clone(&services),
    ));
    let session = Session {
        handle: &handle,
        services: &services,
        events,
        connection,
    };
    let close = step_until_closed(&mut socket, &mut hub, &session, &stop).await;
    // The last ones are stored; whatever hangs ends with the set.
    drop(session);
    drop(tokio::time::timeout(EVENTS_WITHIN, storing.join_next()).await);
    let gone = services.registry.disconnect(&handle, Instant::now());
    if gone {
        services.ledger.forget(&handle.node);
    }
    let Some(close) = close else {
        tracing::info!(node = %handle.node, gone, "connection ended");
        return;
    };
    tracing::info!(node = %handle.node, reason = %close.reason, gone, "session closed");
    Box::pin(socket.close(close)).await;
}

struct Session<'s> {
    handle: &'s Arc<SessionHandle>,
    services: &'s Arc<Services>,
    events: mpsc::Sender<Box<Message>>,
    /// Its number in the node's ledger.
    connection: Option<u64>,
}

/// Stores events until the session drops its end.
async fn store_events(
    mut waiting: mpsc::Receiver<Box<Message>>,
    handle: Arc<SessionHandle>,
    services: Arc<Services>,
) {
    while let Some(message) = waiting.recv().await {
        // Events are never answered.
        drop(services.upstream.handle(&handle, &message).await);
    }
}

/// `None` when the connection is gone already.
async fn step_until_closed<S>(
    socket: &mut Socket<S>,
    hub: &mut HubSession,
    session: &Session<'_>,
    stop: &CancellationToken,
) -> Option<Close>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let handle = session.handle;
    loop {
        if let Some(close) = take_mail(hub, handle) {
            return Some(close);
        }
        while let Some(event) = hub.poll_event() {
            if let Err(close) = Box::pin(act(event, hub, session)).await {
                return Some(close);
            }
        }
        let now = Instant::now();
        hub.set_wall_time(wall_ms());
        if socket.is_ready() {
            match hub.poll_transmit(now) {
                Some(Transmit::Message(message)) => socket.send_text(message.encode(), now),
                Some(Transmit::Ping) => socket.send_ping(),
                Some(Transmit::Close(reason)) => return Some(Close::new(Close::POLICY, reason)),
                None => {}
            }
        }
        let stalled_at = socket.stalled_at();
        if stalled_at.is_some_and(|at| at <= now) {
            return Some(Close::new(Close::POLICY, "node does not read"));
        }
        let due = stalled_at.map_or(hub.poll_timeout(), |at| at.min(hub.poll_timeout()));
        // Every branch may be cancelled: the socket keeps its state, wake-ups are stored.
        tokio::select! {
            input = poll_fn(|context| socket.poll(context)) => match input {
                None => return None,
                Some(Err(error)) => {
                    let close = close_for(&error);
                    if close.is_none() {
                        tracing::debug!(node = %handle.node, %error, "connection failed");
                    }
                    return close;
                }
                Some(Ok(None)) => {}
                Some(Ok(Some(message))) => {
                    if let Err(close) = take_input(&message, hub, handle)? {
                        return Some(close);
                    }
                }
            },
            () = handle.wake.notified() => {}
            () = tokio::time::sleep_until(due.into()) => hub.handle_timeout(Instant::now()),
            () = stop.cancelled() => return Some(Close::new(Close::AWAY, "the hub is stopping")),
        }
    }
}

/// Moves what others posted into the session's state.
fn take_mail(hub: &mut HubSession, handle: &SessionHandle) -> Option<Close> {
    handle.with(|mailbox| {
        if mailbox.close.is_some() {
            return mailbox.close.clone();
        }
        for notice in mailbox.notices.drain(..) {
            hub.send(notice);
        }
        while let Some(key) = mailbox.order.pop_front() {
            if let Some(message) = mailbox.offers.remove(&key) {
                hub.offer(key, message);
            }
        }
        if std::mem::take(&mut mailbox.is_synced) {
            hub.tell_synced();
        }
        None
    })
}

/// `None`: the peer has closed. `Some(Err)`: the hub closes.
fn take_input(
    message: &WsMessage,
    hub: &mut HubSession,
    handle: &SessionHandle,
) -> Option<Result<(), Close>> {
    let now = Instant::now();
    handle.heard(wall_ms());
    let decoded = match message {
        WsMessage::Text(text) => Message::decode(text.as_bytes()),
        WsMessage::Binary(bytes) => Message::decode(bytes),
        WsMessage::Ping(_) | WsMessage::Pong(_) | WsMessage::Frame(_) => {
            hub.handle_heard(now);
            return Some(Ok(()));
        }
        WsMessage::Close(_) => return None,
    };
    match decoded {
        Ok(message) => {
            hub.handle_message(message, now);
            Some(Ok(()))
        }
        Err(error) => {
            tracing::warn!(node = %handle.node, error = %error, "malformed message; session closed");
            Some(Err(Close::new(Close::INVALID, error.to_string())))
        }
    }
}

async fn act(event: Event, hub: &mut HubSession, session: &Session<'_>) -> Result<(), Close> {
    let (handle, services) = (session.handle, session.services);
    match event {
        Event::Batch(batch) => {
            // Readings first: they know by themselves what comes again, and the ledger's position
            // is what the node is told.
            if let Err(error) = services.intake.keep(&handle.node, &batch).await {
                tracing::error!(node = %handle.node, %error, "readings could not be stored");
                return Err(Close::new(Close::FAILED, "the hub could not store a batch"));
            }
            // Then events and gaps, which come again under the same names.
            if let Err(error) = services.upstream.keep_news(handle, &batch.entries).await {
                tracing::error!(node = %handle.node, %error, "events could not be stored");
                return Err(Close::new(Close::FAILED, "the hub could not store a batch"));
            }
            match services
                .ledger
                .commit_of(&handle.node, session.connection, &batch)
                .await
            {
                Ok(Some(acked)) => hub.ack_batch(&batch.epoch, acked),
                // The node has connected anew and tells it again there.
                Ok(None) => {
                    tracing::info!(node = %handle.node, "batch of an older connection not taken");
                    return Err(Close::new(
                        Close::POLICY,
                        "replaced by a newer connection of this node",
                    ));
                }
                Err(error) => {
                    tracing::error!(node = %handle.node, %error, "batch could not be stored");
                    return Err(Close::new(Close::FAILED, "the hub could not store a batch"));
                }
            }
        }
        Event::Inventory(inventory) => services.downstream.sync(handle, Some(inventory)).await,
        Event::Request(message) => {
            let message = if is_event(&message) {
                match session.events.try_send(message) {
                    Ok(()) => return Ok(()),
                    Err(error) => error.into_inner(),
                }
            } else {
                message
            };
            for reply in services.upstream.handle(handle, &message).await {
                hub.send(reply);
            }
        }
        Event::Acked { key, version } => {
            handle.refused.store(0, Ordering::Relaxed);
            services.waiting.done(&key);
            tracing::debug!(node = %handle.node, key, version, "object acknowledged");
        }
        Event::Refused { key, reason } => {
            // Every few seconds while the node's disk is full: told ever more rarely.
            let refused = handle.refused.fetch_add(1, Ordering::Relaxed);
            if refused.wrapping_add(1).is_power_of_two() {
                tracing::warn!(node = %handle.node, key, reason, "node could not store an object; it is sent again");
            }
        }
        Event::Dead { reason } => return Err(Close::new(Close::POLICY, reason)),
    }
    Ok(())
}

fn wall_ms() -> i64 {
    clock::unix_millis()
}
