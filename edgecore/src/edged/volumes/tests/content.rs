//! What files hold, and how it changes.

use super::*;

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
