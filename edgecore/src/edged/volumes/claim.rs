//! `persistentVolumeClaim`: what the claim is bound to, on this node.
//!
//! Volumes of local-path storage lie in `<rootDirectory>/storage/<namespace>_<claim>_<volume>`; they are
//! no pod's and stay when pods go. Only [`reclaim`] removes one, and only when told.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod,
};

use super::ownership::{ChangePolicy, give_to_group};
use super::{
    Dirs, Ready, VolumeError, fs_group, io_error, is_plain_name, local, mountinfo, not_ready, tree,
    unsupported,
};

/// Who made a volume, and that we did.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const PROVISIONER: &str = "outpost.dev/local-path";
/// Mode of a new volume, as of the local-path provisioner.
const VOLUME_MODE: u32 = 0o777;
/// Prefix of what is being removed.
const DOOMED: &str = "..removed-";

/// A claim and its volume, as they were when they were asked for; `None` is known absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    pub claim: Option<PersistentVolumeClaim>,
    pub volume: Option<PersistentVolume>,
}

/// Whether the volume lies in this node's storage directory.
pub(super) fn is_ours(volume: &PersistentVolume) -> bool {
    let annotations = volume.metadata.annotations.as_ref();
    annotations
        .and_then(|a| a.get(PROVISIONED_BY))
        .map(String::as_str)
        == Some(PROVISIONER)
}

/// The directory of a volume of ours: the last part of the path that the hub gave it.
pub(super) fn directory(volume: &PersistentVolume, dirs: &Dirs) -> Option<PathBuf> {
    let path = &volume.spec.as_ref()?.local.as_ref()?.path;
    let name = Path::new(path).file_name()?.to_str()?;
    (is_plain_name(name) && !name.starts_with("..")).then(|| dirs.storage().join(name))
}

/// The volume behind the claim, ready to be bound
/// (`desired_state_of_world_populator.go: getPVCExtractPV`, `pkg/volume/local`).
pub(super) fn prepare(
    pod: &Pod,
    name: &str,
    claim_name: &str,
    claims: &std::collections::BTreeMap<String, Claim>,
    dirs: &Dirs,
) -> Result<Ready, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let refused = |reason: &str| VolumeError::Claim {
        volume: name.to_owned(),
        claim: format!("{namespace}/{claim_name}"),
        reason: reason.to_owned(),
    };
    let known = claims.get(claim_name);
    let Some(claim) = known.and_then(|known| known.claim.as_ref()) else {
        return Err(refused(&format!(
            "failed to fetch PVC from API server: persistentvolumeclaims \"{claim_name}\" not found"
        )));
    };
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let bound_to = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
    let Some(bound_to) = bound_to.filter(|n| !n.is_empty() && phase == Some("Bound")) else {
        return Err(refused("PVC is not bound"));
    };
    let Some(volume) = known.and_then(|known| known.volume.as_ref()) else {
        return Err(refused(&format!(
            "failed to fetch PV {bound_to} from API server: persistentvolumes \"{bound_to}\" not found"
        )));
    };
    let spec = volume.spec.clone().unwrap_or_default();
    let owner = spec.claim_ref.as_ref().and_then(|r| r.uid.clone());
    if owner != claim.metadata.uid {
        return Err(refused(&format!(
            "failed to fetch PV {bound_to} from API server: claimRef of the volume names another claim"
        )));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(unsupported(
            name,
            "volumeMode Block is not supported on this node",
        ));
    }
    let group = fs_group(pod);
    let path = if is_ours(volume) {
        let Some(path) = directory(volume, dirs) else {
            return Err(unsupported(name, "the volume's path names no directory"));
        };
        make(name, &path)?;
        path
    } else if let Some(source) = &spec.local {
        let path = PathBuf::from(&source.path);
        if !path.exists() {
            return Err(not_ready(
                name,
                &format!("path \"{}\" does not exist", source.path),
            ));
        }
        path
    } else if let Some(source) = &spec.host_path {
        // kubelet changes no owners behind a hostPath.
        return host_path(name, source);
    } else {
        return Err(unsupported(
            name,
            "persistent volumes other than local and hostPath are not supported on this node",
        ));
    };
    let done = dirs.place(pod_uid(pod), "local-volume", name, false);
    if let Some(group) = group.filter(|_| !done.exists()) {
        let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let policy = security.and_then(|s| s.fs_group_change_policy.as_deref());
        give_to_group(&path, group, ChangePolicy::parse(policy)).map_err(io_error(
            name,
            "set the group of",
            &path,
        ))?;
        // Once for a pod, as kubelet does: a container that starts again does not wait for it.
        let parent = done.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&done, b""))
            .map_err(io_error(name, "write", &done))?;
    }
    Ok(Ready {
        path,
        read_only: false,
    })
}

fn pod_uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn host_path(name: &str, source: &HostPathVolumeSource) -> Result<Ready, VolumeError> {
    local::host_path(name, source).map(|path| Ready {
        path,
        read_only: false,
    })
}

/// Made once, and whole: a name that is there is a volume with its mode.
fn make(name: &str, path: &Path) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    let fresh = with_prefix(path, "..new-");
    std::fs::create_dir_all(&fresh)
        .and_then(|()| {
            std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(VOLUME_MODE))
        })
        .and_then(|()| std::fs::rename(&fresh, path))
        .and_then(|()| {
            let parent = path.parent().unwrap_or(Path::new("/"));
            std::fs::File::open(parent)?.sync_all()
        })
        .map_err(io_error(name, "create", path))
}

fn with_prefix(path: &Path, prefix: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(prefix);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Whether the volume's data is to go: it is of ours, it is being deleted, and its policy says so.
/// Nothing else ever removes data.
pub(in crate::edged) fn is_doomed(volume: &PersistentVolume) -> bool {
    let policy = volume.spec.as_ref();
    let policy = policy.and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    is_ours(volume) && volume.metadata.deletion_timestamp.is_some() && policy == Some("Delete")
}

/// Removes the data of a doomed volume; what is gone already is fine.
pub(in crate::edged) fn reclaim(volume: &PersistentVolume, dirs: &Dirs) -> io::Result<()> {
    let Some(path) = directory(volume, dirs).filter(|_| is_doomed(volume)) else {
        return Ok(());
    };
    let doomed = with_prefix(&path, DOOMED);
    match std::fs::rename(&path, &doomed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if let Ok(real) = doomed.canonicalize() {
        let below = mountinfo::read()?;
        if let Some(mount) = below.iter().find(|mount| mount.path.starts_with(&real)) {
            let at = mount.path.display();
            return Err(io::Error::other(format!("something is mounted at `{at}`")));
        }
    }
    tree::remove(&doomed)
}
