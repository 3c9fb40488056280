//! Rows of the controllers of pods.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;
use super::cells::{NONE, created, labels, list, name, or, text};
use crate::selector::LabelSelector;

fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// A metav1 selector, or the plain map of a replication controller, in canonical text.
pub(super) fn selector(value: &Value) -> String {
    let object = value.get("matchLabels").is_some() || value.get("matchExpressions").is_some();
    if !object {
        return labels(value);
    }
    match LabelSelector::from_object(value).map(|s| s.to_string()) {
        Some(text) if !text.is_empty() => text,
        _ => NONE.into(),
    }
}

/// Containers, images.
fn containers(template: &Value) -> [Value; 2] {
    let all = list(&template["spec"]["containers"]);
    let join = |key: &str| {
        json!(
            all.iter()
                .map(|c| text(&c[key]))
                .collect::<Vec<_>>()
                .join(",")
        )
    };
    [join("name"), join("image")]
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        json!(int(&spec["replicas"])),
        json!(int(&status["replicas"])),
        json!(int(&status["readyReplicas"])),
        created(object, now),
        names,
        images,
        json!(selector(&spec["selector"])),
    ]
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        json!(format!(
            "{}/{}",
            int(&status["readyReplicas"]),
            int(&spec["replicas"])
        )),
        json!(int(&status["updatedReplicas"])),
        json!(int(&status["availableReplicas"])),
        created(object, now),
        names,
        images,
        json!(selector(&spec["selector"])),
    ]
}

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        json!(int(&status["desiredNumberScheduled"])),
        json!(int(&status["currentNumberScheduled"])),
        json!(int(&status["numberReady"])),
        json!(int(&status["updatedNumberScheduled"])),
        json!(int(&status["numberAvailable"])),
        json!(labels(&spec["template"]["spec"]["nodeSelector"])),
        created(object, now),
        names,
        images,
        json!(selector(&spec["selector"])),
    ]
}

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(&object["spec"]["template"]);
    let ready = format!(
        "{}/{}",
        int(&object["status"]["readyReplicas"]),
        int(&object["spec"]["replicas"])
    );
    vec![
        name(object),
        json!(ready),
        created(object, now),
        names,
        images,
    ]
}

pub(super) fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = list(&object["metadata"]["ownerReferences"])
        .iter()
        .find(|o| o["controller"] == json!(true));
    let owner = owner.map_or_else(
        || NONE.to_owned(),
        |o| {
            let group = text(&o["apiVersion"])
                .split_once('/')
                .map_or(String::new(), |(g, _)| format!(".{g}"));
            format!(
                "{}{group}/{}",
                text(&o["kind"]).to_lowercase(),
                text(&o["name"])
            )
        },
    );
    vec![
        name(object),
        json!(owner),
        json!(int(&object["revision"])),
        created(object, now),
    ]
}

pub(super) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let done = int(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), spec["parallelism"].as_i64()) {
        (Some(n), _) => format!("{done}/{n}"),
        (None, Some(p)) if p > 1 => format!("{done}/1 of {p}"),
        _ => format!("{done}/1"),
    };
    let time = |field: &str| {
        status[field]
            .as_str()
            .and_then(|t| t.parse::<Timestamp>().ok())
    };
    let duration = time("startTime").map_or_else(String::new, |start| {
        age::human_duration(age::seconds_between(
            start,
            time("completionTime").unwrap_or(now),
        ))
    });
    let has = |kind: &str| {
        list(&status["conditions"])
            .iter()
            .any(|c| c["type"] == json!(kind) && c["status"] == json!("True"))
    };
    let state = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !object["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"]
            .into_iter()
            .find(|k| has(k))
            .unwrap_or("Running")
    };
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        json!(state),
        json!(completions),
        json!(duration),
        created(object, now),
        names,
        images,
        json!(selector(&spec["selector"])),
    ]
}

pub(super) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let last = match text(&status["lastScheduleTime"]) {
        "" => NONE.to_owned(),
        _ => age::since(&status["lastScheduleTime"], now),
    };
    let job = &spec["jobTemplate"]["spec"];
    let [names, images] = containers(&job["template"]);
    vec![
        name(object),
        json!(text(&spec["schedule"])),
        json!(or(&spec["timeZone"], NONE)),
        json!(if spec["suspend"] == json!(true) {
            "True"
        } else {
            "False"
        }),
        json!(list(&status["active"]).len()),
        json!(last),
        created(object, now),
        names,
        images,
        json!(selector(&job["selector"])),
    ]
}

pub(super) fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let amount = |key: &str| match &object["spec"][key] {
        Value::Null => json!("N/A"),
        Value::String(percent) => json!(percent),
        number => json!(number.to_string()),
    };
    vec![
        name(object),
        amount("minAvailable"),
        amount("maxUnavailable"),
        json!(int(&object["status"]["disruptionsAllowed"])),
        created(object, now),
    ]
}
