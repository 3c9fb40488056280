use proptest::prelude::*;
use serde_json::json;

use super::*;

fn deployment(spec: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "smp", "finalizers": ["a.io/x", "b.io/y"]},
        "spec": {"template": {"spec": spec}}})
}

fn smp(live: &Value, patch: &Value) -> Result<Value, PatchError> {
    strategic(live, patch, "apps/v1", "Deployment")
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    patch: Value,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    finalizers: Value,
    #[serde(default)]
    error: Option<(u16, String)>,
}

/// Patches sent to the reference server: before, patch, after (as far as the merge decides it).
#[test]
fn recorded() {
    let mut n = 0;
    let mut lines = include_str!("../../../tests/data/strategic.jsonl").lines();
    let live: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    let live = &live["live"];
    for line in lines {
        let case: Case = serde_json::from_str(line).unwrap();
        match (smp(live, &case.patch), case.error) {
            (Ok(mut after), None) => {
                after["spec"].as_object_mut().unwrap().remove("zzz"); // unknown fields survive the merge
                crate::defaults::apply("apps/v1", "Deployment", &mut after);
                assert_eq!(after["spec"], case.spec, "{}", case.name);
                assert_eq!(
                    after["metadata"]["finalizers"], case.finalizers,
                    "{}",
                    case.name
                );
            }
            (Err(e), Some((code, message))) => {
                assert_eq!((e.code, e.message), (code, message), "{}", case.name);
            }
            (got, wanted) => panic!("{}: {got:?}, recorded {wanted:?}", case.name),
        }
        n += 1;
    }
    assert!(n >= 20, "{n}");
}

#[test]
fn directives() {
    let live = deployment(&json!({
        "containers": [{"name": "c1", "image": "x"}, {"name": "c2", "image": "y"}],
        "volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {"n": "1"},
    }));
    let run = |spec: Value| {
        smp(&live, &json!({"spec": {"template": {"spec": spec}}})).unwrap()["spec"]["template"]["spec"].clone()
    };
    let names = |spec: Value| {
        let out = run(spec);
        out["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(json!({"containers": [{"name": "c3", "image": "z"}]})),
        ["c3", "c1", "c2"]
    );
    assert_eq!(
        names(json!({"containers": [{"name": "c2", "$patch": "delete"}]})),
        ["c1"]
    );
    assert_eq!(
        names(json!({"containers": [{"$patch": "replace"}, {"name": "only"}]})),
        ["only"]
    );
    assert_eq!(
        names(json!({"$setElementOrder/containers": [{"name": "c2"}, {"name": "c1"}]})),
        ["c2", "c1"]
    );
    assert_eq!(
        run(
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]})
        )["volumes"],
        json!([{"name": "v", "hostPath": {"path": "/"}}])
    );
    assert_eq!(
        run(json!({"nodeSelector": {"$patch": "replace", "m": "2"}}))["nodeSelector"],
        json!({"m": "2"})
    );
    assert_eq!(run(json!({"volumes": null}))["volumes"], json!(null));
}

/// What is added whole loses its directives and nothing else.
#[test]
fn added_values_lose_their_directives() {
    let patch = json!({"spec": {"versions": [{"name": "v1", "$patch": "merge"}, {"name": "v2", "schema": {
        "$retainKeys": ["a"], "$setElementOrder/x": [], "$ref": "kept", "gone": null}}]}});
    let out = strategic(
        &json!({}),
        &patch,
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
    )
    .unwrap();
    assert_eq!(
        out,
        json!({"spec": {"versions": [{"name": "v2", "schema": {"$ref": "kept"}}]}})
    );
}

#[test]
fn custom_resources_do_not_take_it() {
    assert_eq!(
        strategic(&json!({}), &json!({}), "ex.io/v1", "Thing")
            .unwrap_err()
            .code,
        415
    );
}

fn specs() -> impl Strategy<Value = Value> {
    let container = (
        "c[0-5]",
        "[a-z]{1,3}",
        proptest::option::of(proptest::collection::vec(("E[0-4]", "[a-z]?"), 0..3)),
    );
    proptest::collection::vec(container, 0..5).prop_map(|containers| {
        let mut seen = std::collections::BTreeSet::new();
        let containers: Vec<Value> = containers
            .into_iter()
            .filter(|(name, ..)| seen.insert(name.clone()))
            .map(|(name, image, env)| {
                let mut keys = std::collections::BTreeSet::new();
                let env: Vec<Value> = env
                    .unwrap_or_default()
                    .into_iter()
                    .filter(|(k, _)| keys.insert(k.clone()))
                    .map(|(k, v)| json!({"name": k, "value": v}))
                    .collect();
                json!({"name": name, "image": image, "env": env})
            })
            .collect();
        deployment(&json!({"containers": containers}))
    })
}

proptest! {
    #[test]
    fn nothing_changes_nothing(live in specs()) {
        prop_assert_eq!(smp(&live, &json!({})), Ok(live));
    }

    /// An object patched with itself is itself; onto nothing it is itself too.
    #[test]
    fn itself_is_identity(live in specs()) {
        prop_assert_eq!(smp(&live, &live), Ok(live.clone()));
        prop_assert_eq!(smp(&json!({}), &live), Ok(live));
    }

    #[test]
    fn twice_is_once(live in specs(), patch in specs()) {
        let once = smp(&live, &patch).unwrap();
        prop_assert_eq!(smp(&once, &patch), Ok(once.clone()));
    }
}
