//! Volumes that are a directory of this node: `hostPath` and `emptyDir`.

use std::io;
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Pod};

use super::{VolumeError, io_error, not_ready, unsupported};
use crate::edged::quantity;

/// Mode of an `emptyDir` (kubelet's `perm`), and with a group.
const EMPTY_DIR_MODE: u32 = 0o777;
const EMPTY_DIR_GROUP_MODE: u32 = 0o2777;

/// The host's own path, checked and made by its type (`pkg/volume/hostpath/host_path.go`).
pub(super) fn host_path(name: &str, source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    if path.components().any(|c| c == Component::ParentDir) {
        let path = &source.path;
        return Err(not_ready(
            name,
            &format!("invalid HostPath `{path}`: must not contain '..'"),
        ));
    }
    if !path.is_absolute() {
        let path = &source.path;
        return Err(not_ready(
            name,
            &format!("invalid HostPath `{path}`: must be an absolute path"),
        ));
    }
    match kind {
        // Without a type a missing one is made a directory, as containerd's CRI does.
        "" | "DirectoryOrCreate" if !path.exists() => make_dir(name, &path, 0o755)?,
        "FileOrCreate" if !path.exists() => std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            .open(&path)
            .map(drop)
            .map_err(io_error(name, "create", &path))?,
        _ => {}
    }
    if kind.is_empty() {
        return Ok(path);
    }
    let found = std::fs::metadata(&path).map(|m| m.file_type());
    let (fits, wanted) = match kind {
        "Directory" | "DirectoryOrCreate" => (found.is_ok_and(|f| f.is_dir()), "a directory"),
        "File" | "FileOrCreate" => (found.is_ok_and(|f| f.is_file()), "a file"),
        "Socket" => (found.is_ok_and(|f| f.is_socket()), "a socket file"),
        "CharDevice" => (
            found.is_ok_and(|f| f.is_char_device()),
            "a character device",
        ),
        "BlockDevice" => (found.is_ok_and(|f| f.is_block_device()), "a block device"),
        other => {
            return Err(not_ready(
                name,
                &format!("{other} is an invalid volume type"),
            ));
        }
    };
    if fits {
        return Ok(path);
    }
    let path = &source.path;
    Err(not_ready(
        name,
        &format!("hostPath type check failed: {path} is not {wanted}"),
    ))
}

pub(super) fn make_dir(name: &str, path: &Path, mode: u32) -> Result<(), VolumeError> {
    std::fs::create_dir_all(path).map_err(io_error(name, "create", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io_error(
        name,
        "set the mode of",
        path,
    ))
}

/// Whether the medium is memory; other media than disk and memory are refused.
pub(super) fn is_memory(name: &str, source: &EmptyDirVolumeSource) -> Result<bool, VolumeError> {
    match source.medium.as_deref() {
        None | Some("") => Ok(false),
        Some("Memory") => Ok(true),
        Some(other) => Err(unsupported(
            name,
            &format!("emptyDir medium {other} is not supported on this node"),
        )),
    }
}

/// Made once; what the pod has put there, and what it did to the mode, stays.
pub(super) fn empty_dir(name: &str, path: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    // It appears as it should be, or not at all: after a death nobody could tell.
    let fresh = beside(path);
    match std::fs::remove_dir(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(name, "remove", &fresh)(error));
        }
        Ok(()) | Err(_) => {}
    }
    std::fs::create_dir_all(&fresh).map_err(io_error(name, "create", &fresh))?;
    let mode = if group.is_some() {
        EMPTY_DIR_GROUP_MODE
    } else {
        EMPTY_DIR_MODE
    };
    chown(&fresh, None, group)
        .and_then(|()| std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode)))
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(io_error(name, "create", path))
}

/// Where a directory is made before it takes its place; no volume can be named so.
fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from("..new-");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// A tmpfs of the size that the pod may use, mounted once.
pub(super) fn memory_dir(
    name: &str,
    path: &Path,
    size_bytes: Option<i64>,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    std::fs::create_dir_all(path).map_err(io_error(name, "create", path))?;
    if is_mount_point(path) {
        return Ok(());
    }
    let mut options = match group {
        Some(group) => format!("mode={EMPTY_DIR_GROUP_MODE:o},gid={group}"),
        None => format!("mode={EMPTY_DIR_MODE:o}"),
    };
    if let Some(size) = size_bytes.filter(|size| *size > 0) {
        options.push_str(&format!(",size={size}"));
    }
    mount_tmpfs(path, &options).map_err(io_error(name, "mount tmpfs at", path))
}

/// How large a memory volume may grow: its own limit, what the pod's containers may use, what the
/// node has; the least of them (`empty_dir.go: calculateEmptyDirMemorySize`).
pub(super) fn memory_size(
    pod: &Pod,
    source: &EmptyDirVolumeSource,
    node_bytes: i64,
) -> Option<i64> {
    let own = source.size_limit.as_ref().and_then(quantity::value);
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let limits: i64 = containers
        .filter_map(|c| quantity::value(c.resources.as_ref()?.limits.as_ref()?.get("memory")?))
        .fold(0, i64::saturating_add);
    [own, Some(limits), Some(node_bytes)]
        .into_iter()
        .flatten()
        .filter(|bytes| *bytes > 0)
        .min()
}

/// Whether another file system is mounted there; a bind of the same one is not seen.
pub(super) fn is_mount_point(path: &Path) -> bool {
    let parent = path.parent().map(std::fs::metadata);
    match (std::fs::metadata(path), parent) {
        (Ok(own), Some(Ok(parent))) => own.dev() != parent.dev(),
        _ => false,
    }
}

fn mount_tmpfs(path: &Path, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount("tmpfs", path, "tmpfs", flags, options.as_c_str()).map_err(Into::into)
}
