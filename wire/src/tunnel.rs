//! Frames of the stream tunnel (`edgestream`, protocol §1.2): logs, exec and metrics of pods.
//!
//! One WebSocket message is `uvarint connection id, uvarint type, data`. KubeEdge sends them as
//! text frames although the data need not be UTF-8.

/// Largest `data` of one frame in bytes; KubeEdge cuts off what is beyond.
pub const DATA_BYTES_MAX: usize = 1 << 20;

/// What a tunnel frame asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Open a log stream; data is JSON.
    LogsConnect = 0,
    /// Open an exec stream; data is JSON.
    ExecConnect = 1,
    /// Fetch metrics; data is JSON.
    MetricConnect = 2,
    /// Bytes of a stream.
    Data = 3,
    /// The edge has closed the stream.
    RemoveConnect = 4,
    /// The cloud closes the stream.
    CloseConnect = 5,
    /// Open an attach stream; data is JSON.
    AttachConnect = 6,
}

/// One tunnel frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Chosen by the cloud.
    pub connection: u64,
    /// What it is.
    pub frame_type: FrameType,
    /// JSON or raw bytes.
    pub data: &'a [u8],
}

/// Why bytes are not a tunnel frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// A varint does not end, or does not fit 64 bits.
    #[error("tunnel frame is cut off")]
    Truncated,
    /// No such type.
    #[error("tunnel frame type {0} is not known")]
    UnknownType(u64),
    /// More than [`DATA_BYTES_MAX`].
    #[error("tunnel frame of {0} bytes exceeds the {DATA_BYTES_MAX}-byte limit")]
    TooLarge(usize),
}

impl<'a> Frame<'a> {
    /// Reads one WebSocket message.
    ///
    /// # Errors
    /// See [`TunnelError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, TunnelError> {
        let (connection, rest) = uvarint(bytes).ok_or(TunnelError::Truncated)?;
        let (number, data) = uvarint(rest).ok_or(TunnelError::Truncated)?;
        let frame_type = match number {
            0 => FrameType::LogsConnect,
            1 => FrameType::ExecConnect,
            2 => FrameType::MetricConnect,
            3 => FrameType::Data,
            4 => FrameType::RemoveConnect,
            5 => FrameType::CloseConnect,
            6 => FrameType::AttachConnect,
            other => return Err(TunnelError::UnknownType(other)),
        };
        if data.len() > DATA_BYTES_MAX {
            return Err(TunnelError::TooLarge(data.len()));
        }
        Ok(Self {
            connection,
            frame_type,
            data,
        })
    }

    /// The bytes of one WebSocket message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.data.len() + 6);
        put_uvarint(&mut out, self.connection);
        put_uvarint(&mut out, self.frame_type as u64);
        out.extend_from_slice(self.data);
        out
    }
}

/// Reads a base-128 varint; returns it and what follows.
pub(crate) fn uvarint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        if index == 9 && *byte > 1 {
            return None;
        }
        value |= part << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = (value & 0x7f).to_le_bytes()[0];
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}
