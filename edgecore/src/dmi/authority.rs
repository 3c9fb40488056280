//! What gRPC in Go writes as `:authority` for a target that is the path of a unix socket: that
//! path, percent-encoded (`clientconn.go`, `initAuthority`). No URI has such an authority, and the
//! HTTP/2 server (`h2`) resets the stream and has no setting for it. KubeEdge's mapper-framework
//! always does so, and nobody here asks for the value: it is replaced on the way in.
//!
//! The header block is walked, not decoded. The replacement is never longer than what it replaces,
//! so the server's table of headers keeps at least what the client believes it to keep, and every
//! index still means the same.

/// `PRI * HTTP/2.0 …`, before the first frame.
const PREFACE_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 9;
/// Largest frame that a client may send; a larger one passes, for the server to refuse.
const FRAME_BYTES_MAX: usize = 1 << 14;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Index of `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// A valid authority of one character.
const REPLACEMENT: &[u8] = &[1, b'm'];

/// A client's bytes, on their way to the server.
#[derive(Debug)]
pub(super) struct Filter {
    /// Bytes to pass as they are.
    pass: usize,
    /// The frame being gathered: its header, then its payload if it bears headers.
    frame: Vec<u8>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            pass: PREFACE_BYTES,
            frame: Vec::new(),
        }
    }
}

impl Filter {
    /// Takes `bytes`, appends to `out` what goes on.
    pub(super) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.pass > 0 {
                let (now, rest) = bytes.split_at(self.pass.min(bytes.len()));
                out.extend_from_slice(now);
                self.pass -= now.len();
                bytes = rest;
                continue;
            }
            let wanted = self.wanted().saturating_sub(self.frame.len());
            let (now, rest) = bytes.split_at(wanted.min(bytes.len()));
            self.frame.extend_from_slice(now);
            bytes = rest;
            if self.frame.len() < self.wanted() {
                continue;
            }
            let length = length(&self.frame);
            if bears_headers(&self.frame) {
                rewrite(&self.frame, out);
            } else {
                out.extend_from_slice(&self.frame);
                self.pass = length;
            }
            self.frame.clear();
        }
    }

    /// How much of the frame has to be there.
    fn wanted(&self) -> usize {
        if self.frame.len() >= FRAME_HEADER_BYTES && bears_headers(&self.frame) {
            FRAME_HEADER_BYTES + length(&self.frame)
        } else {
            FRAME_HEADER_BYTES
        }
    }
}

/// The length of the payload, from the frame's header.
fn length(frame: &[u8]) -> usize {
    let bytes = frame.iter().take(3);
    bytes.fold(0, |length, byte| length << 8 | usize::from(*byte))
}

/// Whether a frame holds a whole header block. One that goes on in other frames passes: a mapper's
/// headers are a few hundred bytes.
fn bears_headers(frame: &[u8]) -> bool {
    let (kind, flags) = (
        frame.get(3).copied(),
        frame.get(4).copied().unwrap_or_default(),
    );
    kind == Some(HEADERS) && flags & END_HEADERS != 0 && length(frame) <= FRAME_BYTES_MAX
}

/// Appends the frame with another authority; as it is if it cannot be read.
fn rewrite(frame: &[u8], out: &mut Vec<u8>) {
    let rewritten = || {
        let (header, payload) = frame.split_at_checked(FRAME_HEADER_BYTES)?;
        let flags = *header.get(4)?;
        let mut payload = payload;
        if flags & PADDED != 0 {
            let (padding, rest) = payload.split_first()?;
            payload = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
        }
        let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
        let (priority, block) = payload.split_at_checked(priority)?;
        let mut made = priority.to_vec();
        replace(block, &mut made)?;
        let length = u32::try_from(made.len()).ok()?.to_be_bytes();
        let mut header = header.to_vec();
        header.get_mut(..3)?.copy_from_slice(length.get(1..)?);
        *header.get_mut(4)? = flags & !PADDED;
        Some((header, made))
    };
    if let Some((header, payload)) = rewritten() {
        out.extend_from_slice(&header);
        out.extend_from_slice(&payload);
    } else {
        out.extend_from_slice(frame);
    }
}

/// Copies a header block, field by field (RFC 7541, section 6).
fn replace(mut block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    while let Some(first) = block.first() {
        let (prefix, is_literal) = match first {
            0x80.. => (7, false),
            0x40..0x80 => (6, true),
            0x20..0x40 => (5, false),
            0..0x20 => (4, true),
        };
        let (index, mut rest) = integer(block, prefix)?;
        if is_literal {
            if index == 0 {
                rest = after_string(rest)?;
            }
            let name = block.get(..block.len() - rest.len())?;
            let after = after_string(rest)?;
            out.extend_from_slice(name);
            let value = rest.get(..rest.len() - after.len())?;
            // An empty value is shorter than the replacement.
            let is_replaced = index == AUTHORITY && value.len() > 1;
            out.extend_from_slice(if is_replaced { REPLACEMENT } else { value });
            block = after;
        } else {
            out.extend_from_slice(block.get(..block.len() - rest.len())?);
            block = rest;
        }
    }
    Some(())
}

/// An integer with a prefix of so many bits, and what follows (RFC 7541, section 5.1).
fn integer(bytes: &[u8], prefix: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = bytes.split_first()?;
    let max = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & max;
    if value < max {
        return Some((value, rest));
    }
    for shift in [0, 7, 14] {
        let (byte, after) = rest.split_first()?;
        value += (usize::from(*byte) & 0x7f) << shift;
        rest = after;
        if byte & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

/// What follows a string, packed or not.
fn after_string(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = integer(bytes, 7)?;
    rest.get(length..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn through(bytes: &[u8], step: usize) -> Vec<u8> {
        let (mut filter, mut out) = (Filter::default(), Vec::new());
        for part in bytes.chunks(step) {
            filter.push(part, &mut out);
        }
        out
    }

    #[test]
    fn the_authority_alone_is_replaced_however_the_bytes_come() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let path = [&[0x41, 20], b"%2Frun%2Fke%2Fdmi.so".as_slice()].concat();
        // POST, an indexed field; then a literal with a name of its own.
        let around =
            |authority: &[u8]| [&[0x83], authority, &[0x00, 1, b'x', 2, b'y', b'z', 0xbe]].concat();
        let padded = [&[2, 0, 0, 0, 0, 9], around(&path).as_slice(), &[0, 0]].concat();
        let sent = [
            preface.clone(),
            frame(4, 0, &[0; 6]),
            frame(HEADERS, END_HEADERS, &around(&path)),
            frame(0, 1, &[7; 300]),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
            frame(HEADERS, 0, &around(&path)),
            frame(HEADERS, END_HEADERS, &[0x41, 0xff]),
        ]
        .concat();
        let short = around(&[0x41, 1, b'm']);
        let prioritised = [&[0, 0, 0, 0, 9], short.as_slice()].concat();
        let expected = [
            preface,
            frame(4, 0, &[0; 6]),
            frame(HEADERS, END_HEADERS, &short),
            frame(0, 1, &[7; 300]),
            frame(HEADERS, END_HEADERS | PRIORITY, &prioritised),
            frame(HEADERS, 0, &around(&path)),
            frame(HEADERS, END_HEADERS, &[0x41, 0xff]),
        ]
        .concat();
        for step in [1, 2, 7, 100, sent.len()] {
            assert_eq!(through(&sent, step), expected, "{step}");
        }
    }

    proptest! {
        #[test]
        fn no_header_block_is_too_strange(
            block in prop::collection::vec(any::<u8>(), 0..300),
            flags in any::<u8>(),
            step in 1..50_usize,
        ) {
            let sent = [&[0; PREFACE_BYTES], frame(HEADERS, flags, &block).as_slice()].concat();
            let whole = through(&sent, sent.len());
            prop_assert!(whole.len() <= sent.len());
            // What went on is whole frames, and going through again changes nothing more.
            let sized = PREFACE_BYTES + FRAME_HEADER_BYTES + length(&whole[PREFACE_BYTES..]);
            prop_assert_eq!(whole.len(), sized);
            prop_assert_eq!(through(&whole, whole.len()), whole.clone());
            prop_assert_eq!(through(&sent, step), whole);
        }

        #[test]
        fn any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..2000), step in 1..50_usize) {
            let whole = through(&bytes, bytes.len().max(1));
            prop_assert!(whole.len() <= bytes.len());
            prop_assert_eq!(through(&bytes, step), whole);
        }
    }
}
