//! Who may speak here. KubeEdge asks nobody; here the kernel says who is at the other end.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use super::DmiError;
use super::authority::Filter;
use crate::files;

/// Connections at once. The stock framework opens one a call; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 64;
/// Read at once.
const READ_BYTES: usize = 4096;
/// After an accept that failed: no descriptors left, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Users and groups besides root, and the user that edgecore runs as, whose processes are mappers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
}

/// The process at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub uid: u32,
    /// Absent if it lives in a foreign process namespace.
    pub pid: Option<i32>,
}

impl Peer {
    pub(super) fn is_trusted(self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

impl Admission {
    /// The peer, if it may speak here.
    pub(super) fn admit(&self, stream: &UnixStream) -> Option<Peer> {
        let cred = stream.peer_cred().ok()?;
        let peer = Peer {
            uid: cred.uid(),
            pid: cred.pid().filter(|pid| *pid > 0),
        };
        let is_named = self.uids.contains(&cred.uid()) || self.gids.contains(&cred.gid());
        (peer.is_trusted() || is_named).then_some(peer)
    }

    /// Whoever is not admitted is turned away after the kernel has said who it is; the mode only
    /// has to let the admitted ones in.
    fn mode(&self) -> u32 {
        if self.uids.is_empty() && self.gids.is_empty() {
            0o600
        } else {
            0o666
        }
    }
}

/// Binds `dmi.sock`: under a temporary name first, so that whoever sees it can connect.
pub(super) fn bind(socket: &Path, admission: &Admission) -> Result<UnixListener, DmiError> {
    let at = |source| DmiError::Listen {
        socket: socket.to_owned(),
        source,
    };
    let directory = socket.parent().unwrap_or(Path::new("/"));
    files::make_dir(directory, 0o750).map_err(at)?;
    let temporary: PathBuf = directory.join(format!(".dmi-{}.sock", std::process::id()));
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(at)?;
    let mode = std::fs::Permissions::from_mode(admission.mode());
    std::fs::set_permissions(&temporary, mode).map_err(at)?;
    std::fs::rename(&temporary, socket).map_err(at)?;
    Ok(listener)
}

/// A connection that was admitted, and its place.
#[derive(Debug)]
pub(super) struct Admitted {
    stream: UnixStream,
    peer: Peer,
    filter: Filter,
    /// What the filter has passed and nobody has read yet, and how far it was read.
    passed: Vec<u8>,
    read: usize,
    _place: OwnedSemaphorePermit,
}

/// Connections of admitted peers, for as long as the listener lives.
pub(super) fn incoming(
    listener: UnixListener,
    admission: Arc<Admission>,
) -> impl Stream<Item = std::io::Result<Admitted>> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    futures_util::stream::unfold(listener, move |listener| {
        let (room, admission) = (Arc::clone(&room), Arc::clone(&admission));
        async move {
            loop {
                let place = Arc::clone(&room).acquire_owned().await.ok()?;
                match listener.accept().await {
                    Ok((stream, _)) => {
                        if let Some(peer) = admission.admit(&stream) {
                            let admitted = Admitted {
                                stream,
                                peer,
                                filter: Filter::default(),
                                passed: Vec::new(),
                                read: 0,
                                _place: place,
                            };
                            return Some((Ok(admitted), listener));
                        }
                        let cred = stream.peer_cred().ok();
                        tracing::warn!(
                            uid = cred.map(|cred| cred.uid()),
                            pid = cred.and_then(|cred| cred.pid()),
                            "a process that is no admitted mapper knocked at the DMI socket"
                        );
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the DMI socket cannot accept");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                }
            }
        }
    })
}

impl Connected for Admitted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        while this.read >= this.passed.len() {
            let mut room = [0; READ_BYTES];
            let mut came = ReadBuf::new(&mut room);
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, &mut came))?;
            if came.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.passed.clear();
            this.read = 0;
            // Nothing passes while a frame is gathered: read on.
            this.filter.push(came.filled(), &mut this.passed);
        }
        let waiting = this.passed.get(this.read..).unwrap_or_default();
        let now = waiting.len().min(buf.remaining());
        buf.put_slice(waiting.get(..now).unwrap_or_default());
        this.read += now;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
