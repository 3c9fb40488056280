//! Pods and pod templates.

use serde_json::{Value, json};

use super::{Object, at, default, each, made};

/// A whole pod: its spec, and what templates do not get.
pub(super) fn pod(pod: &mut Object) {
    let Some(spec) = made(pod, "spec") else {
        return;
    };
    let host_network = spec.get("hostNetwork") == Some(&json!(true));
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            requests_from_limits(container);
            if host_network {
                for port in each(container, "ports") {
                    let number = port.get("containerPort").cloned().unwrap_or_default();
                    if port.get("hostPort").is_none_or(|p| p == &json!(0)) {
                        port.insert("hostPort".into(), number);
                    }
                }
            }
        }
    }
    default(spec, "enableServiceLinks", json!(true));
    self::spec(spec);
}

/// The pod template under a key of an object (or of its spec).
pub(super) fn template(parent: &mut Object, key: &str) {
    if let Some(template) = made(parent, key) {
        made(template, "metadata");
        if let Some(pod) = made(template, "spec") {
            spec(pod);
        }
    }
}

/// Limits count as requests where none are given.
fn requests_from_limits(container: &mut Object) {
    let Some(resources) = at(container, "resources") else {
        return;
    };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let Some(requests) = made(resources, "requests") else {
        return;
    };
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

/// `PodSpec`, of pods and templates.
pub(super) fn spec(spec: &mut Object) {
    for (key, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
    ] {
        default(spec, key, value);
    }
    // The deprecated name is a copy of the other, in both directions.
    let text = |spec: &Object, key: &str| {
        spec.get(key)
            .and_then(Value::as_str)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
    };
    if let Some(name) = text(spec, "serviceAccountName").or_else(|| text(spec, "serviceAccount")) {
        spec.insert("serviceAccountName".into(), name.clone().into());
        spec.insert("serviceAccount".into(), name.into());
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
}

fn container(container: &mut Object) {
    let image = container
        .get("image")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let policy = if pulls_always(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    default(container, "imagePullPolicy", json!(policy));
    default(container, "resources", json!({}));
    default(
        container,
        "terminationMessagePath",
        json!("/dev/termination-log"),
    );
    default(container, "terminationMessagePolicy", json!("File"));
    for port in each(container, "ports") {
        default(port, "protocol", json!("TCP"));
    }
    for env in each(container, "env") {
        if let Some(source) = at(env, "valueFrom").and_then(|v| at(v, "fieldRef")) {
            default(source, "apiVersion", json!("v1"));
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = at(container, probe) else {
            continue;
        };
        for (key, value) in [
            ("timeoutSeconds", 1),
            ("periodSeconds", 10),
            ("successThreshold", 1),
            ("failureThreshold", 3),
        ] {
            if probe.get(key).is_none_or(|v| v.as_i64() == Some(0)) {
                probe.insert(key.into(), value.into());
            }
        }
        http_get(probe);
        if let Some(grpc) = at(probe, "grpc") {
            default(grpc, "service", json!(""));
        }
    }
    if let Some(lifecycle) = at(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = at(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
}

fn http_get(handler: &mut Object) {
    if let Some(get) = at(handler, "httpGet") {
        default(get, "path", json!("/"));
        default(get, "scheme", json!("HTTP"));
    }
}

/// The tag is `latest`, or there is neither tag nor digest.
fn pulls_always(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.rsplit_once(':')
        .is_none_or(|(_, tag)| tag == "latest" || tag.is_empty())
}

fn volume(volume: &mut Object) {
    if volume.keys().all(|k| k == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = at(volume, source) {
            default(source, "defaultMode", json!(420));
            items(source);
            for projection in each(source, "sources") {
                if let Some(token) = at(projection, "serviceAccountToken") {
                    default(token, "expirationSeconds", json!(3600));
                }
                if let Some(downward) = at(projection, "downwardAPI") {
                    items(downward);
                }
            }
        }
    }
    if let Some(path) = at(volume, "hostPath") {
        default(path, "type", json!(""));
    }
    if let Some(iscsi) = at(volume, "iscsi") {
        default(iscsi, "iscsiInterface", json!("default"));
    }
    if let Some(claim) = at(volume, "ephemeral")
        .and_then(|e| at(e, "volumeClaimTemplate"))
        .and_then(|t| at(t, "spec"))
    {
        default(claim, "volumeMode", json!("Filesystem"));
    }
}

fn items(source: &mut Object) {
    for item in each(source, "items") {
        if let Some(field) = at(item, "fieldRef") {
            default(field, "apiVersion", json!("v1"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_of_images() {
        for (image, always) in [
            ("x", true),
            ("x:latest", true),
            ("x:1", false),
            ("reg:5000/x", true),
            ("reg:5000/x:1", false),
            ("x@sha256:00", false),
            ("x:latest@sha256:00", false),
        ] {
            assert_eq!(pulls_always(image), always, "{image}");
        }
    }
}
