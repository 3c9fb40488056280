//! A session's messages as bytes: kind (1 byte), length (4 bytes, big endian), payload. Used on
//! the local socket after the upgrade; another transport may carry the same frames.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::edged::runtime::session::{Input, Output, Size};

/// Longest payload that is taken from the other side.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;
const HEAD_BYTES: usize = 5;

mod kind {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const RESIZE: u8 = 3;
    pub(super) const STDIN_END: u8 = 4;
    pub(super) const EXITED: u8 = 5;
    pub(super) const FAILED: u8 = 6;
}

/// One message of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Input(Input),
    Output(Output),
}

/// What the other side sent is no frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("a frame of {0} bytes, at most {PAYLOAD_BYTES_MAX} are taken")]
    TooLong(usize),
    #[error("a frame of kind {0}")]
    Kind(u8),
    #[error("a frame of kind {0} that is cut")]
    Cut(u8),
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
}

/// Both directions.
#[derive(Debug, Default)]
pub struct Frames;

impl Encoder<Frame> for Frames {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), FrameError> {
        let (kind, payload) = match frame {
            Frame::Input(Input::Stdin(bytes)) => (kind::STDIN, bytes),
            Frame::Input(Input::StdinEnd) => (kind::STDIN_END, Bytes::new()),
            Frame::Input(Input::Resize(size)) => {
                let mut payload = BytesMut::with_capacity(4);
                payload.put_u16(size.width);
                payload.put_u16(size.height);
                (kind::RESIZE, payload.freeze())
            }
            Frame::Output(Output::Stdout(bytes)) => (kind::STDOUT, bytes),
            Frame::Output(Output::Stderr(bytes)) => (kind::STDERR, bytes),
            Frame::Output(Output::Exited(code)) => {
                (kind::EXITED, Bytes::copy_from_slice(&code.to_be_bytes()))
            }
            Frame::Output(Output::Failed(reason)) => (kind::FAILED, Bytes::from(reason)),
        };
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= PAYLOAD_BYTES_MAX)
            .ok_or(FrameError::TooLong(payload.len()))?;
        out.reserve(HEAD_BYTES + payload.len());
        out.put_u8(kind);
        out.put_u32(length);
        out.put_slice(&payload);
        Ok(())
    }
}

impl Decoder for Frames {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(mut head) = source.get(..HEAD_BYTES) else {
            return Ok(None);
        };
        let kind = head.get_u8();
        let length = usize::try_from(head.get_u32()).unwrap_or(usize::MAX);
        if length > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if source.len() < HEAD_BYTES + length {
            source.reserve(HEAD_BYTES + length - source.len());
            return Ok(None);
        }
        source.advance(HEAD_BYTES);
        let payload = source.split_to(length).freeze();
        read(kind, payload).map(Some)
    }
}

fn read(kind: u8, mut payload: Bytes) -> Result<Frame, FrameError> {
    Ok(match kind {
        kind::STDIN => Frame::Input(Input::Stdin(payload)),
        kind::STDIN_END => Frame::Input(Input::StdinEnd),
        kind::STDOUT => Frame::Output(Output::Stdout(payload)),
        kind::STDERR => Frame::Output(Output::Stderr(payload)),
        kind::FAILED => {
            let reason = String::from_utf8_lossy(&payload).into_owned();
            Frame::Output(Output::Failed(reason))
        }
        kind::RESIZE if payload.len() == 4 => Frame::Input(Input::Resize(Size {
            width: payload.get_u16(),
            height: payload.get_u16(),
        })),
        kind::EXITED if payload.len() == 4 => Frame::Output(Output::Exited(payload.get_i32())),
        kind::RESIZE | kind::EXITED => return Err(FrameError::Cut(kind)),
        other => return Err(FrameError::Kind(other)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from);
        prop_oneof![
            bytes().prop_map(|b| Frame::Input(Input::Stdin(b))),
            Just(Frame::Input(Input::StdinEnd)),
            any::<(u16, u16)>()
                .prop_map(|(width, height)| Frame::Input(Input::Resize(Size { width, height }))),
            bytes().prop_map(|b| Frame::Output(Output::Stdout(b))),
            bytes().prop_map(|b| Frame::Output(Output::Stderr(b))),
            any::<i32>().prop_map(|code| Frame::Output(Output::Exited(code))),
            ".{0,20}".prop_map(|reason| Frame::Output(Output::Failed(reason))),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            frames in prop::collection::vec(frame(), 0..8),
            step in 1_usize..40,
        ) {
            let mut bytes = BytesMut::new();
            for frame in &frames {
                Frames.encode(frame.clone(), &mut bytes).unwrap();
            }
            let (mut source, mut read) = (BytesMut::new(), Vec::new());
            for part in bytes.chunks(step) {
                source.extend_from_slice(part);
                while let Some(frame) = Frames.decode(&mut source).unwrap() {
                    read.push(frame);
                }
            }
            prop_assert_eq!(read, frames);
            prop_assert!(source.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut source = BytesMut::from(bytes.as_slice());
            while let Ok(Some(_)) = Frames.decode(&mut source) {}
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let read = |bytes: &[u8]| Frames.decode(&mut BytesMut::from(bytes));
        assert!(matches!(
            read(&[0, 0, 1, 0, 1]),
            Err(FrameError::TooLong(65_537))
        ));
        assert!(matches!(read(&[9, 0, 0, 0, 0]), Err(FrameError::Kind(9))));
        assert!(matches!(read(&[3, 0, 0, 0, 1, 1]), Err(FrameError::Cut(3))));
        assert!(matches!(read(&[0, 0, 0]), Ok(None)));
    }
}
