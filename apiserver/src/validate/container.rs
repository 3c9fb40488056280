//! Containers.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{FieldError, invalid, list, not_negative, one_of, text};
use crate::names;
use quantity::Quantity;

const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// All containers of a pod spec. `volumes` are the names a mount may use.
pub(super) fn check_all(
    path: &str,
    spec: &Value,
    volumes: &BTreeSet<String>,
    errors: &mut Vec<FieldError>,
) {
    if list(&spec["containers"]).is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = BTreeSet::new();
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, container) in list(&spec[field]).iter().enumerate() {
            let path = format!("{path}.{field}[{i}]");
            name(&path, container, &mut names, errors);
            self::container(&path, container, spec, volumes, errors);
            if field == "initContainers" && container["restartPolicy"] != json!("Always") {
                for probe in [
                    "lifecycle",
                    "livenessProbe",
                    "readinessProbe",
                    "startupProbe",
                ] {
                    if !container[probe].is_null() {
                        let why = "may not be set for init containers without restartPolicy=Always";
                        errors.push(FieldError::forbidden(format!("{path}.{probe}"), why));
                    }
                }
            }
        }
    }
}

fn name(path: &str, container: &Value, seen: &mut BTreeSet<String>, errors: &mut Vec<FieldError>) {
    let name = text(&container["name"]);
    let path = format!("{path}.name");
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    invalid(&path, &container["name"], names::dns_label(name), errors);
    if !seen.insert(name.to_owned()) {
        errors.push(FieldError::duplicate(path, &container["name"]));
    }
}

fn container(
    path: &str,
    c: &Value,
    spec: &Value,
    volumes: &BTreeSet<String>,
    errors: &mut Vec<FieldError>,
) {
    let image = text(&c["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(
            format!("{path}.image"),
            &c["image"],
            why,
        ));
    }
    one_of(
        format!("{path}.imagePullPolicy"),
        &c["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
        errors,
    );
    one_of(
        format!("{path}.terminationMessagePolicy"),
        &c["terminationMessagePolicy"],
        &["FallbackToLogsOnError", "File"],
        errors,
    );
    ports(path, c, spec["hostNetwork"] == json!(true), errors);
    for (i, variable) in list(&c["env"]).iter().enumerate() {
        env(&format!("{path}.env[{i}]"), variable, errors);
    }
    mounts(path, c, volumes, errors);
    resources(&format!("{path}.resources"), &c["resources"], errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if !c[probe].is_null() {
            let path = format!("{path}.{probe}");
            handler(
                &path,
                &c[probe],
                &["exec", "httpGet", "tcpSocket", "grpc"],
                errors,
            );
            for field in [
                "initialDelaySeconds",
                "timeoutSeconds",
                "periodSeconds",
                "successThreshold",
                "failureThreshold",
            ] {
                not_negative(format!("{path}.{field}"), &c[probe][field], errors);
            }
            if probe != "readinessProbe"
                && c[probe]["successThreshold"].as_i64().is_some_and(|n| n > 1)
            {
                errors.push(FieldError::invalid(
                    format!("{path}.successThreshold"),
                    &c[probe]["successThreshold"],
                    "must be 1",
                ));
            }
        }
    }
    for hook in ["postStart", "preStop"] {
        if !c["lifecycle"][hook].is_null() {
            let kinds = ["exec", "httpGet", "tcpSocket", "sleep"];
            handler(
                &format!("{path}.lifecycle.{hook}"),
                &c["lifecycle"][hook],
                &kinds,
                errors,
            );
        }
    }
}

fn ports(path: &str, container: &Value, host_network: bool, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (i, port) in list(&container["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if complaints.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
            }
            invalid(&format!("{path}.name"), &port["name"], complaints, errors);
        }
        let number = port["containerPort"].as_i64().unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(
                format!("{path}.containerPort"),
                &port["containerPort"],
                PORT_RANGE,
            ));
        }
        let host = port["hostPort"].as_i64().unwrap_or(0);
        if host != 0 && !(1..=65535).contains(&host) {
            errors.push(FieldError::invalid(
                format!("{path}.hostPort"),
                &port["hostPort"],
                PORT_RANGE,
            ));
        } else if host_network && host != number && number != 0 {
            let why = "must match `containerPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(
                format!("{path}.hostPort"),
                &port["hostPort"],
                why,
            ));
        }
        match text(&port["protocol"]) {
            "" => errors.push(FieldError::required(format!("{path}.protocol"), "")),
            _ => one_of(
                format!("{path}.protocol"),
                &port["protocol"],
                &["SCTP", "TCP", "UDP"],
                errors,
            ),
        }
    }
}

fn env(path: &str, variable: &Value, errors: &mut Vec<FieldError>) {
    match text(&variable["name"]) {
        "" => errors.push(FieldError::required(format!("{path}.name"), "")),
        name => invalid(
            &format!("{path}.name"),
            &variable["name"],
            names::env_name(name),
            errors,
        ),
    }
    let source = &variable["valueFrom"];
    let Some(sources) = source.as_object() else {
        return;
    };
    let path = format!("{path}.valueFrom");
    if sources.is_empty() {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(FieldError::invalid(path.as_str(), &json!(""), why));
    } else if !text(&variable["value"]).is_empty() {
        errors.push(FieldError::invalid(
            path.as_str(),
            &json!(""),
            "may not be specified when `value` is not empty",
        ));
    } else if sources.len() > 1 {
        errors.push(FieldError::invalid(
            path.as_str(),
            &json!(""),
            "may not have more than one field specified at a time",
        ));
    }
    let field = &source["fieldRef"];
    if !field.is_null() {
        field_path(&format!("{path}.fieldRef"), field, false, errors);
    }
    for reference in ["configMapKeyRef", "secretKeyRef"] {
        let key = &source[reference];
        if key.is_null() {
            continue;
        }
        match text(&key["key"]) {
            "" => errors.push(FieldError::required(format!("{path}.{reference}.key"), "")),
            name => invalid(
                &format!("{path}.{reference}.key"),
                &key["key"],
                names::config_key(name),
                errors,
            ),
        }
    }
}

/// A downward reference. Volumes may also take all labels or annotations.
pub(super) fn field_path(
    path: &str,
    reference: &Value,
    volume: bool,
    errors: &mut Vec<FieldError>,
) {
    let label = text(&reference["fieldPath"]);
    let path = format!("{path}.fieldPath");
    let subscripted = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|p| label.starts_with(p))
        && label.ends_with("']");
    let known = match label {
        "metadata.name" | "metadata.namespace" | "metadata.uid" => true,
        "metadata.labels" | "metadata.annotations" => volume,
        "spec.nodeName"
        | "spec.serviceAccountName"
        | "status.hostIP"
        | "status.hostIPs"
        | "status.podIP"
        | "status.podIPs" => !volume,
        _ => subscripted,
    };
    if label.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !known {
        let why = format!("error converting fieldPath: field label not supported: {label}");
        errors.push(FieldError::invalid(path, &reference["fieldPath"], &why));
    }
}

fn mounts(path: &str, container: &Value, volumes: &BTreeSet<String>, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (i, mount) in list(&container["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let (name, place) = (text(&mount["name"]), text(&mount["mountPath"]));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(
                format!("{path}.name"),
                &mount["name"],
            ));
        }
        if place.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !seen.insert(place) {
            errors.push(FieldError::invalid(
                format!("{path}.mountPath"),
                &mount["mountPath"],
                "must be unique",
            ));
        }
        for field in ["subPath", "subPathExpr"] {
            let sub = text(&mount[field]);
            if sub.starts_with('/') {
                errors.push(FieldError::invalid(
                    format!("{path}.{field}"),
                    &mount[field],
                    "must be a relative path",
                ));
            }
            if sub.split('/').any(|p| p == "..") {
                errors.push(FieldError::invalid(
                    format!("{path}.{field}"),
                    &mount[field],
                    "must not contain '..'",
                ));
            }
        }
    }
}

fn resources(path: &str, resources: &Value, errors: &mut Vec<FieldError>) {
    let amount = |value: &Value| Quantity::parse(text(value)).ok();
    for field in ["limits", "requests"] {
        for (name, value) in resources[field].as_object().into_iter().flatten() {
            let path = format!("{path}.{field}[{name}]");
            let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-");
            if !standard {
                invalid(&path, &json!(name), names::qualified_name(name), errors);
                if !name.contains('/') {
                    for why in [
                        "must be a standard resource type or fully qualified",
                        "must be a standard resource for containers",
                    ] {
                        errors.push(FieldError::invalid(path.as_str(), &json!(name), why));
                    }
                }
            }
            let Some(quantity) = amount(value) else {
                continue;
            };
            if quantity.is_negative() {
                errors.push(FieldError::invalid(
                    path.as_str(),
                    value,
                    "must be greater than or equal to 0",
                ));
            } else if name.contains('/') && !quantity.is_integer() {
                errors.push(FieldError::invalid(
                    path.as_str(),
                    value,
                    "must be an integer",
                ));
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        if let (Some(wanted), Some(most)) = (amount(request), amount(limit))
            && wanted.nanos() > most.nanos()
        {
            let why = format!(
                "must be less than or equal to {name} limit of {}",
                text(limit)
            );
            errors.push(FieldError::invalid(
                format!("{path}.requests"),
                request,
                &why,
            ));
        }
    }
}

/// A probe's or hook's action.
fn handler(path: &str, handler: &Value, kinds: &[&str], errors: &mut Vec<FieldError>) {
    let mut set = kinds.iter().filter(|k| !handler[**k].is_null());
    if set.next().is_none() {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    for extra in set {
        errors.push(FieldError::forbidden(
            format!("{path}.{extra}"),
            "may not specify more than 1 handler type",
        ));
    }
    if handler["exec"].is_object() && list(&handler["exec"]["command"]).is_empty() {
        errors.push(FieldError::required(format!("{path}.exec.command"), ""));
    }
    for kind in ["httpGet", "tcpSocket"] {
        let action = &handler[kind];
        if action.is_null() {
            continue;
        }
        let path = format!("{path}.{kind}");
        match &action["port"] {
            Value::String(name) => {
                invalid(
                    &format!("{path}.port"),
                    &action["port"],
                    names::port_name(name),
                    errors,
                );
            }
            port if (1..=65535).contains(&port.as_i64().unwrap_or(0)) => {}
            port => errors.push(FieldError::invalid(
                format!("{path}.port"),
                &json!(port.as_i64().unwrap_or(0)),
                PORT_RANGE,
            )),
        }
        if kind == "httpGet" {
            one_of(
                format!("{path}.scheme"),
                &action["scheme"],
                &["HTTP", "HTTPS"],
                errors,
            );
        }
    }
}
