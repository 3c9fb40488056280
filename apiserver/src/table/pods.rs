//! The pod's row: a port of `printPod` of the reference.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;
use super::cells::{NONE, created, list, name, or, text};

struct Seen {
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
    ready: usize,
}

pub(super) fn pod(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let sidecars = list(&spec["initContainers"])
        .iter()
        .filter(|c| restartable(c))
        .count();
    let total = list(&spec["containers"]).len() + sidecars;
    let seen = look(object);
    let terminal = matches!(text(&status["phase"]), "Succeeded" | "Failed");
    let leaving = !object["metadata"]["deletionTimestamp"].is_null();
    let reason = match (leaving, text(&status["reason"])) {
        (true, "NodeLost") => "Unknown",
        (true, _) if !terminal => "Terminating",
        _ => &seen.reason,
    };
    let restarts = match seen.last_restart {
        Some(last) if seen.restarts != 0 => {
            format!(
                "{} ({} ago)",
                seen.restarts,
                age::human_duration(age::seconds_between(last, now))
            )
        }
        _ => seen.restarts.to_string(),
    };
    let ip = list(&status["podIPs"])
        .first()
        .map_or(&status["podIP"], |ip| &ip["ip"]);
    vec![
        name(object),
        json!(format!("{}/{total}", seen.ready)),
        json!(reason),
        json!(restarts),
        created(object, now),
        json!(or(ip, NONE)),
        json!(or(&spec["nodeName"], NONE)),
        json!(or(&status["nominatedNodeName"], NONE)),
        json!(gates(object)),
    ]
}

fn gates(object: &Value) -> String {
    let gates = list(&object["spec"]["readinessGates"]);
    if gates.is_empty() {
        return NONE.into();
    }
    let met = gates
        .iter()
        .filter(|g| condition(&object["status"], text(&g["conditionType"])) == Some("True"))
        .count();
    format!("{met}/{}", gates.len())
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a str> {
    let found = list(&status["conditions"])
        .iter()
        .find(|c| text(&c["type"]) == kind)?;
    found["status"].as_str()
}

/// An init container that keeps running: a sidecar.
fn restartable(container: &Value) -> bool {
    container["restartPolicy"] == json!("Always")
}

fn ended(container: &Value) -> Option<Timestamp> {
    container["lastState"]["terminated"]["finishedAt"]
        .as_str()?
        .parse()
        .ok()
}

/// Why a terminated container ended, in the words of the status column.
fn termination(terminated: &Value) -> String {
    match (
        text(&terminated["reason"]),
        terminated["signal"].as_i64().unwrap_or(0),
    ) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn look(object: &Value) -> Seen {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut reason = or(&status["reason"], text(&status["phase"])).to_owned();
    let gated =
        |c: &Value| c["type"] == json!("PodScheduled") && c["reason"] == json!("SchedulingGated");
    if list(&status["conditions"]).iter().any(gated) {
        reason = "SchedulingGated".into();
    }
    let mut all = Seen {
        reason,
        restarts: 0,
        last_restart: None,
        ready: 0,
    };
    let (mut sidecar_restarts, mut sidecar_last) = (0, None);
    let init = list(&spec["initContainers"]);
    let mut initializing = false;
    for (i, container) in list(&status["initContainerStatuses"]).iter().enumerate() {
        let count = container["restartCount"].as_i64().unwrap_or(0);
        all.restarts += count;
        all.last_restart = all.last_restart.max(ended(container));
        let sidecar = init
            .iter()
            .any(|c| c["name"] == container["name"] && restartable(c));
        if sidecar {
            sidecar_restarts += count;
            sidecar_last = sidecar_last.max(ended(container));
        }
        let state = &container["state"];
        let (terminated, waiting) = (&state["terminated"], text(&state["waiting"]["reason"]));
        if !terminated.is_null() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && container["started"] == json!(true) {
            all.ready += usize::from(container["ready"] == json!(true));
            continue;
        }
        all.reason = if !terminated.is_null() {
            format!("Init:{}", termination(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", init.len())
        };
        initializing = true;
        break;
    }
    if !initializing || condition(status, "Initialized") == Some("True") {
        all.restarts = sidecar_restarts;
        all.last_restart = sidecar_last;
        containers(status, &mut all);
    }
    all
}

/// Scans the main containers from the last to the first.
fn containers(status: &Value, all: &mut Seen) {
    let mut running = false;
    let mut error = None;
    for container in list(&status["containerStatuses"]).iter().rev() {
        all.restarts += container["restartCount"].as_i64().unwrap_or(0);
        all.last_restart = all.last_restart.max(ended(container));
        let state = &container["state"];
        let waiting = text(&state["waiting"]["reason"]);
        if !waiting.is_empty() {
            waiting.clone_into(&mut all.reason);
        } else if !state["terminated"].is_null() {
            all.reason = termination(&state["terminated"]);
            if state["terminated"]["exitCode"].as_i64().unwrap_or(0) != 0 {
                error = Some(all.reason.clone());
            }
        } else if container["ready"] == json!(true) && !state["running"].is_null() {
            running = true;
            all.ready += 1;
        }
    }
    if all.reason == "Completed" {
        if running && condition(status, "Ready") == Some("True") {
            all.reason = "Running".into();
        } else if let Some(error) = error {
            all.reason = error;
        } else if running {
            all.reason = "NotReady".into();
        }
    }
}
