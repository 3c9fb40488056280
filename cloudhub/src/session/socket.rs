//! Messages on a WebSocket: small frames out, whole messages in, both at the same time.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as WsError, Message as WsMessage,
        protocol::{
            CloseFrame, WebSocketConfig,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};
use wire::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};

use super::Close;

/// A peer that takes nothing for so long is given up.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Buffers are 4 KiB and never shrink, so frames are kept that small too: an idle node costs
/// about 16 KiB, TLS included.
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_write_buffer_size(MESSAGE_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

/// A WebSocket with what still has to be written.
#[derive(Debug)]
pub struct Socket<S> {
    ws: WebSocketStream<S>,
    frames: VecDeque<Frame>,
    dirty: bool,
    progress: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Takes up a connection after its handshake.
    pub fn new(ws: WebSocketStream<S>, now: Instant) -> Self {
        Self {
            ws,
            frames: VecDeque::new(),
            dirty: false,
            progress: now,
        }
    }

    /// Whether another message may be queued: one at a time, so that what waits longer can still
    /// be replaced by something newer.
    pub fn is_ready(&self) -> bool {
        self.frames.is_empty()
    }

    /// When the peer has taken nothing for too long, if anything waits.
    pub fn stalled_at(&self) -> Option<Instant> {
        (self.dirty || !self.frames.is_empty()).then(|| self.progress + STALL_MAX)
    }

    /// Queues one text message, in frames of at most 4 KiB.
    pub fn send_text(&mut self, bytes: Vec<u8>, now: Instant) {
        if self.frames.is_empty() && !self.dirty {
            self.progress = now;
        }
        let bytes = Bytes::from(bytes);
        let mut at = 0;
        loop {
            let end = bytes.len().min(at + FRAME_BYTES_MAX);
            let code = OpCode::Data(if at == 0 { Data::Text } else { Data::Continue });
            let last = end == bytes.len();
            self.frames
                .push_back(Frame::message(bytes.slice(at..end), code, last));
            at = end;
            if last {
                return;
            }
        }
    }

    /// Queues a ping.
    pub fn send_ping(&mut self) {
        self.frames.push_back(Frame::ping(Bytes::new()));
    }

    /// Writes what can be written, then looks for input. Ready when something was received, or
    /// when the queue has become empty (`None` inside): the caller then refills it.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Option<WsMessage>, WsError>>> {
        let had_frames = !self.frames.is_empty();
        let mut ws = Pin::new(&mut self.ws);
        while !self.frames.is_empty() {
            match ws.as_mut().poll_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => break,
            }
            if let Some(frame) = self.frames.pop_front() {
                self.dirty = true;
                self.progress = Instant::now();
                if let Err(error) = ws.as_mut().start_send(WsMessage::Frame(frame)) {
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        if self.dirty {
            match ws.as_mut().poll_flush(context) {
                Poll::Ready(Ok(())) => {
                    self.dirty = false;
                    self.progress = Instant::now();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => {}
            }
        }
        match ws.poll_next(context) {
            Poll::Ready(Some(Ok(message))) => Poll::Ready(Some(Ok(Some(message)))),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if had_frames && self.frames.is_empty() => Poll::Ready(Some(Ok(None))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Says why and closes; waits a moment for the frame to leave.
    pub async fn close(mut self, close: Close) {
        let frame = CloseFrame {
            code: close.code.into(),
            reason: close.reason.into(),
        };
        let farewell = async {
            let _ = self.ws.close(Some(frame)).await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
        let _ = tokio::time::timeout(
            Duration::from_millis(200),
            tokio::io::AsyncWriteExt::shutdown(self.ws.get_mut()),
        )
        .await;
    }
}

/// The close frame for a receive error; `None` when the connection itself is gone.
pub(super) fn close_for(error: &WsError) -> Option<Close> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum; the rest is IO"
    )]
    match error {
        WsError::Capacity(_) => Some(Close::new(
            Close::TOO_BIG,
            format!("message exceeds {MESSAGE_BYTES_MAX} bytes"),
        )),
        WsError::Utf8(_) => Some(Close::new(Close::INVALID, "text is not UTF-8")),
        WsError::Protocol(_) => Some(Close::new(1002, "WebSocket protocol violated")),
        _ => None,
    }
}
