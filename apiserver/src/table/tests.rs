use std::collections::BTreeMap;

use super::*;

fn now() -> Timestamp {
    "2026-11-21T04:00:00Z".parse().unwrap()
}

fn cells(group: &str, plural: &str, object: &Value) -> Value {
    let spec = spec_for(group, plural);
    let table = render(
        &spec,
        std::slice::from_ref(object),
        &Companions::new(),
        now(),
        IncludeObject::None,
    );
    let cells = table["rows"][0]["cells"].clone();
    assert_eq!(
        cells.as_array().unwrap().len(),
        spec.columns.len(),
        "{plural}"
    );
    cells
}

/// Column definitions of the reference server, for every kind we print ourselves.
#[test]
fn recorded_columns() {
    let recorded: BTreeMap<String, String> =
        serde_json::from_str(include_str!("../../tests/data/columns.json")).unwrap();
    assert!(recorded.len() > 30);
    for (resource, wanted) in recorded {
        let (group, plural) = resource.split_once('/').unwrap();
        let spec = spec_for(group, plural);
        let ours: Vec<String> = spec
            .columns
            .iter()
            .map(|c| format!("{}:{}/{}*{}", c.name, c.kind, c.format, c.priority))
            .collect();
        assert_eq!(ours.join(","), wanted, "{resource}");
        // An empty object fills every column too.
        cells(group, plural, &json!({}));
    }
}

/// The custom resource of the recordings: every column type, missing and mistyped values.
#[test]
fn recorded_custom_resource() {
    let version = json!({"additionalPrinterColumns": [
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Ratio", "type": "number", "format": "float", "jsonPath": ".spec.ratio"},
        {"name": "On", "type": "boolean", "jsonPath": ".spec.on"},
        {"name": "When", "type": "date", "jsonPath": ".spec.when"},
        {"name": "Tags", "type": "string", "jsonPath": ".spec.tags", "priority": 1, "description": "the tags"},
        {"name": "Tag0", "type": "string", "jsonPath": ".spec.tags[0]"},
        {"name": "AllTags", "type": "string", "jsonPath": ".spec.tags[*]"},
        {"name": "M", "type": "string", "jsonPath": ".spec.m"},
        {"name": "Missing", "type": "string", "jsonPath": ".status.phase"},
        {"name": "Bad", "type": "integer", "jsonPath": ".spec.name"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]});
    let object = json!({"metadata": {"name": "a", "creationTimestamp": "2026-11-21T03:57:25Z"}, "spec": {"size": 3, "ratio": 1.5,
        "on": true, "when": "2026-01-01T00:00:00Z", "tags": ["x", "y"], "m": {"q": [1, 2]}, "name": "abc"}});
    let now = "2026-11-21T03:57:25Z".parse().unwrap();
    let table = render(
        &crd_spec("", "", &version),
        &[object],
        &Companions::new(),
        now,
        IncludeObject::Metadata,
    );
    assert_eq!(
        table["rows"][0]["cells"],
        json!([
            "a",
            3,
            1.5,
            true,
            "324d",
            "[\"x\",\"y\"]",
            "x",
            "x",
            "{\"q\":[1,2]}",
            null,
            null,
            "0s"
        ])
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["columnDefinitions"][5]["description"], "the tags");
    assert_eq!(
        table["columnDefinitions"][1]["description"],
        "Custom resource definition column (in JSONPath format): .spec.size"
    );
    let plain = crd_spec("", "", &json!({"name": "v1"}));
    assert_eq!(
        plain
            .columns
            .iter()
            .map(|c| c.name.as_str())
            .collect::<Vec<_>>(),
        ["Name", "Age"]
    );
}

fn pod_status(object: &Value) -> [String; 3] {
    let cells = cells("", "pods", object);
    [1, 2, 3].map(|i| cells[i].as_str().unwrap().to_owned())
}

#[test]
fn pods() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "n"});
    let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
    let ready = json!([{"type": "Ready", "status": "True"}]);
    for (object, expected) in [
        (
            json!({"spec": spec, "status": {"phase": "Pending"}}),
            ["0/2", "Pending", "0"],
        ),
        (
            json!({"spec": spec, "status": {"phase": "Running", "conditions": ready, "containerStatuses": [running, running]}}),
            ["2/2", "Running", "0"],
        ),
        (
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [running,
                {"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-11-21T03:55:00Z"}}}]}}),
            ["1/2", "CrashLoopBackOff", "3 (5m ago)"],
        ),
        (
            json!({"spec": spec, "status": {"phase": "Succeeded", "containerStatuses": [
                {"restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}}),
            ["0/2", "Completed", "0"],
        ),
        (
            json!({"spec": spec, "status": {"phase": "Failed", "containerStatuses": [{"restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]}}),
            ["0/2", "ExitCode:3", "0"],
        ),
        (
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [running,
                {"restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}}),
            ["1/2", "NotReady", "0"],
        ),
        (
            json!({"metadata": {"deletionTimestamp": "2026-11-21T03:55:00Z"}, "spec": spec, "status": {"phase": "Running", "containerStatuses": [running]}}),
            ["1/2", "Terminating", "0"],
        ),
        (
            json!({"metadata": {"deletionTimestamp": "2026-11-21T03:55:00Z"}, "spec": spec, "status": {"phase": "Running", "reason": "NodeLost"}}),
            ["0/2", "Unknown", "0"],
        ),
        (
            json!({"spec": {"containers": [{}], "initContainers": [{"name": "i"}, {"name": "j"}]}, "status": {"phase": "Pending",
                "initContainerStatuses": [{"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}},
                    {"name": "j", "restartCount": 1, "state": {"running": {}}}],
                "containerStatuses": [{"restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}]}}),
            ["0/1", "Init:1/2", "1"],
        ),
        (
            json!({"spec": {"containers": [{}], "initContainers": [{"name": "i"}]}, "status": {"phase": "Pending",
                "initContainerStatuses": [{"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}}),
            ["0/1", "Init:Error", "0"],
        ),
        (
            json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]}, "status": {"phase": "Running",
                "initContainerStatuses": [{"name": "s", "restartCount": 2, "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [running]}}),
            ["2/2", "Running", "2"],
        ),
    ] {
        assert_eq!(pod_status(&object), expected, "{object}");
    }
}

#[test]
fn finished_pods_carry_a_condition() {
    let pod = json!({"spec": {"containers": []}, "status": {"phase": "Failed"}});
    let table = render(
        &spec_for("", "pods"),
        &[pod],
        &Companions::new(),
        now(),
        IncludeObject::Object,
    );
    assert_eq!(
        table["rows"][0]["conditions"],
        json!([{"type": "Completed", "status": "True", "reason": "Failed", "message": "The pod failed."}])
    );
}

#[test]
fn other_kinds() {
    let meta = json!({"name": "x", "creationTimestamp": "2026-11-21T03:58:00Z"});
    let node = json!({"metadata": {"name": "fk1", "creationTimestamp": "2026-11-21T03:27:00Z", "labels": {"node-role.kubernetes.io/edge": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.32.10", "osImage": "Debian GNU/Linux 12", "kernelVersion": "6.1.0", "architecture": "amd64",
                "containerRuntimeVersion": "containerd://1.7.0"}}});
    assert_eq!(
        cells("", "nodes", &node),
        json!([
            "fk1",
            "Ready,SchedulingDisabled",
            "edge",
            "33m",
            "v1.32.10",
            "127.0.0.1",
            "<none>",
            "Debian GNU/Linux 12",
            "6.1.0 (amd64)",
            "containerd://1.7.0"
        ])
    );
    let config = json!({"metadata": meta, "data": {"a": "1"}, "binaryData": {"b": "eA=="}});
    assert_eq!(cells("", "configmaps", &config), json!(["x", 2, "2m"]));
    let deployment = json!({"metadata": meta, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"spec": {"containers": [{"name": "c", "image": "i:1"}]}}}, "status": {"readyReplicas": 1, "updatedReplicas": 2}});
    assert_eq!(
        cells("apps", "deployments", &deployment),
        json!(["x", "1/2", 2, 0, "2m", "c", "i:1", "app=web"])
    );
    let service = json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 32141, "protocol": "TCP"}]}});
    assert_eq!(
        cells("", "services", &service),
        json!([
            "x",
            "NodePort",
            "10.0.0.1",
            "<none>",
            "80:32141/TCP",
            "2m",
            "<none>"
        ])
    );
    let event = json!({"metadata": meta, "involvedObject": {"kind": "Pod", "name": "p"}, "reason": "R", "message": "m", "type": "Normal",
        "lastTimestamp": "2026-11-21T03:59:27Z", "firstTimestamp": null, "source": {"component": "c", "host": "h"}});
    assert_eq!(
        cells("", "events", &event),
        json!([
            "33s",
            "Normal",
            "R",
            "pod/p",
            "",
            "c, h",
            "m",
            "<unknown>",
            1,
            "x"
        ])
    );
    assert_eq!(
        cells("x.io", "unknowns", &json!({"metadata": meta})),
        json!(["x", "2026-11-21T03:58:00Z"])
    );
}

#[test]
fn include_object() {
    assert_eq!(IncludeObject::parse(""), Ok(IncludeObject::Metadata));
    assert_eq!(
        IncludeObject::parse("x").unwrap_err(),
        "Unable to convert to Table as requested: includeObject: Invalid value: \"x\": must be 'Metadata', 'Object', 'None', or empty"
    );
}
