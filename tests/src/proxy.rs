//! A link that can be cut: a TCP forwarder that stops answering, as a cable does. Nothing is
//! closed; bytes simply go nowhere until the link is whole again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A forwarder from a local port to a target that may change (a hub that came back elsewhere).
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    whole: watch::Sender<bool>,
    target: watch::Sender<SocketAddr>,
    carried: Arc<Carried>,
    task: tokio::task::JoinHandle<()>,
}

/// Payload bytes carried since the start.
#[derive(Debug, Default)]
struct Carried {
    up: AtomicU64,
    down: AtomicU64,
}

impl Link {
    /// Listens on a free loopback port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (whole, is_whole) = watch::channel(true);
        let (target, target_now) = watch::channel(target);
        let carried = Arc::new(Carried::default());
        let task = tokio::spawn(accept(listener, target_now, is_whole, Arc::clone(&carried)));
        Ok(Self {
            address,
            whole,
            target,
            carried,
            task,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes stop moving, in both directions and for new connections; sockets stay open.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn restore(&self) {
        self.whole.send_replace(true);
    }

    /// Where new connections go from now on.
    pub fn retarget(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Payload bytes (edge to hub, hub to edge) since the start.
    pub fn carried(&self) -> (u64, u64) {
        (
            self.carried.up.load(Ordering::Relaxed),
            self.carried.down.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: watch::Receiver<SocketAddr>,
    whole: watch::Receiver<bool>,
    carried: Arc<Carried>,
) {
    let mut connections = JoinSet::new();
    while let Ok((edge, _)) = listener.accept().await {
        let (target, mut whole) = (*target.borrow(), whole.clone());
        let carried = Arc::clone(&carried);
        connections.spawn(async move {
            // A handshake into a cut cable gets no answer at all.
            if whole.wait_for(|is_whole| *is_whole).await.is_err() {
                return;
            }
            let Ok(hub) = TcpStream::connect(target).await else {
                return;
            };
            let _ = (edge.set_nodelay(true), hub.set_nodelay(true));
            let (edge_read, edge_write) = edge.into_split();
            let (hub_read, hub_write) = hub.into_split();
            tokio::select! {
                () = copy(edge_read, hub_write, whole.clone(), &carried.up) => {}
                () = copy(hub_read, edge_write, whole, &carried.down) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut whole: watch::Receiver<bool>,
    count: &AtomicU64,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(read) = from.read(&mut buffer).await else {
            return;
        };
        if read == 0 || whole.wait_for(|is_whole| *is_whole).await.is_err() {
            return;
        }
        count.fetch_add(read as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
