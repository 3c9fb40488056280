//! A pod's volumes and its own `/etc` files on this node. Everything may be repeated: content
//! that is there already is compared and left alone.
//!
//! ```text
//! <disk>/<uid>/volumes/…           emptyDir, configMap            survives a reboot
//! <disk>/<uid>/exits/…             how containers ended, see `pod::exits`
//! <run>/<uid>/volumes/…            secret, projected, downwardAPI, Memory emptyDir: never on flash
//! <run>/<uid>/volume-subpaths/…    binds of sub-paths
//! <run>/<uid>/etc/…                hosts, resolv.conf, hostname
//! <run>/<uid>/told/…               since when its status is as told, see `pod::times`
//! ```
//!
//! Content volumes are a directory of links through `..data`, which one rename swaps; a running
//! container has the directory bound, so it sees the new content whole.

mod atomic;
pub(super) mod claim;
mod content;
mod etc;
mod local;
mod mountinfo;
mod mounts;
mod ownership;
mod subpath;
mod tree;
pub(super) mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::pod::env::{Facts, Sources};
use atomic::Payload;
use content::{Problem, Source, Wish, downward_files, mode_of, projected_files};

pub use claim::Claim;
pub use etc::{Files, write_etc};
pub use mounts::mounts;
pub use usage::Usage;

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// Something it needs is not there (yet).
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
    NotReady { volume: String, reason: String },
    /// The pod asks for what this node does not have.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
    Unsupported { volume: String, reason: String },
    /// A claim that is not there, or not bound; in the words of kubelet's volume manager.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], \
         failed to process volumes=[{volume}]: error processing PVC {claim}: {reason}"
    )]
    Claim {
        volume: String,
        claim: String,
        reason: String,
    },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : cannot {step} `{}`", path.display())]
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
    /// By volume name.
    pub volumes: BTreeMap<String, Ready>,
    /// The pod's own `/etc` files: target and host path.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Where sub-paths are bound.
    subpaths: PathBuf,
}

/// One volume, ready to be bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    pub path: PathBuf,
    /// Whatever the mount says: its content is not the pod's to change.
    pub read_only: bool,
}

impl Dirs {
    fn pod(&self, uid: &str, fast: bool) -> PathBuf {
        if fast {
            self.run.join(uid)
        } else {
            self.disk.join(uid)
        }
    }

    /// Makes the directories above everything that pods own, and closes them to whoever is neither
    /// root nor of its group: inside are secrets that any user may read and directories that any
    /// user may write, as the pod's own must be able to (kubelet: `/var/lib/kubelet/pods`, 0750).
    ///
    /// # Errors
    /// The first that cannot be made or closed.
    pub fn close(&self) -> io::Result<()> {
        for dir in [&self.disk, &self.run, &self.storage()] {
            crate::files::make_dir(dir, 0o750)?;
            let mode = std::fs::metadata(dir)?.permissions().mode() & 0o7777;
            if mode & 0o007 != 0 {
                let closed = std::fs::Permissions::from_mode(mode & !0o007);
                std::fs::set_permissions(dir, closed)?;
            }
        }
        Ok(())
    }

    /// Where volumes of local-path storage lie, beside the pods: they outlive them.
    fn storage(&self) -> PathBuf {
        self.disk.with_file_name("storage")
    }

    /// Where the ends of a pod's containers are kept; nothing for a uid that is no file name.
    pub(super) fn exits(&self, uid: &str) -> Option<PathBuf> {
        is_plain_name(uid).then(|| self.pod(uid, false).join("exits"))
    }

    /// Where the times of a pod's status are kept; nothing for a uid that is no file name.
    pub(super) fn told(&self, uid: &str) -> Option<PathBuf> {
        is_plain_name(uid).then(|| self.pod(uid, true).join("told"))
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
    ///
    /// # Errors
    /// When something cannot be unmounted or removed: nothing behind a mount is touched.
    pub fn remove_pod(&self, uid: &str) -> Result<(), VolumeError> {
        self.remove(uid, &OURS)
    }

    /// Removes the volumes of a pod that is over, and keeps what is known of its end.
    ///
    /// # Errors
    /// As [`Dirs::remove_pod`].
    pub fn remove_volumes(&self, uid: &str) -> Result<(), VolumeError> {
        self.remove(uid, &VOLUMES)
    }

    fn remove(&self, uid: &str, parts: &[&str]) -> Result<(), VolumeError> {
        if !is_plain_name(uid) {
            return Ok(());
        }
        for fast in [true, false] {
            let dir = self.pod(uid, fast);
            for part in parts {
                let part = dir.join(part);
                // A bind of somebody's data must be gone before its place is removed.
                mountinfo::unmount_all(&part).map_err(io_error("", "unmount", &part))?;
                tree::remove(&part).map_err(io_error("", "remove", &part))?;
            }
            // Stays if somebody else keeps something in it.
            let _ = std::fs::remove_dir(&dir);
        }
        Ok(())
    }

    /// What one `emptyDir` of a pod takes now; nothing where there is none. Walks the directory:
    /// not for asynchronous threads.
    pub fn usage(&self, uid: &str, volume: &str) -> Option<Usage> {
        if !is_plain_name(uid) || !is_plain_name(volume) {
            return None;
        }
        let path = |fast| self.place(uid, "empty-dir", volume, fast);
        usage::of_directory(&path(false))
            .ok()
            .or_else(|| usage::of_file_system(&path(true)).ok())
    }

    /// What the pod's volumes take of the node's disk now, those in memory aside: part of its
    /// ephemeral storage. Walks directories: not for asynchronous threads.
    pub fn disk_usage(&self, uid: &str) -> Usage {
        if !is_plain_name(uid) {
            return Usage::default();
        }
        usage::of_directory(&self.pod(uid, false).join("volumes")).unwrap_or_default()
    }

    /// What of the pod's own files its containers may write and let grow: `/etc/hosts` and its like
    /// (`eviction/helpers.go: podLocalEphemeralStorageUsage`), and termination messages. Walks
    /// directories: not for asynchronous threads.
    pub fn own_usage(&self, uid: &str) -> Usage {
        if !is_plain_name(uid) {
            return Usage::default();
        }
        let etc = self.pod(uid, true).join("etc");
        let exits = self.pod(uid, false).join("exits");
        let sum = |dir: &Path| usage::of_directory(dir).unwrap_or_default();
        sum(&etc) + sum(&exits)
    }

    fn place(&self, uid: &str, kind: &str, volume: &str, fast: bool) -> PathBuf {
        self.pod(uid, fast)
            .join("volumes")
            .join(format!("kubernetes.io~{kind}"))
            .join(volume)
    }
}

/// The directories of a pod that are made and removed here.
const OURS: [&str; 5] = ["volume-subpaths", "volumes", "etc", "exits", "told"];

/// Those of them that are volumes.
const VOLUMES: [&str; 2] = ["volume-subpaths", "volumes"];

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

/// Makes or refreshes the volumes that some container of the pod mounts.
///
/// # Errors
/// The first volume that cannot be had.
pub fn prepare(
    pod: &Pod,
    sources: &Sources,
    facts: &Facts,
    dirs: &Dirs,
) -> Result<Prepared, VolumeError> {
    prepare_those(pod, sources, facts, dirs, |_| true)
}

/// Brings the volumes up to date whose content follows the API, and looks at no other.
///
/// # Errors
/// See [`prepare`].
pub fn refresh(
    pod: &Pod,
    sources: &Sources,
    facts: &Facts,
    dirs: &Dirs,
) -> Result<(), VolumeError> {
    prepare_those(pod, sources, facts, dirs, is_live).map(drop)
}

fn prepare_those(
    pod: &Pod,
    sources: &Sources,
    facts: &Facts,
    dirs: &Dirs,
    wanted: impl Fn(&Volume) -> bool,
) -> Result<Prepared, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !is_plain_name(uid) {
        return Err(unsupported(
            "",
            "the pod's uid is not usable as a file name",
        ));
    }
    let mut prepared = Prepared {
        subpaths: dirs.pod(uid, true).join("volume-subpaths"),
        ..Prepared::default()
    };
    let used = mounted_names(pod);
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        if !used.contains(volume.name.as_str()) || !wanted(volume) {
            continue;
        }
        if !is_plain_name(&volume.name) {
            return Err(unsupported(
                &volume.name,
                "the name is not usable as a file name",
            ));
        }
        let ready = one(pod, uid, volume, sources, facts, dirs)?;
        prepared.volumes.insert(volume.name.clone(), ready);
    }
    Ok(prepared)
}

/// Volumes that some container mounts; kubelet does not set up the others
/// (`desired_state_of_world_populator.go`).
fn mounted_names(pod: &Pod) -> BTreeSet<&str> {
    let spec = pod.spec.iter();
    spec.flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
        .flat_map(|c| c.volume_mounts.iter().flatten())
        .map(|mount| mount.name.as_str())
        .collect()
}

/// Whether the content of some volume follows the API while the pod runs.
pub(super) fn has_live_content(pod: &Pod) -> bool {
    pod.spec
        .iter()
        .flat_map(|s| s.volumes.iter().flatten())
        .any(is_live)
}

fn is_live(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

fn unsupported(volume: &str, reason: &str) -> VolumeError {
    VolumeError::Unsupported {
        volume: volume.to_owned(),
        reason: reason.to_owned(),
    }
}

fn not_ready(volume: &str, reason: &str) -> VolumeError {
    VolumeError::NotReady {
        volume: volume.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The user that all containers run as, if it is one (`pkg/volume/util: FsUserFrom`).
fn fs_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| {
            c.security_context
                .as_ref()
                .and_then(|s| s.run_as_user)
                .or(of_pod)
        });
    let first = users.next()??;
    if users.all(|user| user == Some(first)) {
        u32::try_from(first).ok()
    } else {
        None
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let security = pod.spec.as_ref()?.security_context.as_ref()?;
    security.fs_group.and_then(|gid| u32::try_from(gid).ok())
}

fn one(
    pod: &Pod,
    uid: &str,
    volume: &Volume,
    sources: &Sources,
    facts: &Facts,
    dirs: &Dirs,
) -> Result<Ready, VolumeError> {
    let name = &volume.name;
    let group = fs_group(pod);
    let writable = |path| Ready {
        path,
        read_only: false,
    };
    if let Some(source) = &volume.host_path {
        return local::host_path(name, source).map(writable);
    }
    if let Some(source) = &volume.empty_dir {
        let is_memory = local::is_memory(name, source)?;
        let path = dirs.place(uid, "empty-dir", name, is_memory);
        if is_memory {
            let size = local::memory_size(pod, source, facts.memory_bytes);
            local::memory_dir(name, &path, size, group)?;
        } else {
            local::empty_dir(name, &path, group)?;
        }
        return Ok(writable(path));
    }
    if let Some(source) = &volume.persistent_volume_claim {
        let ready = claim::prepare(pod, name, &source.claim_name, &sources.claims, dirs)?;
        return Ok(Ready {
            read_only: source.read_only == Some(true),
            ..ready
        });
    }
    let Some((kind, fast, payload)) = files(pod, volume, sources, facts) else {
        return Err(unsupported(
            name,
            &format!(
                "volume type {} is not supported on this node",
                kind_of(volume)
            ),
        ));
    };
    let payload = payload.map_err(|problem| match problem {
        Problem::Missing(reason) => not_ready(name, &reason),
        Problem::Bad(reason) => unsupported(name, &reason),
    })?;
    let path = dirs.place(uid, kind, name, fast);
    atomic::write(&path, &payload, group)
        .map_err(|failed| io_error(name, failed.step, &failed.path)(failed.source))?;
    Ok(Ready {
        path,
        read_only: true,
    })
}

/// A volume made of files: the kind in its path, whether it is kept in memory, and the files.
fn files(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    facts: &Facts,
) -> Option<(&'static str, bool, Result<Payload, Problem>)> {
    if let Some(source) = &volume.config_map {
        let wish = Wish {
            source: Source::ConfigMap,
            name: &source.name,
            items: source.items.as_deref(),
            mode: mode_of(source.default_mode),
            is_optional: source.optional == Some(true),
        };
        return Some(("configmap", false, wish.files(sources)));
    }
    if let Some(source) = &volume.secret {
        let wish = Wish {
            source: Source::Secret,
            name: source.secret_name.as_deref().unwrap_or_default(),
            items: source.items.as_deref(),
            mode: mode_of(source.default_mode),
            is_optional: source.optional == Some(true),
        };
        return Some(("secret", true, wish.files(sources)));
    }
    if let Some(source) = &volume.downward_api {
        let mode = mode_of(source.default_mode);
        let files = downward_files(pod, source.items.as_deref(), mode, facts);
        return Some(("downward-api", true, files));
    }
    let source = volume.projected.as_ref()?;
    let files = projected_files(pod, source, sources, facts);
    Some(("projected", true, files))
}

/// The type as the API calls it.
fn kind_of(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let mut members = value.as_object().into_iter().flat_map(|map| map.keys());
    members
        .find(|member| *member != "name")
        .cloned()
        .unwrap_or_else(|| "none".to_owned())
}

#[cfg(test)]
mod tests;
