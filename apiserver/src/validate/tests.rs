use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    object: Value,
    causes: BTreeSet<String>,
}

/// Values that the reference prints as Go structs, or as JSON in struct order: only that there is one counts.
fn without_structs(cause: &str) -> String {
    match (cause.find('{'), cause.rfind('}')) {
        (Some(from), Some(to)) if from < to => format!("{}…{}", &cause[..from], &cause[to + 1..]),
        _ => cause.to_owned(),
    }
}

/// Objects the reference server refused, and the causes it gave.
#[test]
fn recorded() {
    let mut wrong = Vec::new();
    let mut n = 0;
    for line in include_str!("../../tests/data/invalid.jsonl").lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let mut object = case.object;
        let (api_version, kind) = (
            text(&object["apiVersion"]).to_owned(),
            text(&object["kind"]).to_owned(),
        );
        crate::defaults::apply(&api_version, &kind, &mut object);
        let ours: BTreeSet<String> = create(&api_version, &kind, &object)
            .iter()
            .map(|e| without_structs(&format!("{} {}", e.reason, e.render())))
            .collect();
        let theirs: BTreeSet<String> = case.causes.iter().map(|c| without_structs(c)).collect();
        if ours != theirs {
            wrong.push(format!(
                "{}\n  ours {ours:#?}\n  real {theirs:#?}",
                case.name
            ));
        }
        n += 1;
    }
    assert!(
        wrong.is_empty(),
        "{} of {n}\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(n > 85, "{n}");
}

/// What the reference server accepted is accepted.
#[test]
fn recorded_accepted() {
    for line in include_str!("../../tests/data/defaults.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let object = &case["out"];
        // Node ports and addresses were cut from the recording, the namespace of the event too.
        if matches!(text(&object["kind"]), "Event") {
            continue;
        }
        let errors = create(text(&object["apiVersion"]), text(&object["kind"]), object);
        assert_eq!(errors, [], "{}", case["name"]);
        let errors = update(
            text(&object["apiVersion"]),
            text(&object["kind"]),
            object,
            object,
        );
        assert_eq!(errors, [], "{}", case["name"]);
    }
}

fn changed(api_version: &str, kind: &str, old: &Value, patch: &Value) -> Vec<String> {
    let new = crate::patch::merge_patch(old, patch);
    update(api_version, kind, old, &new)
        .iter()
        .map(FieldError::render)
        .collect()
}

#[test]
fn updates() {
    let map = json!({"metadata": {"name": "im"}, "data": {"a": "b"}, "immutable": true});
    assert_eq!(
        changed("v1", "ConfigMap", &map, &json!({"data": {"a": "c"}})),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        changed("v1", "ConfigMap", &map, &json!({"immutable": false})),
        ["immutable: Forbidden: field is immutable when `immutable` is set"]
    );
    let secret = json!({"metadata": {"name": "ty"}, "type": "Opaque"});
    assert_eq!(
        changed("v1", "Secret", &secret, &json!({"type": "x"})),
        ["type: Invalid value: \"x\": field is immutable"]
    );
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}});
    assert_eq!(
        changed(
            "v1",
            "Node",
            &node,
            &json!({"spec": {"podCIDRs": ["10.9.0.0/24"]}})
        ),
        ["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"]
    );
    assert_eq!(
        changed(
            "v1",
            "Node",
            &node,
            &json!({"spec": {"taints": [{"key": "a", "effect": "X"}]}})
        ),
        [
            "metadata.taints[0].effect: Unsupported value: \"X\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\""
        ]
    );
    let going = json!({"metadata": {"name": "f", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a.io/x"]}});
    assert_eq!(
        changed(
            "v1",
            "ConfigMap",
            &going,
            &json!({"metadata": {"finalizers": ["a.io/x", "ex.io/g"]}})
        ),
        [
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"ex.io/g\"}"
        ]
    );
}

#[test]
fn pod_updates() {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x:1"}], "nodeName": "n"}});
    let with = |patch: Value| changed("v1", "Pod", &pod, &patch);
    assert_eq!(
        with(json!({"spec": {"containers": [{"name": "c", "image": "x:2"}]}})),
        Vec::<String>::new()
    );
    assert_eq!(
        with(json!({"spec": {"tolerations": [{"operator": "Exists"}]}})),
        Vec::<String>::new()
    );
    for patch in [
        json!({"spec": {"nodeName": "m"}}),
        json!({"spec": {"hostNetwork": true}}),
    ] {
        let found = with(patch);
        assert!(
            found.len() == 1 && found[0].starts_with("spec: Forbidden: pod updates may not change"),
            "{found:?}"
        );
    }
}

proptest! {
    /// Objects of any shape are judged, not panicked over.
    #[test]
    fn never_panics(
        field in "spec|data|metadata|rules|subsets|endpoints",
        inner in "containers|volumes|ports|versions|template|labels|taints|finalizers",
        value in prop_oneof![Just(json!(null)), Just(json!([null])), Just(json!([1, "x", {}])), Just(json!({"a": []})), Just(json!("é"))],
    ) {
        let object = json!({field: {inner: value}});
        for (api_version, kind) in [("v1", "Pod"), ("v1", "Service"), ("v1", "Node"), ("apps/v1", "Deployment"),
            ("batch/v1", "CronJob"), ("apiextensions.k8s.io/v1", "CustomResourceDefinition"), ("v1", "ConfigMap")] {
            let mut object = object.clone();
            create(api_version, kind, &object);
            update(api_version, kind, &object, &json!({}));
            crate::defaults::apply(api_version, kind, &mut object);
            create(api_version, kind, &object);
        }
    }
}
