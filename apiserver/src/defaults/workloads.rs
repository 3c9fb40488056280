//! Controllers of pods.

use serde_json::{Value, json};

use super::{Object, at, default, each, made, pod};

pub(super) fn replica_set(object: &mut Object) {
    if let Some(spec) = made(object, "spec") {
        default(spec, "replicas", json!(1));
        pod::template(spec, "template");
    }
}

pub(super) fn deployment(object: &mut Object) {
    let Some(spec) = made(object, "spec") else {
        return;
    };
    default(spec, "replicas", json!(1));
    default(spec, "revisionHistoryLimit", json!(10));
    default(spec, "progressDeadlineSeconds", json!(600));
    if let Some(strategy) = made(spec, "strategy") {
        default(strategy, "type", json!("RollingUpdate"));
        if strategy.get("type") == Some(&json!("RollingUpdate"))
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", json!("25%"));
            default(rolling, "maxSurge", json!("25%"));
        }
    }
    pod::template(spec, "template");
}

pub(super) fn daemon_set(object: &mut Object) {
    if let Some(meta) = made(object, "metadata").and_then(|m| made(m, "annotations")) {
        default(meta, "deprecated.daemonset.template.generation", json!("1"));
    }
    let Some(spec) = made(object, "spec") else {
        return;
    };
    default(spec, "revisionHistoryLimit", json!(10));
    if let Some(strategy) = made(spec, "updateStrategy") {
        default(strategy, "type", json!("RollingUpdate"));
        if strategy.get("type") == Some(&json!("RollingUpdate"))
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", json!(1));
            default(rolling, "maxSurge", json!(0));
        }
    }
    pod::template(spec, "template");
}

pub(super) fn stateful_set(object: &mut Object) {
    let Some(spec) = made(object, "spec") else {
        return;
    };
    default(spec, "replicas", json!(1));
    default(spec, "podManagementPolicy", json!("OrderedReady"));
    default(spec, "revisionHistoryLimit", json!(10));
    if let Some(strategy) = made(spec, "updateStrategy") {
        default(strategy, "type", json!("RollingUpdate"));
        if strategy.get("type") == Some(&json!("RollingUpdate"))
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            default(rolling, "partition", json!(0));
        }
    }
    if let Some(policy) = made(spec, "persistentVolumeClaimRetentionPolicy") {
        default(policy, "whenDeleted", json!("Retain"));
        default(policy, "whenScaled", json!("Retain"));
    }
    for claim in each(spec, "volumeClaimTemplates") {
        default(claim, "kind", json!("PersistentVolumeClaim"));
        default(claim, "apiVersion", json!("v1"));
        claim_spec(claim);
    }
    pod::template(spec, "template");
}

/// A claim, or the template of one.
pub(super) fn claim_spec(claim: &mut Object) {
    if let Some(spec) = made(claim, "spec") {
        default(spec, "volumeMode", json!("Filesystem"));
    }
    if let Some(status) = made(claim, "status") {
        default(status, "phase", json!("Pending"));
    }
}

/// The labels a job's pods are found by need its uid and name.
pub(super) fn job(object: &mut Object) {
    let meta = |field: &str| {
        object
            .get("metadata")
            .and_then(|m| m[field].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let (uid, name) = (meta("uid"), meta("name"));
    let labels = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    let Some(spec) = made(object, "spec") else {
        return;
    };
    job_spec(spec);
    default(spec, "manualSelector", json!(false));
    default(spec, "suspend", json!(false));
    default(spec, "completionMode", json!("NonIndexed"));
    default(spec, "backoffLimit", json!(6));
    default(
        spec,
        "podReplacementPolicy",
        if spec_has(spec, "podFailurePolicy") {
            json!("Failed")
        } else {
            json!("TerminatingOrFailed")
        },
    );
    if spec.get("manualSelector") == Some(&json!(true)) || uid.is_empty() || name.is_empty() {
        return;
    }
    if let Some(selector) = made(spec, "selector").and_then(|s| made(s, "matchLabels")) {
        default(selector, "batch.kubernetes.io/controller-uid", json!(uid));
    }
    if let Some(template) = at(spec, "template")
        .and_then(|t| made(t, "metadata"))
        .and_then(|m| made(m, "labels"))
    {
        for (key, value) in &labels {
            default(template, key, json!(value));
        }
    }
    if let Some(own) = made(object, "metadata").and_then(|m| made(m, "labels")) {
        for (key, value) in &labels {
            default(own, key, json!(value));
        }
    }
}

fn spec_has(spec: &Object, key: &str) -> bool {
    spec.get(key).is_some_and(|v| !v.is_null())
}

/// One completion of one pod unless anything is said; no default restart policy, which must be explicit.
fn job_spec(spec: &mut Object) {
    if !spec_has(spec, "completions") && !spec_has(spec, "parallelism") {
        spec.insert("completions".into(), json!(1));
    }
    default(spec, "parallelism", json!(1));
    job_template(spec);
}

fn job_template(spec: &mut Object) {
    let policy = |spec: &Object| {
        spec.get("template")
            .and_then(|t| t["spec"]["restartPolicy"].as_str())
            .map(str::to_owned)
    };
    let explicit = policy(spec).as_ref().is_some_and(|p| !p.is_empty());
    pod::template(spec, "template");
    if !explicit && let Some(pod) = at(spec, "template").and_then(|t| at(t, "spec")) {
        // The reference defaults it to Always and then refuses that; the refusal reads "Required value" either way.
        pod.remove("restartPolicy");
    }
}

pub(super) fn cron_job(object: &mut Object) {
    let Some(spec) = made(object, "spec") else {
        return;
    };
    for (key, value) in [
        ("concurrencyPolicy", json!("Allow")),
        ("suspend", json!(false)),
        ("successfulJobsHistoryLimit", json!(3)),
        ("failedJobsHistoryLimit", json!(1)),
    ] {
        default(spec, key, value);
    }
    if let Some(template) = made(spec, "jobTemplate") {
        default(template, "metadata", Value::Object(Object::new()));
        if let Some(spec) = made(template, "spec") {
            job_template(spec);
        }
    }
}
