//! Compressed archives, made plain.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

/// What a file's first bytes say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
    /// Known, but not unpacked here.
    Other(&'static str),
}

fn packing(head: &[u8]) -> Packing {
    match head {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Packing::Other("xz"),
        [b'B', b'Z', b'h', ..] => Packing::Other("bzip2"),
        _ => Packing::Plain,
    }
}

/// What an unpacked archive may take of a filesystem's free space: the node goes on living beside
/// it, and a small file can unpack to more than any disk holds.
fn room(free_bytes: u64) -> u64 {
    free_bytes / 10 * 9
}

/// The plain form of a compressed archive, in a file that has no name; `None` if it is plain.
pub(super) fn plain(path: &Path) -> io::Result<Option<File>> {
    let directory = directory();
    let stat = rustix::fs::statvfs(&directory)?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    plain_within(path, &directory, room(free_bytes))
}

fn plain_within(path: &Path, directory: &Path, bytes_max: u64) -> io::Result<Option<File>> {
    let mut file = File::open(path)?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(6).read_to_end(&mut head)?;
    file.rewind()?;
    let source = BufReader::with_capacity(256 << 10, file);
    let reader: Box<dyn Read> = match packing(&head) {
        Packing::Plain => return Ok(None),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Packing::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(source);
            Box::new(decoder.map_err(|error| io::Error::other(error.to_string()))?)
        }
        Packing::Other(name) => {
            let text = format!("it is compressed with {name}; gzip, zstd and plain tar are read");
            return Err(io::Error::other(text));
        }
    };
    let mut plain = tempfile::tempfile_in(directory)?;
    let taken = io::copy(&mut reader.take(bytes_max.saturating_add(1)), &mut plain)?;
    if taken > bytes_max {
        return Err(io::Error::other(format!(
            "it unpacks to more than {} MiB, which is what {} has room for; free some, or name \
             another directory in TMPDIR",
            bytes_max >> 20,
            directory.display()
        )));
    }
    Ok(Some(plain))
}

/// On a disk: what `/tmp` holds is memory on many nodes.
fn directory() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_first_bytes_tell_the_packing() {
        for (head, want) in [
            (&b"\x1f\x8b\x08"[..], Packing::Gzip),
            (b"\x28\xb5\x2f\xfd", Packing::Zstd),
            (b"\xfd7zXZ\0", Packing::Other("xz")),
            (b"BZh9", Packing::Other("bzip2")),
            (b"index.json", Packing::Plain),
            (b"", Packing::Plain),
        ] {
            assert_eq!(packing(head), want, "{head:?}");
        }
    }

    #[test]
    fn what_unpacks_to_more_than_there_is_room_for_is_given_up() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&vec![0; 1 << 20]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bomb.gz");
        std::fs::write(&path, packed.finish().unwrap()).unwrap();
        let unpacked = |bytes_max| plain_within(&path, directory.path(), bytes_max);
        assert!(unpacked(1 << 20).unwrap().is_some());
        let error = unpacked((1 << 20) - 1).unwrap_err().to_string();
        assert!(error.contains("TMPDIR"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(room(1000), 900);
    }

    #[test]
    fn a_truncated_archive_is_an_early_end() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&vec![7; 100_000]).unwrap();
        let packed = packed.finish().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.gz");
        std::fs::write(&path, &packed).unwrap();
        let whole = plain(&path).unwrap().unwrap();
        assert_eq!(whole.metadata().unwrap().len(), 100_000);
        std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
        let error = plain(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
