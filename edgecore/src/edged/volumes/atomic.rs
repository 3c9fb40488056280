//! Volumes made of files: swapped in one step, as kubelet's `AtomicWriter`
//! (`pkg/volume/util/atomic_writer.go`).
//!
//! ```text
//! <volume>/key         -> ..data/key
//! <volume>/..data      -> ..3f2a…          one rename replaces it
//! <volume>/..3f2a…/key                     one whole version
//! ```
//!
//! A reader that opened `..data` sees one version whole; one that goes by the links sees, for each
//! file, the old or the new one. A death at any step leaves the old or the new version, and the
//! next write removes what was begun.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use super::ownership::{readable_dir, readable_file};

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    /// Belongs to this user rather than to root.
    pub(super) user: Option<u32>,
}

/// Files of one volume by the path inside it.
pub(super) type Payload = BTreeMap<PathBuf, File>;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Why a volume was not written.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: &'static str,
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

fn at<'p>(step: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Failed + use<'p> {
    move |source| Failed {
        step,
        path: path.to_owned(),
        source,
    }
}

/// Makes the volume hold exactly the payload; what is there already is left alone.
pub(super) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> Result<(), Failed> {
    write_in_steps(dir, payload, group, &mut |_| Ok(()))
}

/// As [`write`]; `step` is called before each change and may end it there.
fn write_in_steps(
    dir: &Path,
    payload: &Payload,
    group: Option<u32>,
    step: &mut dyn FnMut(&'static str) -> io::Result<()>,
) -> Result<(), Failed> {
    let link = dir.join(DATA);
    if !is_same(&link, payload, group) {
        step("directory").map_err(at("create", dir))?;
        std::fs::create_dir_all(dir)
            .and_then(|()| own(dir, readable_dir(0o777, group), None, group))
            .map_err(at("create", dir))?;
        let version = new_version(dir, payload, group, step)?;
        let next = dir.join(DATA_NEXT);
        step("next").map_err(at("link", &next))?;
        remove(&next).map_err(at("remove", &next))?;
        symlink(&version, &next).map_err(at("link", &next))?;
        step("swap").map_err(at("swap", &link))?;
        std::fs::rename(&next, &link).map_err(at("swap", &link))?;
    }
    let version = std::fs::read_link(&link).map_err(at("read", &link))?;
    // First what is new becomes visible, then what is gone disappears (kubelet's order).
    let tops: BTreeSet<&OsStr> = payload
        .keys()
        .filter_map(|path| Some(path.components().next()?.as_os_str()))
        .collect();
    for top in &tops {
        let visible = dir.join(top);
        let target = Path::new(DATA).join(top);
        if std::fs::read_link(&visible).is_ok_and(|found| found == target) {
            continue;
        }
        step("show").map_err(at("link", &visible))?;
        remove(&visible)
            .and_then(|()| symlink(&target, &visible))
            .map_err(at("link", &visible))?;
    }
    for entry in std::fs::read_dir(dir).map_err(at("list", dir))?.flatten() {
        let name = entry.file_name();
        if name == DATA || name == version.as_os_str() || tops.contains(name.as_os_str()) {
            continue;
        }
        let path = entry.path();
        step("sweep").map_err(at("remove", &path))?;
        remove(&path).map_err(at("remove", &path))?;
    }
    Ok(())
}

/// A directory with the whole payload, which nobody sees yet.
fn new_version(
    dir: &Path,
    payload: &Payload,
    group: Option<u32>,
    step: &mut dyn FnMut(&'static str) -> io::Result<()>,
) -> Result<String, Failed> {
    let name = format!("..{:016x}", rand::random::<u64>());
    let version = dir.join(&name);
    step("version").map_err(at("create", &version))?;
    make_dir(&version, group).map_err(at("create", &version))?;
    for (path, file) in payload {
        let target = version.join(path);
        let mut parent = version.clone();
        for part in path.parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            if !parent.is_dir() {
                make_dir(&parent, group).map_err(at("create", &parent))?;
            }
        }
        step("file").map_err(at("write", &target))?;
        std::fs::write(&target, &file.content)
            .and_then(|()| own(&target, readable_file(file.mode, group), file.user, group))
            .map_err(at("write", &target))?;
    }
    Ok(name)
}

fn make_dir(path: &Path, group: Option<u32>) -> io::Result<()> {
    std::fs::create_dir(path)?;
    own(path, readable_dir(0o755, group), None, group)
}

/// Owner first: changing it drops the set-id bits. The mode is set whatever the umask is.
fn own(path: &Path, mode: u32, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    if user.is_some() || group.is_some() {
        chown(path, user, group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Nothing there is fine.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether exactly this payload is there. A file torn by a power cut is not the same.
fn is_same(link: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = 0;
    let mut stack = vec![link.to_owned()];
    while let Some(dir) = stack.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            return false;
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => stack.push(entry.path()),
                Ok(_) => found += 1,
                Err(_) => return false,
            }
        }
    }
    found == payload.len()
        && payload.iter().all(|(path, file)| {
            let target = link.join(path);
            let mode = readable_file(file.mode, group);
            std::fs::metadata(&target).is_ok_and(|meta| {
                meta.mode() & 0o7777 == mode
                    && group.is_none_or(|group| meta.gid() == group)
                    && file.user.is_none_or(|user| meta.uid() == user)
            }) && std::fs::read(&target).is_ok_and(|bytes| bytes == file.content)
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| {
                let file = File {
                    content: text.as_bytes().to_vec(),
                    mode: 0o644,
                    user: None,
                };
                (PathBuf::from(path), file)
            })
            .collect()
    }

    /// What somebody reads who opens `..data` once, and what one reads by the visible links.
    fn seen(dir: &Path) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let root = dir.join(DATA);
        let mut stack = vec![root.clone()];
        while let Some(at) = stack.pop() {
            for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    stack.push(entry.path());
                    continue;
                }
                let path = entry.path().strip_prefix(&root).unwrap().to_owned();
                found.insert(path, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
        found
    }

    fn texts(payload: &Payload) -> BTreeMap<PathBuf, String> {
        payload
            .iter()
            .map(|(path, file)| {
                let text = String::from_utf8(file.content.clone()).unwrap();
                (path.clone(), text)
            })
            .collect()
    }

    fn entries(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    fn payloads() -> impl Strategy<Value = Payload> {
        let path = prop_oneof![
            Just("a"),
            Just("b"),
            Just("c"),
            Just("d/x"),
            Just("d/y/z"),
            Just("e/f"),
        ];
        proptest::collection::btree_map(path, "[a-z]{0,4}", 0..5).prop_map(|files| {
            let files: Vec<(&str, &str)> = files.iter().map(|(k, v)| (*k, v.as_str())).collect();
            payload(&files)
        })
    }

    /// A place in memory, where there is one: thousands of writes that wait for no disk.
    fn quick_place() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Death before any change leaves the old version or the new one, whole; the next write
        /// leaves exactly the new one and nothing that was begun.
        #[test]
        fn a_death_at_any_step_shows_no_mixture(old in payloads(), new in payloads()) {
            for last in 0.. {
                let place = quick_place();
                let dir = place.path().join("v");
                write(&dir, &old, None).unwrap();
                let mut steps = 0;
                let result = write_in_steps(&dir, &new, None, &mut |_| {
                    assert!(seen(&dir) == texts(&old) || seen(&dir) == texts(&new), "a mixture");
                    steps += 1;
                    if steps > last { Err(io::Error::other("died")) } else { Ok(()) }
                });
                let now = seen(&dir);
                prop_assert!(now == texts(&old) || now == texts(&new), "after {last}: {now:?}");
                // What is visible exists, or is of a version that has just gone.
                write(&dir, &new, None).unwrap();
                prop_assert_eq!(seen(&dir), texts(&new));
                for path in new.keys() {
                    prop_assert!(dir.join(path).exists());
                }
                let tops: BTreeSet<_> = new.keys().map(|p| p.components().next()).collect();
                prop_assert_eq!(entries(&dir), tops.len() + 2, "leftovers after {}", last);
                if result.is_ok() {
                    break;
                }
            }
        }
    }

    /// A reader that holds the directory of one version never reads another one's file.
    #[test]
    fn a_reader_never_sees_a_mixture() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("v");
        let version = |n: usize| payload(&[("a", &n.to_string()), ("b", &n.to_string())]);
        write(&dir, &version(0), None).unwrap();
        let over = AtomicBool::new(false);
        let reads = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0_usize;
                while !over.load(Ordering::Acquire) {
                    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
                    let mode = rustix::fs::Mode::empty();
                    // The version that the link named may be swept before it is opened.
                    let Ok(held) = rustix::fs::open(dir.join(DATA), flags, mode) else {
                        continue;
                    };
                    let read = |name: &str| {
                        let file =
                            rustix::fs::openat(&held, name, rustix::fs::OFlags::RDONLY, mode);
                        file.ok()
                            .map(|file| io::read_to_string(std::fs::File::from(file)).unwrap())
                    };
                    // Swept meanwhile: then nothing of it is read.
                    if let (Some(a), Some(b)) = (read("a"), read("b")) {
                        assert_eq!(a, b);
                        reads += 1;
                    }
                }
                reads
            });
            for n in 1..300 {
                write(&dir, &version(n), None).unwrap();
            }
            over.store(true, Ordering::Release);
            reader.join().unwrap()
        });
        assert!(reads > 0);
    }

    #[test]
    fn modes_and_groups() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("v");
        let mut files = payload(&[("a", "1"), ("d/b", "2")]);
        for file in files.values_mut() {
            file.mode = 0o400;
        }
        write(&dir, &files, None).unwrap();
        let mode = |path: &str| std::fs::metadata(dir.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(
            (mode(""), mode("d"), mode("a"), mode("d/b")),
            (0o777, 0o755, 0o400, 0o400)
        );
        let first = std::fs::read_link(dir.join(DATA)).unwrap();
        write(&dir, &files, Some(4000)).unwrap();
        assert_ne!(std::fs::read_link(dir.join(DATA)).unwrap(), first);
        assert_eq!(
            (mode(""), mode("d"), mode("a"), mode("d/b")),
            (0o2777, 0o2755, 0o440, 0o440)
        );
        assert_eq!(std::fs::metadata(dir.join("d/b")).unwrap().gid(), 4000);
        let second = std::fs::read_link(dir.join(DATA)).unwrap();
        write(&dir, &files, Some(4000)).unwrap();
        assert_eq!(
            std::fs::read_link(dir.join(DATA)).unwrap(),
            second,
            "the same is left"
        );
    }
}
