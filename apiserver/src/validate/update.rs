//! What a change may not touch.

use serde_json::{Map, Value, json};

use super::{FieldError, list, text};

const POD: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const STATEFUL_SET: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
const IMMUTABLE: &str = "field is immutable";

pub(super) fn check(
    group: &str,
    kind: &str,
    old: &Value,
    new: &Value,
    errors: &mut Vec<FieldError>,
) {
    match (group, kind) {
        ("", "Pod") => pod(old, new, errors),
        ("", "ConfigMap" | "Secret") => data(kind, old, new, errors),
        ("", "Node") => node(old, new, errors),
        ("", "Service") => service(old, new, errors),
        ("", "PersistentVolumeClaim") => claim(old, new, errors),
        ("apps", "Deployment" | "ReplicaSet" | "DaemonSet") => same(old, new, "selector", errors),
        ("apps", "StatefulSet") => stateful_set(old, new, errors),
        ("batch", "Job") => {
            for field in [
                "selector",
                "completionMode",
                "podFailurePolicy",
                "backoffLimitPerIndex",
            ] {
                same(old, new, field, errors);
            }
            if new["spec"]["completionMode"] != json!("Indexed") {
                same(old, new, "completions", errors);
            }
            // A suspended job that never started may still be re-targeted.
            let may = old["spec"]["suspend"] == json!(true) && old["status"]["startTime"].is_null();
            let (was, is) = (&old["spec"]["template"], &new["spec"]["template"]);
            let kept = |t: &Value| if may { retargetable(t) } else { t.clone() };
            if kept(was) != kept(is) {
                errors.push(FieldError::invalid("spec.template", is, IMMUTABLE));
            }
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding")
            if old["roleRef"] != new["roleRef"] =>
        {
            let role = &new["roleRef"];
            let value =
                json!({"APIGroup": role["apiGroup"], "Kind": role["kind"], "Name": role["name"]});
            errors.push(FieldError::invalid(
                "roleRef",
                &value,
                "cannot change roleRef",
            ));
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            for path in [
                "/spec/scope",
                "/spec/group",
                "/spec/names/plural",
                "/spec/names/kind",
            ] {
                let (was, is) = (old.pointer(path), new.pointer(path));
                if was != is && was.is_some() {
                    let field = path.trim_start_matches('/').replace('/', ".");
                    errors.push(FieldError::invalid(
                        field,
                        is.unwrap_or(&Value::Null),
                        IMMUTABLE,
                    ));
                }
            }
        }
        _ => {}
    }
}

fn same(old: &Value, new: &Value, field: &str, errors: &mut Vec<FieldError>) {
    if old["spec"][field] != new["spec"][field] {
        errors.push(FieldError::invalid(
            format!("spec.{field}"),
            &new["spec"][field],
            IMMUTABLE,
        ));
    }
}

fn retargetable(template: &Value) -> Value {
    let mut template = template.clone();
    for (path, fields) in [
        (
            "/spec",
            ["nodeSelector", "tolerations", "affinity", "schedulingGates"].as_slice(),
        ),
        ("/metadata", ["labels", "annotations"].as_slice()),
    ] {
        if let Some(map) = template.pointer_mut(path).and_then(Value::as_object_mut) {
            map.retain(|k, _| !fields.contains(&k.as_str()));
        }
    }
    template
}

fn pod(old: &Value, new: &Value, errors: &mut Vec<FieldError>) {
    let (was, is) = (&old["spec"], &new["spec"]);
    if was == is {
        return;
    }
    for field in ["containers", "initContainers"] {
        if list(&was[field]).len() != list(&is[field]).len() {
            errors.push(FieldError::forbidden(
                format!("spec.{field}"),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    let added_only = list(&was["tolerations"]).iter().all(|t| {
        list(&is["tolerations"])
            .iter()
            .any(|n| same_toleration(t, n))
    });
    if !added_only {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", why));
    }
    let deadline = |v: &Value| v["activeDeadlineSeconds"].as_i64();
    match (deadline(was), deadline(is)) {
        (Some(a), Some(b)) if b > a => {
            let why = "must be less than or equal to previous value";
            errors.push(FieldError::invalid(
                "spec.activeDeadlineSeconds",
                &is["activeDeadlineSeconds"],
                why,
            ));
        }
        (Some(_), None) => {
            let why = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(
                "spec.activeDeadlineSeconds",
                &Value::Null,
                why,
            ));
        }
        _ => {}
    }
    let grace = |v: &Value| v["terminationGracePeriodSeconds"].as_i64();
    let raised = grace(was).is_some_and(|g| g < 0) && grace(is) == Some(1);
    if fixed(was, raised) != fixed(is, raised) {
        errors.push(FieldError::forbidden("spec", POD));
    }
}

fn same_toleration(a: &Value, b: &Value) -> bool {
    ["key", "operator", "value", "effect"]
        .iter()
        .all(|f| text(&a[*f]) == text(&b[*f]))
}

/// What of a pod's spec may not change.
fn fixed(spec: &Value, grace_may_change: bool) -> Map<String, Value> {
    let mut spec = spec.as_object().cloned().unwrap_or_default();
    for field in ["activeDeadlineSeconds", "tolerations"] {
        spec.remove(field);
    }
    // Gates may only go away; that they were there already is for the caller of create.
    spec.remove("schedulingGates");
    if grace_may_change {
        spec.remove("terminationGracePeriodSeconds");
    }
    for field in ["containers", "initContainers"] {
        for container in spec
            .get_mut(field)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    spec
}

fn data(kind: &str, old: &Value, new: &Value, errors: &mut Vec<FieldError>) {
    if kind == "Secret" && old["type"] != new["type"] {
        errors.push(FieldError::invalid("type", &new["type"], IMMUTABLE));
    }
    if old["immutable"] != json!(true) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"] != json!(true) {
        errors.push(FieldError::forbidden("immutable", why));
    }
    for field in ["data", "binaryData"] {
        if old[field] != new[field] {
            errors.push(FieldError::forbidden(field, why));
        }
    }
}

fn node(old: &Value, new: &Value, errors: &mut Vec<FieldError>) {
    let cidrs = |v: &Value| match list(&v["spec"]["podCIDRs"]) {
        [] => text(&v["spec"]["podCIDR"]).to_owned(),
        [first, ..] => text(first).to_owned(),
    };
    if !cidrs(old).is_empty() && cidrs(old) != cidrs(new) {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.podCIDRs", why));
    }
    let provider = |v: &Value| text(&v["spec"]["providerID"]).to_owned();
    if !provider(old).is_empty() && provider(old) != provider(new) {
        let why = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.providerID", why));
    }
}

fn service(old: &Value, new: &Value, errors: &mut Vec<FieldError>) {
    let addresses = |v: &Value| match list(&v["spec"]["clusterIPs"]) {
        [] => list(&json!([v["spec"]["clusterIP"]]))
            .iter()
            .filter(|v| !text(v).is_empty())
            .cloned()
            .collect(),
        all => all.to_vec(),
    };
    let external = [old, new]
        .iter()
        .any(|v| v["spec"]["type"] == json!("ExternalName"));
    let (was, is): (Vec<Value>, Vec<Value>) = (addresses(old), addresses(new));
    if !external && !was.is_empty() && was.first() != is.first() {
        errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            &Value::Array(is),
            "may not change once set",
        ));
    }
}

fn claim(old: &Value, new: &Value, errors: &mut Vec<FieldError>) {
    let fixed = |v: &Value| {
        let mut spec = v["spec"].as_object().cloned().unwrap_or_default();
        for field in ["resources", "volumeName", "volumeAttributesClassName"] {
            spec.remove(field);
        }
        spec
    };
    if fixed(old) != fixed(new) {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", why));
    }
}

fn stateful_set(old: &Value, new: &Value, errors: &mut Vec<FieldError>) {
    const OPEN: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let fixed = |v: &Value| {
        let mut spec = v["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|k, _| !OPEN.contains(&k.as_str()));
        spec
    };
    if fixed(old) != fixed(new) {
        errors.push(FieldError::forbidden("spec", STATEFUL_SET));
    }
}
