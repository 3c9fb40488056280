//! The kinds that CustomResourceDefinitions define.

use serde_json::Value;

use super::built_in::{ALL_VERBS, STATUS};
use super::{Custom, Deletion, Gvr, ResourceDef};

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

/// The served versions of a CustomResourceDefinition; one with an unusable schema is left out.
pub(super) fn custom_defs(definition: &Value) -> Vec<ResourceDef> {
    let versions = definition
        .pointer("/spec/versions")
        .and_then(Value::as_array);
    let versions: Vec<&Value> = versions.into_iter().flatten().collect();
    let storage_version = versions
        .iter()
        .find(|v| v["storage"] == true)
        .map(|v| text(v, "/name"))
        .unwrap_or_default();
    let group = text(definition, "/spec/group");
    let plural = text(definition, "/spec/names/plural");
    let kind = text(definition, "/spec/names/kind");
    let or = |value: &str, fallback: String| {
        if value.is_empty() {
            fallback
        } else {
            value.to_owned()
        }
    };
    let served = versions.iter().filter(|v| v["served"] == true);
    served
        .filter_map(|version| {
            let openapi = version.pointer("/schema/openAPIV3Schema");
            let schema = match crate::crd::Schema::compile(openapi.unwrap_or(&Value::Null)) {
                Ok(schema) => schema,
                Err(error) => {
                    let definition = text(definition, "/metadata/name");
                    tracing::warn!(definition, %error, "schema is unusable; version is not served");
                    return None;
                }
            };
            let has_status = version.pointer("/subresources/status").is_some();
            Some(ResourceDef {
                gvr: Gvr::new(group, text(version, "/name"), plural),
                kind: kind.into(),
                list_kind: or(
                    text(definition, "/spec/names/listKind"),
                    format!("{kind}List"),
                ),
                singular: or(
                    text(definition, "/spec/names/singular"),
                    kind.to_lowercase(),
                ),
                short_names: texts(definition, "/spec/names/shortNames"),
                categories: texts(definition, "/spec/names/categories"),
                namespaced: text(definition, "/spec/scope") == "Namespaced",
                verbs: ALL_VERBS,
                subresources: if has_status { vec![STATUS] } else { Vec::new() },
                has_status,
                tracks_generation: true,
                create_on_update: false,
                update_needs_revision: true,
                deletion: Deletion::Immediate,
                stored_as: (group.into(), plural.into()),
                custom: Some(Custom {
                    schema,
                    table: crate::table::crd_spec(group, plural, version),
                    version: (*version).clone(),
                    storage_version: storage_version.into(),
                    definition: text(definition, "/metadata/name").into(),
                }),
            })
        })
        .collect()
}
