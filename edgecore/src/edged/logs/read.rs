//! Going through a log's files, a bounded step at a time.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{self, Part};
use super::lines::Lines;
use super::{Chunk, LogError, Query, entry};

/// Read in one step.
const STEP_BYTES: usize = 64 << 10;
/// Longest entry that is taken; what a strange logger writes beyond is dropped.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to read now.
    More,
    /// Everything that is there now was read.
    CaughtUp,
    /// Nothing more will be shown: the byte limit is reached.
    Done,
}

/// Reads one container's log. Blocking; every step is short.
pub struct LogReader {
    path: PathBuf,
    parts: VecDeque<Part>,
    current: Option<Part>,
    lines: Lines,
    entries: Entries,
    buffer: Vec<u8>,
}

/// Cuts bytes into entries.
#[derive(Default)]
struct Entries {
    unfinished: Vec<u8>,
    is_too_long: bool,
}

impl Entries {
    /// Calls `found` with every line that ends in `bytes`.
    fn cut(&mut self, bytes: &[u8], mut found: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            if self.is_too_long {
                self.is_too_long = false;
            } else if self.unfinished.is_empty() {
                found(line);
            } else {
                self.unfinished.extend_from_slice(line);
                found(&self.unfinished);
            }
            self.unfinished.clear();
        }
        if self.unfinished.len() + rest.len() > ENTRY_BYTES_MAX {
            self.is_too_long = true;
            self.unfinished.clear();
        } else if !self.is_too_long {
            self.unfinished.extend_from_slice(rest);
        }
    }
}

impl LogReader {
    /// Opens the log at `path` with its rotated parts, and finds where to begin.
    ///
    /// # Errors
    /// [`LogError::Absent`] if there is no such file, or it cannot be read.
    pub fn open(path: &Path, query: &Query) -> Result<Self, LogError> {
        let failed = |source: io::Error| {
            let path = path.to_owned();
            if source.kind() == io::ErrorKind::NotFound {
                LogError::Absent { path }
            } else {
                LogError::Read { path, source }
            }
        };
        let parts = files::open_all(path).map_err(failed)?;
        if parts.is_empty() {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        let (parts, skip) = match query.tail {
            None => (VecDeque::from(parts), 0),
            Some(lines) => begin_of_tail(parts, lines).map_err(failed)?,
        };
        Ok(Self {
            path: path.to_owned(),
            parts,
            current: None,
            lines: Lines::new(query, skip),
            entries: Entries::default(),
            buffer: vec![0; STEP_BYTES],
        })
    }

    /// Path of the log's current file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads on; what is to be shown is appended to `out`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn step(&mut self, out: &mut Vec<Chunk>) -> Result<Step, LogError> {
        let step = self.try_step().map_err(|source| LogError::Read {
            path: self.path.clone(),
            source,
        });
        out.append(&mut self.lines.take());
        step
    }

    fn try_step(&mut self) -> io::Result<Step> {
        if self.lines.is_full() {
            return Ok(Step::Done);
        }
        let Some(part) = &mut self.current else {
            self.current = self.parts.pop_front();
            return Ok(match self.current {
                Some(_) => Step::More,
                None => Step::CaughtUp,
            });
        };
        let length = part.read(&mut self.buffer)?;
        if length > 0 {
            let Self {
                lines,
                entries,
                buffer,
                ..
            } = self;
            entries.cut(buffer.get(..length).unwrap_or_default(), |line| {
                if let Some(entry) = entry::parse(line) {
                    lines.push(&entry);
                }
            });
            return Ok(Step::More);
        }
        if let Some(next) = self.parts.pop_front() {
            self.current = Some(next);
            return Ok(Step::More);
        }
        self.newer()
    }

    /// At the end of what is open: was the log cut, or rotated meanwhile?
    fn newer(&mut self) -> io::Result<Step> {
        let Some(part) = &mut self.current else {
            return Ok(Step::CaughtUp);
        };
        if part.was_cut()? {
            self.entries = Entries::default();
            return Ok(Step::More);
        }
        let newer = match files::open_newer(&self.path, part) {
            // The whole log was removed: the pod is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Step::CaughtUp),
            other => other?,
        };
        if newer.is_empty() {
            return Ok(Step::CaughtUp);
        }
        // It may have grown between its end and its renaming; it does not grow after.
        self.parts.extend(newer);
        Ok(Step::More)
    }

    /// Nothing more comes: what was held back for an unfinished line comes out.
    pub fn finish(&mut self) -> Vec<Chunk> {
        self.lines.finish();
        self.lines.take()
    }
}

/// Files that hold the last `lines` lines, rewound, and how many lines of them are too many.
/// Lines are counted where they end, and one more than wanted is looked for: a long line may begin
/// in the file before.
fn begin_of_tail(mut parts: Vec<Part>, lines: u64) -> io::Result<(VecDeque<Part>, u64)> {
    let mut taken = VecDeque::new();
    let mut count = 0_u64;
    while let Some(mut part) = parts.pop() {
        count += count_lines(&mut part)?;
        taken.push_front(part.rewind()?);
        if count > lines {
            break;
        }
    }
    Ok((taken, count.saturating_sub(lines)))
}

fn count_lines(part: &mut Part) -> io::Result<u64> {
    let mut entries = Entries::default();
    let mut buffer = vec![0; STEP_BYTES];
    let mut count = 0;
    loop {
        let length = part.read(&mut buffer)?;
        if length == 0 {
            return Ok(count);
        }
        entries.cut(buffer.get(..length).unwrap_or_default(), |line| {
            count += u64::from(entry::parse(line).is_some_and(|entry| !entry.is_partial));
        });
    }
}
