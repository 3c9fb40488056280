//! Snapshots: unpacking an image's layers, the leases that protect them meanwhile, and reading an
//! unpacked image's files without mounting it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    ViewSnapshotRequest, ViewSnapshotResponse,
};
use containerd_client::services::v1::{ApplyRequest, CreateRequest, DeleteRequest};
use containerd_client::types;

use super::channel::{CALL, CallError, Daemon, PULL, tolerate_missing};
use super::flight::KeyLocks;
use super::image::{Descriptor, ImageError, ImageFacts, chain_ids};
use super::spec::UserDatabase;

/// Deadline of unpacking one layer: gigabytes on a slow card take their time.
const UNPACK: Duration = Duration::from_secs(30 * 60);

/// Whether the unpacked image is there.
pub(super) async fn is_unpacked(
    daemon: &Daemon,
    snapshotter: &str,
    chain_id: &str,
) -> Result<bool, CallError> {
    let stat = daemon
        .call(
            "snapshot stat",
            CALL,
            daemon.snapshots().stat(StatSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: chain_id.to_owned(),
            }),
        )
        .await;
    match stat {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Unpacks every layer that is not there yet. `daemon` should carry a lease.
pub(super) async fn unpack(
    daemon: &Daemon,
    snapshotter: &str,
    locks: &KeyLocks,
    facts: &ImageFacts,
) -> Result<(), ImageError> {
    if is_unpacked(daemon, snapshotter, &facts.chain_id).await? {
        return Ok(());
    }
    let chain = chain_ids(&facts.config.rootfs.diff_ids);
    let mut parent = String::new();
    let layers = facts
        .manifest
        .layers
        .iter()
        .zip(&facts.config.rootfs.diff_ids);
    for ((layer, diff_id), chain_id) in layers.zip(chain) {
        let _mine = locks.lock(&chain_id).await;
        if !is_unpacked(daemon, snapshotter, &chain_id).await? {
            let key = format!("extract-{}-{chain_id}", uuid::Uuid::new_v4().simple());
            let done = apply(
                daemon,
                snapshotter,
                &key,
                &parent,
                layer,
                diff_id,
                &chain_id,
            )
            .await;
            if done.is_err() {
                let removed = remove_snapshot(daemon, snapshotter, &key).await;
                if let Err(error) = removed {
                    tracing::debug!(%error, key, "half-unpacked layer left to garbage collection");
                }
            }
            done?;
        }
        parent = chain_id;
    }
    Ok(())
}

async fn apply(
    daemon: &Daemon,
    snapshotter: &str,
    key: &str,
    parent: &str,
    layer: &Descriptor,
    diff_id: &str,
    chain_id: &str,
) -> Result<(), ImageError> {
    let mounts = prepare(daemon, snapshotter, key, parent).await?;
    let applied = daemon
        .call(
            "layer unpack",
            UNPACK,
            daemon.diff().apply(ApplyRequest {
                diff: Some(layer.to_proto()),
                mounts,
                ..ApplyRequest::default()
            }),
        )
        .await?;
    let found = applied.applied.map(|d| d.digest).unwrap_or_default();
    if found != diff_id {
        return Err(ImageError::invalid(format!(
            "layer {} unpacks to {found}, the config says {diff_id}",
            layer.digest
        )));
    }
    let committed = daemon
        .call(
            "snapshot commit",
            PULL,
            daemon.snapshots().commit(CommitSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                name: chain_id.to_owned(),
                key: key.to_owned(),
                ..CommitSnapshotRequest::default()
            }),
        )
        .await;
    match committed {
        Err(error) if error.is_already_exists() => {
            Ok(remove_snapshot(daemon, snapshotter, key).await?)
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

/// Makes a writable snapshot.
pub(super) async fn prepare(
    daemon: &Daemon,
    snapshotter: &str,
    key: &str,
    parent: &str,
) -> Result<Vec<types::Mount>, CallError> {
    let request = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        ..PrepareSnapshotRequest::default()
    };
    let make = || async {
        let mut snapshots = daemon.snapshots();
        let prepare = snapshots.prepare(request.clone());
        daemon.call("snapshot prepare", CALL, prepare).await
    };
    let made = make().await;
    if is_obstructed(&made) {
        let _one_at_a_time = OBSTRUCTED.lock().await;
        let again = make().await;
        if clear_away(&again).await {
            return Ok(make().await?.mounts);
        }
        return Ok(again?.mounts);
    }
    Ok(made?.mounts)
}

/// Who clears away must know that nobody else has, and made a snapshot of that number since.
static OBSTRUCTED: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
/// A directory that is younger may be somebody's after all.
const UNFINISHED_FOR: Duration = Duration::from_secs(1);

fn is_obstructed<T>(made: &Result<T, CallError>) -> bool {
    made.as_ref()
        .is_err_and(|error| error.left_snapshot().is_some())
}

/// Whether what was in the way is gone. containerd numbers snapshots in a transaction: a daemon
/// that is killed in it leaves the directory of a number that nobody has, gives that number again,
/// and fails on the directory until it happens to remove some other snapshot and collects garbage
/// afterwards. Until then the node can start nothing.
async fn clear_away<T>(made: &Result<T, CallError>) -> bool {
    let Some(directory) = made.as_ref().err().and_then(CallError::left_snapshot) else {
        return false;
    };
    let moved = tokio::task::spawn_blocking({
        let directory = directory.clone();
        move || move_away(&directory)
    });
    match moved.await.unwrap_or_else(|error| Err(error.into())) {
        Ok(()) => {
            tracing::info!(path = %directory.display(), "an unfinished snapshot was in the way; it is removed");
            true
        }
        Err(error) => {
            tracing::warn!(path = %directory.display(), %error, "an unfinished snapshot is in the way and cannot be removed");
            false
        }
    }
}

fn move_away(directory: &Path) -> std::io::Result<()> {
    let age = std::fs::symlink_metadata(directory)?.modified()?.elapsed();
    if age.is_ok_and(|age| age < UNFINISHED_FOR) {
        return Err(std::io::Error::other(
            "it is a moment old; tried again later",
        ));
    }
    // In one step, and by the name that containerd itself gives what it is about to remove.
    let number = directory.file_name().unwrap_or_default().to_string_lossy();
    let away = directory.with_file_name(format!("rm-{number}"));
    std::fs::rename(directory, &away)?;
    std::fs::remove_dir_all(away)
}

/// Removes a snapshot; one that garbage collection took first is fine.
pub(super) async fn remove_snapshot(
    daemon: &Daemon,
    snapshotter: &str,
    key: &str,
) -> Result<(), CallError> {
    let removed = daemon
        .call(
            "snapshot remove",
            CALL,
            daemon.snapshots().remove(RemoveSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
            }),
        )
        .await;
    tolerate_missing(removed)
}

/// A lease that keeps what came so far from garbage collection. It expires by itself if we die
/// (containerd's `gc.expire` label).
pub(super) struct Lease {
    ids: Vec<String>,
    pub(super) daemon: Daemon,
}

/// Life of a lease around a few calls.
const LEASE_SECS: i64 = 3600;
/// A broken pull's lease stays so that its partial blobs do: containerd collects an ingest whose
/// lease is gone. It has between one and two of these to be carried on; a full disk ends it sooner.
const PULL_LEASE_SECS: i64 = 7 * 24 * 3600;
/// How the leases of pulls begin.
pub(super) const PULL_LEASE: &str = "edgecore-pull-";

impl Lease {
    pub(super) async fn take(daemon: &Daemon) -> Result<Self, CallError> {
        let id = format!("edgecore-{}", uuid::Uuid::new_v4().simple());
        let expire = crate::clock::unix_millis() / 1000 + LEASE_SECS;
        Self::create(daemon, &id, expire).await?;
        Ok(Self {
            daemon: daemon.with_lease(&id)?,
            ids: vec![id],
        })
    }

    /// The lease of the pull of `digest`, also after a restart. A lease cannot be prolonged, so
    /// its name carries the week: this week's ends with the next.
    pub(super) async fn of_pull(daemon: &Daemon, digest: &str) -> Result<Self, CallError> {
        let week = crate::clock::unix_millis() / 1000 / PULL_LEASE_SECS;
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        let id = |week: i64| format!("{PULL_LEASE}{}-{week}", hex.get(..24).unwrap_or(hex));
        match Self::create(daemon, &id(week), (week + 2) * PULL_LEASE_SECS).await {
            Err(error) if error.is_already_exists() => {}
            other => other?,
        }
        Ok(Self {
            daemon: daemon.with_lease(&id(week))?,
            ids: vec![id(week), id(week - 1)],
        })
    }

    async fn create(daemon: &Daemon, id: &str, expire: i64) -> Result<(), CallError> {
        let expire = jiff::Timestamp::from_second(expire)
            .map(|at| at.to_string())
            .unwrap_or_default();
        daemon
            .call(
                "lease create",
                CALL,
                daemon.leases().create(CreateRequest {
                    id: id.to_owned(),
                    labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expire)]),
                }),
            )
            .await
            .map(|_| ())
    }

    pub(super) async fn release(self) {
        for id in &self.ids {
            if let Err(error) = delete_lease(&self.daemon, id).await {
                tracing::debug!(%error, lease = id, "lease not released; it expires by itself");
            }
        }
    }
}

pub(super) async fn delete_lease(daemon: &Daemon, id: &str) -> Result<(), CallError> {
    let deleted = daemon
        .call(
            "lease delete",
            CALL,
            daemon.leases().delete(DeleteRequest {
                id: id.to_owned(),
                sync: false,
            }),
        )
        .await;
    tolerate_missing(deleted)
}

/// Reads `/etc/passwd` and `/etc/group` from the layers of an unpacked image, topmost first,
/// without mounting anything. The view that names their directories needs no lease: it may be
/// collected at once, the layers are the image's.
pub(super) async fn read_users(
    daemon: &Daemon,
    snapshotter: &str,
    chain_id: &str,
) -> Result<UserDatabase, ImageError> {
    let key = format!("view-{chain_id}");
    let viewed = match view(daemon, snapshotter, &key, chain_id).await {
        // Of a reader that was killed, or of one at work, which has the directories already.
        Err(error) if error.is_already_exists() => {
            remove_snapshot(daemon, snapshotter, &key).await?;
            view(daemon, snapshotter, &key, chain_id).await
        }
        other => other,
    };
    let users = viewed.map(|view| {
        let directories = lower_directories(&view.mounts);
        UserDatabase {
            passwd: first_file(&directories, "etc/passwd"),
            group: first_file(&directories, "etc/group"),
        }
    });
    if let Err(error) = remove_snapshot(daemon, snapshotter, &key).await {
        tracing::debug!(%error, key, "view left to the next reader");
    }
    Ok(users?)
}

async fn view(
    daemon: &Daemon,
    snapshotter: &str,
    key: &str,
    parent: &str,
) -> Result<ViewSnapshotResponse, CallError> {
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        ..ViewSnapshotRequest::default()
    };
    let make = || async {
        let mut snapshots = daemon.snapshots();
        let view = snapshots.view(request.clone());
        daemon.call("snapshot view", CALL, view).await
    };
    let made = make().await;
    if is_obstructed(&made) {
        let _one_at_a_time = OBSTRUCTED.lock().await;
        let again = make().await;
        if clear_away(&again).await {
            return make().await;
        }
        return again;
    }
    made
}

/// Layer directories behind a snapshot's mounts, topmost first.
fn lower_directories(mounts: &[types::Mount]) -> Vec<String> {
    let mut directories = Vec::new();
    for mount in mounts {
        if mount.r#type == "bind" {
            directories.push(mount.source.clone());
        }
        for option in &mount.options {
            if let Some(upper) = option.strip_prefix("upperdir=") {
                directories.insert(0, upper.to_owned());
            } else if let Some(lower) = option.strip_prefix("lowerdir=") {
                directories.extend(lower.split(':').map(str::to_owned));
            }
        }
    }
    directories
}

/// Only regular files, never through a symlink: the layer's links point into the container's
/// root, not into ours. The topmost layer that has the name, or hides it, decides (kernel
/// `filesystems/overlayfs.rst`: a whiteout is a character device 0/0, an opaque directory carries an
/// attribute); what lies below is not in the image.
fn first_file(directories: &[String], name: &str) -> String {
    const FILE_BYTES_MAX: u64 = 1 << 20;
    for directory in directories {
        let path = Path::new(directory).join(name);
        let parent = path.parent().unwrap_or(&path);
        match parent.symlink_metadata() {
            Err(_) => continue,
            // Deleted, or not to be walked through.
            Ok(metadata) if !metadata.is_dir() => break,
            Ok(_) => {}
        }
        let Ok(metadata) = path.symlink_metadata() else {
            if is_opaque(parent) {
                break;
            }
            continue;
        };
        if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
            break;
        }
        return std::fs::read(&path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
    }
    String::new()
}

/// Whether nothing of the layers below shows in this directory.
fn is_opaque(directory: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| {
            let mut value = [0_u8; 1];
            rustix::fs::lgetxattr(directory, *name, &mut value[..])
                .is_ok_and(|length| length == 1 && value == *b"y")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_upper_layer_hides_is_not_read_from_a_lower_one() {
        use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};
        let root = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.join("etc")).unwrap();
            path
        };
        let of = |layers: &[&str]| {
            let all: Vec<String> = layers
                .iter()
                .map(|name| root.path().join(name).display().to_string())
                .collect();
            first_file(&all, "etc/passwd")
        };
        std::fs::write(layer("low").join("etc/passwd"), "low").unwrap();
        std::fs::write(layer("high").join("etc/passwd"), "high").unwrap();
        layer("silent");
        std::fs::create_dir(root.path().join("bare")).unwrap();
        assert_eq!(of(&["high", "low"]), "high");
        assert_eq!(of(&["bare", "silent", "low"]), "low");
        let link = layer("link").join("etc/passwd");
        std::os::unix::fs::symlink("/etc/passwd", link).unwrap();
        assert_eq!(
            of(&["link", "low"]),
            "",
            "a link is not followed, nor passed over"
        );
        let linked = root.path().join("linked");
        std::fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink("/etc", linked.join("etc")).unwrap();
        assert_eq!(of(&["linked", "low"]), "");
        let node = layer("deleted").join("etc/passwd");
        let made = mknodat(CWD, &node, FileType::CharacterDevice, Mode::empty(), 0);
        if made.is_ok() {
            assert_eq!(of(&["deleted", "low"]), "", "a whiteout");
        }
        let opaque = layer("opaque").join("etc");
        let name = "user.overlay.opaque";
        if rustix::fs::setxattr(&opaque, name, b"y", XattrFlags::empty()).is_ok() {
            assert_eq!(of(&["opaque", "low"]), "", "an opaque directory");
        }
    }

    #[test]
    fn layer_directories_come_topmost_first() {
        let mount = types::Mount {
            r#type: "overlay".to_owned(),
            options: vec!["index=off".to_owned(), "lowerdir=/b:/a".to_owned()],
            ..types::Mount::default()
        };
        assert_eq!(lower_directories(&[mount]), ["/b", "/a"]);
    }
}
