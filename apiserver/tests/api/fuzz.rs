//! Bodies and queries that clients should not send: each is answered, with what is wrong.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const ROUNDS: u64 = 4000;
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/ex.io/v1/namespaces/default/things";

fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.ex.io"},
        "spec": {"group": "ex.io", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing", "singular": "thing", "listKind": "ThingList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "additionalPrinterColumns": [
                    {"name": "Size", "type": "integer", "jsonPath": ".spec.list[0].size"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
                    "type": "object", "required": ["name"], "properties": {
                        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 9},
                        "list": {"type": "array", "x-kubernetes-list-type": "map",
                            "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"},
                                           "size": {"type": "integer", "default": 3}}}}}}}}}}]}})
}

fn corpus() -> Vec<(&'static str, Value)> {
    let mut full = pod("p", "n1");
    full["spec"]["containers"][0] = json!({"name": "c", "image": "i:1",
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
        "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
        "ports": [{"containerPort": 80, "hostPort": 8080}],
        "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 5}});
    full["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]);
    let thing = json!({"apiVersion": "ex.io/v1", "kind": "Thing", "metadata": {"name": "t"},
                       "spec": {"name": "a", "list": [{"name": "x"}]}});
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
                       "resources": {"requests": {"storage": "1Gi"}}}});
    vec![
        (PODS, full),
        (MAPS, map("a")),
        (
            "/api/v1/namespaces/default/secrets",
            json!({"metadata": {"name": "s"}, "data": {"a": "eA=="}}),
        ),
        ("/api/v1/namespaces/default/persistentvolumeclaims", claim),
        ("/api/v1/namespaces", json!({"metadata": {"name": "x"}})),
        (
            "/api/v1/nodes",
            json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
        ),
        (THINGS, thing),
        (DEFINITIONS, definition()),
    ]
}

/// A patch of each kind that was valid once.
fn patches() -> Vec<(&'static str, Value)> {
    let merge = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": null}});
    let strategic = json!({"spec": {"containers": [{"name": "c", "$patch": "delete"}],
        "$setElementOrder/containers": [{"name": "c"}]}, "metadata": {"$retainKeys": ["name"]}});
    let json_patch = json!([{"op": "test", "path": "/metadata/name", "value": "a"},
        {"op": "copy", "from": "/metadata", "path": "/metadata/annotations"},
        {"op": "move", "from": "/spec", "path": "/data"}, {"op": "remove", "path": "/metadata/labels/a~1b"}]);
    vec![
        ("application/merge-patch+json", merge),
        ("application/strategic-merge-patch+json", strategic),
        ("application/json-patch+json", json_patch),
        (
            "application/apply-patch+yaml",
            json!({"metadata": {"name": "a"}}),
        ),
    ]
}

#[tokio::test]
async fn mangled_bodies_are_answered_with_what_is_wrong() {
    let place = place().await;
    let corpus = corpus();
    let (mut refused, mut taken) = (0, 0);
    for seed in 0..ROUNDS {
        if seed % 50 == 0 {
            // What is there already stays as it was made of late.
            for (path, object) in corpus.iter().rev() {
                place.ask("POST", path, object.clone()).await;
            }
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let mut choose = |n: usize| rng.random_range(0..n);
        let (path, object) = corpus[choose(corpus.len())].clone();
        let one = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
        let queries = [
            "",
            "?fieldValidation=Strict",
            "?dryRun=All",
            "?fieldValidation=\u{0}",
            "?limit=-1&continue=%ff",
        ];
        let query = queries[choose(queries.len())].replace('\u{0}', "%00");
        let (method, target, kind, bytes) = match choose(6) {
            0 => (
                "POST",
                path,
                "application/json",
                mangle::mangled(&object, &mut choose),
            ),
            1 => (
                "POST",
                path,
                "application/yaml",
                mangle::mangled(&object, &mut choose),
            ),
            2 => (
                "PUT",
                one.as_str(),
                "application/json",
                mangle::mangled(&object, &mut choose),
            ),
            3 => {
                let mut bytes =
                    b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x09\x0a\x05\x0a\x01p\x1a\0\x12\0"
                        .to_vec();
                mangle::spoil(&mut bytes, &mut choose);
                ("POST", path, "application/vnd.kubernetes.protobuf", bytes)
            }
            4 => {
                let options = json!({"kind": "DeleteOptions", "gracePeriodSeconds": 0,
                    "preconditions": {"uid": "x"}, "propagationPolicy": "Orphan"});
                (
                    "DELETE",
                    one.as_str(),
                    "application/json",
                    mangle::mangled(&options, &mut choose),
                )
            }
            _ => {
                let patches = patches();
                let (kind, patch) = patches[choose(patches.len())].clone();
                (
                    "PATCH",
                    one.as_str(),
                    kind,
                    mangle::mangled(&patch, &mut choose),
                )
            }
        };
        let response = place
            .raw_bytes(
                method,
                &format!("{target}{query}"),
                &[("content-type", kind)],
                bytes.clone(),
            )
            .await;
        let code = response.status().as_u16();
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        let said = || {
            format!(
                "seed {seed}: {method} {target}: {}",
                String::from_utf8_lossy(&bytes)
            )
        };
        if code >= 500 {
            // Some malformed patches end so, without a reason, as with kube-apiserver.
            let status: Value = serde_json::from_slice(&answer).unwrap();
            let is_theirs = method == "PATCH" && status["reason"].is_null();
            assert!(is_theirs, "{}: {status}", said());
        }
        if code < 400 {
            taken += 1;
            continue;
        }
        refused += 1;
        if answer.starts_with(b"404 page not found") {
            // The definition was deleted.
            continue;
        }
        let status: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(status["kind"], "Status", "{}", said());
        assert_ne!(
            status["message"].as_str().unwrap_or_default(),
            "",
            "{}",
            said()
        );
    }
    assert!(
        taken > 100 && refused > 100,
        "{taken} taken, {refused} refused"
    );
    for (path, object) in corpus.iter().rev() {
        place.ask("POST", path, object.clone()).await;
    }
    // What was stored of all this can be shown, as objects and as rows.
    for (path, _) in &corpus {
        for accept in [
            "application/json",
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        ] {
            let shown = place.raw("GET", path, &[("accept", accept)], "").await;
            assert_eq!(shown.status(), 200, "{path} as {accept}");
        }
    }
}
