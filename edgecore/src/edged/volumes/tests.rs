use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};

use super::*;

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
        Ok(prepared.paths["v"].clone())
    }
}

fn pod(mut volume: Value) -> Pod {
    volume["name"] = json!("v");
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u-1", "labels": {"app": "x"}},
        "spec": {"containers": [], "volumes": [volume]},
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
            .ends_with("references non-existent key: zz"),
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
    assert!(matches!(error, VolumeError::Unsupported { .. }));
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
    let token = json!({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}});
    assert!(matches!(
        place.prepare(token),
        Err(VolumeError::Unsupported { .. })
    ));
}

#[test]
fn host_paths_are_checked_by_type() {
    let place = Place::new();
    let base = place.dir.path();
    std::fs::write(base.join("file"), "").unwrap();
    for (path, kind, fits) in [
        ("file", "File", true),
        ("file", "Directory", false),
        ("file", "", true),
        (".", "Directory", true),
        (".", "Socket", false),
        ("made/deep", "DirectoryOrCreate", true),
        ("made/file", "FileOrCreate", true),
        ("plain", "", true),
        ("absent", "Directory", false),
        ("absent", "File", false),
    ] {
        let source = json!({"hostPath": {"path": base.join(path), "type": kind}});
        assert_eq!(place.prepare(source).is_ok(), fits, "{path} as {kind}");
    }
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
    let error = place
        .prepare(json!({"nfs": {"server": "x", "path": "/"}}))
        .unwrap_err();
    assert!(matches!(error, VolumeError::Unsupported { .. }), "{error}");
}

#[test]
fn mounts_are_sorted_and_sub_paths_stay_inside() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("v");
    std::fs::create_dir(&root).unwrap();
    symlink("/etc", root.join("out")).unwrap();
    let prepared = Prepared {
        paths: [("v".to_owned(), root.clone())].into(),
        files: vec![
            ("/etc/hosts".into(), "/run/hosts".into()),
            ("/etc/hostname".into(), "/run/hostname".into()),
        ],
    };
    let container: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
        {"name": "v", "mountPath": "/data/sub", "subPath": "x/y", "readOnly": true},
        {"name": "v", "mountPath": "/data", "mountPropagation": "HostToContainer"},
        {"name": "v", "mountPath": "/etc/hosts", "subPathExpr": "$(N)"}
    ]}))
    .unwrap();
    let env: BTreeMap<String, String> = [("N".to_owned(), "n".to_owned())].into();
    let mounts = mounts(&container, &prepared, &env).unwrap();
    let targets: Vec<&str> = mounts.iter().map(|m| m.target.to_str().unwrap()).collect();
    assert_eq!(
        targets,
        ["/data", "/data/sub", "/etc/hosts", "/etc/hostname"]
    );
    assert_eq!(mounts[0].propagation, "rslave");
    assert_eq!(
        (mounts[1].source.clone(), mounts[1].read_only),
        (root.join("x/y"), true)
    );
    assert_eq!(mounts[2].source, root.join("n"), "the pod's own mount wins");
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
    let files = write_etc(&pod, "p", &["10.0.0.2".to_owned()], &place.dirs).unwrap();
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
