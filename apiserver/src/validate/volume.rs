//! Volumes of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::container::field_path;
use super::{FieldError, invalid, list, one_of, text};
use crate::names;

/// Checks the volumes; answers their names.
pub(super) fn check(path: &str, volumes: &Value, errors: &mut Vec<FieldError>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (i, volume) in list(volumes).iter().enumerate() {
        let path = format!("{path}[{i}]");
        let name = text(&volume["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            invalid(
                &format!("{path}.name"),
                &volume["name"],
                names::dns_label(name),
                errors,
            );
        }
        if !seen.insert(name.to_owned()) {
            errors.push(FieldError::duplicate(
                format!("{path}.name"),
                &volume["name"],
            ));
        }
        source(&path, volume, errors);
    }
    seen
}

fn source(path: &str, volume: &Value, errors: &mut Vec<FieldError>) {
    let kinds = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, v)| *k != "name" && !v.is_null());
    for (at, (kind, source)) in kinds.enumerate() {
        let path = format!("{path}.{kind}");
        if at > 0 {
            errors.push(FieldError::forbidden(
                path,
                "may not specify more than 1 volume type",
            ));
            continue;
        }
        match kind.as_str() {
            "hostPath" => host_path(&path, source, errors),
            "configMap" => {
                required(&path, source, "name", errors);
                items(&path, source, errors);
            }
            "secret" => {
                required(&path, source, "secretName", errors);
                items(&path, source, errors);
            }
            "persistentVolumeClaim" => required(&path, source, "claimName", errors),
            "nfs" => {
                required(&path, source, "server", errors);
                required(&path, source, "path", errors);
            }
            "downwardAPI" => downward(&path, source, errors),
            "projected" => {
                for (i, projection) in list(&source["sources"]).iter().enumerate() {
                    let path = format!("{path}.sources[{i}]");
                    downward(
                        &format!("{path}.downwardAPI"),
                        &projection["downwardAPI"],
                        errors,
                    );
                    for kind in ["configMap", "secret"] {
                        if projection[kind].is_object() {
                            required(&format!("{path}.{kind}"), &projection[kind], "name", errors);
                            items(&format!("{path}.{kind}"), &projection[kind], errors);
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

fn required(path: &str, source: &Value, field: &str, errors: &mut Vec<FieldError>) {
    if text(&source[field]).is_empty() {
        errors.push(FieldError::required(format!("{path}.{field}"), ""));
    }
}

fn host_path(path: &str, source: &Value, errors: &mut Vec<FieldError>) {
    required(path, source, "path", errors);
    if text(&source["path"]).split('/').any(|p| p == "..") {
        errors.push(FieldError::invalid(
            format!("{path}.path"),
            &source["path"],
            "must not contain '..'",
        ));
    }
    one_of(
        format!("{path}.type"),
        &source["type"],
        &[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ],
        errors,
    );
}

/// Keys projected to paths, which may not leave the volume.
fn items(path: &str, source: &Value, errors: &mut Vec<FieldError>) {
    for (i, item) in list(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        required(&path, item, "key", errors);
        required(&path, item, "path", errors);
        inside(&path, item, errors);
    }
    let mode = &source["defaultMode"];
    if mode.as_i64().is_some_and(|m| !(0..=0o777).contains(&m)) {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(
            format!("{path}.defaultMode"),
            mode,
            why,
        ));
    }
}

fn inside(path: &str, item: &Value, errors: &mut Vec<FieldError>) {
    let place = text(&item["path"]);
    if place.starts_with('/') {
        errors.push(FieldError::invalid(
            format!("{path}.path"),
            &item["path"],
            "must be a relative path",
        ));
    }
    if place.split('/').any(|p| p == "..") {
        errors.push(FieldError::invalid(
            format!("{path}.path"),
            &item["path"],
            "must not contain '..'",
        ));
    }
}

fn downward(path: &str, source: &Value, errors: &mut Vec<FieldError>) {
    for (i, item) in list(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        required(&path, item, "path", errors);
        inside(&path, item, errors);
        if item["fieldRef"].is_object() {
            field_path(&format!("{path}.fieldRef"), &item["fieldRef"], true, errors);
        } else if item["resourceFieldRef"].is_null() {
            errors.push(FieldError::required(
                path,
                "one of fieldRef and resourceFieldRef is required",
            ));
        }
    }
}
