//! Everything that is no pod and makes none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Object, at, default, each, made, workloads};

/// `stringData` becomes data.
pub(super) fn secret(object: &mut Object) {
    if let Some(Value::Object(text)) = object.remove("stringData")
        && let Some(data) = made(object, "data")
    {
        for (key, value) in text {
            data.insert(
                key,
                STANDARD.encode(value.as_str().unwrap_or_default()).into(),
            );
        }
    }
    default(object, "type", json!("Opaque"));
}

pub(super) fn namespace(object: &mut Object) {
    let name = object
        .get("metadata")
        .and_then(|m| m["name"].as_str())
        .unwrap_or_default()
        .to_owned();
    if !name.is_empty()
        && let Some(labels) = made(object, "metadata").and_then(|m| made(m, "labels"))
    {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
    let leaving = object
        .get("metadata")
        .is_some_and(|m| !m["deletionTimestamp"].is_null());
    if !leaving && let Some(spec) = made(object, "spec") {
        default(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = made(object, "status") {
        default(status, "phase", json!("Active"));
    }
}

pub(super) fn service(object: &mut Object) {
    let Some(spec) = made(object, "spec") else {
        return;
    };
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    let text = |spec: &Object, key: &str| {
        spec.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    if text(spec, "sessionAffinity") == "ClientIP"
        && let Some(client) = made(spec, "sessionAffinityConfig").and_then(|c| made(c, "clientIP"))
    {
        default(client, "timeoutSeconds", json!(10800));
    }
    for port in each(spec, "ports") {
        default(port, "protocol", json!("TCP"));
        let number = port.get("port").cloned().unwrap_or_default();
        if port
            .get("targetPort")
            .is_none_or(|t| t == &json!(0) || t == &json!("") || t.is_null())
        {
            port.insert("targetPort".into(), number);
        }
    }
    let kind = text(spec, "type");
    if kind == "ExternalName" {
        return;
    }
    default(spec, "internalTrafficPolicy", json!("Cluster"));
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    let headless = text(spec, "clusterIP") == "None";
    if headless {
        default(spec, "clusterIPs", json!(["None"]));
    }
    if headless && spec.get("selector").is_none_or(Value::is_null) {
        default(spec, "ipFamilyPolicy", json!("RequireDualStack"));
        default(spec, "ipFamilies", json!(["IPv4", "IPv6"]));
    } else {
        default(spec, "ipFamilyPolicy", json!("SingleStack"));
        default(spec, "ipFamilies", json!(["IPv4"]));
    }
}

pub(super) fn endpoints(object: &mut Object) {
    for subset in each(object, "subsets") {
        for port in each(subset, "ports") {
            default(port, "protocol", json!("TCP"));
        }
    }
}

pub(super) fn endpoint_slice(object: &mut Object) {
    for port in each(object, "ports") {
        default(port, "protocol", json!("TCP"));
        default(port, "name", json!(""));
    }
}

fn finalizer(object: &mut Object, name: &str) {
    if object
        .get("metadata")
        .is_some_and(|m| !m["deletionTimestamp"].is_null())
    {
        return;
    }
    let Some(meta) = made(object, "metadata") else {
        return;
    };
    default(meta, "finalizers", json!([]));
    if let Some(list) = meta.get_mut("finalizers").and_then(Value::as_array_mut)
        && !list.contains(&json!(name))
    {
        list.push(json!(name));
    }
}

pub(super) fn claim(object: &mut Object) {
    finalizer(object, "kubernetes.io/pvc-protection");
    workloads::claim_spec(object);
}

pub(super) fn volume(object: &mut Object) {
    finalizer(object, "kubernetes.io/pv-protection");
    if let Some(spec) = made(object, "spec") {
        default(spec, "persistentVolumeReclaimPolicy", json!("Retain"));
        default(spec, "volumeMode", json!("Filesystem"));
        if let Some(path) = at(spec, "hostPath") {
            default(path, "type", json!(""));
        }
    }
    if let Some(status) = made(object, "status") {
        default(status, "phase", json!("Pending"));
    }
}

/// Default limits are the maxima, default requests the default limits, else the minima.
pub(super) fn limit_range(object: &mut Object) {
    let Some(spec) = at(object, "spec") else {
        return;
    };
    for limit in each(spec, "limits") {
        if limit.get("type") != Some(&json!("Container")) {
            continue;
        }
        for (from, to) in [
            ("max", "default"),
            ("default", "defaultRequest"),
            ("min", "defaultRequest"),
        ] {
            let Some(source) = limit.get(from).and_then(Value::as_object).cloned() else {
                continue;
            };
            if let Some(target) = made(limit, to) {
                source
                    .into_iter()
                    .for_each(|(name, amount)| default(target, &name, amount));
            }
        }
    }
}

pub(super) fn role_binding(object: &mut Object) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if let Some(role) = at(object, "roleRef") {
        default(role, "apiGroup", json!(GROUP));
    }
    for subject in each(object, "subjects") {
        if matches!(
            subject.get("kind").and_then(Value::as_str),
            Some("User" | "Group")
        ) {
            default(subject, "apiGroup", json!(GROUP));
        }
    }
}

pub(super) fn network_policy(object: &mut Object) {
    let Some(spec) = at(object, "spec") else {
        return;
    };
    let mut types = vec!["Ingress"];
    if spec
        .get("egress")
        .and_then(Value::as_array)
        .is_some_and(|e| !e.is_empty())
    {
        types.push("Egress");
    }
    default(spec, "policyTypes", json!(types));
    for direction in ["ingress", "egress"] {
        for rule in each(spec, direction) {
            for port in each(rule, "ports") {
                default(port, "protocol", json!("TCP"));
            }
        }
    }
}

pub(super) fn definition(object: &mut Object) {
    let Some(spec) = made(object, "spec") else {
        return;
    };
    if let Some(conversion) = made(spec, "conversion") {
        default(conversion, "strategy", json!("None"));
    }
    if let Some(names) = made(spec, "names") {
        let kind = names
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        default(names, "singular", json!(kind.to_lowercase()));
        default(names, "listKind", json!(format!("{kind}List")));
    }
    let stored: Vec<Value> = spec
        .get("versions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|v| v["storage"] == json!(true))
        .map(|v| v["name"].clone())
        .collect();
    if !stored.is_empty()
        && let Some(status) = made(object, "status")
    {
        default(status, "storedVersions", Value::Array(stored));
    }
}
