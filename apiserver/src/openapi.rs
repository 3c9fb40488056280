//! The least OpenAPI that kubectl needs (kube-api.md §1.4): an empty v2 document, which is valid
//! protobuf, and v3 documents that say for each kind that the server validates fields, with the
//! schemas of custom kinds for `kubectl explain`. Pure.

use serde_json::{Map, Value, json};

use crate::discovery::digest;
use crate::registry::{ResourceDef, Served, api_version};

/// Type of the (empty) v2 document.
pub(crate) const V2_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v3`
pub(crate) fn index(served: &Served) -> Value {
    let mut paths = Map::new();
    for group in served.groups() {
        for version in served.versions(group) {
            let name = if group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{group}/{version}")
            };
            let Some(document) = document(served, &name) else {
                continue;
            };
            let hash = digest(&document.to_string());
            let url = format!("/openapi/v3/{name}?hash={hash}");
            paths.insert(name, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// `/openapi/v3/<name>` with a name from the index.
pub(crate) fn document(served: &Served, name: &str) -> Option<Value> {
    let (group, version) = match *name.split('/').collect::<Vec<_>>() {
        ["api", version] => ("", version),
        ["apis", group, version] => (group, version),
        _ => return None,
    };
    let defs = served.resources(group, version);
    if defs.is_empty() {
        return None;
    }
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for def in defs {
        if let Some(schema) = schema(def) {
            schemas.insert(format!("{group}.{version}.{}", def.kind), schema);
        }
        let scope = if def.namespaced {
            "namespaces/{namespace}/"
        } else {
            ""
        };
        let path = format!("/{name}/{scope}{}/{{name}}", def.plural());
        paths.insert(
            path,
            json!({"patch": {
                "parameters": [
                    {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind":
                    {"group": group, "version": version, "kind": def.kind}}}),
        );
    }
    Some(json!({"openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": api_version(group, version)},
        "paths": paths, "components": {"schemas": schemas}}))
}

/// A custom kind as its definition describes it.
fn schema(def: &ResourceDef) -> Option<Value> {
    let version = &def.custom.as_ref()?.version;
    let mut schema = version.pointer("/schema/openAPIV3Schema")?.clone();
    for (member, kind, said) in [
        ("apiVersion", "string", "Group and version of the object."),
        ("kind", "string", "Kind of the object."),
        (
            "metadata",
            "object",
            "Name, namespace, labels, annotations: as of every object.",
        ),
    ] {
        schema["properties"][member] = json!({"type": kind, "description": said});
    }
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": def.group(), "version": def.gvr.version, "kind": def.kind}]);
    Some(schema)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn every_indexed_document_exists() {
        let served = Registry::new().served();
        let index = index(&served);
        let paths = index["paths"].as_object().unwrap();
        assert!(paths.contains_key("api/v1"));
        for name in paths.keys() {
            assert!(document(&served, name).is_some(), "{name}");
        }
        let core = document(&served, "api/v1").unwrap();
        let pods = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(pods["x-kubernetes-group-version-kind"]["kind"], "Pod");
        assert!(document(&served, "apis/nope/v1").is_none());
    }
}
