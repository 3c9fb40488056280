//! What happens between a request and the store: metadata, defaults, admission, validation,
//! optimistic concurrency, and the rules of deletion. The same for HTTP and for callers in the
//! same process.
//!
//! One write is: read the object, compute what it becomes (pure), compare-and-swap. Nothing is
//! remembered between requests, so several servers may share one store.

mod advice;
mod claims;
mod create;
mod definitions;
mod delete;
pub(crate) mod meta;
mod namespaces;
mod pods;
mod read;
mod update;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

pub(crate) use delete::check_propagation;
pub use delete::{DeleteOptions, Deleted};
pub use read::{List, ListOptions};
pub use update::{Patch, PatchKind};
pub use watch::{ObjectWatch, WatchEvent, WatchOptions};

use crate::registry::{Registry, ResourceDef};
use crate::status::{ApiError, Cause};
use crate::store::{Entry, Revision, Store, StoreError, Txn, set_resource_version};

/// How often a write is tried again when another writer was faster, before the writer is told.
/// kube-apiserver retries patches five times; a little more costs nothing here.
const CONFLICT_RETRIES_MAX: usize = 16;

/// What to do about fields that the schema does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and say so in `Warning` headers.
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

/// How to write.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Do everything except storing.
    pub dry_run: bool,
    /// What to do about unknown fields.
    pub field_validation: FieldValidation,
    /// Problems that were found while decoding the body.
    pub problems: Vec<String>,
    /// Requirements and changes of other keys that commit together with the object, also when
    /// the object itself does not change. When one of these requirements fails the answer is an
    /// error with [`ApiError::is_fact_conflict`].
    pub facts: Txn,
}

/// A finished write.
#[derive(Debug)]
pub struct Written {
    /// The object as it is now.
    pub object: Value,
    /// Whether it was created.
    pub created: bool,
    /// Sentences for `Warning` headers.
    pub warnings: Vec<String>,
}

/// Who and what an operation is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) def: &'a Arc<ResourceDef>,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

impl At<'_> {
    pub(crate) fn key(&self) -> String {
        self.def.key(self.namespace, self.name)
    }

    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(self.def.group(), self.def.plural(), self.name)
    }

    pub(crate) fn modified(&self) -> ApiError {
        ApiError::modified(self.def.group(), self.def.plural(), self.name)
    }

    pub(crate) fn invalid(&self, reason: &str, field: &str, message: String) -> ApiError {
        let (group, kind) = (self.def.group(), &self.def.kind);
        ApiError::invalid_field(group, kind, self.name, reason, field, message)
    }
}

/// What the pipeline works with.
pub(crate) struct Pipeline {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) registry: Registry,
    pub(crate) clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Content of every namespace's `kube-root-ca.crt`.
    pub(crate) root_ca: String,
    /// See [`crate::Options::joined`].
    pub(crate) joined: &'static str,
}

impl Pipeline {
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The stored object as `def`'s version shows it, with its revision.
    pub(crate) async fn load(&self, at: At<'_>) -> Result<Option<(Value, Revision)>, ApiError> {
        let Some(entry) = self.store.get(&at.key()).await? else {
            return Ok(None);
        };
        let object = present(at.def, &entry)?;
        Ok(Some((object, entry.revision)))
    }

    pub(crate) async fn found(&self, at: At<'_>) -> Result<(Value, Revision), ApiError> {
        self.load(at).await?.ok_or_else(|| at.not_found())
    }
}

/// Decodes a stored object and shows it as `def`'s version does.
pub(crate) fn present(def: &ResourceDef, entry: &Entry) -> Result<Value, ApiError> {
    let mut object: Value = serde_json::from_slice(&entry.value)
        .map_err(|e| ApiError::internal(format!("stored object `{}`: {e}", entry.key)))?;
    set_resource_version(&mut object, entry.revision);
    show_as(def, &mut object);
    if let Some(custom) = &def.custom {
        // A default that the definition gained later is seen at once.
        custom.schema.default(&mut object);
    }
    Ok(object)
}

/// Converts between served versions: custom kinds have the conversion `None`, which changes the
/// `apiVersion` only.
pub(crate) fn show_as(def: &ResourceDef, object: &mut Value) {
    if needs_conversion(def, object) {
        object["apiVersion"] = def.api_version().into();
    }
}

pub(crate) fn needs_conversion(def: &ResourceDef, object: &Value) -> bool {
    def.custom.is_some() && object["apiVersion"].as_str() != Some(&def.api_version())
}

/// The bytes that are stored: without the revision, which the store knows.
pub(crate) fn encode(def: &ResourceDef, object: &Value) -> Result<Bytes, ApiError> {
    let mut stored = object.clone();
    if let Some(metadata) = meta::metadata_mut(&mut stored) {
        metadata.remove("resourceVersion");
        metadata.remove("selfLink");
    }
    if let Some(custom) = &def.custom {
        stored["apiVersion"] =
            crate::registry::api_version(def.group(), &custom.storage_version).into();
    }
    serde_json::to_vec(&stored)
        .map(Bytes::from)
        .map_err(ApiError::internal)
}

/// Decides about unknown and duplicate fields: refuses, warns or is silent.
pub(crate) fn judge(
    def: &ResourceDef,
    validation: FieldValidation,
    problems: Vec<String>,
) -> Result<Vec<String>, ApiError> {
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(problems),
        FieldValidation::Strict if problems.is_empty() => Ok(problems),
        FieldValidation::Strict => Err(ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding \
             error: {problems}",
            kind = def.kind,
            version = def.gvr.version,
            problems = problems.join(", ")
        ))),
    }
}

/// Whether a refused transaction was refused because of this key.
pub(crate) fn lost_race(error: &StoreError, key: &str) -> bool {
    matches!(error, StoreError::Conflict { key: lost, .. } if lost == key)
}

/// Turns the engines' field errors into the refusal.
pub(crate) fn refuse_invalid(
    def: &ResourceDef,
    name: &str,
    causes: Vec<Cause>,
) -> Result<(), ApiError> {
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(def.group(), &def.kind, name, causes))
    }
}
