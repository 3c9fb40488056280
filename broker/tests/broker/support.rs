//! A broker on a free port, a storage whose commits wait for the test, and a client of raw bytes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use broker::{
    Access, AllowAll, Batch, Broker, BrokerHandle, Busy, Done, Limits, LoadFuture, MemoryStorage,
    Storage, StorageError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) use crate::frames::{packet, text};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Harness {
    pub(crate) addr: SocketAddr,
    pub(crate) handle: BrokerHandle,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Harness {
    pub(crate) async fn start(storage: impl Storage) -> Self {
        Self::with(storage, Limits::default(), AllowAll).await
    }

    pub(crate) async fn with(storage: impl Storage, limits: Limits, access: impl Access) -> Self {
        let broker = Broker::load(limits, Arc::new(storage), Arc::new(access))
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let handle = broker.handle();
        let serving = tokio::spawn(broker.serve(vec![listener], stop.clone()));
        Self {
            addr,
            handle,
            stop,
            serving,
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.serving).await.unwrap().unwrap();
    }
}

/// Holds commits until the test lets them go; gives messages of `app/` topics to the test.
#[derive(Clone, Default)]
pub(crate) struct GatedStorage {
    pub(crate) rows: MemoryStorage,
    held: Arc<Mutex<VecDeque<(Batch, Done)>>>,
    open: Arc<Mutex<bool>>,
    room: Arc<Mutex<Option<usize>>>,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
}

impl GatedStorage {
    pub(crate) fn open() -> Self {
        let storage = Self::default();
        *storage.open.lock().unwrap() = true;
        storage
    }

    pub(crate) fn close_gate(&self) {
        *self.open.lock().unwrap() = false;
    }

    /// Says busy once this many batches are held.
    pub(crate) fn set_room(&self, room: Option<usize>) {
        *self.room.lock().unwrap() = room;
    }

    pub(crate) fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    pub(crate) async fn wait_held(&self, count: usize) {
        wait_until("commits held", || self.held() >= count).await;
    }

    pub(crate) fn release_one(&self, result: Result<(), StorageError>) {
        let (batch, done) = self.held.lock().unwrap().pop_front().unwrap();
        self.finish(batch, done, result);
    }

    pub(crate) fn open_gate(&self) {
        *self.open.lock().unwrap() = true;
        while self.held() > 0 {
            self.release_one(Ok(()));
        }
    }

    fn finish(&self, batch: Batch, done: Done, mut result: Result<(), StorageError>) {
        if batch.chain.as_ref().is_some_and(broker::Chain::is_broken) {
            result = Err(StorageError::Failed("after a gap".into()));
        }
        if result.is_ok() {
            if let Some(publish) = &batch.publish {
                self.seen
                    .lock()
                    .unwrap()
                    .push(publish.message.topic.to_string());
            }
            self.rows.apply(batch);
        }
        done(result);
    }
}

impl Storage for GatedStorage {
    fn load(&self) -> LoadFuture<'_> {
        self.rows.load()
    }

    fn wants(&self, topic: &str) -> bool {
        topic.starts_with("app/")
    }

    fn commit(&self, batch: Batch, done: Done) -> Result<(), Busy> {
        if *self.open.lock().unwrap() {
            self.finish(batch, done, Ok(()));
            return Ok(());
        }
        let room = *self.room.lock().unwrap();
        let mut held = self.held.lock().unwrap();
        if room.is_some_and(|room| held.len() >= room) {
            return Err(Busy(Box::new((batch, done))));
        }
        held.push_back((batch, done));
        Ok(())
    }
}

/// Polls a value that another task changes; bounded by [`PATIENCE`].
pub(crate) async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        tokio::task::yield_now().await;
    }
}

/// Speaks bytes.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
}

impl Raw {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(addr).await.unwrap(),
        }
    }

    /// CONNECT 3.1.1 and its CONNACK; returns whether a session was present.
    pub(crate) async fn connect_v311(
        addr: SocketAddr,
        client: &str,
        is_clean: bool,
    ) -> (Self, bool) {
        let mut raw = Self::open(addr).await;
        raw.send(&connect_v311(client, is_clean)).await;
        let (kind, body) = raw.packet().await;
        assert_eq!((kind, body[1]), (0x20, 0), "CONNACK {body:?}");
        (raw, body[0] == 1)
    }

    /// CONNECT 5 and its CONNACK.
    pub(crate) async fn connect_v5(
        addr: SocketAddr,
        client: &str,
        is_clean: bool,
        expiry: u32,
    ) -> Self {
        let mut raw = Self::open(addr).await;
        raw.send(&connect_v5(client, is_clean, expiry)).await;
        let (kind, body) = raw.packet().await;
        assert_eq!((kind, body[1]), (0x20, 0), "CONNACK {body:?}");
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next packet: first byte and body.
    pub(crate) async fn packet(&mut self) -> (u8, Vec<u8>) {
        timeout(PATIENCE, self.try_packet())
            .await
            .expect("no packet in time")
            .expect("connection closed")
    }

    pub(crate) async fn try_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let kind = self.stream.read_u8().await.ok()?;
        let (mut len, mut shift) = (0_usize, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            len |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((kind, body))
    }

    /// A ping answered at once proves that nothing else was on its way before it.
    pub(crate) async fn assert_silent(&mut self) {
        self.send(&[0xc0, 0]).await;
        assert_eq!(
            self.packet().await,
            (0xd0, vec![]),
            "something else came first"
        );
    }

    pub(crate) async fn assert_closed(mut self) {
        let end = timeout(PATIENCE, self.try_packet())
            .await
            .expect("still open");
        assert_eq!(end, None);
    }

    pub(crate) async fn subscribe_v311(&mut self, filter: &str, qos: u8) -> u8 {
        self.send(&subscribe(filter, qos, false)).await;
        let (kind, body) = self.packet().await;
        assert_eq!(kind, 0x90);
        body[2]
    }

    pub(crate) async fn subscribe_v5(&mut self, filter: &str, options: u8) -> u8 {
        self.send(&subscribe(filter, options, true)).await;
        let (kind, body) = self.packet().await;
        assert_eq!(kind, 0x90);
        body[3]
    }
}

pub(crate) fn connect_v311(client: &str, is_clean: bool) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([4, u8::from(is_clean) << 1, 0, 0]);
    body.extend(text(client));
    packet(0x10, &body)
}

pub(crate) fn connect_v5(client: &str, is_clean: bool, expiry: u32) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([5, u8::from(is_clean) << 1, 0, 0, 5, 0x11]);
    body.extend(expiry.to_be_bytes());
    body.extend(text(client));
    packet(0x10, &body)
}

pub(crate) fn subscribe(filter: &str, options: u8, is_v5: bool) -> Vec<u8> {
    let mut body = vec![0, 9];
    if is_v5 {
        body.push(0);
    }
    body.extend(text(filter));
    body.push(options);
    packet(0x82, &body)
}

pub(crate) fn publish(
    topic: &str,
    payload: &[u8],
    qos: u8,
    retain: bool,
    id: u16,
    is_v5: bool,
) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend(id.to_be_bytes());
    }
    if is_v5 {
        body.push(0);
    }
    body.extend(payload);
    packet(0x30 | qos << 1 | u8::from(retain), &body)
}

/// Topic, packet id and payload of a PUBLISH body.
pub(crate) fn read_publish(kind: u8, body: &[u8], is_v5: bool) -> (String, u16, Vec<u8>) {
    assert_eq!(
        kind & 0xf0,
        0x30,
        "PUBLISH expected, got {kind:#x} {body:?}"
    );
    let len = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let topic = String::from_utf8(body[2..2 + len].to_vec()).unwrap();
    let mut rest = &body[2 + len..];
    let mut id = 0;
    if kind & 6 != 0 {
        id = u16::from_be_bytes([rest[0], rest[1]]);
        rest = &rest[2..];
    }
    if is_v5 {
        rest = &rest[1 + usize::from(rest[0])..];
    }
    (topic, id, rest.to_vec())
}
