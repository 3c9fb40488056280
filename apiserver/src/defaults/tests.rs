use super::*;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    r#in: Value,
    out: Value,
}

/// Minimal objects sent to the reference server and what it stored. Allocated addresses are left out.
#[test]
fn recorded() {
    let mut n = 0;
    let mut wrong = Vec::new();
    for line in include_str!("../../tests/data/defaults.jsonl").lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let mut object = case.r#in;
        let text = |f: &str| case.out[f].as_str().unwrap().to_owned();
        apply(&text("apiVersion"), &text("kind"), &mut object);
        if text("kind") == "Pod" {
            pod_admission(&mut object);
        }
        let once = object.clone();
        apply(&text("apiVersion"), &text("kind"), &mut object);
        assert_eq!(once, object, "{}: defaulting twice differs", case.name);
        if object != case.out {
            wrong.push(format!(
                "{}\n  ours {object}\n  real {}",
                case.name, case.out
            ));
        }
        n += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(n > 35, "{n}");
}

#[test]
fn canonical_values() {
    let mut pod = json!({"metadata": {"creationTimestamp": null, "labels": {}}, "spec": {"hostNetwork": false, "nodeName": "",
        "containers": [{"name": "c", "image": "x:1", "args": [], "env": [{"name": "a", "value": ""}],
            "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}, "livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 5.0}}],
        "terminationGracePeriodSeconds": 0}});
    apply("v1", "Pod", &mut pod);
    pod_admission(&mut pod);
    assert_eq!(pod["metadata"], json!({}));
    let spec = &pod["spec"];
    assert_eq!(
        (&spec["hostNetwork"], &spec["nodeName"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(spec["terminationGracePeriodSeconds"], 0); // a pointer: zero is a value
    let container = &spec["containers"][0];
    assert_eq!(
        container["resources"],
        json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}})
    );
    assert_eq!(container["env"], json!([{"name": "a"}]));
    assert_eq!(container["livenessProbe"]["periodSeconds"], json!(5));
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
}

/// The token volume comes only when it is asked for.
#[test]
fn token_volume() {
    let pod = |automount: Value| {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"automountServiceAccountToken": automount, "containers": [{"name": "c"}]}});
        apply("v1", "Pod", &mut pod);
        pod_admission(&mut pod);
        pod
    };
    assert_eq!(pod(Value::Null)["spec"]["volumes"], Value::Null);
    let with = pod(json!(true));
    assert_eq!(
        with["spec"]["volumes"][0]["name"],
        with["spec"]["containers"][0]["volumeMounts"][0]["name"]
    );
}

#[test]
fn tolerations_are_not_doubled() {
    let mut pod = json!({"spec": {"containers": [], "tolerations": [{"operator": "Exists"}]}});
    pod_admission(&mut pod);
    assert_eq!(pod["spec"]["tolerations"], json!([{"operator": "Exists"}]));
}

#[test]
fn other_kinds_are_left_alone() {
    let mut thing = json!({"spec": {"a": null}});
    apply("ex.io/v1", "Thing", &mut thing);
    assert_eq!(thing, json!({"spec": {"a": null}}));
}
