//! Custom resource definitions.

use serde_json::{Value, json};

use super::{FieldError, invalid, list, one_of, text};
use crate::names;

/// Schemas nest at most this deep.
const MAX_DEPTH: usize = 64;

pub(super) fn check(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    let group = text(&spec["group"]);
    let names = &spec["names"];
    if text(&object["metadata"]["name"]) != format!("{}.{group}", text(&names["plural"])) {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid(
            "metadata.name",
            &object["metadata"]["name"],
            why,
        ));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else {
        invalid(
            "spec.group",
            &spec["group"],
            names::dns_subdomain(group),
            errors,
        );
        if !group.contains('.') {
            errors.push(FieldError::invalid(
                "spec.group",
                &spec["group"],
                "should be a domain with at least one dot",
            ));
        }
    }
    protected(object, group, errors);
    match text(&spec["scope"]) {
        "" => errors.push(FieldError::required("spec.scope", "")),
        _ => one_of(
            "spec.scope".into(),
            &spec["scope"],
            &["Cluster", "Namespaced"],
            errors,
        ),
    }
    self::names(names, errors);
    versions(object, errors);
}

/// Groups of the Kubernetes community need an approval.
fn protected(object: &Value, group: &str, errors: &mut Vec<FieldError>) {
    let theirs = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|g| group == *g || group.ends_with(&format!(".{g}")));
    let approval = &object["metadata"]["annotations"]["api-approved.kubernetes.io"];
    if theirs && text(approval).is_empty() {
        errors.push(FieldError::required(
            "metadata.annotations[api-approved.kubernetes.io]",
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ));
    }
}

fn names(names: &Value, errors: &mut Vec<FieldError>) {
    for field in ["plural", "singular"] {
        match text(&names[field]) {
            "" => errors.push(FieldError::required(format!("spec.names.{field}"), "")),
            name => invalid(
                &format!("spec.names.{field}"),
                &names[field],
                names::dns1035_label(name),
                errors,
            ),
        }
    }
    for field in ["kind", "listKind"] {
        let name = text(&names[field]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("spec.names.{field}"), ""));
            continue;
        }
        for why in names::dns1035_label(&name.to_lowercase()) {
            let why = format!("may have mixed case, but should otherwise match: {why}");
            errors.push(FieldError::invalid(
                format!("spec.names.{field}"),
                &names[field],
                &why,
            ));
        }
    }
    if !text(&names["kind"]).is_empty() && names["kind"] == names["listKind"] {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(
            "spec.names.listKind",
            &names["listKind"],
            why,
        ));
    }
    for (i, short) in list(&names["shortNames"]).iter().enumerate() {
        invalid(
            &format!("spec.names.shortNames[{i}]"),
            short,
            names::dns1035_label(text(short)),
            errors,
        );
    }
}

fn versions(object: &Value, errors: &mut Vec<FieldError>) {
    let versions = list(&object["spec"]["versions"]);
    let stored = versions
        .iter()
        .filter(|v| v["storage"] == json!(true))
        .count();
    let before = errors.len();
    let mut seen = Vec::new();
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        invalid(
            &format!("{path}.name"),
            &version["name"],
            names::dns1035_label(text(&version["name"])),
            errors,
        );
        if seen.contains(&&version["name"]) {
            errors.push(FieldError::invalid(
                "spec.versions",
                &object["spec"]["versions"],
                "must contain unique version names",
            ));
        }
        seen.push(&version["name"]);
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_null() {
            errors.push(FieldError::required(
                format!("{path}.schema.openAPIV3Schema"),
                "",
            ));
            continue;
        }
        // With one version, the reference speaks of the internal single schema.
        let path = if versions.len() == 1 {
            "spec.validation.openAPIV3Schema".to_owned()
        } else {
            format!("{path}.schema.openAPIV3Schema")
        };
        root(&path, schema, errors);
    }
    if stored != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(
            "spec.versions",
            &object["spec"]["versions"],
            why,
        ));
        if stored == 0 && errors.len() == before + 1 {
            errors.push(FieldError::invalid(
                "status.storedVersions",
                &Value::Null,
                "must have at least one stored version",
            ));
        }
    }
}

fn root(path: &str, schema: &Value, errors: &mut Vec<FieldError>) {
    match text(&schema["type"]) {
        "" => errors.push(FieldError::required(
            format!("{path}.type"),
            "must not be empty at the root",
        )),
        "object" => {}
        _ => errors.push(FieldError::invalid(
            format!("{path}.type"),
            &schema["type"],
            "must be object at the root",
        )),
    }
    children(path, schema, 0, errors);
}

/// Every field of a structural schema has a type.
fn structural(path: &str, schema: &Value, what: &str, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > MAX_DEPTH {
        errors.push(FieldError::forbidden(path, "nested too deep"));
        return;
    }
    let free = [
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
    ]
    .iter()
    .any(|f| schema[*f] == json!(true));
    match text(&schema["type"]) {
        "" if free => {}
        "" => errors.push(FieldError::required(
            format!("{path}.type"),
            &format!("must not be empty for specified {what}"),
        )),
        _ => one_of(
            format!("{path}.type"),
            &schema["type"],
            &["array", "boolean", "integer", "number", "object", "string"],
            errors,
        ),
    }
    if schema["type"] == json!("array") && schema["items"].is_null() {
        errors.push(FieldError::required(
            format!("{path}.items"),
            "must be specified",
        ));
    }
    children(path, schema, depth, errors);
}

fn children(path: &str, schema: &Value, depth: usize, errors: &mut Vec<FieldError>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        structural(
            &format!("{path}.properties[{name}]"),
            inner,
            "object fields",
            depth + 1,
            errors,
        );
    }
    if schema["additionalProperties"].is_object() {
        let inner = &schema["additionalProperties"];
        structural(
            &format!("{path}.additionalProperties"),
            inner,
            "object fields",
            depth + 1,
            errors,
        );
        if schema["properties"]
            .as_object()
            .is_some_and(|p| !p.is_empty())
        {
            errors.push(FieldError::forbidden(
                format!("{path}.additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            ));
        }
    }
    if schema["items"].is_object() {
        structural(
            &format!("{path}.items"),
            &schema["items"],
            "array items",
            depth + 1,
            errors,
        );
    }
}
