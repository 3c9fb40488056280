//! Writing small files so that a crash leaves the old or the new one, never half of one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

/// What tells one version of a file from another without reading it; `None` for one that cannot be
/// looked at.
pub(crate) type Stamp = Option<(SystemTime, u64)>;

/// The stamp of a file now.
pub(crate) fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// Writes `bytes` to `path` with `mode`, durable on return. Parent directories are made (0700 for
/// a private file, 0755 otherwise).
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let is_private = mode.trailing_zeros() >= 6;
    make_dir(parent, if is_private { 0o700 } else { 0o755 })?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    // A leftover of a crash may carry another mode.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(parent)?.sync_all()
}

/// Makes a directory and its parents; an existing one keeps its mode.
pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
}
