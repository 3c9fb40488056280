//! Which volume suits a claim, and what a new one looks like. Pure.

use quantity::Quantity;
use serde_json::{Value, json};

use crate::kube::text;

/// The provisioner of local-path storage, ours and the name under which others know it.
pub const PROVISIONER: &str = "outpost.dev/local-path";
const OTHER_PROVISIONER: &str = "rancher.io/local-path";
/// The class that is made at the first start.
pub const CLASS: &str = "local-path";
/// On which node a volume's data lies; the volume is told to that node until it is gone.
pub const NODE_ANNOTATION: &str = "outpost.dev/node";
/// Kept on a volume until its node has removed the data.
pub const DATA_FINALIZER: &str = "outpost.dev/local-path";
/// Who made a volume (`pkg/volume/util`: AnnDynamicallyProvisioned).
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Where nodes keep the data by default; a node with another `rootDirectory` uses its own.
pub const STORAGE_DIR: &str = "/var/lib/edgecore/edged/storage";

/// What a claim's class says; one that does not exist binds at once and makes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Class {
    /// Binds when a pod that uses the claim has a node.
    pub waits_for_consumer: bool,
    /// Volumes are made by us.
    pub is_ours: bool,
    /// `Delete` or `Retain`.
    pub reclaim: String,
}

impl Class {
    /// From a StorageClass.
    pub fn of(object: &Value) -> Self {
        let reclaim = match text(object, "/reclaimPolicy") {
            "" => "Delete",
            other => other,
        };
        let is_ours = matches!(
            text(object, "/provisioner"),
            PROVISIONER | OTHER_PROVISIONER
        );
        let mode = text(object, "/volumeBindingMode");
        Self {
            // Without a pod there is no node to make a volume on.
            waits_for_consumer: is_ours || mode == "WaitForFirstConsumer",
            is_ours,
            reclaim: reclaim.to_owned(),
        }
    }
}

/// `persistentVolumeClaim` names of a pod's volumes.
pub fn claims_of(pod: &Value) -> Vec<&str> {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
    let names = volumes.into_iter().flatten();
    names
        .map(|volume| text(volume, "/persistentVolumeClaim/claimName"))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether the claim has its volume.
pub fn is_bound(claim: &Value) -> bool {
    text(claim, "/status/phase") == "Bound" && !text(claim, "/spec/volumeName").is_empty()
}

fn size(object: &Value, pointer: &str) -> i128 {
    Quantity::parse(text(object, pointer)).map_or(0, Quantity::nanos)
}

fn list<'v>(object: &'v Value, pointer: &str) -> Vec<&'v str> {
    let found = object.pointer(pointer).and_then(Value::as_array);
    found
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Whether a volume is free for the claim, or already promised to it
/// (`pv_controller/index.go: findMatchingVolume`).
pub fn suits(volume: &Value, claim: &Value) -> bool {
    if volume.pointer("/metadata/deletionTimestamp").is_some() {
        return false;
    }
    let reference = |member: &str| text(volume, &format!("/spec/claimRef/{member}"));
    if volume
        .pointer("/spec/claimRef")
        .is_some_and(Value::is_object)
    {
        let uid = reference("uid");
        return reference("namespace") == text(claim, "/metadata/namespace")
            && reference("name") == text(claim, "/metadata/name")
            && (uid.is_empty() || uid == text(claim, "/metadata/uid"));
    }
    let wanted = text(claim, "/spec/volumeName");
    if !wanted.is_empty() {
        return wanted == text(volume, "/metadata/name");
    }
    let mode = |object| match text(object, "/spec/volumeMode") {
        "" => "Filesystem",
        other => other,
    };
    let modes = list(volume, "/spec/accessModes");
    let labels = volume.pointer("/metadata/labels");
    mode(volume) == mode(claim)
        && text(volume, "/spec/storageClassName") == text(claim, "/spec/storageClassName")
        && list(claim, "/spec/accessModes")
            .iter()
            .all(|m| modes.contains(m))
        && size(volume, "/spec/capacity/storage") >= size(claim, "/spec/resources/requests/storage")
        && matches_labels(claim.pointer("/spec/selector"), labels)
}

fn matches_labels(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let Some(selector) = selector.filter(|s| s.is_object()) else {
        return true;
    };
    let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
    let wanted = selector.get("matchLabels").and_then(Value::as_object);
    let mut wanted = wanted.into_iter().flatten();
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    let mut expressions = expressions.into_iter().flatten();
    wanted.all(|(key, value)| label(key) == value.as_str())
        && expressions.all(|e| {
            let is = label(text(e, "/key"));
            let values = list(e, "/values");
            match text(e, "/operator") {
                "In" => is.is_some_and(|is| values.contains(&is)),
                "NotIn" => is.is_none_or(|is| !values.contains(&is)),
                "Exists" => is.is_some(),
                "DoesNotExist" => is.is_none(),
                _ => false,
            }
        })
}

/// The smallest volume that suits; one promised to the claim before all others.
pub fn best<'v>(volumes: impl Iterator<Item = &'v Value>, claim: &Value) -> Option<&'v Value> {
    volumes
        .filter(|volume| suits(volume, claim))
        .min_by_key(|volume| {
            let is_free = !volume
                .pointer("/spec/claimRef")
                .is_some_and(Value::is_object);
            (is_free, size(volume, "/spec/capacity/storage"))
        })
}

/// A new volume for the claim on the node.
pub fn new_volume(claim: &Value, class: &Class, node: &str) -> Value {
    let (namespace, name) = (
        text(claim, "/metadata/namespace"),
        text(claim, "/metadata/name"),
    );
    let uid = text(claim, "/metadata/uid");
    let volume = format!("pvc-{uid}");
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": volume,
            "annotations": { PROVISIONED_BY: PROVISIONER, NODE_ANNOTATION: node },
            "finalizers": ["kubernetes.io/pv-protection", DATA_FINALIZER],
        },
        "spec": {
            "capacity": {"storage": claim.pointer("/spec/resources/requests/storage")},
            "accessModes": claim.pointer("/spec/accessModes"),
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": class.reclaim,
            "storageClassName": text(claim, "/spec/storageClassName"),
            "claimRef": claim_ref(claim),
            "local": {"path": format!("{STORAGE_DIR}/{namespace}_{name}_{volume}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
            ]}]}},
        },
    })
}

/// A reference to the claim, as a volume keeps it.
pub fn claim_ref(claim: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": text(claim, "/metadata/namespace"), "name": text(claim, "/metadata/name"),
        "uid": text(claim, "/metadata/uid"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: &Value) -> Value {
        let mut spec = spec.clone();
        spec["accessModes"] = json!(["ReadWriteOnce"]);
        spec["resources"] = json!({"requests": {"storage": "1Gi"}});
        json!({"metadata": {"namespace": "d", "name": "c", "uid": "u1"}, "spec": spec})
    }

    fn volume(name: &str, size: &str, more: &Value) -> Value {
        let mut volume = json!({
            "metadata": {"name": name, "labels": {"disk": "ssd"}},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]},
        });
        for (key, value) in more.as_object().unwrap() {
            volume["spec"][key] = value.clone();
        }
        volume
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_suits() {
        let other = json!({"claimRef": {"namespace": "d", "name": "x"}});
        let mine = json!({"claimRef": {"namespace": "d", "name": "c"}});
        let stale = json!({"claimRef": {"namespace": "d", "name": "c", "uid": "u0"}});
        let none = json!({});
        for (name, wish, volumes, want) in [
            (
                "smallest",
                json!({}),
                vec![("a", "3Gi", &none), ("b", "2Gi", &none)],
                Some("b"),
            ),
            ("too small", json!({}), vec![("a", "500Mi", &none)], None),
            ("taken", json!({}), vec![("a", "2Gi", &other)], None),
            (
                "promised",
                json!({}),
                vec![("a", "1Gi", &none), ("b", "9Gi", &mine)],
                Some("b"),
            ),
            (
                "of a claim before",
                json!({}),
                vec![("a", "1Gi", &stale)],
                None,
            ),
            (
                "named",
                json!({"volumeName": "a"}),
                vec![("b", "2Gi", &none), ("a", "9Gi", &none)],
                Some("a"),
            ),
            (
                "label",
                json!({"selector": {"matchLabels": {"disk": "ssd"}}}),
                vec![("a", "1Gi", &none)],
                Some("a"),
            ),
            (
                "no label",
                json!({"selector": {"matchLabels": {"disk": "hdd"}}}),
                vec![("a", "1Gi", &none)],
                None,
            ),
            (
                "class",
                json!({"storageClassName": "x"}),
                vec![("a", "1Gi", &none)],
                None,
            ),
            (
                "mode",
                json!({"volumeMode": "Block"}),
                vec![("a", "1Gi", &none)],
                None,
            ),
        ] {
            let volumes: Vec<Value> = volumes.iter().map(|(n, s, m)| volume(n, s, m)).collect();
            let found = best(volumes.iter(), &claim(&wish));
            assert_eq!(found.map(|v| text(v, "/metadata/name")), want, "{name}");
        }
    }

    #[test]
    fn a_new_volume_belongs_to_its_claim_and_node() {
        let class = Class::of(
            &json!({"provisioner": PROVISIONER, "reclaimPolicy": "Retain",
            "volumeBindingMode": "WaitForFirstConsumer"}),
        );
        assert!(class.is_ours && class.waits_for_consumer);
        let claim = claim(&json!({"storageClassName": "local-path"}));
        let volume = new_volume(&claim, &class, "edge-1");
        assert!(suits(&volume, &claim));
        assert_eq!(
            text(&volume, "/spec/local/path"),
            "/var/lib/edgecore/edged/storage/d_c_pvc-u1"
        );
        assert_eq!(
            text(&volume, "/spec/persistentVolumeReclaimPolicy"),
            "Retain"
        );
    }
}
