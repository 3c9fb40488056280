//! A pod's volumes and its own `/etc` files on this node. Everything may be repeated: content
//! that is there already is compared and left alone.
//!
//! ```text
//! <disk>/<uid>/volumes/…     emptyDir, configMap            survives a reboot
//! <run>/<uid>/volumes/…      secret, projected, downwardAPI, Memory emptyDir: never on flash
//! <run>/<uid>/etc/…          hosts, resolv.conf, hostname
//! ```
//!
//! Content volumes are a directory of links through `..data`, which one rename swaps; a running
//! container has the directory bound, so it sees the new content whole.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, Pod,
    ProjectedVolumeSource, Volume,
};

use super::pod::convert::ConfigError;
use super::pod::env::{self, Facts, Sources};
use super::quantity;
use super::runtime::Mount;

/// Files of one volume: path inside it, content and mode.
type Payload = BTreeMap<PathBuf, (Vec<u8>, u32)>;

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

    /// Uids of pods that left something here.
    pub fn pod_uids(&self) -> Vec<String> {
        let mut uids: Vec<String> = [&self.disk, &self.run]
            .into_iter()
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        uids.sort();
        uids.dedup();
        uids
    }

    /// Removes all files of a pod; nothing there is fine. What cannot be unmounted is not entered.
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
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("", "remove", &dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

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

enum Problem {
    Missing(String),
    Bad(String),
}

fn mode_of(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok())
        .map_or(0o644, |m| m & 0o777)
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

/// A path inside a volume, refused if it could leave it.
fn inside(path: &str) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(path);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if path.as_os_str().is_empty() || !plain || path.starts_with("..data") {
        return Err(Problem::Bad(format!(
            "`{}` is not a path inside the volume",
            path.display()
        )));
    }
    Ok(path)
}

/// Picks `items` (or everything) out of an object's keys.
fn pick(
    kind: &str,
    name: &str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, Problem> {
    let mut payload = Payload::new();
    let Some(items) = items else {
        for (key, content) in data {
            payload.insert(inside(key)?, (content.clone(), mode));
        }
        return Ok(payload);
    };
    for item in items {
        let mode = item.mode.map_or(mode, |m| mode_of(Some(m)));
        match data.get(&item.key) {
            Some(content) => {
                payload.insert(inside(&item.path)?, (content.clone(), mode));
            }
            None if optional => {}
            None => {
                let key = &item.key;
                return Err(Problem::Missing(format!(
                    "{kind} \"{name}\" references non-existent key: {key}"
                )));
            }
        }
    }
    Ok(payload)
}

fn configmap_files(
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, Problem> {
    let Some(map) = sources.configmaps.get(name).and_then(Option::as_ref) else {
        if optional {
            return Ok(Payload::new());
        }
        return Err(Problem::Missing(format!("configmap \"{name}\" not found")));
    };
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    pick(
        "configmap",
        name,
        &text.chain(binary).collect(),
        items,
        mode,
        optional,
    )
}

fn secret_files(
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, Problem> {
    let Some(secret) = sources.secrets.get(name).and_then(Option::as_ref) else {
        if optional {
            return Ok(Payload::new());
        }
        return Err(Problem::Missing(format!("secret \"{name}\" not found")));
    };
    let data = secret
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    pick("secret", name, &data.collect(), items, mode, optional)
}

fn downward_files(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: u32,
    facts: &Facts,
) -> Result<Payload, Problem> {
    let mut payload = Payload::new();
    for item in items.into_iter().flatten() {
        let content = if let Some(field) = &item.field_ref {
            env::field(pod, field, facts)
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let container = super::pod::convert::container(pod, name)
                .ok_or_else(|| Problem::Bad(format!("container \"{name}\" not found")))?;
            env::resource(container, selector, facts)
        } else {
            Err(ConfigError(
                "neither fieldRef nor resourceFieldRef".to_owned(),
            ))
        };
        let content = content.map_err(|error| Problem::Bad(error.to_string()))?;
        let mode = item.mode.map_or(mode, |m| mode_of(Some(m)));
        payload.insert(inside(&item.path)?, (content.into_bytes(), mode));
    }
    Ok(payload)
}

fn projected_files(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    sources: &Sources,
    facts: &Facts,
) -> Result<Payload, Problem> {
    let mode = mode_of(source.default_mode);
    let mut payload = Payload::new();
    for part in source.sources.iter().flatten() {
        if let Some(map) = &part.config_map {
            let optional = map.optional == Some(true);
            payload.extend(configmap_files(
                sources,
                &map.name,
                map.items.as_deref(),
                mode,
                optional,
            )?);
        } else if let Some(secret) = &part.secret {
            let optional = secret.optional == Some(true);
            payload.extend(secret_files(
                sources,
                &secret.name,
                secret.items.as_deref(),
                mode,
                optional,
            )?);
        } else if let Some(downward) = &part.downward_api {
            payload.extend(downward_files(pod, downward.items.as_deref(), mode, facts)?);
        } else {
            return Err(Problem::Bad(
                "this projected source is not supported on this node".to_owned(),
            ));
        }
    }
    Ok(payload)
}

/// Replaces the content of a volume in one step, or leaves it if it is the same.
fn write_atomically(
    name: &str,
    dir: &Path,
    payload: &Payload,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let link = dir.join("..data");
    if link.exists() && is_same(&link, payload, group) {
        return Ok(());
    }
    if !dir.exists() {
        make_dir(name, dir, 0o755)?;
    }
    let fresh_name = format!("..{:016x}", rand::random::<u64>());
    let fresh = dir.join(&fresh_name);
    make_dir(name, &fresh, 0o755)?;
    for (path, (content, mode)) in payload {
        let file = fresh.join(path);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent).map_err(io_error(name, "create", parent))?;
        }
        std::fs::write(&file, content)
            .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(*mode)))
            .and_then(|()| own_by_group(&file, group, false))
            .map_err(io_error(name, "write", &file))?;
    }
    let swap = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&swap);
    symlink(&fresh_name, &swap)
        .and_then(|()| std::fs::rename(&swap, &link))
        .map_err(io_error(name, "swap", &link))?;
    // First what is new becomes visible, then what is gone disappears (kubelet's order).
    let tops: BTreeMap<&std::ffi::OsStr, ()> = payload
        .keys()
        .filter_map(|path| path.components().next())
        .map(|top| (top.as_os_str(), ()))
        .collect();
    for top in tops.keys() {
        let visible = dir.join(top);
        if std::fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new("..data").join(top), &visible)
                .map_err(io_error(name, "link", &visible))?;
        }
    }
    let entries = std::fs::read_dir(dir).map_err(io_error(name, "list", dir))?;
    for entry in entries.flatten() {
        let file = entry.file_name();
        if file == "..data" || file == fresh_name.as_str() || tops.contains_key(file.as_os_str()) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        let removed = if is_dir {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(io_error(name, "remove", &path))?;
    }
    Ok(())
}

/// Whether exactly this payload is there. A file torn by a power cut is not the same.
fn is_same(link: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = 0;
    let mut stack = vec![link.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => stack.push(entry.path()),
                Ok(_) => found += 1,
                Err(_) => return false,
            }
        }
    }
    found == payload.len()
        && payload.iter().all(|(path, (content, mode))| {
            let file = link.join(path);
            let mode = if group.is_some() { mode | 0o040 } else { *mode };
            std::fs::metadata(&file).is_ok_and(|m| m.permissions().mode() & 0o777 == mode)
                && std::fs::read(&file).is_ok_and(|bytes| bytes == *content)
        })
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

/// Writes the pod's `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.
pub fn write_etc(
    pod: &Pod,
    hostname: &str,
    ips: &[String],
    dirs: &Dirs,
) -> Result<Vec<(PathBuf, PathBuf)>, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !is_plain_name(uid) {
        return Err(unsupported(
            "etc",
            "the pod's uid is not usable as a file name",
        ));
    }
    let dir = dirs.pod(uid, true).join("etc");
    make_dir("etc", &dir, 0o755)?;
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    let contents = [
        ("hosts", hosts_file(pod, hostname, ips, host_network)),
        ("resolv.conf", resolv_conf(pod)),
        ("hostname", format!("{hostname}\n")),
    ];
    let mut files = Vec::new();
    for (name, content) in contents {
        let path = dir.join(name);
        // In place: a running container has this very file bound.
        if std::fs::read(&path).ok().as_deref() != Some(content.as_bytes()) {
            std::fs::write(&path, content)
                .and_then(|()| {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
                })
                .map_err(io_error("etc", "write", &path))?;
        }
        files.push((Path::new("/etc").join(name), path));
    }
    Ok(files)
}

fn hosts_file(pod: &Pod, hostname: &str, ips: &[String], host_network: bool) -> String {
    let spec = pod.spec.as_ref();
    let mut text = if host_network {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned()
    };
    if !host_network {
        for ip in ips {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        }
    }
    let aliases: Vec<_> = spec
        .iter()
        .flat_map(|s| s.host_aliases.iter().flatten())
        .collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

fn resolv_conf(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let mut servers = Vec::new();
    let mut searches = Vec::new();
    let mut options = Vec::new();
    if spec.and_then(|s| s.dns_policy.as_deref()) != Some("None") {
        for line in host_resolv_conf().lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
                Some("search") => searches = words.map(str::to_owned).collect(),
                Some("options") => options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
    }
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        options.extend(config.options.iter().flatten().filter_map(|option| {
            let name = option.name.clone()?;
            Some(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            })
        }));
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

/// The host's resolvers; not systemd-resolved's stub, which a pod's network cannot reach.
fn host_resolv_conf() -> String {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if text.contains("127.0.0.53") {
        if let Ok(real) = std::fs::read_to_string("/run/systemd/resolve/resolv.conf") {
            return real;
        }
    }
    text
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
