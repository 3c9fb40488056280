//! Pod specs, of pods and templates.

use serde_json::{Value, json};

use super::{FieldError, container, invalid, list, meta, one_of, text, volume};
use crate::names;

pub(super) fn only_on_create(pod: &Value, errors: &mut Vec<FieldError>) {
    if !list(&pod["spec"]["ephemeralContainers"]).is_empty() {
        errors.push(FieldError::forbidden(
            "spec.ephemeralContainers",
            "cannot be set on create",
        ));
    }
}

pub(super) fn spec(path: &str, spec: &Value, errors: &mut Vec<FieldError>) {
    let volumes = volume::check(&format!("{path}.volumes"), &spec["volumes"], errors);
    container::check_all(path, spec, &volumes, errors);
    one_of(
        format!("{path}.restartPolicy"),
        &spec["restartPolicy"],
        &["Always", "OnFailure", "Never"],
        errors,
    );
    one_of(
        format!("{path}.dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.push(FieldError::invalid(
            format!("{path}.activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    errors.extend(meta::labels(
        &format!("{path}.nodeSelector"),
        &spec["nodeSelector"],
    ));
    for (field, check) in [
        ("hostname", names::dns_label as fn(&str) -> Vec<String>),
        ("subdomain", names::dns_label),
        ("nodeName", names::dns_subdomain),
        ("serviceAccountName", names::dns_subdomain),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
    ] {
        if !text(&spec[field]).is_empty() {
            invalid(
                &format!("{path}.{field}"),
                &spec[field],
                check(text(&spec[field])),
                errors,
            );
        }
    }
    for (i, toleration) in list(&spec["tolerations"]).iter().enumerate() {
        self::toleration(&format!("{path}.tolerations[{i}]"), toleration, errors);
    }
}

fn toleration(path: &str, toleration: &Value, errors: &mut Vec<FieldError>) {
    let get = |field: &str| text(&toleration[field]);
    let operator = json!(get("operator"));
    if get("key").is_empty() {
        if get("operator") != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(
                format!("{path}.operator"),
                &operator,
                why,
            ));
        }
    } else {
        invalid(
            &format!("{path}.key"),
            &toleration["key"],
            names::qualified_name(get("key")),
            errors,
        );
    }
    match get("operator") {
        "" | "Equal" => {
            invalid(
                &format!("{path}.operator"),
                &toleration["value"],
                names::label_value(get("value")),
                errors,
            );
        }
        "Exists" => {
            if !get("value").is_empty() {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(
                    format!("{path}.operator"),
                    &json!({}),
                    why,
                ));
            }
        }
        _ => errors.push(FieldError::unsupported(
            format!("{path}.operator"),
            &operator,
            &["Equal", "Exists"],
        )),
    }
    if !get("effect").is_empty() {
        one_of(
            format!("{path}.effect"),
            &toleration["effect"],
            &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            errors,
        );
    }
    if !toleration["tolerationSeconds"].is_null() && get("effect") != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(
            format!("{path}.effect"),
            &json!(get("effect")),
            why,
        ));
    }
}
