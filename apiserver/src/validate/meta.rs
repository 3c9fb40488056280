//! `metadata`, the same for all kinds.

use serde_json::{Value, json};

use super::FieldError;
use crate::names;

/// Keys and values of all annotations together.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

/// The name rule of a kind.
fn name_errors(kind: &str, name: &str) -> Vec<String> {
    match kind {
        "Namespace" if name.contains('.') => vec!["must not contain dots".into()],
        "Namespace" | "Service" => names::dns_label(name),
        "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => names::path_segment(name),
        "CronJob" if name.len() > 52 => vec!["must be no more than 52 characters".into()],
        _ => names::dns_subdomain(name),
    }
}

pub(super) fn create(kind: &str, object: &Value) -> Vec<FieldError> {
    let meta = &object["metadata"];
    let mut errors = Vec::new();
    let prefix = meta["generateName"].as_str().unwrap_or_default();
    if !prefix.is_empty() {
        // The five generated characters make a trailing dash fine.
        for why in name_errors(
            kind,
            prefix
                .strip_suffix('-')
                .map_or(prefix, |p| if p.is_empty() { "-" } else { p }),
        ) {
            errors.push(FieldError::invalid(
                "metadata.generateName",
                &meta["generateName"],
                &why,
            ));
        }
    }
    match meta["name"].as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        )),
        name => {
            for why in name_errors(kind, name) {
                errors.push(FieldError::invalid("metadata.name", &meta["name"], &why));
            }
        }
    }
    errors.extend(common(meta));
    errors
}

pub(super) fn update(old: &Value, new: &Value) -> Vec<FieldError> {
    let (old, new) = (&old["metadata"], &new["metadata"]);
    let mut errors = common(new);
    let blank = |v: &Value| v.is_null() || v.as_str() == Some("");
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let (was, is) = (&old[field], &new[field]);
        if was != is && !(blank(was) && blank(is)) {
            errors.push(FieldError::invalid(
                format!("metadata.{field}"),
                is,
                "field is immutable",
            ));
        }
    }
    if new["generation"].as_i64().unwrap_or(0) < 0 {
        errors.push(FieldError::invalid(
            "metadata.generation",
            &new["generation"],
            "must be greater than or equal to 0",
        ));
    }
    if !old["deletionTimestamp"].is_null() {
        let had = strings(&old["finalizers"]);
        let added: Vec<_> = strings(&new["finalizers"])
            .into_iter()
            .filter(|f| !had.contains(f))
            .collect();
        if !added.is_empty() {
            let list = added
                .iter()
                .map(|f| format!("{f:?}"))
                .collect::<Vec<_>>()
                .join(", ");
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                &format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"),
            ));
        }
    }
    errors
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Labels, as in `metadata.labels`, `spec.selector`, `spec.nodeSelector`.
pub(super) fn labels(path: &str, labels: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        for why in names::qualified_name(key) {
            errors.push(FieldError::invalid(path, &json!(key), &why));
        }
        for why in names::label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path, value, &why));
        }
    }
    errors
}

pub(super) fn annotations(path: &str, annotations: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        for why in names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, &json!(key), &why));
        }
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long(path, MAX_ANNOTATIONS));
    }
    errors
}

fn common(meta: &Value) -> Vec<FieldError> {
    let mut errors = labels("metadata.labels", &meta["labels"]);
    errors.extend(annotations("metadata.annotations", &meta["annotations"]));
    let namespace = meta["namespace"].as_str().unwrap_or_default();
    if !namespace.is_empty() {
        for why in names::dns_label(namespace) {
            errors.push(FieldError::invalid(
                "metadata.namespace",
                &meta["namespace"],
                &why,
            ));
        }
    }
    for (i, finalizer) in strings(&meta["finalizers"]).into_iter().enumerate() {
        let path = format!("metadata.finalizers[{i}]");
        for why in names::qualified_name(finalizer) {
            errors.push(FieldError::invalid(path.as_str(), &json!(finalizer), &why));
        }
        if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(path, &json!(finalizer), why));
        }
    }
    errors.extend(owners(&meta["ownerReferences"]));
    errors
}

fn owners(references: &Value) -> Vec<FieldError> {
    let path = "metadata.ownerReferences";
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for reference in references.as_array().into_iter().flatten() {
        let text = |f: &str| reference[f].as_str().unwrap_or_default();
        let version = text("apiVersion");
        if version.rsplit('/').next().unwrap_or_default().is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.apiVersion"),
                &json!(version),
                "version must not be empty",
            ));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                errors.push(FieldError::invalid(
                    format!("{path}.{field}"),
                    &json!(""),
                    "must not be empty",
                ));
            }
        }
        if reference["controller"] == json!(true) {
            let name = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                    );
                    errors.push(FieldError::invalid(path, references, &why));
                }
                None => controller = Some(name),
            }
        }
    }
    errors
}
