//! Claims, and the volumes behind them.

use super::*;

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
