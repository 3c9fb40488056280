//! Roles and bindings.

use serde_json::Value;

use super::{FieldError, list, one_of, text};

pub(super) fn role(kind: &str, object: &Value, errors: &mut Vec<FieldError>) {
    for (i, rule) in list(&object["rules"]).iter().enumerate() {
        let path = format!("rules[{i}]");
        if list(&rule["verbs"]).is_empty() {
            errors.push(FieldError::required(
                format!("{path}.verbs"),
                "verbs must contain at least one value",
            ));
        }
        if !list(&rule["nonResourceURLs"]).is_empty() {
            let urls = &rule["nonResourceURLs"];
            if kind == "Role" {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(
                    format!("{path}.nonResourceURLs"),
                    urls,
                    why,
                ));
            } else if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|f| !list(&rule[*f]).is_empty())
            {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(
                    format!("{path}.nonResourceURLs"),
                    urls,
                    why,
                ));
            }
            continue;
        }
        if list(&rule["apiGroups"]).is_empty() {
            errors.push(FieldError::required(
                format!("{path}.apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if list(&rule["resources"]).is_empty() {
            errors.push(FieldError::required(
                format!("{path}.resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}

pub(super) fn binding(kind: &str, object: &Value, errors: &mut Vec<FieldError>) {
    let role = &object["roleRef"];
    one_of(
        "roleRef.apiGroup".into(),
        &role["apiGroup"],
        &["rbac.authorization.k8s.io"],
        errors,
    );
    let kinds: &[&str] = if kind == "RoleBinding" {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    one_of("roleRef.kind".into(), &role["kind"], kinds, errors);
    if text(&role["name"]).is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    for (i, subject) in list(&object["subjects"]).iter().enumerate() {
        let path = format!("subjects[{i}]");
        if text(&subject["name"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        let group = &subject["apiGroup"];
        match text(&subject["kind"]) {
            "ServiceAccount" => {
                if !text(group).is_empty() {
                    errors.push(FieldError::unsupported(
                        format!("{path}.apiGroup"),
                        group,
                        &[""],
                    ));
                }
                if kind == "ClusterRoleBinding" && text(&subject["namespace"]).is_empty() {
                    errors.push(FieldError::required(format!("{path}.namespace"), ""));
                }
            }
            "User" | "Group" => one_of(
                format!("{path}.apiGroup"),
                group,
                &["rbac.authorization.k8s.io"],
                errors,
            ),
            _ => {
                let kinds = ["ServiceAccount", "User", "Group"];
                errors.push(FieldError::unsupported(
                    format!("{path}.kind"),
                    &subject["kind"],
                    &kinds,
                ));
            }
        }
    }
}
