//! The loop of one session.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite};
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
use crate::{clock, downstream::Downstream, ledger::Ledger, upstream::Upstream};

/// What a session needs from the rest of the hub.
pub struct Services {
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Takes requests and reports.
    pub upstream: Upstream,
    /// Takes durable batches.
    pub ledger: Arc<Ledger>,
    /// Brings a node up to date.
    pub downstream: Downstream,
}

/// Drives the session until it ends, one way or another.
pub async fn run<S>(
    mut socket: Socket<S>,
    handle: Arc<SessionHandle>,
    stored: Option<(String, u64)>,
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
    let close = step_until_closed(&mut socket, &mut hub, &handle, &services, &stop).await;
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

/// `None` when the connection is gone already.
async fn step_until_closed<S>(
    socket: &mut Socket<S>,
    hub: &mut HubSession,
    handle: &Arc<SessionHandle>,
    services: &Arc<Services>,
    stop: &CancellationToken,
) -> Option<Close>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    loop {
        if let Some(close) = take_mail(hub, handle) {
            return Some(close);
        }
        while let Some(event) = hub.poll_event() {
            if let Err(close) = Box::pin(act(event, hub, handle, services)).await {
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

async fn act(
    event: Event,
    hub: &mut HubSession,
    handle: &Arc<SessionHandle>,
    services: &Arc<Services>,
) -> Result<(), Close> {
    match event {
        Event::Batch(batch) => match services.ledger.commit(&handle.node, &batch).await {
            Ok(acked) => hub.ack_batch(&batch.epoch, acked),
            Err(error) => {
                tracing::error!(node = %handle.node, %error, "batch could not be stored");
                return Err(Close::new(Close::FAILED, "the hub could not store a batch"));
            }
        },
        Event::Inventory(inventory) => services.downstream.sync(handle, Some(inventory)).await,
        Event::Request(message) => {
            for reply in services.upstream.handle(handle, &message).await {
                hub.send(reply);
            }
        }
        Event::Acked { key, version } => {
            handle.refused.store(0, Ordering::Relaxed);
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
