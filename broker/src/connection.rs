//! One client's connection: reads, asks the core, writes. One task each.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::access::{Grant, Refused, Rights};
use crate::core::{Core, Parked};
use crate::limits::{BUSY_RETRY, OUTBOX_BYTES};
use crate::listener::{Upgrade, Upgraded};
use crate::pace::Pace;
use crate::pipeline::{Failure, Pipeline, Request};
use crate::proto::{Connect, Decoder, ProtocolError, Version, Will, encode, reason};
use crate::record::Moment;
use crate::router;
use crate::storage::Batch;
use crate::topic;
use crate::trie::SessionKey;

mod packets;
mod socket;

use socket::Socket;

/// Between user and client identifier in the name of a session. Neither may hold it.
const USER_END: char = '\u{1f}';

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client said DISCONNECT; `true` asks for the will all the same.
    Asked { with_will: bool },
    /// The socket closed or failed.
    Closed,
    /// The client broke the protocol or a limit.
    Protocol(ProtocolError),
    /// The broker ends it.
    Server(u8),
    /// A commit failed: nothing that came after it may be answered.
    NotKept(Failure),
}

struct Connection<'a> {
    core: &'a Arc<Core>,
    socket: Socket,
    pipeline: Arc<Pipeline>,
    key: SessionKey,
    client: Arc<str>,
    rights: Arc<dyn Rights>,
    version: Version,
    pace: Pace,
    parked: Option<Parked>,
    /// Session expiry given with DISCONNECT.
    expiry_secs: Option<u32>,
    session_expiry_secs: u32,
    keep_alive: Option<Duration>,
}

/// A connection as accepted.
pub(crate) struct Arrival {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) upgrade: Option<Arc<dyn Upgrade>>,
}

/// Serves one connection to its end. `admitted` is called once the client is let in.
pub(crate) async fn run(
    core: &Arc<Core>,
    arrival: Arrival,
    admitted: impl FnOnce(),
    stop: CancellationToken,
) {
    let Arrival {
        stream,
        peer,
        upgrade,
    } = arrival;
    prepare(&stream, peer);
    let first = async {
        let upgraded = match upgrade {
            Some(upgrade) => upgrade.upgrade(stream).await?,
            None => Upgraded {
                transport: Box::new(stream),
                certificate: None,
            },
        };
        let decoder = Decoder::new(core.limits.packet_bytes_max);
        let mut socket = Socket::new(upgraded.transport, decoder);
        let connect = socket.read_connect().await;
        std::io::Result::Ok((socket, upgraded.certificate, connect))
    };
    // Dropping the handshake closes the connection; nothing of it is known to anybody yet.
    let first = tokio::select! {
        first = timeout(core.limits.connect_timeout, first) => first,
        () = stop.cancelled() => return,
    };
    let (mut socket, certificate, connect) = match first {
        Ok(Ok((socket, certificate, Ok(Some(connect))))) => (socket, certificate, connect),
        Ok(Ok((_, _, Ok(None)))) => return,
        Ok(Ok((mut socket, _, Err(error)))) => {
            core.counters.protocol_error();
            tracing::debug!(%peer, %error, "not an MQTT client; connection closed");
            if let Some(version) = socket.version() {
                refuse(&mut socket, version, error.reason).await;
            }
            return;
        }
        Ok(Err(error)) => {
            core.counters.protocol_error();
            tracing::debug!(%peer, %error, "handshake before MQTT failed; connection closed");
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "no CONNECT in time; connection closed");
            return;
        }
    };
    let version = connect.version;
    let grant = match core.admit(&connect, certificate, peer).await {
        Ok(grant) => grant,
        Err(refused) => {
            let code = match refused {
                Refused::Credentials => reason::BAD_CREDENTIALS,
                Refused::NotAuthorized => reason::NOT_AUTHORIZED,
            };
            return refused_by(core, &mut socket, version, peer, code).await;
        }
    };
    admitted();
    match Connection::open(core, socket, peer, *connect, grant).await {
        Ok((mut connection, will)) => {
            let end = connection.serve(&stop).await;
            connection.close(end, will).await;
        }
        Err((mut socket, code)) => refused_by(core, &mut socket, version, peer, code).await,
    }
}

/// Telemetry is small: waiting to fill a segment only adds delay. A device that lost its power
/// says nothing more: the kernel asks, also when the client wants no MQTT keep-alive.
fn prepare(stream: &TcpStream, peer: SocketAddr) {
    use rustix::net::sockopt;
    let set = stream.set_nodelay(true).and_then(|()| {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
        sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
        sockopt::set_tcp_keepcnt(stream, 4)?;
        Ok(())
    });
    if let Err(error) = set {
        tracing::debug!(%peer, %error, "cannot set socket options");
    }
}

async fn refused_by(
    core: &Core,
    socket: &mut Socket,
    version: Version,
    peer: SocketAddr,
    code: u8,
) {
    core.counters.refused();
    tracing::info!(%peer, code, "MQTT client refused");
    refuse(socket, version, code).await;
}

async fn refuse(socket: &mut Socket, version: Version, code: u8) {
    encode::connack_refused(&mut socket.out, version, code);
    socket.farewell().await;
}

impl<'a> Connection<'a> {
    /// Takes the session. On refusal the reason comes back.
    async fn open(
        core: &'a Arc<Core>,
        socket: Socket,
        peer: SocketAddr,
        mut connect: Connect,
        grant: Grant,
    ) -> Result<(Self, Option<Will>), (Socket, u8)> {
        if connect.has_auth_method {
            return Err((socket, reason::BAD_AUTH_METHOD));
        }
        let names = [Some(connect.client.as_str()), grant.user.as_deref()];
        if names.iter().flatten().any(|name| name.contains(USER_END)) {
            return Err((socket, reason::BAD_CLIENT_ID));
        }
        let is_assigned = connect.client.is_empty();
        if is_assigned {
            connect.client = assigned_client();
        }
        let client: Arc<str> = match &grant.user {
            Some(user) => format!("{user}{USER_END}{}", connect.client).into(),
            None => connect.client.as_str().into(),
        };
        let mut will = connect.will.take();
        if will
            .as_ref()
            .is_some_and(|w| !grant.rights.may_publish(&w.message.topic))
        {
            return Err((socket, reason::NOT_AUTHORIZED));
        }
        let asked_expiry_secs = connect.expiry_secs;
        connect.expiry_secs = asked_expiry_secs.min(core.limits.session_expiry_max_secs);
        let version = connect.version;
        let pipeline = Arc::new(Pipeline::new(version, Arc::clone(&client)));
        let mut batch = Batch::default();
        let welcome = core
            .router()
            .connect(&client, &connect, &pipeline, &mut batch.ops);
        let welcome = match welcome {
            Ok(welcome) => welcome,
            Err(code) => return Err((socket, code)),
        };
        if let Some(will) = &mut will {
            core.router()
                .keep_will(&client, will, Moment::now(), &mut batch.ops);
        }
        if welcome.is_present {
            // What the user may read can have changed since.
            let may_read = |filter: &str| {
                topic::split_share(filter)
                    .is_some_and(|(_, filter)| grant.rights.may_subscribe(filter))
            };
            core.router().revoke(welcome.key, &may_read, &mut batch.ops);
        }
        pipeline.set_key(welcome.key);
        core.timers_changed.notify_one();
        let mut connection = Self {
            core,
            socket,
            key: welcome.key,
            client,
            rights: grant.rights,
            version,
            pace: Pace::new(&core.limits, Instant::now()),
            parked: None,
            expiry_secs: None,
            session_expiry_secs: connect.expiry_secs,
            // One and a half times what the client asked for (MQTT 5 §3.1.2.10).
            keep_alive: (connect.keep_alive_secs > 0)
                .then(|| Duration::from_millis(u64::from(connect.keep_alive_secs) * 1500)),
            pipeline,
        };
        tracing::debug!(client = %connection.client, %peer, is_present = welcome.is_present, "MQTT client connected");
        let request = Request::Connack {
            is_present: welcome.is_present,
            assigned_client: is_assigned.then(|| connect.client.as_str().into()),
            expiry_secs: (connect.expiry_secs != asked_expiry_secs).then_some(connect.expiry_secs),
        };
        connection.submit(request, 0, batch);
        if let Some(due) = welcome.due {
            let parked = connection.parked.take();
            core.insist(parked).await;
            core.publish_will(&connection.pipeline, due).await;
        }
        Ok((connection, will))
    }

    fn submit(&mut self, request: Request, bytes: usize, batch: Batch) {
        self.parked = self.core.submit(&self.pipeline, request, bytes, batch);
    }

    /// The connection's life between CONNECT and its end.
    async fn serve(&mut self, stop: &CancellationToken) -> End {
        loop {
            if let Some(parked) = self.parked.take() {
                self.parked = self.core.commit(parked);
            }
            while self.may_handle(Instant::now()) {
                let Some(packet) = self.socket.todo.pop_front() else {
                    break;
                };
                self.pace.take(1, self.socket.take_fresh(), Instant::now());
                if let Err(end) = self.handle(packet) {
                    return end;
                }
            }
            if let Err(end) = self.flush() {
                return end;
            }
            if let Err(end) = self.wait(stop).await {
                return end;
            }
        }
    }

    /// Whether another packet may be taken from the client.
    fn may_handle(&self, now: Instant) -> bool {
        self.parked.is_none()
            && self.socket.out.len() < OUTBOX_BYTES
            && self.pace.paused_until(now).is_none()
            && self
                .pipeline
                .lock()
                .has_room(self.core.limits.receive_maximum)
    }

    /// Gathers answers and deliveries and writes as much as the socket takes.
    fn flush(&mut self) -> Result<(), End> {
        loop {
            let (failed, is_welcomed) = {
                let mut slots = self.pipeline.lock();
                if self.socket.out.is_empty() {
                    std::mem::swap(&mut self.socket.out, &mut slots.out);
                } else {
                    self.socket.out.extend_from_slice(&slots.out);
                    slots.out.clear();
                }
                (slots.failed, slots.is_welcomed)
            };
            if let Some(failure) = failed {
                return Err(End::NotKept(failure));
            }
            if let Some(code) = self.pipeline.ended() {
                return Err(End::Server(code));
            }
            if is_welcomed {
                self.core.router().encode_outgoing(
                    self.key,
                    &self.pipeline,
                    &mut self.socket.out,
                    Instant::now(),
                );
            }
            if !self.socket.has_out() {
                return Ok(());
            }
            match self.socket.try_write() {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Err(End::Closed),
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Waits for whatever comes next. Every arm only waits or reads what is there; none loses
    /// anything when it is dropped.
    async fn wait(&mut self, stop: &CancellationToken) -> Result<(), End> {
        let now = Instant::now();
        let may_handle = self.may_handle(now);
        if may_handle && !self.socket.todo.is_empty() {
            tokio::task::yield_now().await;
            return Ok(());
        }
        let paused_until = self.pace.paused_until(now);
        let has_out = self.socket.has_out();
        let alive_until = self.keep_alive.map(|limit| self.socket.last_heard + limit);
        let stalled_at = self.socket.last_written + self.core.limits.write_stall_max;
        let socket = &mut self.socket;
        let transfer = poll_fn(|cx| {
            if has_out && let Poll::Ready(written) = socket.poll_write(cx) {
                return Poll::Ready(written.map(|()| true).map_err(|_| None));
            }
            if may_handle {
                return socket.poll_read(cx).map_err(Some);
            }
            Poll::Pending
        });
        tokio::select! {
            transferred = transfer => match transferred {
                Ok(true) => {}
                Ok(false) | Err(None) => return Err(End::Closed),
                Err(Some(error)) => {
                    // What came before the bad packet is handled as far as there is room.
                    while self.may_handle(Instant::now()) {
                        let Some(packet) = self.socket.todo.pop_front() else { break };
                        self.handle(packet)?;
                    }
                    return Err(End::Protocol(error));
                }
            },
            () = self.pipeline.woken() => {}
            () = tokio::time::sleep(BUSY_RETRY), if self.parked.is_some() => {}
            () = sleep_or_never(paused_until) => {}
            () = sleep_until(stalled_at.into()), if has_out => {
                if self.socket.last_written.elapsed() >= self.core.limits.write_stall_max {
                    tracing::info!(client = %self.client, "MQTT client does not read; connection closed");
                    return Err(End::Closed);
                }
            }
            () = sleep_or_never(alive_until) => {
                if may_handle {
                    return Err(End::Protocol(ProtocolError::new(
                        reason::KEEP_ALIVE,
                        "keep-alive timeout",
                    )));
                }
                // It is we who do not read: the disk is behind, or the client too fast.
                self.socket.last_heard = Instant::now();
            }
            () = stop.cancelled() => return Err(End::Server(reason::SHUTTING_DOWN)),
        }
        Ok(())
    }

    /// Says goodbye, gives the session back, leaves the will.
    async fn close(mut self, end: End, will: Option<Will>) {
        let mut ops = Vec::new();
        let (will, code) = match end {
            End::Asked { with_will: true } => (will, None),
            End::Asked { with_will: false } => {
                router::void(will, &mut ops);
                (None, None)
            }
            End::Closed => (will, None),
            End::NotKept(Failure { code, is_open }) => {
                tracing::info!(client = %self.client, code, "a message was not stored; connection closed without its acknowledgement");
                (will, is_open.then_some(code))
            }
            // Kept: it is due after the next start, unless the client comes back.
            End::Server(code) if code == reason::SHUTTING_DOWN => (None, Some(code)),
            End::Server(code) => {
                tracing::debug!(client = %self.client, code, "MQTT connection ended by the broker");
                (will, Some(code))
            }
            End::Protocol(error) => {
                self.core.counters.protocol_error();
                tracing::info!(client = %self.client, %error, "MQTT client closed");
                (will, Some(error.reason))
            }
        };
        self.core.insist(self.parked.take()).await;
        if let Some(code) = code {
            encode::disconnect(&mut self.socket.out, self.version, code);
        }
        if end != End::Closed {
            self.socket.farewell().await;
        }
        let due = self.core.router().disconnect(
            self.key,
            &self.pipeline,
            self.expiry_secs,
            will,
            Moment::now(),
            &mut ops,
        );
        self.core.timers_changed.notify_one();
        let is_cleanup_due = !ops.is_empty() || self.session_expiry_secs > 0;
        if is_cleanup_due {
            self.core.commit_ops(ops).await;
        }
        if let Some(due) = due {
            self.core.publish_will(&self.pipeline, due).await;
        }
        tracing::debug!(client = %self.client, "MQTT client disconnected");
    }
}

pub(crate) async fn sleep_or_never(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A client identifier nobody else has: random enough by the hasher's keys, unique by the counter.
fn assigned_client() -> String {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("auto-{:016x}-{number}", RandomState::new().hash_one(number))
}
