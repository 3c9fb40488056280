//! Cells of the plain kinds, and what the other kinds share.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;

pub(super) const NONE: &str = "<none>";
pub(super) const UNKNOWN: &str = "<unknown>";
pub(super) const UNSET: &str = "<unset>";

pub(super) fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

pub(super) fn created(object: &Value, now: Timestamp) -> Value {
    age::since(&object["metadata"]["creationTimestamp"], now).into()
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The text, or a placeholder when it is empty.
pub(super) fn or<'a>(value: &'a Value, placeholder: &'a str) -> &'a str {
    Some(text(value))
        .filter(|t| !t.is_empty())
        .unwrap_or(placeholder)
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn count(value: &Value) -> usize {
    value
        .as_object()
        .map_or_else(|| list(value).len(), serde_json::Map::len)
}

/// `a=b,c=d`
pub(super) fn labels(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten();
    let text = pairs
        .map(|(k, v)| format!("{k}={}", text(v)))
        .collect::<Vec<_>>()
        .join(",");
    if text.is_empty() { NONE.into() } else { text }
}

pub(super) fn name_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), created(object, now)]
}

/// Kinds without a printer: the creation time itself, which kubectl turns into an age.
pub(super) fn generic(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        object["metadata"]["creationTimestamp"].clone(),
    ]
}

pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(text(&object["status"]["phase"])),
        created(object, now),
    ]
}

pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(count(&object["data"]) + count(&object["binaryData"])),
        created(object, now),
    ]
}

pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(text(&object["type"])),
        json!(count(&object["data"])),
        created(object, now),
    ]
}

pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(text(&object["spec"]["holderIdentity"])),
        created(object, now),
    ]
}

pub(super) fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        object["handler"].clone(),
        created(object, now),
    ]
}

pub(super) fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(count(&object["webhooks"])),
        created(object, now),
    ]
}

pub(super) fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(object["value"].as_i64().unwrap_or(0)),
        json!(object["globalDefault"].as_bool().unwrap_or(false)),
        created(object, now),
        json!(text(&object["preemptionPolicy"])),
    ]
}

pub(super) fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let default = object["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"]
        == json!("true");
    let mut title = text(&object["metadata"]["name"]).to_owned();
    if default {
        title.push_str(" (default)");
    }
    vec![
        json!(title),
        object["provisioner"].clone(),
        json!(or(&object["reclaimPolicy"], "Delete")),
        json!(or(&object["volumeBindingMode"], UNSET)),
        json!(
            object["allowVolumeExpansion"]
                .as_bool()
                .unwrap_or(false)
                .to_string()
        ),
        created(object, now),
    ]
}

pub(super) fn role_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let of_kind = list(&object["subjects"])
            .iter()
            .filter(|s| s["kind"] == json!(kind));
        let names = of_kind.map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", text(&s["namespace"]), text(&s["name"])),
            _ => text(&s["name"]).to_owned(),
        });
        json!(names.collect::<Vec<_>>().join(", "))
    };
    vec![
        name(object),
        json!(format!(
            "{}/{}",
            text(&object["roleRef"]["kind"]),
            text(&object["roleRef"]["name"])
        )),
        created(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

pub(super) fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| {
        list(&object["status"]["conditions"])
            .iter()
            .any(|c| c["type"] == json!(kind))
    };
    let mut states = vec![if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }];
    if has("Failed") {
        states.push("Failed");
    }
    if !text(&object["status"]["certificate"]).is_empty() {
        states.push("Issued");
    }
    let wanted = object["spec"]["expirationSeconds"]
        .as_i64()
        .map_or_else(|| NONE.to_owned(), age::human_duration);
    vec![
        name(object),
        created(object, now),
        json!(or(&object["spec"]["signerName"], NONE)),
        json!(text(&object["spec"]["username"])),
        json!(wanted),
        json!(states.join(",")),
    ]
}

pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = list(&object["status"]["conditions"])
        .iter()
        .find(|c| c["type"] == json!("Ready"));
    let mut status = match ready.map(|c| text(&c["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object["spec"]["unschedulable"] == json!(true) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role).filter(|r| !r.is_empty()),
            None => (k == "kubernetes.io/role")
                .then(|| text(v))
                .filter(|r| !r.is_empty()),
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = list(&object["status"]["addresses"])
            .iter()
            .find(|a| a["type"] == json!(kind));
        json!(found.map_or(NONE, |a| text(&a["address"])))
    };
    let info = &object["status"]["nodeInfo"];
    let mut kernel = or(&info["kernelVersion"], UNKNOWN).to_owned();
    let architecture = text(&info["architecture"]);
    if !architecture.is_empty() {
        kernel = format!("{kernel} ({architecture})");
    }
    vec![
        name(object),
        json!(status),
        json!(if roles.is_empty() {
            NONE.to_owned()
        } else {
            roles.join(",")
        }),
        created(object, now),
        json!(text(&info["kubeletVersion"])),
        address("InternalIP"),
        address("ExternalIP"),
        json!(or(&info["osImage"], UNKNOWN)),
        json!(kernel),
        json!(or(&info["containerRuntimeVersion"], UNKNOWN)),
    ]
}

/// Events of both groups; either spelling of a field may be there.
pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let either = |a: &'static str, b: &'static str| {
        if object[a].is_null() {
            &object[b]
        } else {
            &object[a]
        }
    };
    let time = |candidates: &[&Value]| {
        let found = candidates.iter().find(|t| !text(t).is_empty());
        found.map_or_else(|| UNKNOWN.to_owned(), |t| age::since(t, now))
    };
    let event_time = &object["eventTime"];
    let first = either("firstTimestamp", "deprecatedFirstTimestamp");
    let last = either("lastTimestamp", "deprecatedLastTimestamp");
    let about = either("involvedObject", "regarding");
    let source = either("source", "deprecatedSource");
    let component = match (
        text(&source["component"]),
        text(&object["reportingComponent"]),
    ) {
        ("", "") => text(&object["reportingController"]),
        ("", reporting) => reporting,
        (component, _) => component,
    };
    let source = match text(&source["host"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    let series = &object["series"];
    let count = series["count"]
        .as_i64()
        .or_else(|| either("count", "deprecatedCount").as_i64())
        .filter(|n| *n > 0);
    let mut target = text(&about["kind"]).to_lowercase();
    if !text(&about["name"]).is_empty() {
        target = format!("{target}/{}", text(&about["name"]));
    }
    vec![
        json!(time(&[
            &series["lastObservedTime"],
            last,
            first,
            event_time
        ])),
        json!(text(&object["type"])),
        json!(text(&object["reason"])),
        json!(target),
        json!(text(&about["fieldPath"])),
        json!(source),
        json!(text(either("message", "note")).trim()),
        json!(time(&[first, event_time])),
        json!(count.unwrap_or(1)),
        name(object),
    ]
}

fn access_modes(modes: &Value) -> String {
    let short = list(modes).iter().map(|m| match text(m) {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    });
    short.collect::<Vec<_>>().join(",")
}

fn phase(object: &Value) -> &str {
    if object["metadata"]["deletionTimestamp"].is_null() {
        text(&object["status"]["phase"])
    } else {
        "Terminating"
    }
}

pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let bound = !text(&spec["volumeName"]).is_empty();
    let capacity = if bound {
        text(&status["capacity"]["storage"])
    } else {
        ""
    };
    vec![
        name(object),
        json!(phase(object)),
        json!(text(&spec["volumeName"])),
        json!(capacity),
        json!(if bound {
            access_modes(&status["accessModes"])
        } else {
            String::new()
        }),
        json!(text(&spec["storageClassName"])),
        json!(or(&spec["volumeAttributesClassName"], UNSET)),
        created(object, now),
        json!(or(&spec["volumeMode"], UNSET)),
    ]
}

pub(super) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let claim = match &spec["claimRef"] {
        Value::Null => String::new(),
        claim => format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])),
    };
    vec![
        name(object),
        json!(text(&spec["capacity"]["storage"])),
        json!(access_modes(&spec["accessModes"])),
        json!(text(&spec["persistentVolumeReclaimPolicy"])),
        json!(phase(object)),
        json!(claim),
        json!(text(&spec["storageClassName"])),
        json!(or(&spec["volumeAttributesClassName"], UNSET)),
        json!(text(&object["status"]["reason"])),
        created(object, now),
        json!(or(&spec["volumeMode"], UNSET)),
    ]
}
