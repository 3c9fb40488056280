//! PUT and PATCH, of objects and of their subresources.

use std::sync::Arc;

use serde_json::Value;

use super::create::{check_type, place};
use super::{
    At, CONFLICT_RETRIES_MAX, FieldValidation, Pipeline, WriteOptions, Written, encode, judge,
    lost_race, meta, refuse_invalid,
};
use crate::engines;
use crate::registry::{Deletion, ResourceDef};
use crate::status::{ApiError, Reason};
use crate::store::{Require, Revision, Txn, set_resource_version};

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' strategic merge patch; built-in kinds only.
    Strategic,
}

/// A patch.
#[derive(Debug, Clone)]
pub struct Patch {
    /// How it is written.
    pub kind: PatchKind,
    /// Its document.
    pub body: Value,
}

/// What an attempt wants: the object to be, and sentences for the writer.
type Attempt = (Value, Vec<String>);

impl Pipeline {
    pub(crate) async fn update(
        &self,
        at: At<'_>,
        subresource: Option<&str>,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let def = at.def;
        check_type(def, &mut object)?;
        check_name(at, &object)?;
        place(def, at.namespace, &mut object)?;
        meta::drop_null_times(&mut object);
        let mut problems = options.problems.clone();
        problems.extend(engines::prune(def, &mut object));
        let warnings = judge(def, options.field_validation, problems)?;
        let said = meta::resource_version(&object);
        if def.create_on_update && subresource.is_none() && said.is_empty() {
            match self.load(at).await? {
                Some(_) => {}
                None => return self.create(def, at.namespace, object, options).await,
            }
        }
        if def.update_needs_revision && matches!(said, "" | "0") {
            // The object must be there to be refused for this.
            self.found(at).await?;
            return Err(at.invalid(
                "FieldValueInvalid",
                "metadata.resourceVersion",
                "Invalid value: 0: must be specified for an update".into(),
            ));
        }
        self.rewrite(at, subresource, &options, |_| {
            Ok((object.clone(), warnings.clone()))
        })
        .await
    }

    pub(crate) async fn patch(
        &self,
        at: At<'_>,
        subresource: Option<&str>,
        patch: &Patch,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let def = at.def;
        let validation = options.field_validation;
        self.rewrite(at, subresource, &options, |current| {
            let mut object = engines::patch(def, current, patch)?;
            if meta::name(&object).is_empty() {
                return Err(name_missing(at));
            }
            check_type(def, &mut object)?;
            check_name(at, &object)?;
            place(def, at.namespace, &mut object)?;
            meta::drop_null_times(&mut object);
            let uid = meta::uid(&object);
            if !uid.is_empty() && uid != meta::uid(current) {
                return Err(at.invalid(
                    "FieldValueInvalid",
                    "metadata.uid",
                    format!(
                        "Invalid value: {}: field is immutable",
                        object["metadata"]["uid"]
                    ),
                ));
            }
            let mut problems =
                engines::check(def, &object).map_err(|why| bad_patch(&object, &why))?;
            problems.extend(engines::prune(def, &mut object));
            if validation == FieldValidation::Strict && !problems.is_empty() {
                let why = format!("strict decoding error: {}", problems.join(", "));
                return Err(bad_patch(&object, &why));
            }
            Ok((object, judge(def, validation, problems)?))
        })
        .await
    }

    /// Changes an object by a function, without the rules that keep `status` and the rest apart.
    pub(crate) async fn change(
        &self,
        at: At<'_>,
        options: WriteOptions,
        mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        for _ in 0..CONFLICT_RETRIES_MAX {
            let (current, revision) = self.found(at).await?;
            let object = change(&current)?;
            if let Some(written) = self
                .swap(at, &current, revision, object, &options, Vec::new())
                .await?
            {
                return Ok(written);
            }
        }
        Err(at.modified())
    }

    /// Reads, computes, settles and swaps until nobody was faster.
    async fn rewrite(
        &self,
        at: At<'_>,
        subresource: Option<&str>,
        options: &WriteOptions,
        mut compute: impl FnMut(&Value) -> Result<Attempt, ApiError>,
    ) -> Result<Written, ApiError> {
        for _ in 0..CONFLICT_RETRIES_MAX {
            let (current, revision) = self.found(at).await?;
            let (object, warnings) = compute(&current)?;
            check_preconditions(at, &current, &object)?;
            let object = self.settle(at, subresource, &current, object)?;
            let swapped = self.swap(at, &current, revision, object, options, warnings);
            if let Some(mut written) = swapped.await? {
                let advice = self.advise(at.def, &written.object).await;
                written.warnings.extend(advice);
                return Ok(written);
            }
        }
        Err(at.modified())
    }

    /// What the object becomes, given what it is and what the writer wants.
    fn settle(
        &self,
        at: At<'_>,
        subresource: Option<&str>,
        current: &Value,
        mut object: Value,
    ) -> Result<Value, ApiError> {
        let def = at.def;
        match subresource {
            None => {
                if def.has_status {
                    copy_member(current, &mut object, "status");
                }
                keep_metadata(current, &mut object, def);
            }
            Some("status") => {
                let status = object.get("status").cloned();
                let annotations = object.pointer("/metadata/annotations").cloned();
                object = current.clone();
                if let Some(map) = object.as_object_mut() {
                    meta::set(map, "status", status);
                }
                if def.custom.is_none()
                    && let Some(metadata) = meta::metadata_mut(&mut object)
                {
                    meta::set(metadata, "annotations", annotations);
                }
            }
            Some("finalize") => {
                let finalizers = object.pointer("/spec/finalizers").cloned();
                object = current.clone();
                if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                    meta::set(spec, "finalizers", finalizers);
                }
            }
            Some(_) => return Err(ApiError::method_not_allowed()),
        }
        engines::default(def, &mut object);
        check_finalizers(at, current, &object)?;
        if subresource.is_none() && def.tracks_generation && desired_differs(current, &object) {
            object["metadata"]["generation"] = (meta::generation(current) + 1).into();
        }
        let causes = engines::validate_change(def, current, &object);
        refuse_invalid(def, at.name, causes)?;
        if subresource.is_none() {
            self.definition_changed(def, current, &mut object);
        }
        Ok(object)
    }

    /// Stores `object` in place of `current`; `None` when another writer was faster. An object
    /// that does not differ is not written; one that lost its last finalizer is removed.
    async fn swap(
        &self,
        at: At<'_>,
        current: &Value,
        revision: Revision,
        mut object: Value,
        options: &WriteOptions,
        warnings: Vec<String>,
    ) -> Result<Option<Written>, ApiError> {
        set_resource_version(&mut object, revision);
        let same = object == *current;
        let written = |object| {
            Some(Written {
                object,
                created: false,
                warnings,
            })
        };
        let nothing_else = options.facts.ops.is_empty() && options.facts.require.is_empty();
        if options.dry_run || (same && nothing_else) {
            return Ok(written(object));
        }
        let last_finalizer_gone = meta::is_terminating(&object)
            && at.def.deletion != Deletion::Namespace
            && meta::finalizers(&object).is_empty()
            && !meta::finalizers(current).is_empty()
            && object["metadata"]["deletionGracePeriodSeconds"]
                .as_i64()
                .unwrap_or(0)
                == 0;
        let mut txn = Txn::new().require(Require::At(at.key(), revision));
        if last_finalizer_gone {
            txn = txn.delete(at.key());
        } else if !same {
            txn = txn.put(at.key(), encode(at.def, &object)?);
        }
        match self.store.txn(txn.and(options.facts.clone())).await {
            Ok(new) => {
                if !same && !last_finalizer_gone {
                    set_resource_version(&mut object, new);
                }
                if last_finalizer_gone {
                    self.definition_removed(at.def, at.name);
                } else {
                    self.definition_written(at.def, &object);
                }
                Ok(written(object))
            }
            Err(error) if lost_race(&error, &at.key()) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn name_missing(at: At<'_>) -> ApiError {
    ApiError::bad_request(format!(
        "the name of the object ({} based on URL) was undeterminable: name must be provided",
        at.name
    ))
}

fn check_name(at: At<'_>, object: &Value) -> Result<(), ApiError> {
    match meta::name(object) {
        "" => Err(name_missing(at)),
        said if said != at.name => Err(ApiError::bad_request(format!(
            "the name of the object ({said}) does not match the name on the URL ({})",
            at.name
        ))),
        _ => Ok(()),
    }
}

/// A patch whose result cannot be decoded (kube-api.md §1.5).
fn bad_patch(object: &Value, why: &str) -> ApiError {
    let shown = Value::String(object.to_string());
    ApiError::invalid_field(
        "",
        "",
        "",
        "FieldValueInvalid",
        "patch",
        format!("Invalid value: {shown}: {why}"),
    )
}

/// The writer's idea of which object this is and how old its copy may be.
fn check_preconditions(at: At<'_>, current: &Value, object: &Value) -> Result<(), ApiError> {
    let said = meta::resource_version(object);
    if !matches!(said, "" | "0") && said != meta::resource_version(current) {
        if said.parse::<u64>().is_err() {
            return Err(ApiError::new(
                Reason::Unclassified,
                format!("strconv.ParseUint: parsing \"{said}\": invalid syntax"),
            ));
        }
        return Err(at.modified());
    }
    let (said, is) = (meta::uid(object), meta::uid(current));
    if !said.is_empty() && said != is {
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: UID in precondition: {said}, UID in object meta: {is}",
            at.key()
        );
        return Err(ApiError::conflict(
            at.def.group(),
            at.def.plural(),
            at.name,
            &why,
        ));
    }
    Ok(())
}

fn copy_member(from: &Value, to: &mut Value, key: &str) {
    let value = from.get(key).cloned();
    if let Some(map) = to.as_object_mut() {
        meta::set(map, key, value);
    }
}

/// Metadata that writers cannot change.
fn keep_metadata(current: &Value, object: &mut Value, def: &Arc<ResourceDef>) {
    let Some(metadata) = meta::metadata_mut(object) else {
        return;
    };
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    let mut kept = vec![
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ];
    if def.tracks_generation {
        kept.push("generation");
    }
    for key in kept {
        meta::set(metadata, key, current["metadata"].get(key).cloned());
    }
}

/// An object that is being deleted takes no new finalizers.
fn check_finalizers(at: At<'_>, current: &Value, object: &Value) -> Result<(), ApiError> {
    if !meta::is_terminating(current) {
        return Ok(());
    }
    let had = meta::finalizers(current);
    let new: Vec<&str> = meta::finalizers(object)
        .into_iter()
        .filter(|f| !had.contains(f))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let quoted: Vec<String> = new.iter().map(|f| format!("\"{f}\"")).collect();
    Err(at.invalid(
        "FieldValueForbidden",
        "metadata.finalizers",
        format!(
            "Forbidden: no new finalizers can be added if the object is being deleted, found new \
             finalizers []string{{{}}}",
            quoted.join(", ")
        ),
    ))
}

/// Whether anything outside `metadata` and `status` differs.
fn desired_differs(current: &Value, object: &Value) -> bool {
    let (Some(a), Some(b)) = (current.as_object(), object.as_object()) else {
        return true;
    };
    let desired = |key: &str| !matches!(key, "metadata" | "status" | "apiVersion" | "kind");
    a.iter().any(|(k, v)| desired(k) && b.get(k) != Some(v))
        || b.keys().any(|k| desired(k) && !a.contains_key(k))
}

impl ApiError {
    /// Whether a write was refused because a requirement on one of its extra keys
    /// ([`WriteOptions::facts`]) did not hold. Nothing was changed.
    pub fn is_fact_conflict(&self) -> bool {
        self.reason == Reason::Conflict && self.subject.is_none()
    }
}
