//! Frames of MQTT by hand. Shared with the end-to-end tests.

/// A control packet: type and flags, length, body.
pub(crate) fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    let mut len = body.len();
    loop {
        let low = u8::try_from(len & 0x7f).unwrap();
        len >>= 7;
        out.push(if len > 0 { low | 0x80 } else { low });
        if len == 0 {
            break;
        }
    }
    out.extend(body);
    out
}

/// A string, or the bytes in place of one.
pub(crate) fn text(value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let mut out = u16::try_from(value.len()).unwrap().to_be_bytes().to_vec();
    out.extend(value);
    out
}
