//! Controllers of pods.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use serde_json::{Value, json};

use super::{FieldError, list, meta, not_negative, one_of, pod, text};
use crate::names;
use crate::selector::LabelSelector;

/// A metav1 selector. `None` when it is absent or does not make sense.
fn selector(path: &str, selector: &Value, errors: &mut Vec<FieldError>) -> Option<LabelSelector> {
    if selector.is_null() {
        errors.push(FieldError::required(path, ""));
        return None;
    }
    let before = errors.len();
    errors.extend(meta::labels(
        &format!("{path}.matchLabels"),
        &selector["matchLabels"],
    ));
    for (i, expression) in list(&selector["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = list(&expression["values"]);
        match text(&expression["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            operator => {
                errors.push(FieldError::invalid(
                    format!("{path}.operator"),
                    &json!(operator),
                    "not a valid selector operator",
                ));
            }
        }
        let key = text(&expression["key"]);
        for why in names::qualified_name(key) {
            errors.push(FieldError::invalid(
                format!("{path}.key"),
                &expression["key"],
                &why,
            ));
        }
    }
    (errors.len() == before)
        .then(|| LabelSelector::from_object(selector))
        .flatten()
}

/// Selector and template together: the one must select the other.
fn selected_template(kind: &str, spec: &Value, errors: &mut Vec<FieldError>) {
    let before = errors.len();
    let found = selector("spec.selector", &spec["selector"], errors);
    let labels = &spec["template"]["metadata"]["labels"];
    let mismatch = |errors: &mut Vec<FieldError>| {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        ));
    };
    match found {
        Some(found) if found.is_empty() => {
            let why = format!("empty selector is invalid for {kind}");
            errors.push(FieldError::invalid(
                "spec.selector",
                &spec["selector"],
                &why,
            ));
        }
        Some(found) if !found.matches(Some(labels)) => mismatch(errors),
        Some(_) => {}
        // An absent selector selects nothing, so the labels do not match either.
        None if spec["selector"].is_null() => mismatch(errors),
        None if errors.len() > before => {
            errors.push(FieldError::invalid(
                "spec.selector",
                &spec["selector"],
                "invalid label selector",
            ));
        }
        None => {}
    }
    template("spec.template", &spec["template"], errors);
}

fn template(path: &str, template: &Value, errors: &mut Vec<FieldError>) {
    errors.extend(meta::labels(
        &format!("{path}.labels"),
        &template["metadata"]["labels"],
    ));
    errors.extend(meta::annotations(
        &format!("{path}.annotations"),
        &template["metadata"]["annotations"],
    ));
    pod::spec(&format!("{path}.spec"), &template["spec"], errors);
}

/// Templates whose pods are replaced when they end.
fn always(spec: &Value, errors: &mut Vec<FieldError>) {
    let pod = &spec["template"]["spec"];
    let policy = &pod["restartPolicy"];
    if matches!(text(policy), "OnFailure" | "Never") {
        errors.push(FieldError::unsupported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
    if !pod["activeDeadlineSeconds"].is_null() {
        errors.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

pub(super) fn replica_set(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    not_negative("spec.replicas".into(), &spec["replicas"], errors);
    not_negative(
        "spec.minReadySeconds".into(),
        &spec["minReadySeconds"],
        errors,
    );
    selected_template("replica set", spec, errors);
    always(spec, errors);
}

pub(super) fn deployment(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    for field in [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        not_negative(format!("spec.{field}"), &spec[field], errors);
    }
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64()
        && deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0)
    {
        let why = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            &spec["progressDeadlineSeconds"],
            why,
        ));
    }
    let strategy = &spec["strategy"];
    match text(&strategy["type"]) {
        "Recreate" => {
            if !strategy["rollingUpdate"].is_null() {
                let why = "may not be specified when strategy `type` is 'Recreate'";
                errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", why));
            }
        }
        "RollingUpdate" => rolling(
            "spec.strategy.rollingUpdate",
            &strategy["rollingUpdate"],
            errors,
        ),
        other => {
            let value = json!({"Type": other, "RollingUpdate": strategy["rollingUpdate"]});
            errors.push(FieldError::unsupported(
                "spec.strategy",
                &value,
                &["Recreate", "RollingUpdate"],
            ));
        }
    }
    selected_template("deployment", spec, errors);
    always(spec, errors);
}

fn rolling(path: &str, rolling: &Value, errors: &mut Vec<FieldError>) {
    for field in ["maxUnavailable", "maxSurge"] {
        amount(&format!("{path}.{field}"), &rolling[field], errors);
    }
    let zero = |v: &Value| matches!(v.as_i64(), Some(0)) || v.as_str() == Some("0%");
    if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
        let why = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(
            format!("{path}.maxUnavailable"),
            &rolling["maxUnavailable"],
            why,
        ));
    }
}

/// A count or a percentage.
fn amount(path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    match value {
        Value::String(percent) => {
            let digits = percent.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                errors.push(FieldError::invalid(path, value, why));
            }
        }
        _ => not_negative(path.to_owned(), value, errors),
    }
}

pub(super) fn daemon_set(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    selected_template("daemonset", spec, errors);
    always(spec, errors);
    not_negative(
        "spec.minReadySeconds".into(),
        &spec["minReadySeconds"],
        errors,
    );
    match text(&spec["updateStrategy"]["type"]) {
        "RollingUpdate" => {
            let path = "spec.updateStrategy.rollingUpdate";
            for field in ["maxUnavailable", "maxSurge"] {
                amount(
                    &format!("{path}.{field}"),
                    &spec["updateStrategy"]["rollingUpdate"][field],
                    errors,
                );
            }
        }
        _ => one_of(
            "spec.updateStrategy.type".into(),
            &spec["updateStrategy"]["type"],
            &["OnDelete", "RollingUpdate"],
            errors,
        ),
    }
}

pub(super) fn stateful_set(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    not_negative("spec.replicas".into(), &spec["replicas"], errors);
    one_of(
        "spec.podManagementPolicy".into(),
        &spec["podManagementPolicy"],
        &["OrderedReady", "Parallel"],
        errors,
    );
    one_of(
        "spec.updateStrategy.type".into(),
        &spec["updateStrategy"]["type"],
        &["RollingUpdate", "OnDelete"],
        errors,
    );
    selected_template("statefulset", spec, errors);
    always(spec, errors);
}

pub(super) fn job(path: &str, spec: &Value, errors: &mut Vec<FieldError>) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
    ] {
        not_negative(format!("{path}.{field}"), &spec[field], errors);
    }
    one_of(
        format!("{path}.completionMode"),
        &spec["completionMode"],
        &["Indexed", "NonIndexed"],
        errors,
    );
    template(&format!("{path}.template"), &spec["template"], errors);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    match text(policy) {
        "OnFailure" | "Never" => {}
        "" | "Always" => errors.push(FieldError::required(
            format!("{path}.template.spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        )),
        _ => errors.push(FieldError::unsupported(
            format!("{path}.template.spec.restartPolicy"),
            policy,
            &["OnFailure", "Never"],
        )),
    }
}

pub(super) fn cron_job(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    let schedule = text(&spec["schedule"]);
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else if !schedule.starts_with('@') && fields.len() != 5 {
        let why = format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        );
        errors.push(FieldError::invalid(
            "spec.schedule",
            &spec["schedule"],
            &why,
        ));
    }
    match text(&spec["concurrencyPolicy"]) {
        "" => errors.push(FieldError::required("spec.concurrencyPolicy", "")),
        _ => one_of(
            "spec.concurrencyPolicy".into(),
            &spec["concurrencyPolicy"],
            &["Allow", "Forbid", "Replace"],
            errors,
        ),
    }
    for field in [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ] {
        not_negative(format!("spec.{field}"), &spec[field], errors);
    }
    job(
        "spec.jobTemplate.spec",
        &spec["jobTemplate"]["spec"],
        errors,
    );
}
