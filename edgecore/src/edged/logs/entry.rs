//! One entry of the CRI log format: `<RFC 3339 time> <stdout|stderr> <tags> <text>` (kubelet
//! `pkg/kubelet/kuberuntime/logs`). Tags are separated by `:`; the first is `F` (the line ends
//! here) or `P` (it goes on in the stream's next entry).

/// Where a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// As written.
    pub time: &'a str,
    pub stream: Stream,
    pub is_partial: bool,
    pub text: &'a [u8],
}

/// Reads one line of a log file, given without its newline. `None` for what is no entry.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let (time, rest) = word(line)?;
    let (stream, rest) = word(rest)?;
    // A logger may leave the last space out when the text is empty.
    let (tags, text) = word(rest).unwrap_or((rest, &[]));
    let time = std::str::from_utf8(time).ok()?;
    if !time.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    Some(Entry {
        time,
        stream: match stream {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        },
        is_partial: match tags.split(|byte| *byte == b':').next() {
            Some(b"P") => true,
            Some(b"F") => false,
            _ => return None,
        },
        text,
    })
}

fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    Some((bytes.get(..space)?, bytes.get(space + 1..)?))
}
