//! CustomResourceDefinitions: established when written, served at once, emptied before they go.

use serde_json::{Value, json};

use super::{At, DeleteOptions, Pipeline, meta};
use crate::registry::ResourceDef;
use crate::status::{ApiError, Reason};
use crate::store::ListQuery;

/// Keeps a definition until its objects are gone.
const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

fn is_definition(def: &ResourceDef) -> bool {
    def.plural() == "customresourcedefinitions" && def.group() == "apiextensions.k8s.io"
}

pub(super) fn with_cleanup_finalizer(mut object: Value) -> Value {
    if !meta::finalizers(&object).contains(&CLEANUP_FINALIZER) {
        if !object["metadata"]["finalizers"].is_array() {
            object["metadata"]["finalizers"] = json!([]);
        }
        if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
            list.push(CLEANUP_FINALIZER.into());
        }
    }
    object
}

impl Pipeline {
    /// What the reference server's controllers add within a second, added at once: clients wait
    /// for `Established`.
    pub(super) fn establish_definition(&self, object: &mut Value) {
        let kind = meta::text(object, "/spec/names/kind").to_owned();
        let names = &mut object["spec"]["names"];
        if names["singular"].as_str().is_none_or(str::is_empty) {
            names["singular"] = kind.to_lowercase().into();
        }
        if names["listKind"].as_str().is_none_or(str::is_empty) {
            names["listKind"] = format!("{kind}List").into();
        }
        if object["spec"]["conversion"].is_null() {
            object["spec"]["conversion"] = json!({"strategy": "None"});
        }
        let now = meta::rfc3339(self.now());
        let names = object["spec"]["names"].clone();
        let stored = stored_versions(object);
        object["status"] = json!({
            "acceptedNames": names,
            "storedVersions": stored,
            "conditions": [
                {"type": "NamesAccepted", "status": "True", "lastTransitionTime": now,
                 "reason": "NoConflicts", "message": "no conflicts found"},
                {"type": "Established", "status": "True", "lastTransitionTime": now,
                 "reason": "InitialNamesAccepted",
                 "message": "the initial names have been accepted"},
            ],
        });
    }

    /// A definition's status follows its spec.
    pub(super) fn definition_changed(
        &self,
        def: &ResourceDef,
        current: &Value,
        object: &mut Value,
    ) {
        if !is_definition(def) || current["spec"] == object["spec"] {
            return;
        }
        if meta::text(object, "/status/acceptedNames/kind").is_empty() {
            self.establish_definition(object);
            return;
        }
        object["status"]["acceptedNames"] = object["spec"]["names"].clone();
        let mut stored = current["status"]["storedVersions"].clone();
        for version in stored_versions(object) {
            match stored.as_array_mut() {
                Some(list) if list.contains(&version) => {}
                Some(list) => list.push(version),
                None => stored = json!([version]),
            }
        }
        object["status"]["storedVersions"] = stored;
    }

    pub(super) fn definition_written(&self, def: &ResourceDef, object: &Value) {
        if is_definition(def) {
            self.registry.register(object);
        }
    }

    pub(super) fn definition_removed(&self, def: &ResourceDef, name: &str) {
        if is_definition(def) {
            self.registry.withdraw(name);
        }
    }

    /// Removes the objects of a definition that is to be deleted. Whether none is left; true for
    /// everything that is no definition.
    pub(super) async fn definition_emptied(&self, at: At<'_>) -> Result<bool, ApiError> {
        if !is_definition(at.def) {
            return Ok(true);
        }
        let served = self.registry.served();
        let custom = served.all().find(|d| {
            d.custom
                .as_ref()
                .is_some_and(|custom| custom.definition == at.name)
        });
        let Some(def) = custom else {
            return Ok(true);
        };
        let query = ListQuery {
            prefix: def.prefix(""),
            ..ListQuery::default()
        };
        let mut empty = true;
        for entry in self.store.list(query).await?.entries {
            let object = super::present(def, &entry)?;
            let at = At {
                def,
                namespace: meta::namespace(&object),
                name: meta::name(&object),
            };
            match Box::pin(self.delete(at, DeleteOptions::default())).await {
                Ok(deleted) => empty &= deleted.removed,
                Err(error) if error.reason == Reason::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(empty)
    }

    /// Finishes the deletion of a definition that waited for its objects. Whether it is gone.
    pub(crate) async fn end_definition(&self, at: At<'_>) -> Result<bool, ApiError> {
        if !self.definition_emptied(at).await? {
            return Ok(false);
        }
        let done = self
            .change(at, super::WriteOptions::default(), |object| {
                let mut object = object.clone();
                if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
                    list.retain(|f| f != CLEANUP_FINALIZER);
                }
                Ok(object)
            })
            .await;
        match done {
            Ok(_) => Ok(true),
            Err(error) if error.reason == Reason::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn stored_versions(object: &Value) -> Vec<Value> {
    let versions = object.pointer("/spec/versions").and_then(Value::as_array);
    let stored = versions
        .into_iter()
        .flatten()
        .filter(|v| v["storage"] == true);
    stored.map(|v| v["name"].clone()).collect()
}
