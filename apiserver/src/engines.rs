//! The pure engines as the pipeline uses them: one entry for built-in and custom kinds, and
//! their errors as refusals.

use serde_json::Value;

use crate::pipeline::{Patch, PatchKind};
use crate::registry::ResourceDef;
use crate::selector::{FieldSelector, LabelSelector};
use crate::status::{ApiError, Cause, Reason};
use crate::validate::FieldError;
use crate::{defaults, patch as patches, strict, validate};

/// Reads a JSON body; the second part lists unknown and duplicate fields.
pub(crate) fn decode(def: &ResourceDef, body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    strict::decode(body, &def.api_version(), &def.kind).map_err(|e| {
        ApiError::bad_request(match &e {
            strict::DecodeError::Syntax(_) => format!(
                "the object provided is unrecognized (must be of type {}): {e}",
                def.kind
            ),
            strict::DecodeError::Shape { .. } => e.to_string(),
        })
    })
}

/// Checks the types of an object that was not decoded by [`decode`]; the text says what is wrong.
pub(crate) fn check(def: &ResourceDef, object: &Value) -> Result<Vec<String>, String> {
    strict::check_value(object, &def.api_version(), &def.kind).map_err(|e| match e {
        strict::DecodeError::Shape { why, .. } => why,
        strict::DecodeError::Syntax(why) => why,
    })
}

/// Drops fields that the kind does not know. Those of custom kinds are reported here; those of
/// built-in kinds were reported by [`decode`] or [`check`].
pub(crate) fn prune(def: &ResourceDef, object: &mut Value) -> Vec<String> {
    if let Some(custom) = &def.custom {
        let gone = custom.schema.prune(object);
        return gone
            .into_iter()
            .map(|path| format!("unknown field \"{path}\""))
            .collect();
    }
    strict::prune(object, &def.api_version(), &def.kind);
    Vec::new()
}

pub(crate) fn default(def: &ResourceDef, object: &mut Value) {
    match &def.custom {
        Some(custom) => custom.schema.default(object),
        None => defaults::apply(&def.api_version(), &def.kind, object),
    }
}

fn causes(errors: Vec<FieldError>) -> Vec<Cause> {
    errors
        .into_iter()
        .map(|error| Cause {
            reason: error.reason.to_string(),
            message: error.message,
            field: error.path,
        })
        .collect()
}

pub(crate) fn validate_new(def: &ResourceDef, object: &Value) -> Vec<Cause> {
    let mut found = causes(validate::create(&def.api_version(), &def.kind, object));
    if let Some(custom) = &def.custom {
        found.extend(causes(custom.schema.validate(object)));
    }
    found
}

pub(crate) fn validate_change(def: &ResourceDef, old: &Value, new: &Value) -> Vec<Cause> {
    let mut found = causes(validate::update(&def.api_version(), &def.kind, old, new));
    if let Some(custom) = &def.custom {
        found.extend(causes(custom.schema.validate(new)));
    }
    found
}

/// Applies a patch to the object as it is stored and shown.
pub(crate) fn patch(def: &ResourceDef, live: &Value, patch: &Patch) -> Result<Value, ApiError> {
    let outcome = match patch.kind {
        PatchKind::Json => patches::json_patch(live, &patch.body),
        PatchKind::Merge => Ok(patches::merge_patch(live, &patch.body)),
        PatchKind::Strategic => {
            patches::strategic(live, &patch.body, &def.api_version(), &def.kind)
        }
    };
    outcome.map_err(|error| match error.code {
        400 => ApiError::bad_request(error.message),
        413 => ApiError::new(Reason::RequestEntityTooLarge, error.message),
        422 => {
            let mut refusal = ApiError::unprocessable();
            refusal.message = error.message;
            refusal
        }
        _ => ApiError::new(Reason::Unclassified, error.message),
    })
}

/// Label and field selector together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selectors {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selectors {
    pub(crate) fn parse(def: &ResourceDef, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let refuse = |e: crate::selector::SelectorError| ApiError::bad_request(e.to_string());
        let selectable: Vec<String> = def
            .custom
            .iter()
            .filter_map(|c| c.version["selectableFields"].as_array())
            .flatten()
            .filter_map(|f| f["jsonPath"].as_str().map(str::to_owned))
            .collect();
        Ok(Self {
            labels: LabelSelector::parse(labels).map_err(refuse)?,
            fields: FieldSelector::parse_with(def.group(), def.plural(), fields, &selectable)
                .map_err(refuse)?,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The prefix of all keys that can match: a selector of one name needs one key.
    pub(crate) fn prefix(&self, def: &ResourceDef, namespace: &str) -> String {
        match self.fields.exact("metadata.name") {
            Some(name) if !def.namespaced || !namespace.is_empty() => def.key(namespace, name),
            _ => def.prefix(namespace),
        }
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        (self.labels.is_empty() || self.labels.matches(object.pointer("/metadata/labels")))
            && (self.fields.is_empty() || self.fields.matches(object))
    }
}
