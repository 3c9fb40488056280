//! One file of the directory as a pod. Pure.
//!
//! What a static pod gets besides what is written in it: kubelet's `applyDefaults`
//! (`pkg/kubelet/config/common.go`).

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock::UnixMillis;
use crate::document;
use crate::edged::pod::status::time;

pub(super) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub(super) const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub(super) const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// On the pod in the API that shows a static pod; its value is the static pod's uid.
pub(super) const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Larger files are no manifests.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a file is not a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(super) struct Invalid {
    /// Path of the member, `.` for the whole.
    pub(super) field: String,
    pub(super) reason: String,
}

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Invalid {
    Invalid {
        field: field.into(),
        reason: reason.into(),
    }
}

/// Whether a name in the directory is a manifest's: no hidden file, none of an editor's.
pub(super) fn is_manifest(name: &str) -> bool {
    const UNFINISHED: [&str; 9] = [
        "~", ".swp", ".swx", ".swo", ".tmp", ".bak", ".part", ".rej", ".orig",
    ];
    !name.is_empty()
        && !name.starts_with(['.', '#'])
        // vim writes it to see whether it may write here
        && name != "4913"
        && !name.contains(".dpkg-")
        && !UNFINISHED.iter().any(|end| name.ends_with(end))
}

/// The pod in `bytes`, as this node runs it. `seen_ms` is when the file was written.
pub(super) fn parse(
    bytes: &[u8],
    file: &str,
    node: &str,
    seen_ms: UnixMillis,
) -> Result<Pod, Invalid> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid(".", "the file is not UTF-8"))?;
    if text.trim().is_empty() {
        return Err(invalid(".", "the file is empty"));
    }
    let mut document: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| invalid(".", error.to_string()))?
    } else {
        serde_saphyr::from_str(text).map_err(|error| invalid(".", error.to_string()))?
    };
    for (field, wanted) in [("apiVersion", "v1"), ("kind", "Pod")] {
        if document.get(field).and_then(Value::as_str) != Some(wanted) {
            return Err(invalid(field, format!("must be `{wanted}`")));
        }
    }
    // What the API server gives an object is not a file's to say.
    if let Some(members) = document.as_object_mut() {
        members.remove("status");
    }
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        for member in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "deletionTimestamp",
        ] {
            metadata.remove(member);
        }
    }
    if let Some((field, what)) = reference(&document) {
        let reason = format!("a static pod cannot refer to a {what}: it starts without the API");
        return Err(invalid(field, reason));
    }
    let uid = uid(&document, file, node);
    let mut pod: Pod = document::read(document.to_string().as_bytes())
        .map_err(|error| invalid(error.field, error.reason))?;
    check(&pod)?;
    dress(&mut pod, &uid, node, seen_ms);
    Ok(pod)
}

/// Of content, node and file: another content is another pod.
fn uid(document: &Value, file: &str, node: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(document.to_string());
    hash.update(format!("host:{node}file:{file}"));
    hex::encode(&hash.finalize()[..16])
}

fn dress(pod: &mut Pod, uid: &str, node: &str, seen_ms: UnixMillis) {
    let metadata = &mut pod.metadata;
    metadata.uid = Some(uid.to_owned());
    let name = metadata.name.take().unwrap_or_default();
    metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    metadata
        .namespace
        .get_or_insert_with(|| "default".to_owned());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.remove(CONFIG_MIRROR);
    annotations.insert(CONFIG_SOURCE.to_owned(), "file".to_owned());
    annotations.insert(CONFIG_HASH.to_owned(), uid.to_owned());
    annotations.insert(CONFIG_SEEN.to_owned(), time(seen_ms).0.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node.to_owned());
        let tolerations = spec.tolerations.get_or_insert_default();
        let everything = k8s_openapi::api::core::v1::Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..Default::default()
        };
        if !tolerations.contains(&everything) {
            tolerations.push(everything);
        }
    }
}

/// The pod as it is put into the API: the same, marked, without what the API gives.
pub(super) fn mirror_of(pod: &Pod) -> Value {
    let mut mirror = serde_json::to_value(pod).unwrap_or_default();
    if let Some(members) = mirror.as_object_mut() {
        members.insert("apiVersion".to_owned(), json!("v1"));
        members.insert("kind".to_owned(), json!("Pod"));
        members.remove("status");
    }
    if let Some(metadata) = mirror.get_mut("metadata").and_then(Value::as_object_mut) {
        let uid = metadata.remove("uid").unwrap_or_default();
        if let Some(annotations) = metadata.get_mut("annotations") {
            annotations[CONFIG_MIRROR] = uid;
        }
    }
    mirror
}

/// The first object of the API that the pod refers to (kubelet: `HasAPIObjectReference`). The hub
/// gives a node nothing for the sake of a mirror pod, so such a pod could never start.
fn reference(document: &Value) -> Option<(String, &'static str)> {
    let spec = document.get("spec")?;
    let list = |of: &Value, member: &str| -> Vec<Value> {
        let items = of.get(member).and_then(Value::as_array);
        items.cloned().unwrap_or_default()
    };
    for member in ["serviceAccountName", "serviceAccount"] {
        let named = spec.get(member).and_then(Value::as_str);
        if named.is_some_and(|name| !name.is_empty()) {
            return Some((format!("spec.{member}"), "ServiceAccount"));
        }
    }
    if !list(spec, "imagePullSecrets").is_empty() {
        return Some(("spec.imagePullSecrets".to_owned(), "Secret"));
    }
    let kinds = [
        ("secret", "Secret"),
        ("configMap", "ConfigMap"),
        ("serviceAccountToken", "ServiceAccount"),
        ("persistentVolumeClaim", "PersistentVolumeClaim"),
    ];
    for (n, volume) in list(spec, "volumes").iter().enumerate() {
        let at = format!("spec.volumes[{n}]");
        let projected = volume.get("projected").cloned().unwrap_or_default();
        for (member, what) in kinds {
            if volume.get(member).is_some() {
                return Some((format!("{at}.{member}"), what));
            }
            for (n, source) in list(&projected, "sources").iter().enumerate() {
                if source.get(member).is_some() {
                    return Some((format!("{at}.projected.sources[{n}].{member}"), what));
                }
            }
        }
    }
    for group in ["initContainers", "containers"] {
        for (n, container) in list(spec, group).iter().enumerate() {
            let at = format!("spec.{group}[{n}]");
            for (member, what) in [("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")] {
                for (n, env) in list(container, "env").iter().enumerate() {
                    if env.pointer(&format!("/valueFrom/{member}")).is_some() {
                        return Some((format!("{at}.env[{n}].valueFrom.{member}"), what));
                    }
                }
            }
            for (member, what) in [("configMapRef", "ConfigMap"), ("secretRef", "Secret")] {
                for (n, env) in list(container, "envFrom").iter().enumerate() {
                    if env.get(member).is_some() {
                        return Some((format!("{at}.envFrom[{n}].{member}"), what));
                    }
                }
            }
        }
    }
    None
}

/// What the API server would refuse and what would make a pod that never starts.
fn check(pod: &Pod) -> Result<(), Invalid> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if !is_dns(name, 200, true) {
        return Err(invalid(
            "metadata.name",
            format!("`{name}` is not a DNS name"),
        ));
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if !is_dns(namespace, 63, false) {
        let reason = format!("`{namespace}` is not a DNS label");
        return Err(invalid("metadata.namespace", reason));
    }
    let Some(spec) = &pod.spec else {
        return Err(invalid("spec", "is missing"));
    };
    if spec.containers.is_empty() {
        return Err(invalid("spec.containers", "must not be empty"));
    }
    let mut names = std::collections::BTreeSet::new();
    let inits = spec.init_containers.iter().flatten();
    let all = inits
        .enumerate()
        .map(|(n, c)| (format!("spec.initContainers[{n}]"), c));
    let mains = spec.containers.iter().enumerate();
    for (at, container) in all.chain(mains.map(|(n, c)| (format!("spec.containers[{n}]"), c))) {
        if !is_dns(&container.name, 63, false) {
            let reason = format!("`{}` is not a DNS label", container.name);
            return Err(invalid(format!("{at}.name"), reason));
        }
        if !names.insert(container.name.as_str()) {
            let reason = format!("`{}` is there twice", container.name);
            return Err(invalid(format!("{at}.name"), reason));
        }
        if container.image.as_deref().unwrap_or_default().is_empty() {
            return Err(invalid(format!("{at}.image"), "is missing"));
        }
    }
    Ok(())
}

/// RFC 1123 label, or labels joined by dots.
fn is_dns(name: &str, bytes_max: usize, dots: bool) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= bytes_max
        && (if dots {
            name.split('.').all(label)
        } else {
            label(name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: main\n    image: busybox\n";

    fn parsed(text: &str) -> Result<Pod, Invalid> {
        parse(text.as_bytes(), "/m/web.yaml", "Edge-1", 1_000)
    }

    #[test]
    fn a_file_becomes_a_pod_of_this_node() {
        let pod = parsed(WEB).unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-edge-1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let uid = pod.metadata.uid.clone().unwrap();
        let annotations = pod.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[CONFIG_SOURCE], "file");
        assert_eq!(annotations[CONFIG_HASH], uid);
        assert_eq!(annotations[CONFIG_SEEN], "1970-01-01T00:00:01Z");
        assert_eq!(
            pod.spec.as_ref().unwrap().node_name.as_deref(),
            Some("Edge-1")
        );
        // The same in JSON is the same pod; another content, node or file is another.
        let json = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","uid":"x"},
            "spec":{"containers":[{"name":"main","image":"busybox"}]},"status":{"phase":"Failed"}}"#;
        assert_eq!(parsed(json).unwrap().metadata.uid, Some(uid.clone()));
        let uids = [
            parsed(&WEB.replace("busybox", "nginx")).unwrap(),
            parse(WEB.as_bytes(), "/m/web.yaml", "edge-2", 1_000).unwrap(),
            parse(WEB.as_bytes(), "/m/other.yaml", "Edge-1", 1_000).unwrap(),
        ]
        .map(|pod| pod.metadata.uid.unwrap());
        assert!(uids.iter().all(|other| *other != uid), "{uids:?}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |container: &str, spec: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  containers: [{{name: main, image: b{container}}}]\n{spec}"
            )
        };
        for (text, field) in [
            (String::new(), "."),
            ("a: [".to_owned(), "."),
            (WEB.replace("Pod", "Deployment"), "kind"),
            (WEB.replace("v1", "v2"), "apiVersion"),
            (WEB.replace("name: web", "name: We_b"), "metadata.name"),
            (
                WEB.replace("    image: busybox\n", ""),
                "spec.containers[0].image",
            ),
            (
                WEB.replace("image: busybox", "image: [1]"),
                "spec.containers[0].image",
            ),
            (
                WEB.replace("image: busybox", "image: b\n  - name: main\n    image: b"),
                "spec.containers[1].name",
            ),
            (
                with("", "  serviceAccountName: admin\n"),
                "spec.serviceAccountName",
            ),
            (
                with("", "  imagePullSecrets: [{name: s}]\n"),
                "spec.imagePullSecrets",
            ),
            (
                with("", "  volumes: [{name: v, secret: {secretName: s}}]\n"),
                "spec.volumes[0].secret",
            ),
            (
                with(
                    "",
                    "  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]\n",
                ),
                "spec.volumes[0].projected.sources[0].serviceAccountToken",
            ),
            (
                with(
                    ", env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
                    "",
                ),
                "spec.containers[0].env[0].valueFrom.secretKeyRef",
            ),
            (
                with(", envFrom: [{configMapRef: {name: s}}]", ""),
                "spec.containers[0].envFrom[0].configMapRef",
            ),
        ] {
            let error = parsed(&text).unwrap_err();
            assert_eq!(error.field, field, "{text}: {error}");
        }
    }

    #[test]
    fn a_mirror_is_marked_and_has_no_uid() {
        let pod = parsed(WEB).unwrap();
        let mirror = mirror_of(&pod);
        assert_eq!(
            mirror["metadata"]["annotations"][CONFIG_MIRROR],
            json!(pod.metadata.uid)
        );
        assert!(mirror["metadata"].get("uid").is_none());
        assert_eq!(mirror["spec"]["nodeName"], "Edge-1");
    }

    #[test]
    fn what_editors_leave_is_no_manifest() {
        for (name, is) in [
            ("web.yaml", true),
            ("web.json", true),
            ("web", true),
            (".web.yaml.swp", false),
            ("web.yaml~", false),
            ("#web.yaml#", false),
            ("4913", false),
            ("web.yaml.tmp", false),
            ("web.yaml.dpkg-new", false),
        ] {
            assert_eq!(is_manifest(name), is, "{name}");
        }
    }
}
