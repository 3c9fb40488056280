//! DELETE: finalizers, preconditions, pods that get time to stop (kube-api.md §4.5, §4.6).

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::namespaces::PERMANENT;
use super::{At, CONFLICT_RETRIES_MAX, Pipeline, encode, lost_race, meta};
use crate::registry::Deletion;
use crate::status::{self, ApiError};
use crate::store::{Require, Revision, Txn, set_resource_version};

/// Seconds a pod gets to stop, if it does not say (core/v1 defaults).
const POD_GRACE_SECS: i64 = 30;

/// How to delete. All objects are removed in the background way: dependents are not followed
/// here.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Time to stop; `None` means the object's own.
    pub grace_secs: Option<i64>,
    /// Only this incarnation.
    pub uid: Option<String>,
    /// Only in this state.
    pub resource_version: Option<String>,
    /// Do everything except removing.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` object; null means none.
    pub fn parse(body: &Value) -> Result<Self, ApiError> {
        let kind = meta::text(body, "/kind");
        if !matches!(kind, "" | "DeleteOptions") {
            return Err(ApiError::bad_request(format!(
                "{kind} cannot be handled as a DeleteOptions"
            )));
        }
        let propagation = meta::text(body, "/propagationPolicy");
        check_propagation(propagation)?;
        if !propagation.is_empty() && body["orphanDependents"].is_boolean() {
            return Err(ApiError::invalid_field(
                "meta.k8s.io",
                "DeleteOptions",
                "",
                "FieldValueInvalid",
                "propagationPolicy",
                format!(
                    "Invalid value: \"{propagation}\": orphanDependents and \
                     deletionPropagation cannot be both set"
                ),
            ));
        }
        let text = |pointer: &str| {
            let found = body.pointer(pointer).and_then(Value::as_str);
            found.map(str::to_owned)
        };
        let dry_run = match body.get("dryRun") {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) if list.is_empty() => false,
            Some(list) if *list == serde_json::json!(["All"]) => true,
            Some(other) => return Err(bad_dry_run(&other.to_string())),
        };
        Ok(Self {
            grace_secs: body.get("gracePeriodSeconds").and_then(Value::as_i64),
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            dry_run,
        })
    }
}

/// Refuses policies that do not exist.
pub(crate) fn check_propagation(policy: &str) -> Result<(), ApiError> {
    if matches!(policy, "" | "Background" | "Foreground" | "Orphan") {
        return Ok(());
    }
    Err(ApiError::invalid_field(
        "meta.k8s.io",
        "DeleteOptions",
        "",
        "FieldValueNotSupported",
        "propagationPolicy",
        format!(
            "Unsupported value: \"{policy}\": supported values: \"Foreground\", \"Background\", \
             \"Orphan\", \"nil\""
        ),
    ))
}

pub(crate) fn bad_dry_run(said: &str) -> ApiError {
    ApiError::invalid_field(
        "meta.k8s.io",
        "DeleteOptions",
        "",
        "FieldValueNotSupported",
        "dryRun",
        format!("Unsupported value: {said}: supported values: \"All\""),
    )
}

/// What DELETE did.
#[derive(Debug)]
pub struct Deleted {
    /// Whether the object is gone, rather than marked.
    pub removed: bool,
    /// The object as it was last.
    pub object: Value,
    /// What the writer is answered: a `Status`, or the object for kinds that go gracefully.
    pub answer: Value,
}

/// What is to be done.
enum Step {
    Remove(Value),
    Mark(Value),
    Nothing(Value),
}

impl Pipeline {
    pub(crate) async fn delete(
        &self,
        at: At<'_>,
        options: DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let permanent = at.def.deletion == Deletion::Namespace && PERMANENT.contains(&at.name);
        if permanent {
            let why = "this namespace may not be deleted";
            return Err(ApiError::forbidden("", "namespaces", at.name, why));
        }
        for _ in 0..CONFLICT_RETRIES_MAX {
            let (current, revision) = self.found(at).await?;
            check_preconditions(at, &current, &options)?;
            let step = self.plan(at, &current, &options).await?;
            if let Some(deleted) = self.execute(at, revision, step, options.dry_run).await? {
                if at.def.deletion == Deletion::Namespace && !options.dry_run {
                    // Most namespaces are empty or nearly so: done at once. The rest is the
                    // controller's.
                    Box::pin(self.end_namespace(at.name)).await?;
                }
                return Ok(deleted);
            }
        }
        Err(at.modified())
    }

    async fn plan(
        &self,
        at: At<'_>,
        current: &Value,
        options: &DeleteOptions,
    ) -> Result<Step, ApiError> {
        let now = self.now();
        match at.def.deletion {
            Deletion::Namespace => {
                if meta::is_terminating(current) {
                    return Ok(Step::Nothing(current.clone()));
                }
                let mut object = mark(at, current, now, None);
                object["status"]["phase"] = "Terminating".into();
                Ok(Step::Mark(object))
            }
            Deletion::Pod => Ok(stop_pod(at, current, options.grace_secs, now)),
            Deletion::Immediate => {
                let mut object = current.clone();
                if !options.dry_run && !self.definition_emptied(at).await? {
                    object = super::definitions::with_cleanup_finalizer(object);
                }
                Ok(finish(at, current, object, now))
            }
        }
    }

    async fn execute(
        &self,
        at: At<'_>,
        revision: Revision,
        step: Step,
        dry_run: bool,
    ) -> Result<Option<Deleted>, ApiError> {
        let (removed, mut object, txn) = match step {
            Step::Nothing(object) => {
                return Ok(Some(Deleted {
                    removed: false,
                    answer: object.clone(),
                    object,
                }));
            }
            Step::Remove(object) => (true, object, Txn::new().delete(at.key())),
            Step::Mark(object) => {
                let bytes = encode(at.def, &object)?;
                (false, object, Txn::new().put(at.key(), bytes))
            }
        };
        if !dry_run {
            let txn = txn.require(Require::At(at.key(), revision));
            match self.store.txn(txn).await {
                Ok(new) if !removed => set_resource_version(&mut object, new),
                Ok(_) => self.definition_removed(at.def, at.name),
                Err(error) if lost_race(&error, &at.key()) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        let answer = if removed && at.def.deletion == Deletion::Immediate {
            let uid = meta::uid(&object);
            status::deleted(at.def.group(), at.def.plural(), at.name, uid)
        } else {
            object.clone()
        };
        Ok(Some(Deleted {
            removed,
            object,
            answer,
        }))
    }
}

fn check_preconditions(
    at: At<'_>,
    current: &Value,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let refuse = |what: &str, said: &str, is: &str| {
        let mut error = ApiError::conflict(
            at.def.group(),
            &at.def.kind,
            at.name,
            &format!(
                "the {what} in the precondition ({said}) does not match the {what} in record \
                 ({is}). The object might have been {}",
                if what == "UID" {
                    "deleted and then recreated"
                } else {
                    "modified"
                }
            ),
        );
        if !at.def.group().is_empty() {
            error.message = format!(
                "Operation cannot be fulfilled on {}.{} \"{}\": {}",
                at.def.kind,
                at.def.group(),
                at.name,
                error.message.split_once(": ").map_or("", |(_, why)| why)
            );
        }
        Err(error)
    };
    if let Some(said) = &options.uid
        && said != meta::uid(current)
    {
        return refuse("UID", said, meta::uid(current));
    }
    if let Some(said) = &options.resource_version
        && said != meta::resource_version(current)
    {
        return refuse("ResourceVersion", said, meta::resource_version(current));
    }
    Ok(())
}

/// Removes, or waits for finalizers.
fn finish(at: At<'_>, current: &Value, object: Value, now: Timestamp) -> Step {
    if meta::finalizers(&object).is_empty() {
        return Step::Remove(object);
    }
    if meta::is_terminating(current) && object == *current {
        return Step::Nothing(object);
    }
    Step::Mark(mark(at, &object, now, Some(0)))
}

/// Sets the deletion timestamp, once.
fn mark(at: At<'_>, object: &Value, when: Timestamp, grace_secs: Option<i64>) -> Value {
    let mut object = object.clone();
    let first = !meta::is_terminating(&object);
    let generation = meta::generation(&object) + 1;
    if let Some(metadata) = meta::metadata_mut(&mut object) {
        if first {
            metadata.insert("deletionTimestamp".into(), meta::rfc3339(when).into());
            if at.def.tracks_generation {
                metadata.insert("generation".into(), generation.into());
            }
        }
        if let Some(secs) = grace_secs {
            metadata.insert("deletionGracePeriodSeconds".into(), secs.into());
        }
    }
    object
}

/// A pod on a node is stopped by the node, which then deletes it with no grace. A pod that runs
/// nowhere goes at once.
fn stop_pod(at: At<'_>, current: &Value, asked: Option<i64>, now: Timestamp) -> Step {
    let phase = meta::text(current, "/status/phase");
    let nowhere = meta::text(current, "/spec/nodeName").is_empty();
    let own = current.pointer("/spec/terminationGracePeriodSeconds");
    let mut grace = asked
        .or_else(|| own.and_then(Value::as_i64))
        .unwrap_or(POD_GRACE_SECS);
    if grace < 0 {
        grace = 1;
    }
    if nowhere || matches!(phase, "Succeeded" | "Failed") {
        grace = 0;
    }
    if grace == 0 {
        let gone = mark(at, current, now, Some(0));
        if meta::finalizers(&gone).is_empty() {
            return Step::Remove(gone);
        }
        if gone == *current {
            return Step::Nothing(gone);
        }
        return Step::Mark(gone);
    }
    let deadline = now
        .checked_add(SignedDuration::from_secs(grace))
        .unwrap_or(now);
    if !meta::is_terminating(current) {
        return Step::Mark(mark(at, current, deadline, Some(grace)));
    }
    let before = current["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if before.unwrap_or(0) <= grace {
        return Step::Nothing(current.clone());
    }
    let mut object = current.clone();
    object["metadata"]["deletionTimestamp"] = meta::rfc3339(deadline).into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    Step::Mark(object)
}
