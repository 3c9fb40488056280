//! The client's bytes: what was read and not handled, what was encoded and not written.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use crate::limits::READ_BYTES;
use crate::listener::Transport;
use crate::proto::{Connect, Decoder, Inbound, ProtocolError, Version};

/// Time for the last packet (a DISCONNECT or a refusal) to leave.
const FAREWELL_MAX: Duration = Duration::from_millis(500);
/// An out buffer that grew past this gives its memory back when it is empty.
const OUT_KEPT_BYTES: usize = 8 << 10;

pub(super) struct Socket {
    transport: Box<dyn Transport>,
    decoder: Decoder,
    /// Packets read and not handled yet; at most one read's worth.
    pub(super) todo: VecDeque<Inbound>,
    /// Encoded, not written yet.
    pub(super) out: BytesMut,
    /// Nothing written stands in a buffer of the transport.
    is_flushed: bool,
    /// Bytes read since they were last asked for.
    fresh: usize,
    pub(super) last_heard: Instant,
    pub(super) last_written: Instant,
}

impl Socket {
    pub(super) fn new(transport: Box<dyn Transport>, decoder: Decoder) -> Self {
        let now = Instant::now();
        Self {
            transport,
            decoder,
            todo: VecDeque::new(),
            out: BytesMut::new(),
            is_flushed: true,
            fresh: 0,
            last_heard: now,
            last_written: now,
        }
    }

    pub(super) fn version(&self) -> Option<Version> {
        self.decoder.version()
    }

    /// How many bytes came since this was last asked.
    pub(super) fn take_fresh(&mut self) -> usize {
        std::mem::take(&mut self.fresh)
    }

    pub(super) fn has_out(&self) -> bool {
        !self.out.is_empty() || !self.is_flushed
    }

    /// Reads what is there, at most one buffer; `false` when the peer has closed.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ProtocolError>> {
        let mut bytes = [0_u8; READ_BYTES];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = ready!(Pin::new(&mut self.transport).poll_read(cx, &mut buffer));
        let mut input = buffer.filled();
        if read.is_err() || input.is_empty() {
            return Poll::Ready(Ok(false));
        }
        self.last_heard = Instant::now();
        self.fresh += input.len();
        while !input.is_empty() {
            match self.decoder.feed(&mut input) {
                Ok(packet) => self.todo.extend(packet),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Writes everything there is; ready when the transport has taken all of it.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.transport).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
            self.last_written = Instant::now();
            self.is_flushed = false;
        }
        if !self.is_flushed {
            ready!(Pin::new(&mut self.transport).poll_flush(cx))?;
            self.is_flushed = true;
            self.last_written = Instant::now();
        }
        if self.out.capacity() > OUT_KEPT_BYTES {
            self.out = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Writes as much as goes without waiting. The waker is set by the next [`Self::poll_write`].
    pub(super) fn try_write(&mut self) -> Poll<io::Result<()>> {
        self.poll_write(&mut Context::from_waker(Waker::noop()))
    }

    pub(super) async fn read_connect(&mut self) -> Result<Option<Box<Connect>>, ProtocolError> {
        loop {
            if !poll_fn(|cx| self.poll_read(cx)).await? {
                return Ok(None);
            }
            // The decoder lets nothing else come first.
            if let Some(Inbound::Connect(connect)) = self.todo.pop_front() {
                return Ok(Some(connect));
            }
        }
    }

    /// Writes what can be written in a short time, and closes.
    pub(super) async fn farewell(&mut self) {
        let write = async {
            if poll_fn(|cx| self.poll_write(cx)).await.is_ok() {
                // The peer may be gone already.
                let _ = poll_fn(|cx| Pin::new(&mut self.transport).poll_shutdown(cx)).await;
            }
        };
        // A client that does not read its farewell goes without.
        let _ = timeout(FAREWELL_MAX, write).await;
    }
}
