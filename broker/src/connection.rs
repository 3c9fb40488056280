//! One client's connection: reads, asks the core, writes. One task each.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::access::ConnectRequest;
use crate::core::{Core, Parked};
use crate::limits::{BUSY_RETRY, OUTBOX_BYTES, READ_BYTES};
use crate::pipeline::{Failure, Pipeline, Request};
use crate::proto::{Connect, Decoder, Inbound, ProtocolError, Version, Will, encode, reason};
use crate::storage::Batch;
use crate::trie::SessionKey;

mod packets;

/// An out buffer that grew past this gives its memory back when it is empty.
const OUT_KEPT_BYTES: usize = 8 << 10;
/// Time for the last packet (a DISCONNECT or a refusal) to leave.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

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
    stream: TcpStream,
    pipeline: Arc<Pipeline>,
    key: SessionKey,
    client: Arc<str>,
    version: Version,
    decoder: Decoder,
    /// Packets read and not handled yet; at most one read's worth.
    todo: VecDeque<Inbound>,
    /// Encoded, not written yet.
    out: BytesMut,
    parked: Option<Parked>,
    /// Session expiry given with DISCONNECT.
    expiry_secs: Option<u32>,
    session_expiry_secs: u32,
    keep_alive: Option<Duration>,
    last_heard: Instant,
    last_written: Instant,
}

/// Serves one connection to its end.
pub(crate) async fn run(
    core: &Arc<Core>,
    stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    // Telemetry is small; waiting to fill a segment only adds delay.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let mut decoder = Decoder::new(core.limits.packet_bytes_max);
    let mut todo = VecDeque::new();
    let first = tokio::select! {
        first = timeout(core.limits.connect_timeout, read_connect(&stream, &mut decoder, &mut todo)) => first,
        () = stop.cancelled() => return,
    };
    let connect = match first {
        Ok(Ok(Some(connect))) => connect,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            core.counters.protocol_error();
            tracing::debug!(%peer, %error, "not an MQTT client; connection closed");
            if let Some(version) = decoder.version() {
                refuse(&stream, version, error.reason).await;
            }
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "no CONNECT in time; connection closed");
            return;
        }
    };
    let version = connect.version;
    match Connection::open(core, stream, peer, decoder, todo, *connect).await {
        Ok((mut connection, will)) => {
            let end = connection.serve(&stop).await;
            connection.close(end, will).await;
        }
        Err((stream, code)) => {
            core.counters.refused();
            tracing::info!(%peer, code, "MQTT client refused");
            refuse(&stream, version, code).await;
        }
    }
}

async fn refuse(stream: &TcpStream, version: Version, code: u8) {
    let mut out = BytesMut::new();
    encode::connack_refused(&mut out, version, code);
    farewell(stream, &mut out).await;
}

/// Writes what can be written in a short time.
async fn farewell(stream: &TcpStream, out: &mut BytesMut) {
    let write = async {
        while !out.is_empty() {
            if stream.writable().await.is_err() {
                return;
            }
            match stream.try_write(out) {
                Ok(0) => return,
                Ok(written) => out.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    // A client that does not read its farewell goes without.
    let _ = timeout(FAREWELL_MAX, write).await;
}

async fn read_connect(
    stream: &TcpStream,
    decoder: &mut Decoder,
    todo: &mut VecDeque<Inbound>,
) -> Result<Option<Box<Connect>>, ProtocolError> {
    loop {
        if stream.readable().await.is_err() || !read(stream, decoder, todo)? {
            return Ok(None);
        }
        // The decoder lets nothing else come first.
        if let Some(Inbound::Connect(connect)) = todo.pop_front() {
            return Ok(Some(connect));
        }
    }
}

/// Reads what is there, at most one buffer; `false` when the peer has closed.
fn read(
    stream: &TcpStream,
    decoder: &mut Decoder,
    todo: &mut VecDeque<Inbound>,
) -> Result<bool, ProtocolError> {
    let mut buffer = [0_u8; READ_BYTES];
    let len = match stream.try_read(&mut buffer) {
        Ok(0) => return Ok(false),
        Ok(len) => len,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
        Err(_) => return Ok(false),
    };
    let mut input = &buffer[..len];
    while !input.is_empty() {
        todo.extend(decoder.feed(&mut input)?);
    }
    Ok(true)
}

impl<'a> Connection<'a> {
    /// Checks the CONNECT and takes the session. On refusal the reason comes back.
    async fn open(
        core: &'a Arc<Core>,
        stream: TcpStream,
        peer: SocketAddr,
        decoder: Decoder,
        todo: VecDeque<Inbound>,
        mut connect: Connect,
    ) -> Result<(Self, Option<Will>), (TcpStream, u8)> {
        let request = ConnectRequest {
            client: &connect.client,
            username: connect.username.as_deref(),
            password: connect.password.as_deref(),
            peer,
        };
        if connect.has_auth_method {
            return Err((stream, reason::BAD_AUTH_METHOD));
        }
        if !core.access.may_connect(&request) {
            return Err((stream, reason::NOT_AUTHORIZED));
        }
        let is_assigned = connect.client.is_empty();
        let client: Arc<str> = if is_assigned {
            assigned_client().into()
        } else {
            connect.client.as_str().into()
        };
        let will = connect.will.take();
        if will
            .as_ref()
            .is_some_and(|w| !core.access.may_publish(&client, &w.message.topic))
        {
            return Err((stream, reason::NOT_AUTHORIZED));
        }
        let version = connect.version;
        let pipeline = Arc::new(Pipeline::new(version, Arc::clone(&client)));
        let mut batch = Batch::default();
        let welcome = core
            .router()
            .connect(&client, &connect, &pipeline, &mut batch.ops);
        let welcome = match welcome {
            Ok(welcome) => welcome,
            Err(code) => return Err((stream, code)),
        };
        pipeline.set_key(welcome.key);
        core.timers_changed.notify_one();
        let now = Instant::now();
        let mut connection = Self {
            core,
            stream,
            key: welcome.key,
            client,
            version,
            decoder,
            todo,
            out: BytesMut::new(),
            parked: None,
            expiry_secs: None,
            session_expiry_secs: connect.expiry_secs,
            // One and a half times what the client asked for (MQTT 5 §3.1.2.10).
            keep_alive: (connect.keep_alive_secs > 0)
                .then(|| Duration::from_millis(u64::from(connect.keep_alive_secs) * 1500)),
            last_heard: now,
            last_written: now,
            pipeline,
        };
        tracing::debug!(client = %connection.client, %peer, is_present = welcome.is_present, "MQTT client connected");
        let request = Request::Connack {
            is_present: welcome.is_present,
            assigned_client: is_assigned.then_some(welcome.client),
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
            while self.parked.is_none() && self.has_room() {
                let Some(packet) = self.todo.pop_front() else {
                    break;
                };
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
    fn has_room(&self) -> bool {
        self.out.len() < OUTBOX_BYTES
            && self
                .pipeline
                .lock()
                .has_room(self.core.limits.receive_maximum)
    }

    /// Gathers answers and deliveries and writes as much as the socket takes.
    fn flush(&mut self) -> Result<(), End> {
        loop {
            let failed = {
                let mut slots = self.pipeline.lock();
                if self.out.is_empty() {
                    std::mem::swap(&mut self.out, &mut slots.out);
                } else {
                    self.out.extend_from_slice(&slots.out);
                    slots.out.clear();
                }
                slots.failed
            };
            if let Some(failure) = failed {
                return Err(End::NotKept(failure));
            }
            if let Some(code) = self.pipeline.ended() {
                return Err(End::Server(code));
            }
            self.core.router().encode_outgoing(
                self.key,
                &self.pipeline,
                &mut self.out,
                Instant::now(),
            );
            if self.out.is_empty() {
                if self.out.capacity() > OUT_KEPT_BYTES {
                    self.out = BytesMut::new();
                }
                return Ok(());
            }
            match self.stream.try_write(&self.out) {
                Ok(0) => return Err(End::Closed),
                Ok(written) => {
                    self.out.advance(written);
                    self.last_written = Instant::now();
                    if !self.out.is_empty() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(End::Closed),
            }
        }
    }

    /// Waits for whatever comes next. Every arm only waits or reads what is there; none loses
    /// anything when it is dropped.
    async fn wait(&mut self, stop: &CancellationToken) -> Result<(), End> {
        let may_read = self.parked.is_none() && self.todo.is_empty() && self.has_room();
        let has_todo = self.parked.is_none() && !self.todo.is_empty() && self.has_room();
        if has_todo {
            tokio::task::yield_now().await;
            return Ok(());
        }
        let has_out = !self.out.is_empty();
        let alive_until = self.keep_alive.map(|limit| self.last_heard + limit);
        let stall = self.core.limits.write_stall_max;
        let keep_alive = async {
            match alive_until {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = self.stream.readable(), if may_read => {
                if ready.is_err() {
                    return Err(End::Closed);
                }
                match read(&self.stream, &mut self.decoder, &mut self.todo) {
                    Ok(true) => self.last_heard = Instant::now(),
                    Ok(false) => return Err(End::Closed),
                    Err(error) => {
                        // What came before the bad packet is handled as far as there is room.
                        while self.parked.is_none() && self.has_room() {
                            let Some(packet) = self.todo.pop_front() else { break };
                            self.handle(packet)?;
                        }
                        return Err(End::Protocol(error));
                    }
                }
            }
            ready = self.stream.writable(), if has_out => {
                if ready.is_err() {
                    return Err(End::Closed);
                }
            }
            () = self.pipeline.woken() => {}
            () = tokio::time::sleep(BUSY_RETRY), if self.parked.is_some() => {}
            () = sleep_until((self.last_written + stall).into()), if has_out => {
                if self.last_written.elapsed() >= stall {
                    tracing::info!(client = %self.client, "MQTT client does not read; connection closed");
                    return Err(End::Closed);
                }
            }
            () = keep_alive => {
                if may_read {
                    return Err(End::Protocol(ProtocolError::new(
                        reason::KEEP_ALIVE,
                        "keep-alive timeout",
                    )));
                }
                // It is we who do not read: the disk is behind.
                self.last_heard = Instant::now();
            }
            () = stop.cancelled() => return Err(End::Server(reason::SHUTTING_DOWN)),
        }
        Ok(())
    }

    /// Says goodbye, gives the session back, leaves the will.
    async fn close(mut self, end: End, will: Option<Will>) {
        let (will, code) = match end {
            End::Asked { with_will } => (will.filter(|_| with_will), None),
            End::Closed => (will, None),
            End::NotKept(Failure { code, is_open }) => {
                tracing::info!(client = %self.client, code, "a message was not stored; connection closed without its acknowledgement");
                (will, is_open.then_some(code))
            }
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
            encode::disconnect(&mut self.out, self.version, code);
        }
        if end != End::Closed {
            farewell(&self.stream, &mut self.out).await;
        }
        let mut ops = Vec::new();
        let due = self.core.router().disconnect(
            self.key,
            &self.pipeline,
            self.expiry_secs,
            will,
            Instant::now(),
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

/// A client identifier nobody else has: random enough by the hasher's keys, unique by the counter.
fn assigned_client() -> String {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("auto-{:016x}-{number}", RandomState::new().hash_one(number))
}
