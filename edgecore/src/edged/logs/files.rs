//! What lies where: `<root>/<namespace>_<pod>_<uid>/<container>/<attempt>.log`, the oldest parts
//! of a log under further names (`0.log.2`, `0.log.1`, or kubelet's `0.log.20240101-000000.gz`).

use std::cmp::Reverse;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;

/// Tries to see the files of a log without one being renamed meanwhile.
const LIST_ATTEMPTS: u32 = 5;
/// Digits that a counted name has at most; longer ones are dates.
const COUNT_DIGITS_MAX: usize = 6;

/// One file of a log, open.
pub(super) struct Part {
    pub(super) inode: u64,
    content: Content,
}

enum Content {
    Plain(File),
    Gzip(Box<MultiGzDecoder<File>>),
}

impl Part {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        let is_gzip = path.extension().is_some_and(|extension| extension == "gz");
        Ok(Self {
            inode,
            content: if is_gzip {
                Content::Gzip(Box::new(MultiGzDecoder::new(file)))
            } else {
                Content::Plain(file)
            },
        })
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.content {
            Content::Plain(file) => file.read(buffer),
            Content::Gzip(decoder) => decoder.read(buffer),
        }
    }

    /// Back to the beginning.
    pub(super) fn rewind(self) -> io::Result<Self> {
        let content = match self.content {
            Content::Plain(mut file) => {
                file.seek(SeekFrom::Start(0))?;
                Content::Plain(file)
            }
            Content::Gzip(decoder) => {
                let mut file = decoder.into_inner();
                file.seek(SeekFrom::Start(0))?;
                Content::Gzip(Box::new(MultiGzDecoder::new(file)))
            }
        };
        Ok(Self { content, ..self })
    }

    fn written(&self) -> io::Result<SystemTime> {
        match &self.content {
            Content::Plain(file) => file.metadata()?.modified(),
            Content::Gzip(decoder) => decoder.get_ref().metadata()?.modified(),
        }
    }

    /// Whether the file became shorter than what was read of it; it is then read again from its
    /// beginning.
    pub(super) fn was_cut(&mut self) -> io::Result<bool> {
        let Content::Plain(file) = &mut self.content else {
            return Ok(false);
        };
        let is_cut = file.metadata()?.len() < file.stream_position()?;
        if is_cut {
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(is_cut)
    }
}

/// Age of a log's file by the end of its name: the current one last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Age {
    Dated(String),
    Counted(Reverse<u32>),
    Current,
}

fn age(name: &str, log: &str) -> Option<Age> {
    let rest = name.strip_prefix(log)?;
    if rest.is_empty() {
        return Some(Age::Current);
    }
    let rest = rest.strip_prefix('.')?;
    let stem = rest.strip_suffix(".gz").unwrap_or(rest);
    if stem.is_empty() || !stem.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return None;
    }
    match stem.parse() {
        Ok(number) if stem.len() <= COUNT_DIGITS_MAX => Some(Age::Counted(Reverse(number))),
        _ => Some(Age::Dated(stem.to_owned())),
    }
}

/// Files of the log at `path`, oldest first.
fn list(path: &Path) -> io::Result<Vec<(Age, PathBuf, u64)>> {
    let (Some(directory), Some(log)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        // A file renamed or removed since is seen again by the next look.
        if let Some(age) = name.to_str().and_then(|name| age(name, log))
            && let Ok(metadata) = entry.metadata()
        {
            found.push((age, entry.path(), metadata.ino()));
        }
    }
    found.sort();
    Ok(found)
}

/// Opens all files of a log, oldest first. A rotation in between is noticed by the inodes.
pub(super) fn open_all(path: &Path) -> io::Result<Vec<Part>> {
    let mut attempt = 1;
    loop {
        let before = list(path)?;
        let opened: io::Result<Vec<Part>> =
            before.iter().map(|(_, path, _)| Part::open(path)).collect();
        let inodes = |parts: &[Part]| parts.iter().map(|part| part.inode).collect::<Vec<_>>();
        let listed: Vec<u64> = before.iter().map(|(_, _, inode)| *inode).collect();
        match opened {
            Ok(parts) if inodes(&parts) == listed || attempt >= LIST_ATTEMPTS => return Ok(parts),
            Err(error) if attempt >= LIST_ATTEMPTS => return Err(error),
            Ok(_) | Err(_) => attempt += 1,
        }
    }
}

/// Files newer than `last`, which was read to its end. If that one is gone, those written to
/// since.
pub(super) fn open_newer(path: &Path, last: &Part) -> io::Result<Vec<Part>> {
    if std::fs::metadata(path)?.ino() == last.inode {
        return Ok(Vec::new());
    }
    let mut parts = open_all(path)?;
    if let Some(position) = parts.iter().position(|part| part.inode == last.inode) {
        parts.drain(..=position);
    } else {
        let written = last.written()?;
        parts.retain(|part| part.written().is_ok_and(|at| at >= written));
    }
    Ok(parts)
}

/// Logs of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLogs {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub directory: PathBuf,
    /// When the directory was last changed, i.e. a container added.
    pub changed: SystemTime,
}

/// Logs of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLogs {
    pub name: String,
    pub directory: PathBuf,
    /// In ascending order.
    pub attempts: Vec<u32>,
}

/// Every pod that has a directory under `root`, sorted by name.
pub fn pods(root: &Path) -> io::Result<Vec<PodLogs>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let mut words = name.to_str().unwrap_or_default().splitn(3, '_');
        if let (Some(namespace), Some(name), Some(uid)) = (words.next(), words.next(), words.next())
            && let Ok(metadata) = entry.metadata()
            && metadata.is_dir()
        {
            found.push(PodLogs {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
                directory: entry.path(),
                changed: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            });
        }
    }
    found.sort_by(|a, b| {
        (&a.namespace, &a.name, a.changed).cmp(&(&b.namespace, &b.name, b.changed))
    });
    Ok(found)
}

impl PodLogs {
    /// Its containers that have written, or could have.
    pub fn containers(&self) -> io::Result<Vec<ContainerLogs>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type()?.is_dir()
            {
                found.push(ContainerLogs {
                    name,
                    attempts: attempts(&entry.path())?,
                    directory: entry.path(),
                });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

fn attempts(directory: &Path) -> io::Result<Vec<u32>> {
    let mut found: Vec<u32> = std::fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(".log")?.parse().ok()
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

impl ContainerLogs {
    /// The newest log, or the one before it; `None` if there is none.
    pub fn log(&self, previous: bool) -> Option<PathBuf> {
        let attempt = self.attempts.iter().rev().nth(usize::from(previous))?;
        Some(self.directory.join(format!("{attempt}.log")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_from_the_oldest_to_the_current() {
        let mut names = vec![
            "0.log",
            "0.log.1",
            "0.log.10.gz",
            "0.log.2",
            "0.log.20240102-000000",
            "0.log.20240101-000000.gz",
            "0.log.tmp",
            "10.log",
            "0.log.",
        ];
        names.retain(|name| age(name, "0.log").is_some());
        names.sort_by_key(|name| age(name, "0.log"));
        assert_eq!(
            names,
            [
                "0.log.20240101-000000.gz",
                "0.log.20240102-000000",
                "0.log.10.gz",
                "0.log.2",
                "0.log.1",
                "0.log",
            ]
        );
    }
}
