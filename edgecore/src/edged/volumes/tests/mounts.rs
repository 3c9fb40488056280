//! Sub-paths, memory and groups: what the kernel has to do.

use super::*;

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
