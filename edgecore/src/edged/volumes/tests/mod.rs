mod claims;
mod content;
mod mounts;

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
