//! POST.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{At, Pipeline, WriteOptions, Written, encode, judge, lost_race, meta, refuse_invalid};
use crate::engines;
use crate::registry::{Gvr, ResourceDef};
use crate::status::{ApiError, Reason};
use crate::store::{Require, Txn, set_resource_version};

/// Names tried for `generateName` before the collision is reported (kube-apiserver: 8).
const GENERATE_TRIES_MAX: usize = 8;

impl Pipeline {
    pub(crate) async fn create(
        &self,
        def: &Arc<ResourceDef>,
        namespace: &str,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        check_type(def, &mut object)?;
        place(def, namespace, &mut object)?;
        let mut problems = options.problems.clone();
        problems.extend(engines::prune(def, &mut object));
        let mut warnings = judge(def, options.field_validation, problems)?;
        self.start_metadata(def, &mut object)?;
        let generated = meta::name(&object).is_empty();
        let prefix = meta::text(&object, "/metadata/generateName").to_owned();
        if generated && prefix.is_empty() {
            return Err(ApiError::invalid_field(
                def.group(),
                &def.kind,
                "",
                "FieldValueRequired",
                "metadata.name",
                "Required value: name or generateName is required",
            ));
        }
        for attempt in 1.. {
            if generated {
                object["metadata"]["name"] = meta::generate_name(&prefix).into();
            }
            let outcome = self.create_named(def, namespace, &object, &options).await;
            match outcome {
                Err(error)
                    if generated
                        && error.reason == Reason::AlreadyExists
                        && attempt < GENERATE_TRIES_MAX => {}
                Ok(object) => {
                    warnings.extend(self.advise(def, &object).await);
                    return Ok(Written {
                        object,
                        created: true,
                        warnings,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::internal("no name could be generated"))
    }

    async fn create_named(
        &self,
        def: &Arc<ResourceDef>,
        namespace: &str,
        object: &Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let mut object = object.clone();
        let name = meta::name(&object).to_owned();
        let at = At {
            def,
            namespace,
            name: &name,
        };
        let mut txn = Txn::new().require(Require::Absent(at.key()));
        // The object first: a caller who made a typo wants to hear of that.
        engines::default(def, &mut object);
        self.admit_new(def, &mut object);
        if def.namespaced {
            txn = txn.require(Require::Exists(self.open_namespace(at).await?));
        }
        if def.gvr == Gvr::core("pods") {
            self.admit_pod(namespace, &mut object).await?;
        }
        if def.gvr == Gvr::core("persistentvolumeclaims") {
            self.admit_claim(&mut object).await?;
        }
        refuse_invalid(def, &name, engines::validate_new(def, &object))?;
        txn = txn.put(at.key(), encode(def, &object)?);
        if def.gvr == Gvr::core("namespaces") {
            txn = txn.and(self.namespace_contents(&name)?);
        }
        if options.dry_run {
            if let Some((existing, _)) = self.load(at).await? {
                return Err(taken(at, &existing));
            }
            return Ok(object);
        }
        match self.store.txn(txn.and(options.facts.clone())).await {
            Ok(revision) => {
                set_resource_version(&mut object, revision);
                self.definition_written(def, &object);
                Ok(object)
            }
            Err(error) if lost_race(&error, &at.key()) => match self.load(at).await? {
                Some((existing, _)) => Err(taken(at, &existing)),
                None => Err(taken(at, &Value::Null)),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Metadata that the server gives to every new object (kube-api.md §4.2).
    fn start_metadata(&self, def: &ResourceDef, object: &mut Value) -> Result<(), ApiError> {
        if !matches!(meta::resource_version(object), "" | "0") {
            return Err(ApiError::new(
                Reason::Unclassified,
                "resourceVersion should not be set on objects to be created",
            ));
        }
        meta::drop_null_times(object);
        let now = meta::rfc3339(self.now());
        let Some(metadata) = meta::metadata_mut(object) else {
            return Err(ApiError::bad_request("metadata must be an object"));
        };
        for gone in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "resourceVersion",
            "managedFields",
        ] {
            metadata.remove(gone);
        }
        metadata.insert("uid".into(), Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".into(), now.into());
        if def.tracks_generation {
            metadata.insert("generation".into(), 1.into());
        }
        Ok(())
    }

    /// What a kind begins its life with, beyond defaults.
    fn admit_new(&self, def: &ResourceDef, object: &mut Value) {
        match (def.group(), def.plural()) {
            ("", "namespaces") => Self::begin_namespace(object),
            ("apiextensions.k8s.io", "customresourcedefinitions") => {
                self.establish_definition(object);
            }
            _ if def.custom.is_some() && def.has_status => {
                if let Some(map) = object.as_object_mut() {
                    map.remove("status");
                }
            }
            _ => {}
        }
    }
}

fn taken(at: At<'_>, existing: &Value) -> ApiError {
    let mut error = ApiError::already_exists(at.def.group(), at.def.plural(), at.name);
    if meta::is_terminating(existing) {
        error.message = format!("object is being deleted: {}", error.message);
    }
    error
}

/// The body's type must be the path's; a body without one gets it from the path.
pub(super) fn check_type(def: &ResourceDef, object: &mut Value) -> Result<(), ApiError> {
    let expected = def.api_version();
    if !object.is_object() {
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: json: cannot \
             unmarshal into Go value",
            kind = def.kind,
            version = def.gvr.version
        )));
    }
    let kind = meta::text(object, "/kind").to_owned();
    let version = meta::text(object, "/apiVersion").to_owned();
    if !kind.is_empty() && kind != def.kind {
        let version = crate::registry::split_api_version(&version).1;
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {own}: converting \
             ({version}.{kind}) to (core.{own}): unknown conversion",
            own = def.kind
        )));
    }
    if !version.is_empty() && version != expected {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version \
             ({expected})"
        )));
    }
    object["kind"] = def.kind.clone().into();
    object["apiVersion"] = expected.into();
    match object.get("metadata") {
        None | Some(Value::Null) => object["metadata"] = Value::Object(Map::new()),
        Some(Value::Object(_)) => {}
        Some(_) => return Err(ApiError::bad_request("metadata must be an object")),
    }
    Ok(())
}

/// The body's namespace must be the path's.
pub(super) fn place(
    def: &ResourceDef,
    namespace: &str,
    object: &mut Value,
) -> Result<(), ApiError> {
    let said = meta::namespace(object);
    if !def.namespaced {
        if !said.is_empty() {
            // Cluster-scoped kinds have no namespace; reference servers drop it.
            object["metadata"]["namespace"] = Value::Null;
        }
        if let Some(metadata) = meta::metadata_mut(object) {
            metadata.retain(|key, value| key != "namespace" || !value.is_null());
        }
        return Ok(());
    }
    if !said.is_empty() && said != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the \
             request",
        ));
    }
    object["metadata"]["namespace"] = json!(namespace);
    Ok(())
}
