//! Small core kinds.

use serde_json::{Value, json};

use super::{FieldError, invalid, list, not_negative, one_of, text};
use crate::names;
use quantity::Quantity;

/// The size of a ConfigMap or Secret.
const MAX_DATA: usize = 1024 * 1024;

pub(super) fn config_map(object: &Value, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            let path = format!("{field}[{key}]");
            invalid(&path, &json!(key), names::config_key(key), errors);
            if field == "binaryData" && object["data"].get(key).is_some() {
                errors.push(FieldError::invalid(
                    path,
                    &json!(key),
                    "duplicate of key present in data",
                ));
            }
            size += if field == "data" {
                text(value).len()
            } else {
                decoded_len(text(value))
            };
        }
    }
    if size > MAX_DATA {
        // The reference names no field here.
        errors.push(FieldError::too_long("[]", MAX_DATA));
    }
}

/// Bytes behind a base64 text.
fn decoded_len(text: &str) -> usize {
    text.trim_end_matches('=').len() / 4 * 3
        + (text.trim_end_matches('=').len() % 4).saturating_sub(1)
}

pub(super) fn secret(object: &Value, errors: &mut Vec<FieldError>) {
    let data = &object["data"];
    let mut size = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        invalid(
            &format!("data[{key}]"),
            &json!(key),
            names::config_key(key),
            errors,
        );
        size += decoded_len(text(value));
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("data", MAX_DATA));
    }
    let required: &[&str] = match text(&object["type"]) {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/basic-auth" => {
            if data.get("username").is_none() && data.get("password").is_none() {
                &["username", "password"]
            } else {
                &[]
            }
        }
        "kubernetes.io/service-account-token" => {
            let name = &object["metadata"]["annotations"]["kubernetes.io/service-account.name"];
            if text(name).is_empty() {
                errors.push(FieldError::required(
                    "metadata.annotations[kubernetes.io/service-account.name]",
                    "",
                ));
            }
            &[]
        }
        _ => &[],
    };
    for key in required {
        if data.get(*key).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
}

pub(super) fn node(object: &Value, errors: &mut Vec<FieldError>) {
    let mut seen = Vec::new();
    for (i, taint) in list(&object["spec"]["taints"]).iter().enumerate() {
        let path = format!("metadata.taints[{i}]");
        invalid(
            &format!("{path}.key"),
            &taint["key"],
            names::qualified_name(text(&taint["key"])),
            errors,
        );
        invalid(
            &format!("{path}.value"),
            &taint["value"],
            names::label_value(text(&taint["value"])),
            errors,
        );
        match text(&taint["effect"]) {
            "" => errors.push(FieldError::required(format!("{path}.effect"), "")),
            _ => one_of(
                format!("{path}.effect"),
                &taint["effect"],
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                errors,
            ),
        }
        let key = (&taint["key"], &taint["effect"]);
        if seen.contains(&key) {
            let value = json!({"Key": taint["key"], "Value": text(&taint["value"]), "Effect": taint["effect"], "TimeAdded": null});
            let mut error = FieldError::duplicate(path, &value);
            error
                .message
                .push_str(": taints must be unique by key and effect pair");
            errors.push(error);
        }
        seen.push(key);
    }
}

pub(super) fn claim(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    if list(&spec["accessModes"]).is_empty() {
        errors.push(FieldError::required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    for mode in list(&spec["accessModes"]) {
        one_of(
            "spec.accessModes".into(),
            mode,
            &[
                "ReadOnlyMany",
                "ReadWriteMany",
                "ReadWriteOnce",
                "ReadWriteOncePod",
            ],
            errors,
        );
    }
    match Quantity::parse(text(&spec["resources"]["requests"]["storage"])) {
        Err(_) => errors.push(FieldError::required("spec.resources[storage]", "")),
        Ok(q) if q.nanos() <= 0 => {
            let value = &spec["resources"]["requests"]["storage"];
            errors.push(FieldError::invalid(
                "spec.resources.requests.storage",
                value,
                "must be greater than zero",
            ));
        }
        Ok(_) => {}
    }
}

pub(super) fn lease(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"]
        .as_i64()
        .is_some_and(|n| n <= 0)
    {
        let value = &spec["leaseDurationSeconds"];
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            value,
            "must be greater than 0",
        ));
    }
    not_negative(
        "spec.leaseTransitions".into(),
        &spec["leaseTransitions"],
        errors,
    );
}

/// Events about cluster-scoped objects live in `default`.
pub(super) fn event(object: &Value, errors: &mut Vec<FieldError>) {
    let own = text(&object["metadata"]["namespace"]);
    let about = &object["involvedObject"]["namespace"];
    let fits = match text(about) {
        "" => matches!(own, "" | "default"),
        namespace => namespace == own,
    };
    if !fits {
        let value = json!(text(about));
        errors.push(FieldError::invalid(
            "involvedObject.namespace",
            &value,
            "does not match event.namespace",
        ));
    }
}
