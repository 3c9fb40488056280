//! A pod's volumes and its own `/etc` files on this node. Everything may be repeated: content
//! that is there already is compared and left alone.
//!
//! ```text
//! <disk>/<uid>/volumes/…     emptyDir, configMap            survives a reboot
//! <disk>/<uid>/exits/…       how containers ended, see `pod::exits`
//! <run>/<uid>/volumes/…      secret, projected, downwardAPI, Memory emptyDir: never on flash
//! <run>/<uid>/etc/…          hosts, resolv.conf, hostname
//! ```
//!
//! Content volumes are a directory of links through `..data`, which one rename swaps; a running
//! container has the directory bound, so it sees the new content whole.

mod content;
mod etc;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume,
};

use super::pod::convert::ConfigError;
use super::pod::env::{self, Facts, Sources};
use super::quantity;
use super::runtime::Mount;
use content::{
    Problem, configmap_files, downward_files, mode_of, projected_files, secret_files,
    write_atomically,
};

pub use etc::write_etc;

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// Something it needs is not there (yet).
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
    NotReady { volume: String, reason: String },
    /// The pod asks for what this node does not have.
    #[error("volume \"{volume}\": {reason}")]
    Unsupported { volume: String, reason: String },
    #[error("volume \"{volume}\": cannot {step} `{}`", path.display())]
    Io {
        volume: String,
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Where pods keep their files on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    pub disk: PathBuf,
    pub run: PathBuf,
}

/// The volumes of one pod, ready to be bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Host path by volume name.
    pub paths: BTreeMap<String, PathBuf>,
    /// The pod's own `/etc` files: target and host path.
    pub files: Vec<(PathBuf, PathBuf)>,
}

impl Dirs {
    fn pod(&self, uid: &str, fast: bool) -> PathBuf {
        if fast {
            self.run.join(uid)
        } else {
            self.disk.join(uid)
        }
    }

    /// Where the ends of a pod's containers are kept; nothing for a uid that is no file name.
    pub(super) fn exits(&self, uid: &str) -> Option<PathBuf> {
        is_plain_name(uid).then(|| self.pod(uid, false).join("exits"))
    }

    /// Uids of pods that left something here. Directories that are not ours are not counted,
    /// whatever else somebody configured to lie beside them.
    pub fn pod_uids(&self) -> Vec<String> {
        let mut uids: Vec<String> = [&self.disk, &self.run]
            .into_iter()
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flatten()
            .flatten()
            .filter(|entry| OURS.iter().any(|part| entry.path().join(part).is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        uids.sort();
        uids.dedup();
        uids
    }

    /// Removes what was made here for a pod, and nothing else; nothing there is fine.
    pub fn remove_pod(&self, uid: &str) -> Result<(), VolumeError> {
        if !is_plain_name(uid) {
            return Ok(());
        }
        for fast in [true, false] {
            let dir = self.pod(uid, fast);
            let volumes = dir.join("volumes/kubernetes.io~empty-dir");
            for entry in std::fs::read_dir(&volumes).into_iter().flatten().flatten() {
                unmount(&entry.path()).map_err(io_error("", "unmount", &entry.path()))?;
            }
            for part in OURS {
                let part = dir.join(part);
                match std::fs::remove_dir_all(&part) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(io_error("", "remove", &part)(error));
                    }
                    _ => {}
                }
            }
            // Stays if somebody else keeps something in it.
            let _ = std::fs::remove_dir(&dir);
        }
        Ok(())
    }
}

/// The directories of a pod that are made and removed here.
const OURS: [&str; 3] = ["volumes", "etc", "exits"];

fn io_error(
    volume: &str,
    step: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> VolumeError + use<> {
    let (volume, path) = (volume.to_owned(), path.to_owned());
    move |source| VolumeError::Io {
        volume,
        step,
        path,
        source,
    }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Makes or refreshes all volumes of the pod.
pub fn prepare(
    pod: &Pod,
    sources: &Sources,
    facts: &Facts,
    dirs: &Dirs,
) -> Result<Prepared, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut prepared = Prepared::default();
    if !is_plain_name(uid) {
        return Err(unsupported(
            "",
            "the pod's uid is not usable as a file name",
        ));
    }
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        if !is_plain_name(&volume.name) {
            return Err(unsupported(
                &volume.name,
                "the name is not usable as a file name",
            ));
        }
        let path = one(pod, uid, volume, sources, facts, dirs)?;
        prepared.paths.insert(volume.name.clone(), path);
    }
    Ok(prepared)
}

fn unsupported(volume: &str, reason: &str) -> VolumeError {
    VolumeError::Unsupported {
        volume: volume.to_owned(),
        reason: reason.to_owned(),
    }
}

fn one(
    pod: &Pod,
    uid: &str,
    volume: &Volume,
    sources: &Sources,
    facts: &Facts,
    dirs: &Dirs,
) -> Result<PathBuf, VolumeError> {
    let name = &volume.name;
    let group = pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref()?.fs_group)
        .and_then(|gid| u32::try_from(gid).ok());
    let place = |kind: &str, fast: bool| {
        dirs.pod(uid, fast)
            .join("volumes")
            .join(format!("kubernetes.io~{kind}"))
            .join(name)
    };
    if let Some(source) = &volume.host_path {
        return host_path(name, source);
    }
    if let Some(source) = &volume.empty_dir {
        let path = place("empty-dir", source.medium.as_deref() == Some("Memory"));
        empty_dir(name, source, &path, group)?;
        return Ok(path);
    }
    let (kind, fast, payload) = if let Some(source) = &volume.config_map {
        let mode = mode_of(source.default_mode);
        let optional = source.optional == Some(true);
        let files = configmap_files(
            sources,
            &source.name,
            source.items.as_deref(),
            mode,
            optional,
        );
        ("configmap", false, files)
    } else if let Some(source) = &volume.secret {
        let mode = mode_of(source.default_mode);
        let optional = source.optional == Some(true);
        let wanted = source.secret_name.as_deref().unwrap_or_default();
        let files = secret_files(sources, wanted, source.items.as_deref(), mode, optional);
        ("secret", true, files)
    } else if let Some(source) = &volume.downward_api {
        let mode = mode_of(source.default_mode);
        let files = downward_files(pod, source.items.as_deref(), mode, facts);
        ("downward-api", true, files)
    } else if let Some(source) = &volume.projected {
        (
            "projected",
            true,
            projected_files(pod, source, sources, facts),
        )
    } else {
        return Err(unsupported(
            name,
            "this type of volume is not supported on this node",
        ));
    };
    let payload = payload.map_err(|problem| match problem {
        Problem::Missing(reason) => VolumeError::NotReady {
            volume: name.clone(),
            reason,
        },
        Problem::Bad(reason) => VolumeError::Unsupported {
            volume: name.clone(),
            reason,
        },
    })?;
    let path = place(kind, fast);
    write_atomically(name, &path, &payload, group)?;
    Ok(path)
}

fn host_path(name: &str, source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(unsupported(
            name,
            "hostPath must be absolute and without `..`",
        ));
    }
    match kind {
        // A missing one is made a directory, as containerd's CRI does.
        "" if !path.exists() => make_dir(name, &path, 0o755)?,
        "DirectoryOrCreate" if !path.exists() => make_dir(name, &path, 0o755)?,
        "FileOrCreate" if !path.exists() => {
            std::fs::File::create_new(&path)
                .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o644)))
                .map_err(io_error(name, "create", &path))?;
        }
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
        _ => return Err(unsupported(name, "this hostPath type is not known")),
    };
    if fits {
        return Ok(path);
    }
    Err(VolumeError::NotReady {
        volume: name.to_owned(),
        reason: format!(
            "hostPath type check failed: {} is not {wanted}",
            source.path
        ),
    })
}

fn make_dir(name: &str, path: &Path, mode: u32) -> Result<(), VolumeError> {
    std::fs::create_dir_all(path).map_err(io_error(name, "create", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io_error(
        name,
        "set the mode of",
        path,
    ))
}

fn empty_dir(
    name: &str,
    source: &EmptyDirVolumeSource,
    path: &Path,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let memory = match source.medium.as_deref() {
        None | Some("") => false,
        Some("Memory") => true,
        Some(_) => return Err(unsupported(name, "this emptyDir medium is not supported")),
    };
    if !path.exists() {
        make_dir(name, path, 0o777)?;
        own_by_group(path, group, true).map_err(io_error(name, "set the group of", path))?;
    }
    if memory && !is_mount_point(path) {
        let size = source
            .size_limit
            .as_ref()
            .and_then(quantity::value)
            .filter(|s| *s > 0);
        let options =
            size.map_or_else(|| "mode=0777".to_owned(), |s| format!("mode=0777,size={s}"));
        mount_tmpfs(path, &options).map_err(io_error(name, "mount tmpfs at", path))?;
        own_by_group(path, group, true).map_err(io_error(name, "set the group of", path))?;
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
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

fn unmount(path: &Path) -> io::Result<()> {
    if is_mount_point(path) {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// `fsGroup`: the group owns it and may write; directories hand the group on.
fn own_by_group(path: &Path, group: Option<u32>, directory: bool) -> io::Result<()> {
    let Some(group) = group else { return Ok(()) };
    std::os::unix::fs::chown(path, None, Some(group))?;
    let mode = std::fs::metadata(path)?.permissions().mode();
    let add = if directory { 0o2070 } else { 0o040 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | add))
}

/// What is bound into one container.
///
/// # Errors
/// A mount that names no volume, or a sub-path that would leave its volume.
pub fn mounts(
    container: &Container,
    prepared: &Prepared,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let Some(root) = prepared.paths.get(&mount.name) else {
            return Err(ConfigError(format!(
                "cannot find volume \"{}\" to mount",
                mount.name
            )));
        };
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => path.clone(),
            (_, Some(template)) => env::expand(template, env),
            _ => String::new(),
        };
        let source = if sub_path.is_empty() {
            root.clone()
        } else {
            sub_directory(root, &sub_path)?
        };
        mounts.push(Mount {
            source,
            target: absolute(&mount.mount_path),
            read_only: mount.read_only == Some(true),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => "rslave".to_owned(),
                Some("Bidirectional") => "rshared".to_owned(),
                _ => String::new(),
            },
        });
    }
    for (target, source) in &prepared.files {
        if !mounts.iter().any(|mount| mount.target == *target) {
            mounts.push(Mount {
                source: source.clone(),
                target: target.clone(),
                read_only: false,
                propagation: String::new(),
            });
        }
    }
    // Parents before what is mounted inside them.
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

fn absolute(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

/// A directory or file inside a volume, made if it is missing; links may not lead out of it.
fn sub_directory(root: &Path, sub_path: &str) -> Result<PathBuf, ConfigError> {
    let refused = |reason: &str| {
        ConfigError(format!(
            "failed to prepare subPath \"{sub_path}\": {reason}"
        ))
    };
    let relative = Path::new(sub_path);
    if !relative
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(refused("it must stay inside the volume"));
    }
    let base = root
        .canonicalize()
        .map_err(|error| refused(&error.to_string()))?;
    let path = base.join(relative);
    let mut built = base.clone();
    for part in relative.components() {
        built.push(part);
        if !built.exists() {
            std::fs::create_dir(&built).map_err(|error| refused(&error.to_string()))?;
        }
        let real = built
            .canonicalize()
            .map_err(|error| refused(&error.to_string()))?;
        if !real.starts_with(&base) {
            return Err(refused("a link leads out of the volume"));
        }
    }
    path.canonicalize()
        .map_err(|error| refused(&error.to_string()))
}

#[cfg(test)]
mod tests;
