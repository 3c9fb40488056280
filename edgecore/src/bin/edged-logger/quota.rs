//! Keeps all logs of a pod, and of the node, below a bound. Looked at when a log is rotated: that
//! is when logs have grown. What is written to now, the newest run of each container, is never
//! removed; of the rest the oldest goes first.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One file of a log.
struct Piece {
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
    is_current: bool,
}

/// `log` is `<root>/<pod>/<container>/<attempt>.log`. Limits of 0 are none.
pub(super) fn enforce(log: &Path, pod_bytes_max: u64, node_bytes_max: u64) {
    let mut above = log.ancestors().skip(2);
    let (Some(pod), Some(root)) = (above.next(), above.next()) else {
        return;
    };
    if pod_bytes_max > 0 {
        shrink(pieces_of_pod(pod), pod_bytes_max);
    }
    if node_bytes_max > 0 {
        let all = directories(root);
        shrink(
            all.iter().flat_map(|pod| pieces_of_pod(pod)).collect(),
            node_bytes_max,
        );
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn pieces_of_pod(pod: &Path) -> Vec<Piece> {
    directories(pod)
        .iter()
        .flat_map(|container| pieces_of_container(container))
        .collect()
}

/// Number of the run that a file belongs to, and whether it is the file that run writes to.
fn attempt(name: &str) -> Option<(u32, bool)> {
    let (number, rest) = name.split_once(".log")?;
    let is_rotated = rest
        .strip_prefix('.')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    (rest.is_empty() || is_rotated).then_some((number.parse().ok()?, rest.is_empty()))
}

fn pieces_of_container(container: &Path) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut newest = 0;
    for entry in std::fs::read_dir(container).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((number, is_written)) = name.to_str().and_then(attempt) else {
            continue;
        };
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        newest = newest.max(number);
        let piece = Piece {
            path: entry.path(),
            bytes: metadata.len(),
            written: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            is_current: is_written,
        };
        pieces.push((number, piece));
    }
    pieces
        .into_iter()
        .map(|(number, piece)| Piece {
            is_current: piece.is_current && number == newest,
            ..piece
        })
        .collect()
}

/// Removes the oldest until the rest fits.
fn shrink(mut pieces: Vec<Piece>, bytes_max: u64) {
    let mut bytes: u64 = pieces.iter().map(|piece| piece.bytes).sum();
    pieces.sort_by_key(|piece| piece.written);
    for piece in pieces.iter().filter(|piece| !piece.is_current) {
        if bytes <= bytes_max {
            return;
        }
        // Another logger may have been faster.
        if std::fs::remove_file(&piece.path).is_ok() {
            bytes = bytes.saturating_sub(piece.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        /// Files of 100 bytes, each older than the next.
        fn new(files: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (age, name) in files.iter().enumerate() {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, [b'x'; 100]).unwrap();
                let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
                std::fs::File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_modified(at)
                    .unwrap();
            }
            Self(dir)
        }

        fn gone<'a>(&self, files: &[&'a str]) -> Vec<&'a str> {
            let is_gone = |name: &&&str| !self.0.path().join(name).exists();
            files.iter().filter(is_gone).copied().collect()
        }
    }

    const FILES: [&str; 8] = [
        "p/a/0.log.1",
        "p/a/0.log",
        "q/c/0.log.2",
        "p/a/1.log.1",
        "q/c/0.log.1",
        "p/a/1.log",
        "p/b/0.log",
        "p/a/notes.txt",
    ];

    #[test]
    fn the_oldest_go_first_and_what_is_written_stays() {
        for (pod, node, gone) in [
            (0, 0, vec![]),
            (500, 700, vec![]),
            (400, 0, vec!["p/a/0.log.1"]),
            (250, 0, vec!["p/a/0.log.1", "p/a/0.log", "p/a/1.log.1"]),
            (1, 0, vec!["p/a/0.log.1", "p/a/0.log", "p/a/1.log.1"]),
            (0, 500, vec!["p/a/0.log.1", "p/a/0.log"]),
            (
                0,
                1,
                vec![
                    "p/a/0.log.1",
                    "p/a/0.log",
                    "q/c/0.log.2",
                    "p/a/1.log.1",
                    "q/c/0.log.1",
                ],
            ),
        ] {
            let tree = Tree::new(&FILES);
            enforce(&tree.0.path().join("p/a/1.log"), pod, node);
            assert_eq!(tree.gone(&FILES), gone, "pod {pod} node {node}");
        }
    }
}
