//! The kinds that are served: built-in ones from a table, custom ones from their
//! CustomResourceDefinitions, registered and withdrawn while running.
//!
//! Everything that differs between kinds and is not code is here; discovery, OpenAPI, routing and
//! the write pipeline read it.

mod built_in;
mod custom;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use self::built_in::BUILT_INS;
use self::custom::{custom_defs, text};

/// Name of an API resource: group (empty for core), version, plural.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gvr {
    /// API group; empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// For example `pods`.
    pub plural: String,
}

impl Gvr {
    /// Names a resource.
    pub fn new(group: &str, version: &str, plural: &str) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            plural: plural.into(),
        }
    }

    /// A resource of the core group.
    pub fn core(plural: &str) -> Self {
        Self::new("", "v1", plural)
    }
}

/// What DELETE does to an object of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Removed at once; the answer is a `Status`.
    Immediate,
    /// A pod on a node gets time to stop; the answer is the pod.
    Pod,
    /// The namespace terminates first; the answer is the namespace.
    Namespace,
}

/// Another resource below an object.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// For example `status`.
    pub name: &'static str,
    /// Group of its kind; empty means the parent's.
    pub group: &'static str,
    /// Version of its kind; empty means the parent's.
    pub version: &'static str,
    /// Kind; empty means the parent's.
    pub kind: &'static str,
    /// Verbs.
    pub verbs: &'static [&'static str],
}

/// One version of a custom kind.
#[derive(Debug)]
pub struct Custom {
    /// The entry of `spec.versions` as written.
    pub version: Value,
    /// The version that objects are stored in.
    pub storage_version: String,
    /// Name of the CustomResourceDefinition.
    pub definition: String,
    /// The schema, ready to use.
    pub schema: crate::crd::Schema,
    /// How `kubectl get` shows it.
    pub table: crate::table::TableSpec,
}

/// One served resource. See kube-api.md §12.1.
#[derive(Debug)]
pub struct ResourceDef {
    /// Group, version and plural.
    pub gvr: Gvr,
    /// For example `Pod`.
    pub kind: String,
    /// For example `PodList`.
    pub list_kind: String,
    /// For example `pod`.
    pub singular: String,
    /// For example `po`.
    pub short_names: Vec<String>,
    /// For example `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// What can be done with it, sorted.
    pub verbs: &'static [&'static str],
    /// What is below each object, sorted by name.
    pub subresources: Vec<Subresource>,
    /// Whether `status` is written through its own subresource only.
    pub has_status: bool,
    /// Whether `metadata.generation` counts changes of what is desired.
    pub tracks_generation: bool,
    /// Whether PUT of a missing object creates it.
    pub create_on_update: bool,
    /// Whether PUT must carry `metadata.resourceVersion`.
    pub update_needs_revision: bool,
    /// What DELETE does.
    pub deletion: Deletion,
    /// Group and plural under which objects are stored (two API groups may share one store).
    pub stored_as: (String, String),
    /// Set for custom kinds.
    pub custom: Option<Custom>,
}

impl ResourceDef {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.gvr.group, &self.gvr.version)
    }

    /// Group.
    pub fn group(&self) -> &str {
        &self.gvr.group
    }

    /// Plural.
    pub fn plural(&self) -> &str {
        &self.gvr.plural
    }

    /// Prefix of all its keys, in one namespace or in all.
    pub fn prefix(&self, namespace: &str) -> String {
        let (group, plural) = &self.stored_as;
        let group = if group.is_empty() { "core" } else { group };
        if self.namespaced && !namespace.is_empty() {
            format!("/registry/{group}/{plural}/{namespace}/")
        } else {
            format!("/registry/{group}/{plural}/")
        }
    }

    /// Key of one object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.prefix(namespace))
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether a verb is allowed.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
}

/// `v1`, `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Splits `v1` and `apps/v1` into group and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The served kinds at one moment.
#[derive(Debug, Default)]
pub struct Served {
    by_name: BTreeMap<Gvr, Arc<ResourceDef>>,
    /// Group names in the order of discovery, core first.
    groups: Vec<String>,
    /// Counts changes, for caches made from this.
    pub generation: u64,
}

impl Served {
    /// One resource.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<ResourceDef>> {
        self.by_name.get(&Gvr::new(group, version, plural))
    }

    /// Any version of a kind in a group.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<ResourceDef>> {
        self.by_name
            .values()
            .find(|d| d.gvr.group == group && d.gvr.version == version && d.kind == kind)
    }

    /// Group names, core (empty) first.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// Versions of a group, the preferred first.
    pub fn versions(&self, group: &str) -> Vec<String> {
        let mut versions: Vec<String> = Vec::new();
        for def in self.by_name.values().filter(|d| d.gvr.group == group) {
            if !versions.contains(&def.gvr.version) {
                versions.push(def.gvr.version.clone());
            }
        }
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        versions
    }

    /// Resources of one group and version, by plural.
    pub fn resources(&self, group: &str, version: &str) -> Vec<&Arc<ResourceDef>> {
        self.by_name
            .values()
            .filter(|d| d.gvr.group == group && d.gvr.version == version)
            .collect()
    }

    /// Every resource.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ResourceDef>> {
        self.by_name.values()
    }
}

/// Kubernetes' order of versions: v2 > v1 > v1beta2 > v1beta1 > v1alpha1 > anything else.
fn version_rank(version: &str) -> (u8, u64, u64) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit());
        let (major, tail) = rest.split_at(digits.unwrap_or(rest.len()));
        let major: u64 = major.parse().ok()?;
        if tail.is_empty() {
            return Some((3, major, 0));
        }
        if let Some(minor) = tail.strip_prefix("beta") {
            return Some((2, major, minor.parse().ok()?));
        }
        Some((1, major, tail.strip_prefix("alpha")?.parse().ok()?))
    };
    parse().unwrap_or((0, 0, 0))
}

/// The served kinds. Readers take a snapshot; changes replace it.
#[derive(Debug)]
pub struct Registry {
    served: RwLock<Arc<Served>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// The built-in kinds.
    pub fn new() -> Self {
        let mut served = Served::default();
        for built_in in BUILT_INS {
            let def = built_in.define();
            if !served.groups.contains(&def.gvr.group) {
                served.groups.push(def.gvr.group.clone());
            }
            served.by_name.insert(def.gvr.clone(), Arc::new(def));
        }
        Self {
            served: RwLock::new(Arc::new(served)),
        }
    }

    /// What is served now.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// One resource.
    pub fn get(&self, gvr: &Gvr) -> Option<Arc<ResourceDef>> {
        self.served().by_name.get(gvr).cloned()
    }

    /// Serves the versions of a CustomResourceDefinition, in place of what it served before.
    pub fn register(&self, definition: &Value) {
        let name = text(definition, "/metadata/name");
        let defs = custom_defs(definition);
        self.change(name, defs);
    }

    /// Withdraws what a CustomResourceDefinition served.
    pub fn withdraw(&self, name: &str) {
        self.change(name, Vec::new());
    }

    fn change(&self, definition: &str, defs: Vec<ResourceDef>) {
        let mut guard = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let mut by_name = guard.by_name.clone();
        by_name.retain(|_, d| {
            d.custom
                .as_ref()
                .is_none_or(|custom| custom.definition != definition)
        });
        for def in defs {
            // A definition never takes over a built-in kind.
            if by_name.get(&def.gvr).is_none_or(|old| old.custom.is_some()) {
                by_name.insert(def.gvr.clone(), Arc::new(def));
            }
        }
        let mut groups = guard.groups.clone();
        groups.retain(|g| by_name.keys().any(|gvr| &gvr.group == g));
        for gvr in by_name.keys() {
            if !groups.contains(&gvr.group) {
                groups.push(gvr.group.clone());
            }
        }
        *guard = Arc::new(Served {
            by_name,
            groups,
            generation: guard.generation + 1,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut versions = ["v1alpha1", "v1", "foo", "v1beta1", "v2", "v1beta2"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(
            versions,
            ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]
        );
    }

    #[test]
    fn definitions_come_and_go() {
        let registry = Registry::new();
        let definition = json!({
            "metadata": {"name": "things.ex.io"},
            "spec": {"group": "ex.io", "scope": "Namespaced",
                     "names": {"plural": "things", "kind": "Thing"},
                     "versions": [{"name": "v1", "served": true, "storage": true}]}});
        registry.register(&definition);
        let def = registry.get(&Gvr::new("ex.io", "v1", "things")).unwrap();
        assert_eq!(def.key("a", "b"), "/registry/ex.io/things/a/b");
        assert_eq!(def.list_kind, "ThingList");
        assert!(registry.served().groups().contains(&"ex.io".to_owned()));
        registry.withdraw("things.ex.io");
        assert!(registry.get(&Gvr::new("ex.io", "v1", "things")).is_none());
        assert!(!registry.served().groups().contains(&"ex.io".to_owned()));
    }
}
