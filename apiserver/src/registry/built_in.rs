//! The kinds that are served from the start.

use super::{Deletion, Gvr, ResourceDef, Subresource};

pub(super) const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const NAMESPACE_VERBS: &[&str] = &[
    "create", "delete", "get", "list", "patch", "update", "watch",
];
pub(super) const STATUS: Subresource = Subresource {
    name: "status",
    group: "",
    version: "",
    kind: "",
    verbs: &["get", "patch", "update"],
};

pub(super) struct BuiltIn {
    gvr: (&'static str, &'static str, &'static str),
    kind: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    has_status: bool,
    tracks_generation: bool,
    create_on_update: bool,
}

const fn plain(
    plural: &'static str,
    kind: &'static str,
    short: &'static [&'static str],
) -> BuiltIn {
    BuiltIn {
        gvr: ("", "v1", plural),
        kind,
        short,
        categories: &[],
        namespaced: true,
        has_status: false,
        tracks_generation: false,
        create_on_update: false,
    }
}

/// Order is the order in discovery, which decides ambiguous short names.
pub(super) const BUILT_INS: &[BuiltIn] = &[
    plain("configmaps", "ConfigMap", &["cm"]),
    BuiltIn {
        create_on_update: true,
        ..plain("events", "Event", &["ev"])
    },
    BuiltIn {
        namespaced: false,
        has_status: true,
        ..plain("namespaces", "Namespace", &["ns"])
    },
    BuiltIn {
        namespaced: false,
        has_status: true,
        ..plain("nodes", "Node", &["no"])
    },
    BuiltIn {
        has_status: true,
        ..plain("persistentvolumeclaims", "PersistentVolumeClaim", &["pvc"])
    },
    BuiltIn {
        namespaced: false,
        has_status: true,
        ..plain("persistentvolumes", "PersistentVolume", &["pv"])
    },
    BuiltIn {
        categories: &["all"],
        has_status: true,
        tracks_generation: true,
        ..plain("pods", "Pod", &["po"])
    },
    plain("secrets", "Secret", &[]),
    plain("serviceaccounts", "ServiceAccount", &["sa"]),
    BuiltIn {
        gvr: ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
        categories: &["api-extensions"],
        namespaced: false,
        has_status: true,
        tracks_generation: true,
        ..plain("", "CustomResourceDefinition", &["crd", "crds"])
    },
    BuiltIn {
        gvr: ("coordination.k8s.io", "v1", "leases"),
        create_on_update: true,
        ..plain("", "Lease", &[])
    },
    BuiltIn {
        gvr: ("storage.k8s.io", "v1", "storageclasses"),
        namespaced: false,
        ..plain("", "StorageClass", &["sc"])
    },
];

impl BuiltIn {
    pub(super) fn define(&self) -> ResourceDef {
        let (group, version, plural) = self.gvr;
        let mut subresources = Vec::new();
        if plural == "pods" {
            subresources.push(Subresource {
                name: "binding",
                group: "",
                version: "",
                kind: "Binding",
                verbs: &["create"],
            });
            subresources.push(Subresource {
                name: "eviction",
                group: "policy",
                version: "v1",
                kind: "Eviction",
                verbs: &["create"],
            });
        }
        if plural == "serviceaccounts" {
            subresources.push(Subresource {
                name: "token",
                group: "authentication.k8s.io",
                version: "v1",
                kind: "TokenRequest",
                verbs: &["create"],
            });
        }
        if plural == "namespaces" {
            subresources.push(Subresource {
                name: "finalize",
                group: "",
                version: "",
                kind: "",
                verbs: &["update"],
            });
        }
        if self.has_status {
            subresources.push(STATUS);
        }
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        ResourceDef {
            gvr: Gvr::new(group, version, plural),
            kind: self.kind.into(),
            list_kind: format!("{}List", self.kind),
            singular: self.kind.to_lowercase(),
            short_names: owned(self.short),
            categories: owned(self.categories),
            namespaced: self.namespaced,
            verbs: if plural == "namespaces" {
                NAMESPACE_VERBS
            } else {
                ALL_VERBS
            },
            subresources,
            has_status: self.has_status,
            tracks_generation: self.tracks_generation,
            create_on_update: self.create_on_update,
            update_needs_revision: plural == "leases",
            deletion: match plural {
                "pods" => Deletion::Pod,
                "namespaces" => Deletion::Namespace,
                _ => Deletion::Immediate,
            },
            stored_as: (group.into(), plural.into()),
            custom: None,
        }
    }
}
