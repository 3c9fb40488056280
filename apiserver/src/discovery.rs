//! What is served, for clients that ask first: aggregated and legacy discovery
//! (kube-api.md §1.2, §1.3). Pure.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::registry::{ResourceDef, Served, api_version};

/// Clients decide from this header which form they got.
pub(crate) const AGGREGATED_TYPE: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// One discovery document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    Resources(String, String),
}

impl Document {
    /// Whether there is an aggregated form.
    pub(crate) fn is_aggregate(&self) -> bool {
        matches!(self, Self::CoreVersions | Self::Groups)
    }
}

/// The document; `None` when the group or version is not served.
pub(crate) fn document(served: &Served, document: &Document, aggregated: bool) -> Option<Value> {
    match document {
        Document::CoreVersions if aggregated => Some(aggregate(&[group_item(served, "")])),
        Document::Groups if aggregated => {
            let groups = served.groups().iter().filter(|g| !g.is_empty());
            let items: Vec<Value> = groups.map(|g| group_item(served, g)).collect();
            Some(aggregate(&items))
        }
        Document::CoreVersions => Some(json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]})),
        Document::Groups => {
            let groups = served.groups().iter().filter(|g| !g.is_empty());
            let groups: Vec<Value> = groups.filter_map(|g| group(served, g)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        Document::Group(name) => {
            let mut group = group(served, name)?;
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Some(group)
        }
        Document::Resources(group, version) => resources(served, group, version),
    }
}

fn aggregate(items: &[Value]) -> Value {
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
           "metadata": {}, "items": items})
}

fn group_item(served: &Served, group: &str) -> Value {
    let versions: Vec<Value> = served
        .versions(group)
        .iter()
        .map(|version| {
            let resources = served.resources(group, version);
            let resources: Vec<Value> = resources.into_iter().map(|def| resource(def)).collect();
            json!({"version": version, "freshness": "Current", "resources": resources})
        })
        .collect();
    let metadata = if group.is_empty() {
        json!({})
    } else {
        json!({"name": group})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn add_names(out: &mut Value, def: &ResourceDef) {
    if !def.short_names.is_empty() {
        out["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        out["categories"] = json!(def.categories);
    }
}

fn resource(def: &ResourceDef) -> Value {
    let own = |value: &str, parent: &str| {
        if value.is_empty() {
            parent.to_owned()
        } else {
            value.to_owned()
        }
    };
    let mut out = json!({
        "resource": def.plural(),
        "responseKind": {"group": def.group(), "version": def.gvr.version, "kind": def.kind},
        "scope": if def.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular,
        "verbs": def.verbs,
    });
    add_names(&mut out, def);
    if !def.subresources.is_empty() {
        let subs = def.subresources.iter().map(|sub| {
            json!({"subresource": sub.name, "verbs": sub.verbs, "responseKind": {
                "group": own(sub.group, def.group()), "version": own(sub.version, &def.gvr.version),
                "kind": own(sub.kind, &def.kind)}})
        });
        out["subresources"] = subs.collect();
    }
    out
}

fn group(served: &Served, name: &str) -> Option<Value> {
    let versions: Vec<Value> = served
        .versions(name)
        .iter()
        .map(|version| json!({"groupVersion": api_version(name, version), "version": version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({"name": name, "versions": versions, "preferredVersion": preferred}))
}

fn resources(served: &Served, group: &str, version: &str) -> Option<Value> {
    let defs = served.resources(group, version);
    if defs.is_empty() {
        return None;
    }
    let mut list = Vec::new();
    for def in defs {
        let mut one = json!({"name": def.plural(), "singularName": def.singular,
            "namespaced": def.namespaced, "kind": def.kind, "verbs": def.verbs});
        add_names(&mut one, def);
        list.push(one);
        for sub in &def.subresources {
            let mut one = Map::new();
            let kind = if sub.kind.is_empty() {
                &def.kind
            } else {
                sub.kind
            };
            one.insert(
                "name".into(),
                format!("{}/{}", def.plural(), sub.name).into(),
            );
            one.insert("singularName".into(), "".into());
            one.insert("namespaced".into(), def.namespaced.into());
            if !sub.group.is_empty() {
                one.insert("group".into(), sub.group.into());
                one.insert("version".into(), sub.version.into());
            }
            one.insert("kind".into(), kind.into());
            one.insert("verbs".into(), json!(sub.verbs));
            list.push(Value::Object(one));
        }
    }
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": api_version(group, version), "resources": list}))
}

/// Changes with the content; what ETags and OpenAPI hashes are made of.
pub(crate) fn digest(text: &str) -> String {
    let digest = hex::encode_upper(Sha256::digest(text.as_bytes()));
    digest.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn pods_are_described_as_the_reference_server_does() {
        let served = Registry::new().served();
        let doc = document(&served, &Document::CoreVersions, true).unwrap();
        let resources = doc["items"][0]["versions"][0]["resources"]
            .as_array()
            .unwrap();
        let pods = resources.iter().find(|r| r["resource"] == "pods").unwrap();
        assert_eq!(pods["shortNames"], json!(["po"]));
        assert_eq!(pods["categories"], json!(["all"]));
        assert_eq!(pods["scope"], "Namespaced");
        let eviction = &pods["subresources"][1];
        assert_eq!(
            eviction["responseKind"],
            json!({"group": "policy", "version": "v1", "kind": "Eviction"})
        );
        let legacy = Document::Resources(String::new(), "v1".into());
        let legacy = document(&served, &legacy, false).unwrap();
        let names: Vec<&str> = legacy["resources"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|r| r["name"].as_str())
            .collect();
        assert!(names.contains(&"pods/eviction") && names.contains(&"nodes/status"));
        assert!(document(&served, &Document::Group("nope".into()), false).is_none());
    }
}
