//! The packed encoding of KubeEdge's QUIC transport (protocol §4.5), for reading only.
//!
//! We do not speak that transport (it is Google QUIC of 2018); captures of it can be read.

use crate::message::{Content, Header, Message, Route};
use crate::tunnel::uvarint;

/// Version word of the package header.
const VERSION: [u8; 4] = [1, 1, 1, 0];
/// Length of the package header in bytes.
const HEADER_LEN: usize = 10;

/// Why bytes are not a packed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackedError {
    /// Not the 10-byte header of version 1.
    #[error("package header is not known")]
    Header,
    /// The payload is cut off or is no protobuf of the message's shape.
    #[error("package payload is not valid")]
    Payload,
}

/// Reads one package: header and protobuf `Message`.
///
/// # Errors
/// See [`PackedError`].
pub fn decode(bytes: &[u8]) -> Result<Message, PackedError> {
    let (head, payload) = bytes
        .split_at_checked(HEADER_LEN)
        .ok_or(PackedError::Header)?;
    if head[..4] != VERSION || head[4] != 1 {
        return Err(PackedError::Header);
    }
    let len = u32::from_be_bytes([head[6], head[7], head[8], head[9]]);
    if usize::try_from(len) != Ok(payload.len()) {
        return Err(PackedError::Payload);
    }
    let mut message = Message::default();
    for field in fields(payload) {
        match field? {
            (1, Value::Bytes(header)) => message.header = decode_header(header)?,
            (2, Value::Bytes(route)) => message.route = decode_route(route)?,
            (3, Value::Bytes(content)) => message.content = decode_content(content)?,
            _ => {}
        }
    }
    Ok(message)
}

fn decode_header(bytes: &[u8]) -> Result<Header, PackedError> {
    let mut header = Header::default();
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(id)) => header.id = text(id)?,
            (2, Value::Bytes(parent)) => header.parent_id = text(parent)?,
            (3, Value::Varint(zigzag)) => header.timestamp = unzigzag(zigzag),
            (4, Value::Varint(sync)) => header.sync = sync != 0,
            (5, Value::Bytes(kind)) => header.message_type = text(kind)?,
            _ => {}
        }
    }
    Ok(header)
}

fn decode_route(bytes: &[u8]) -> Result<Route, PackedError> {
    let mut route = Route::default();
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(source)) => route.source = text(source)?,
            (2, Value::Bytes(group)) => route.group = text(group)?,
            (3, Value::Bytes(operation)) => route.operation = text(operation)?,
            (4, Value::Bytes(resource)) => route.resource = text(resource)?,
            _ => {}
        }
    }
    Ok(route)
}

/// Strings and byte slices travel raw, everything else as JSON.
fn decode_content(bytes: &[u8]) -> Result<Content, PackedError> {
    let raw = text(bytes)?;
    Ok(Content::from_json_text(raw.clone()).unwrap_or_else(|_| Content::string(&raw)))
}

fn text(bytes: &[u8]) -> Result<String, PackedError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| PackedError::Payload)
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// The fields of one protobuf message; wire types 0 and 2 are all this message has.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), PackedError>> {
    let mut failed = false;
    std::iter::from_fn(move || {
        if rest.is_empty() || failed {
            return None;
        }
        let field = next_field(&mut rest).ok_or(PackedError::Payload);
        failed = field.is_err();
        Some(field)
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let (tag, after) = uvarint(rest)?;
    let (value, after) = uvarint(after)?;
    match tag & 7 {
        0 => {
            *rest = after;
            Some((tag >> 3, Value::Varint(value)))
        }
        2 => {
            let (bytes, after) = after.split_at_checked(usize::try_from(value).ok()?)?;
            *rest = after;
            Some((tag >> 3, Value::Bytes(bytes)))
        }
        _ => None,
    }
}
