use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret};
use serde_json::{Value, json};

use super::*;
use crate::edged::pod::dns;

struct Place {
    dir: tempfile::TempDir,
    dirs: Dirs,
    sources: Sources,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            disk: dir.path().join("disk"),
            run: dir.path().join("run"),
        };
        let mut place = Self {
            dir,
            dirs,
            sources: Sources::default(),
        };
        place.configmap(&[("a", "1"), ("b", "2")]);
        let secret = Secret {
            data: Some([("pw".to_owned(), ByteString(vec![0, 255]))].into()),
            ..Secret::default()
        };
        place.sources.secrets.insert("s".to_owned(), Some(secret));
        place
    }

    fn configmap(&mut self, data: &[(&str, &str)]) {
        let data = data
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let map = ConfigMap {
            data: Some(data),
            ..ConfigMap::default()
        };
        self.sources.configmaps.insert("cm".to_owned(), Some(map));
    }

    fn prepare(&self, volume: Value) -> Result<PathBuf, VolumeError> {
        let pod = pod(volume);
        let prepared = prepare(&pod, &self.sources, &Facts::default(), &self.dirs)?;
        Ok(prepared.volumes["v"].path.clone())
    }
}

fn pod(mut volume: Value) -> Pod {
    volume["name"] = json!("v");
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u-1", "labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                 "volumes": [volume]},
    }))
    .unwrap()
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn content_is_swapped_in_one_step() {
    let mut place = Place::new();
    let volume = json!({"configMap": {"name": "cm"}});
    let dir = place.prepare(volume.clone()).unwrap();
    assert_eq!(
        (read(&dir, "a"), read(&dir, "b")),
        ("1".to_owned(), "2".to_owned())
    );
    let first = std::fs::read_link(dir.join("..data")).unwrap();
    assert_eq!(
        std::fs::read_link(dir.join("a")).unwrap(),
        Path::new("..data/a")
    );

    assert_eq!(place.prepare(volume.clone()).unwrap(), dir);
    assert_eq!(
        std::fs::read_link(dir.join("..data")).unwrap(),
        first,
        "same content is left"
    );

    place.configmap(&[("a", "one"), ("c", "3")]);
    place.prepare(volume.clone()).unwrap();
    assert_eq!(
        (read(&dir, "a"), read(&dir, "c")),
        ("one".to_owned(), "3".to_owned())
    );
    assert!(!dir.join("b").exists());
    assert!(!dir.join(&first).exists(), "the old content is removed");
    let names: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(
        names.len(),
        4,
        "two files, ..data and what it points to: {names:?}"
    );

    // As after a power cut: the file is there, its content is not.
    std::fs::write(dir.join("a"), "").unwrap();
    place.prepare(volume).unwrap();
    assert_eq!(read(&dir, "a"), "one");
}

#[test]
fn items_modes_and_optional() {
    let place = Place::new();
    let items = json!([{"key": "a", "path": "etc/app/a.conf", "mode": 0o400}]);
    let dir = place
        .prepare(json!({"configMap": {"name": "cm", "items": items}}))
        .unwrap();
    assert_eq!(read(&dir, "etc/app/a.conf"), "1");
    assert_eq!(
        std::fs::read_link(dir.join("etc")).unwrap(),
        Path::new("..data/etc")
    );
    let mode = std::fs::metadata(dir.join("etc/app/a.conf"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o400);
    assert!(!dir.join("b").exists());

    let secret = place
        .prepare(json!({"secret": {"secretName": "s", "defaultMode": 0o600}}))
        .unwrap();
    assert!(
        secret.starts_with(&place.dirs.run),
        "secrets stay off the disk"
    );
    assert_eq!(std::fs::read(secret.join("pw")).unwrap(), [0, 255]);

    let error = place
        .prepare(json!({"configMap": {"name": "no"}}))
        .unwrap_err();
    assert!(matches!(error, VolumeError::NotReady { .. }));
    assert!(
        error.to_string().ends_with("configmap \"no\" not found"),
        "{error}"
    );
    let empty = place
        .prepare(json!({"configMap": {"name": "no", "optional": true}}))
        .unwrap();
    assert_eq!(std::fs::read_dir(empty.join("..data")).unwrap().count(), 0);
    let items = json!([{"key": "zz", "path": "z"}]);
    let error = place
        .prepare(json!({"configMap": {"name": "cm", "items": items}}))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("configmap references non-existent config key: zz"),
        "{error}"
    );
}

#[test]
fn paths_may_not_leave_the_volume() {
    let place = Place::new();
    for path in ["../x", "/etc/x", "a/../../x", "", "..data/x", "."] {
        let items = json!([{"key": "a", "path": path}]);
        let error = place
            .prepare(json!({"configMap": {"name": "cm", "items": items}}))
            .unwrap_err();
        assert!(
            matches!(error, VolumeError::Unsupported { .. }),
            "{path}: {error}"
        );
    }
    let error = place
        .prepare(json!({"hostPath": {"path": "/a/../etc"}}))
        .unwrap_err();
    assert!(
        error.to_string().ends_with("must not contain '..'"),
        "{error}"
    );
    assert!(place.dirs.remove_pod("..").is_ok());
    assert!(place.dir.path().exists());
}

#[test]
fn projected_and_downward_files() {
    let place = Place::new();
    let dir = place
        .prepare(json!({"projected": {"sources": [
            {"configMap": {"name": "cm", "items": [{"key": "a", "path": "a"}]}},
            {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}
        ]}}))
        .unwrap();
    assert_eq!(read(&dir, "a"), "1");
    assert_eq!(read(&dir, "labels"), "app=\"x\"");
    assert!(dir.join("pw").exists());
}

#[test]
fn host_paths_are_checked_by_type() {
    let place = Place::new();
    let base = place.dir.path();
    std::fs::write(base.join("file"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap();
    let at = |path: &str| base.join(path).display().to_string();
    let is_not = |path: &str, what: &str| {
        let path = at(path);
        Some(format!("hostPath type check failed: {path} is not {what}"))
    };
    for (path, kind, refusal) in [
        ("file", "File", None),
        ("file", "Directory", is_not("file", "a directory")),
        ("file", "DirectoryOrCreate", is_not("file", "a directory")),
        ("file", "", None),
        (".", "Directory", None),
        (".", "File", is_not(".", "a file")),
        (".", "FileOrCreate", is_not(".", "a file")),
        (".", "Socket", is_not(".", "a socket file")),
        ("socket", "Socket", None),
        ("socket", "File", is_not("socket", "a file")),
        ("made/deep", "DirectoryOrCreate", None),
        ("made/file", "FileOrCreate", None),
        ("plain", "", None),
        ("absent", "Directory", is_not("absent", "a directory")),
        ("absent", "File", is_not("absent", "a file")),
        ("file", "CharDevice", is_not("file", "a character device")),
        ("file", "BlockDevice", is_not("file", "a block device")),
        (
            "file",
            "Odd",
            Some("Odd is an invalid volume type".to_owned()),
        ),
    ] {
        let source = json!({"hostPath": {"path": at(path), "type": kind}});
        let found = place.prepare(source).err().map(|error| error.to_string());
        let want = refusal.map(|r| format!("MountVolume.SetUp failed for volume \"v\" : {r}"));
        assert_eq!(found, want, "{path} as {kind}");
    }
    let device = json!({"hostPath": {"path": "/dev/null", "type": "CharDevice"}});
    assert!(place.prepare(device).is_ok());
    assert!(base.join("plain").is_dir() && base.join("made/file").is_file());
}

#[test]
fn empty_directories_keep_their_content_until_the_pod_is_removed() {
    let place = Place::new();
    let dir = place.prepare(json!({"emptyDir": {}})).unwrap();
    std::fs::write(dir.join("x"), "kept").unwrap();
    place.prepare(json!({"emptyDir": {}})).unwrap();
    assert_eq!(read(&dir, "x"), "kept");
    assert_eq!(
        std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o777
    );
    assert_eq!(place.dirs.pod_uids(), ["u-1"]);
    place.dirs.remove_pod("u-1").unwrap();
    assert!(place.dirs.pod_uids().is_empty() && !place.dirs.disk.join("u-1").exists());
    place.dirs.remove_pod("u-1").unwrap();
}

#[test]
fn what_lies_beside_is_not_touched() {
    let place = Place::new();
    for name in ["pki", "u-2"] {
        std::fs::create_dir_all(place.dirs.disk.join(name)).unwrap();
        std::fs::write(place.dirs.disk.join(name).join("key"), "").unwrap();
    }
    std::fs::create_dir_all(place.dirs.disk.join("u-2/volumes")).unwrap();
    assert_eq!(place.dirs.pod_uids(), ["u-2"]);
    place.dirs.remove_pod("u-2").unwrap();
    place.dirs.remove_pod("pki").unwrap();
    assert!(place.dirs.disk.join("u-2/key").exists() && place.dirs.disk.join("pki/key").exists());
}

#[test]
fn unknown_types_are_refused() {
    let place = Place::new();
    for (volume, what) in [
        (
            json!({"nfs": {"server": "x", "path": "/"}}),
            "volume type nfs",
        ),
        (json!({"image": {"reference": "x"}}), "volume type image"),
        (json!({"csi": {"driver": "x"}}), "volume type csi"),
        (
            json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "x"}}]}}),
            "projected source clusterTrustBundle",
        ),
        (
            json!({"emptyDir": {"medium": "HugePages"}}),
            "emptyDir medium HugePages",
        ),
    ] {
        let error = place.prepare(volume).unwrap_err();
        let want = format!(
            "MountVolume.SetUp failed for volume \"v\" : {what} is not supported on this node"
        );
        assert!(matches!(error, VolumeError::Unsupported { .. }));
        assert_eq!(error.to_string(), want);
    }
}

#[test]
fn mounts_are_sorted_and_sub_paths_stay_inside() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("v");
    std::fs::create_dir(&root).unwrap();
    symlink("/etc", root.join("out")).unwrap();
    let ready = |read_only| Ready {
        path: root.clone(),
        read_only,
    };
    let prepared = Prepared {
        volumes: [
            ("v".to_owned(), ready(false)),
            ("ro".to_owned(), ready(true)),
        ]
        .into(),
        subpaths: dir.path().join("binds"),
        files: vec![
            ("/etc/hosts".into(), "/run/hosts".into()),
            ("/etc/hostname".into(), "/run/hostname".into()),
        ],
    };
    let container: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
        {"name": "ro", "mountPath": "/data/sub/ro"},
        {"name": "v", "mountPath": "/data", "mountPropagation": "HostToContainer", "readOnly": true},
        {"name": "v", "mountPath": "/etc/hosts"}
    ]}))
    .unwrap();
    let env: BTreeMap<String, String> = [("N".to_owned(), "n".to_owned())].into();
    let mounts = mounts(&container, &prepared, &env).unwrap();
    let targets: Vec<&str> = mounts.iter().map(|m| m.target.to_str().unwrap()).collect();
    assert_eq!(
        targets,
        ["/data", "/etc/hosts", "/etc/hostname", "/data/sub/ro"]
    );
    assert_eq!(mounts[0].propagation, "rslave");
    let read_only: Vec<bool> = mounts.iter().map(|m| m.read_only).collect();
    assert_eq!(
        read_only,
        [true, false, false, true],
        "content is never the pod's to change"
    );
    assert_eq!(mounts[1].source, root, "the pod's own mount wins");
    for bad in ["../x", "/etc", "out/passwd"] {
        let mount = json!([{"name": "v", "mountPath": "/m", "subPath": bad}]);
        let container =
            serde_json::from_value(json!({"name": "c", "volumeMounts": mount})).unwrap();
        assert!(super::mounts(&container, &prepared, &env).is_err(), "{bad}");
    }
    let container = serde_json::from_value(
        json!({"name": "c", "volumeMounts": [{"name": "no", "mountPath": "/m"}]}),
    )
    .unwrap();
    assert!(super::mounts(&container, &prepared, &env).is_err());
}

/// Needs the right to mount; said where it is missing.
fn can_mount() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let able = local::memory_dir("v", dir.path(), None, None).is_ok();
    mountinfo::unmount_all(dir.path()).unwrap();
    if !able {
        eprintln!("SKIPPED: this user may not mount");
    }
    able
}

#[test]
fn sub_paths_are_bound_and_go_without_the_data_behind_them() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let kept = place.dir.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("data"), "mine").unwrap();
    let mounted = |place: &Place, volume: &Value, sub_path: &str| {
        let mut pod = pod(volume.clone());
        let container = &mut pod.spec.as_mut().unwrap().containers[0];
        container.volume_mounts.as_mut().unwrap()[0].sub_path = Some(sub_path.to_owned());
        let prepared = prepare(&pod, &place.sources, &Facts::default(), &place.dirs).unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let mounts = mounts(container, &prepared, &BTreeMap::new());
        mounts.map(|mounts| mounts[0].source.clone())
    };
    let volume = json!({"configMap": {"name": "cm"}});
    let bound = mounted(&place, &volume, "a").unwrap();
    assert!(bound.starts_with(&place.dirs.run));
    assert_eq!(std::fs::read_to_string(&bound).unwrap(), "1");
    place.configmap(&[("a", "one")]);
    // A new start sees the new file, at the same place, and no bind stays below it.
    for _ in 0..3 {
        assert_eq!(mounted(&place, &volume, "a").unwrap(), bound);
    }
    assert_eq!(std::fs::read_to_string(&bound).unwrap(), "one");
    let binds = |place: &Place| {
        let all = mountinfo::read().unwrap();
        let run = place.dirs.run.canonicalize().unwrap();
        all.iter().filter(|m| m.path.starts_with(&run)).count()
    };
    assert_eq!(binds(&place), 1);

    let host = json!({"hostPath": {"path": kept}});
    let made = mounted(&place, &host, "new/dir").unwrap();
    assert_eq!(made, bound, "a file gives way to a directory");
    std::fs::write(made.join("x"), "").unwrap();
    assert!(kept.join("new/dir/x").exists());
    let bare = place.dirs.clone();
    drop(mounted(&place, &host, "data").unwrap());
    bare.remove_pod("u-1").unwrap();
    assert_eq!(binds(&place), 0);
    assert!(!place.dirs.run.join("u-1").exists());
    assert_eq!(read(&kept, "data"), "mine", "only the bind goes");
    assert!(kept.join("new/dir/x").exists());

    symlink("/etc", kept.join("out")).unwrap();
    for bad in ["out", "out/passwd"] {
        let error = mounted(&place, &host, bad).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to prepare subPath for volumeMount \"v\" of container \"c\": it leads out of \
             the volume"
        );
    }
    place.dirs.remove_pod("u-1").unwrap();
}

#[test]
fn memory_volumes_are_mounted_once_with_their_size_and_group() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let volume = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
    let mut pod = pod(volume);
    let spec = pod.spec.as_mut().unwrap();
    spec.security_context = serde_json::from_value(json!({"fsGroup": 4000})).unwrap();
    let facts = Facts {
        memory_bytes: 1 << 30,
        ..Facts::default()
    };
    let make = || prepare(&pod, &place.sources, &facts, &place.dirs).unwrap();
    let dir = make().volumes["v"].path.clone();
    make();
    let root = dir.canonicalize().unwrap();
    let mounted = mountinfo::read().unwrap();
    assert_eq!(mounted.iter().filter(|m| m.path == root).count(), 1);
    let fs = rustix::fs::statvfs(&dir).unwrap();
    assert_eq!(fs.f_blocks * fs.f_frsize, 1 << 20);
    let meta = std::fs::metadata(&dir).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o2777, 4000));
    std::fs::write(dir.join("x"), vec![1; 64 << 10]).unwrap();
    let used = place.dirs.usage("u-1", "v").unwrap();
    assert_eq!(used.bytes, 64 << 10);
    assert_eq!(place.dirs.disk_usage("u-1"), Usage::default());
    place.dirs.remove_pod("u-1").unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_memory_volume_is_as_large_as_the_least_limit() {
    for (own, limits, node, want) in [
        (Some("1Mi"), vec!["4Mi"], 1 << 30, 1 << 20),
        (Some("1Gi"), vec!["4Mi", "4Mi"], 1 << 30, 8 << 20),
        (None, vec!["4Mi"], 1 << 30, 4 << 20),
        (None, vec![], 1 << 30, 1 << 30),
        (Some("8Gi"), vec![], 1 << 30, 1 << 30),
    ] {
        let containers: Vec<Value> = limits
            .iter()
            .map(|limit| json!({"name": "c", "resources": {"limits": {"memory": limit}}}))
            .collect();
        let pod = json!({"spec": {"containers": containers}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let source = serde_json::from_value(json!({"sizeLimit": own})).unwrap();
        assert_eq!(
            local::memory_size(&pod, &source, node),
            Some(want),
            "{own:?} {limits:?}"
        );
    }
}

#[test]
fn a_group_gets_what_is_its_own_and_the_pod_keeps_its_modes() {
    let place = Place::new();
    let mut pod = pod(json!({"emptyDir": {}}));
    let spec = pod.spec.as_mut().unwrap();
    spec.security_context = serde_json::from_value(json!({"fsGroup": 4000})).unwrap();
    let make = || {
        let prepared = prepare(&pod, &place.sources, &Facts::default(), &place.dirs).unwrap();
        prepared.volumes["v"].path.clone()
    };
    // As after a death while it was made.
    std::fs::create_dir_all(
        place
            .dirs
            .disk
            .join("u-1/volumes/kubernetes.io~empty-dir/..new-v"),
    )
    .unwrap();
    let dir = make();
    let meta = std::fs::metadata(&dir).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o2777, 4000));
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    make();
    assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(std::fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1);

    let tree = place.dir.path().join("tree");
    std::fs::create_dir_all(tree.join("d")).unwrap();
    std::fs::write(tree.join("d/f"), "").unwrap();
    std::fs::set_permissions(tree.join("d/f"), std::fs::Permissions::from_mode(0o600)).unwrap();
    symlink("/etc/passwd", tree.join("l")).unwrap();
    let always = ownership::ChangePolicy::Always;
    let on_mismatch = ownership::ChangePolicy::parse(Some("OnRootMismatch"));
    ownership::give_to_group(&tree, 4000, always).unwrap();
    let state = |path: &str| {
        let meta = std::fs::symlink_metadata(tree.join(path)).unwrap();
        (meta.mode() & 0o7777, meta.gid())
    };
    assert_eq!(state("d/f"), (0o660, 4000));
    assert_eq!((state("d"), state("")), ((0o2775, 4000), (0o2775, 4000)));
    assert_eq!(state("l").1, 4000);
    assert_eq!(
        std::fs::metadata("/etc/passwd").unwrap().gid(),
        0,
        "links are not followed"
    );
    std::fs::set_permissions(tree.join("d/f"), std::fs::Permissions::from_mode(0o600)).unwrap();
    ownership::give_to_group(&tree, 4000, on_mismatch).unwrap();
    assert_eq!(
        state("d/f").0,
        0o600,
        "the root is right: nothing is walked"
    );
    ownership::give_to_group(&tree, 4001, on_mismatch).unwrap();
    assert_eq!(state("d/f"), (0o660, 4001));
}

const CLAIM: &str = "error processing PVC ns/data: ";

fn bound_claim(volume_spec: &Value) -> (Value, Value) {
    let claim = json!({
        "metadata": {"name": "data", "uid": "c-1"},
        "spec": {"volumeName": "pv-1"}, "status": {"phase": "Bound"},
    });
    let mut volume = json!({
        "metadata": {"name": "pv-1", "uid": "v-1", "annotations": {
            "pv.kubernetes.io/provisioned-by": "outpost.dev/local-path"}},
        "spec": {"claimRef": {"namespace": "ns", "name": "data", "uid": "c-1"},
                 "persistentVolumeReclaimPolicy": "Delete",
                 "local": {"path": "/var/lib/edgecore/storage/ns_data_pv-1"}},
    });
    for (key, value) in volume_spec.as_object().unwrap() {
        volume[key] = value.clone();
    }
    (claim, volume)
}

fn claimed(place: &mut Place, claim: &Value, volume: &Value) -> Result<PathBuf, VolumeError> {
    let claim = Claim {
        claim: serde_json::from_value(claim.clone()).unwrap(),
        volume: serde_json::from_value(volume.clone()).unwrap(),
    };
    place.sources.claims.insert("data".to_owned(), claim);
    place.prepare(json!({"persistentVolumeClaim": {"claimName": "data"}}))
}

#[test]
fn a_claim_that_is_not_bound_is_waited_for() {
    let mut place = Place::new();
    let (claim, volume) = bound_claim(&json!({}));
    let pending =
        json!({"metadata": {"name": "data", "uid": "c-1"}, "status": {"phase": "Pending"}});
    let other = json!({"metadata": {"name": "data", "uid": "c-2"},
        "spec": {"volumeName": "pv-1"}, "status": {"phase": "Bound"}});
    let null = Value::Null;
    for (claim, volume, why) in [
        (
            &null,
            &null,
            "failed to fetch PVC from API server: persistentvolumeclaims \"data\" not found",
        ),
        (&pending, &null, "PVC is not bound"),
        (
            &claim,
            &null,
            "failed to fetch PV pv-1 from API server: persistentvolumes \"pv-1\" not found",
        ),
        (
            &other,
            &volume,
            "failed to fetch PV pv-1 from API server: claimRef of the volume names another claim",
        ),
    ] {
        let error = claimed(&mut place, claim, volume).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], \
                 failed to process volumes=[v]: {CLAIM}{why}"
            )
        );
    }
    assert!(!place.dirs.storage().exists());
}

#[test]
fn data_of_a_claim_stays_until_its_volume_is_told_away() {
    let mut place = Place::new();
    let (claim, volume) = bound_claim(&json!({}));
    let path = claimed(&mut place, &claim, &volume).unwrap();
    assert_eq!(path, place.dir.path().join("storage/ns_data_pv-1"));
    let mode = std::fs::metadata(&path).unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o777);
    std::fs::write(path.join("x"), "kept").unwrap();
    place.dirs.remove_pod("u-1").unwrap();
    assert_eq!(read(&path, "x"), "kept");
    claimed(&mut place, &claim, &volume).unwrap();
    assert_eq!(read(&path, "x"), "kept");

    let spec = volume["spec"].clone();
    let doomed = json!({"name": "pv-1", "uid": "v-1", "deletionTimestamp": "2026-01-01T00:00:00Z",
        "annotations": volume["metadata"]["annotations"]});
    let stranger = json!({"name": "pv-1", "deletionTimestamp": "2026-01-01T00:00:00Z"});
    let mut retained = spec.clone();
    retained["persistentVolumeReclaimPolicy"] = "Retain".into();
    let mut sly = spec.clone();
    sly["local"]["path"] = "/x/..".into();
    for (name, metadata, spec, goes) in [
        ("not deleted", &volume["metadata"], &spec, false),
        ("to be retained", &doomed, &retained, false),
        ("not made by us", &stranger, &spec, false),
        ("no name", &doomed, &sly, false),
        ("told away", &doomed, &spec, true),
        ("told again", &doomed, &spec, true),
    ] {
        let volume = json!({"metadata": metadata, "spec": spec});
        let volume = serde_json::from_value(volume).unwrap();
        claim::reclaim(&volume, &place.dirs).unwrap();
        assert_eq!(!path.exists(), goes, "{name}");
    }
    assert_eq!(std::fs::read_dir(place.dirs.storage()).unwrap().count(), 0);
}

#[test]
fn volumes_made_by_hand_are_used_where_they_are() {
    let mut place = Place::new();
    let there = place.dir.path().join("disk");
    std::fs::create_dir(&there).unwrap();
    let by_hand = |source: &Value| {
        let mut spec = source.clone();
        spec["claimRef"] = json!({"uid": "c-1"});
        bound_claim(&json!({"metadata": {"name": "pv-1"}, "spec": spec}))
    };
    for source in [
        json!({"local": {"path": there}}),
        json!({"hostPath": {"path": there}}),
    ] {
        let (claim, volume) = by_hand(&source);
        assert_eq!(
            claimed(&mut place, &claim, &volume).unwrap(),
            there,
            "{source}"
        );
    }
    let absent = place.dir.path().join("absent");
    let (claim, volume) = by_hand(&json!({"local": {"path": absent}}));
    let error = claimed(&mut place, &claim, &volume)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with(&format!("path \"{}\" does not exist", absent.display())),
        "{error}"
    );
    let (claim, volume) = by_hand(&json!({"nfs": {"server": "x", "path": "/"}}));
    let error = claimed(&mut place, &claim, &volume).unwrap_err();
    assert!(matches!(error, VolumeError::Unsupported { .. }), "{error}");
}

#[test]
fn tokens_are_files_that_only_the_pod_reads() {
    use crate::edged::{Token, TokenWish};
    let mut place = Place::new();
    let volume = json!({"projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]}});
    let error = place.prepare(volume.clone()).unwrap_err().to_string();
    assert!(error.contains("failed to fetch token"), "{error}");
    let wish = TokenWish {
        account: "default".to_owned(),
        pod_name: "p".to_owned(),
        pod_uid: "u-1".to_owned(),
        audience: String::new(),
        ttl_secs: 3607,
    };
    let set = |place: &mut Place, text: &str| {
        let token = Token {
            token: text.to_owned(),
            refresh_at_ms: 0,
        };
        place.sources.tokens.insert(wish.clone(), Ok(token));
    };
    set(&mut place, "t1");
    let dir = place.prepare(volume.clone()).unwrap();
    assert!(dir.starts_with(&place.dirs.run), "not on flash");
    assert_eq!(
        (read(&dir, "token"), read(&dir, "ns")),
        ("t1".to_owned(), "ns".to_owned())
    );
    let held = std::fs::canonicalize(dir.join("token")).unwrap();
    set(&mut place, "t2");
    place.prepare(volume.clone()).unwrap();
    assert_eq!(read(&dir, "token"), "t2");
    assert!(!held.exists(), "a swap, not a rewrite");
    let state = |pod: &Pod, place: &Place| {
        let prepared = prepare(pod, &place.sources, &Facts::default(), &place.dirs).unwrap();
        let meta = std::fs::metadata(prepared.volumes["v"].path.join("token")).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    let mut pod = pod(volume);
    assert_eq!(state(&pod, &place), (0o644, 0, 0));
    let spec = pod.spec.as_mut().unwrap();
    spec.security_context = serde_json::from_value(json!({"runAsUser": 405})).unwrap();
    assert_eq!(state(&pod, &place), (0o600, 405, 0));
    let spec = pod.spec.as_mut().unwrap();
    spec.security_context = serde_json::from_value(json!({"fsGroup": 4000})).unwrap();
    assert_eq!(state(&pod, &place), (0o640, 0, 4000));
}

#[test]
fn volumes_that_nobody_mounts_are_not_made() {
    let place = Place::new();
    let mut pod = pod(json!({"configMap": {"name": "no"}}));
    pod.spec.as_mut().unwrap().containers[0].volume_mounts = None;
    let prepared = prepare(&pod, &place.sources, &Facts::default(), &place.dirs).unwrap();
    assert!(prepared.volumes.is_empty() && !place.dirs.disk.join("u-1").exists());
}

#[test]
fn etc_files_name_the_pod() {
    let place = Place::new();
    let mut pod = pod(json!({"emptyDir": {}}));
    let spec = pod.spec.as_mut().unwrap();
    spec.dns_policy = Some("None".to_owned());
    spec.dns_config = serde_json::from_value(json!({
        "nameservers": ["192.0.2.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}]
    }))
    .unwrap();
    spec.host_aliases =
        serde_json::from_value(json!([{"ip": "1.2.3.4", "hostnames": ["x", "y"]}])).unwrap();
    let files = write_etc(
        &pod,
        &dns::names(&pod, "machine", &dns::Site::default()),
        &["10.0.0.2".to_owned()],
        &dns::Site::default(),
        &place.dirs,
    )
    .unwrap()
    .0;
    let content: Vec<String> = files
        .iter()
        .map(|(_, path)| std::fs::read_to_string(path).unwrap())
        .collect();
    assert!(content[0].contains("10.0.0.2\tp\n") && content[0].contains("1.2.3.4\tx\ty\n"));
    assert_eq!(
        content[1],
        "search a.b\nnameserver 192.0.2.1\noptions ndots:2\n"
    );
    assert_eq!(content[2], "p\n");
}

/// Inside are secrets that every user may read, and directories that every user may write.
#[test]
fn nobody_else_gets_into_the_directories_of_pods() {
    let place = Place::new();
    std::fs::create_dir(&place.dirs.disk).unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&place.dirs.disk, open).unwrap();
    place.dirs.close().unwrap();
    for dir in [&place.dirs.disk, &place.dirs.run, &place.dirs.storage()] {
        let mode = std::fs::metadata(dir).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o750, "{}", dir.display());
    }
}

#[test]
fn a_file_of_etc_that_a_container_blew_up_is_written_anew_unread() {
    let place = Place::new();
    let pod = pod(json!({"emptyDir": {}}));
    let names = dns::Names::default();
    let write = || write_etc(&pod, &names, &[], &dns::Site::default(), &place.dirs).unwrap();
    let (files, _) = write();
    let (_, hosts) = files.iter().find(|(to, _)| to.ends_with("hosts")).unwrap();
    let before = std::fs::read(hosts).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(hosts).unwrap();
    file.set_len(1 << 34).unwrap();
    write();
    assert_eq!(std::fs::metadata(hosts).unwrap().len(), before.len() as u64);
    assert_eq!(std::fs::read(hosts).unwrap(), before);
}

/// Another pod with the same volume puts a link to a file of the node where its own was.
#[test]
fn a_group_is_never_given_what_a_link_names() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let place = Place::new();
    let tree = place.dir.path().join("tree");
    let secret = place.dir.path().join("secret");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(&secret, "x").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (own, link) = (tree.join("own"), tree.join("link"));
            while !over.load(Ordering::Relaxed) {
                std::fs::write(&own, "").unwrap();
                std::fs::rename(&own, tree.join("f")).unwrap();
                symlink(&secret, &link).unwrap();
                std::fs::rename(&link, tree.join("f")).unwrap();
            }
        });
        for _ in 0..3000 {
            let policy = ownership::ChangePolicy::Always;
            ownership::give_to_group(&tree, 4000, policy).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    let meta = std::fs::metadata(&secret).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o600, 0));
}
