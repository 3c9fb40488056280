//! From entries to lines: long lines are put together again, whatever the other stream says in
//! between, and what was asked for is selected.

use std::collections::VecDeque;

use super::{Chunk, Entry, Query, Stream};

/// Most of the other stream that is held back while a long line is open. More ends the line early.
const HELD_BYTES_MAX: usize = 256 << 10;

struct Held {
    time: String,
    stream: Stream,
    is_partial: bool,
    text: Vec<u8>,
}

/// Selects lines and shows them. Fed entry by entry.
pub(super) struct Lines {
    timestamps: bool,
    since: Option<jiff::Timestamp>,
    /// Lines that are left out at the beginning.
    skip: u64,
    bytes_left: Option<u64>,
    /// The stream whose line goes on, and whether it is shown.
    open: Option<(Stream, bool)>,
    held: VecDeque<Held>,
    held_bytes: usize,
    out: Vec<Chunk>,
}

impl Lines {
    /// `skip` lines of those that come are left out (what `tail` does not want).
    pub(super) fn new(query: &Query, skip: u64) -> Self {
        Self {
            timestamps: query.timestamps,
            since: query.since,
            skip,
            bytes_left: query.limit_bytes,
            open: None,
            held: VecDeque::new(),
            held_bytes: 0,
            out: Vec::new(),
        }
    }

    /// Whether the byte limit is reached.
    pub(super) fn is_full(&self) -> bool {
        self.bytes_left == Some(0)
    }

    /// What came of the entries since the last call.
    pub(super) fn take(&mut self) -> Vec<Chunk> {
        std::mem::take(&mut self.out)
    }

    pub(super) fn push(&mut self, entry: &Entry<'_>) {
        if self.open.is_some_and(|(stream, _)| stream != entry.stream) {
            self.hold(entry);
            return;
        }
        self.show(entry);
        self.release();
    }

    /// What is held back comes out, although a line is open: nothing more comes.
    pub(super) fn finish(&mut self) {
        while !self.held.is_empty() {
            self.close();
            self.release();
        }
    }

    fn hold(&mut self, entry: &Entry<'_>) {
        self.held_bytes += entry.text.len();
        self.held.push_back(Held {
            time: entry.time.to_owned(),
            stream: entry.stream,
            is_partial: entry.is_partial,
            text: entry.text.to_vec(),
        });
        if self.held_bytes > HELD_BYTES_MAX {
            self.finish();
        }
    }

    /// Shows held entries, as long as they fit the open line. All of them are of one stream.
    fn release(&mut self) {
        while let Some(front) = self.held.front() {
            if self.open.is_some_and(|(stream, _)| stream != front.stream) {
                return;
            }
            if let Some(held) = self.held.pop_front() {
                self.held_bytes = self.held_bytes.saturating_sub(held.text.len());
                self.show(&Entry {
                    time: &held.time,
                    stream: held.stream,
                    is_partial: held.is_partial,
                    text: &held.text,
                });
            }
        }
    }

    fn show(&mut self, entry: &Entry<'_>) {
        let is_shown = if let Some((_, is_shown)) = self.open {
            is_shown
        } else {
            let is_shown = self.is_wanted(entry);
            if is_shown && self.timestamps {
                self.write(entry.stream, entry.time.as_bytes());
                self.write(entry.stream, b" ");
            }
            is_shown
        };
        if is_shown {
            self.write(entry.stream, entry.text);
        }
        self.open = Some((entry.stream, is_shown));
        if !entry.is_partial {
            self.close();
        }
    }

    /// Ends the open line.
    fn close(&mut self) {
        if let Some((stream, true)) = self.open.take() {
            self.write(stream, b"\n");
        }
    }

    /// Whether the line that begins with this entry is wanted.
    fn is_wanted(&mut self, entry: &Entry<'_>) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        // A time that cannot be read hides nothing.
        self.since.is_none_or(|since| {
            entry
                .time
                .parse::<jiff::Timestamp>()
                .map_or(true, |time| time >= since)
        })
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let bytes = match &mut self.bytes_left {
            None => bytes,
            Some(left) => {
                let room = usize::try_from(*left).unwrap_or(usize::MAX);
                let bytes = bytes.get(..room).unwrap_or(bytes);
                *left -= u64::try_from(bytes.len()).unwrap_or(*left).min(*left);
                bytes
            }
        };
        if bytes.is_empty() {
            return;
        }
        match self.out.last_mut() {
            Some(last) if last.stream == stream => last.bytes.extend_from_slice(bytes),
            _ => self.out.push(Chunk {
                stream,
                bytes: bytes.to_vec(),
            }),
        }
    }
}
