//! The directory as it was last read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use k8s_openapi::api::core::v1::Pod;

use super::parse::{self, FILE_BYTES_MAX, is_manifest};
use super::{Name, name_of};

/// Files that are read; more are left out with a word.
const FILES_MAX: usize = 500;

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The last valid content.
    pub(super) pod: Option<Pod>,
    /// Why the present content is not taken; told once.
    trouble: Option<String>,
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) file: PathBuf,
    pub(super) why: String,
}

/// Whether the directory could be read, what is to be told, and whether the pods changed.
pub(super) type Outcome = (bool, Vec<Trouble>, bool);

/// Reads every file. A directory that never was is empty; one that was and cannot be read now
/// keeps what it held: nothing ends because something could not be read.
pub(super) fn read_all(
    directory: &Path,
    node: &str,
    read_before: bool,
    files: &mut BTreeMap<String, Found>,
) -> Outcome {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !read_before => {
            return (true, Vec::new(), false);
        }
        Err(error) => {
            let told = if read_before && files.is_empty() {
                Vec::new()
            } else {
                let (file, why) = (directory.to_owned(), error.to_string());
                vec![Trouble { file, why }]
            };
            return (read_before, told, false);
        }
    };
    let mut names: BTreeSet<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_manifest(name))
        .take(FILES_MAX)
        .collect();
    names.extend(files.keys().cloned());
    let (_, troubles, changed) = read_some(directory, node, &names, files);
    (true, troubles, changed)
}

/// Reads these files.
pub(super) fn read_some(
    directory: &Path,
    node: &str,
    names: &BTreeSet<String>,
    files: &mut BTreeMap<String, Found>,
) -> Outcome {
    let mut told = Vec::new();
    let mut changed = false;
    for name in names.iter().filter(|name| is_manifest(name)) {
        let path = directory.join(name);
        let why = match read(&path, node) {
            Ok(None) => {
                changed |= files.remove(name).is_some_and(|found| found.pod.is_some());
                continue;
            }
            Ok(Some(pod)) => {
                let found = files.entry(name.clone()).or_default();
                found.trouble = None;
                changed |= found.pod.as_ref() != Some(&pod);
                found.pod = Some(pod);
                continue;
            }
            Err(why) => why,
        };
        let found = files.entry(name.clone()).or_default();
        if found.trouble.as_ref() != Some(&why) {
            found.trouble = Some(why.clone());
            told.push(Trouble { file: path, why });
        }
    }
    told.extend(twice(directory, files));
    (true, told, changed)
}

/// Names that two files claim: the later file is told.
fn twice(directory: &Path, files: &mut BTreeMap<String, Found>) -> Vec<Trouble> {
    let mut taken: BTreeMap<Name, String> = BTreeMap::new();
    let mut told = Vec::new();
    for (file, found) in files {
        let Some(pod) = &found.pod else {
            continue;
        };
        let name = name_of(pod);
        let Some(first) = taken.get(&name) else {
            taken.insert(name, file.clone());
            continue;
        };
        let why = format!("metadata.name: pod {}/{} is in {first} too", name.0, name.1);
        if found.trouble.as_ref() != Some(&why) {
            found.trouble = Some(why.clone());
            let file = directory.join(file);
            told.push(Trouble { file, why });
        }
    }
    told
}

/// `None`: the file is not there (or is no file).
fn read(path: &Path, node: &str) -> Result<Option<Pod>, String> {
    let said = |error: io::Error| error.to_string();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(said(error)),
    };
    if !meta.is_file() {
        return Ok(None);
    }
    if meta.len() > FILE_BYTES_MAX {
        return Err(format!(".: the file has {} bytes", meta.len()));
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(said(error)),
    };
    let written = meta
        .modified()
        .ok()
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let seen_ms = written.and_then(|since| i64::try_from(since.as_millis()).ok());
    parse::parse(
        &bytes,
        &path.display().to_string(),
        node,
        seen_ms.unwrap_or(0),
    )
    .map(Some)
    .map_err(|error| error.to_string())
}
