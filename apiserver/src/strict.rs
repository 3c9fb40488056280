//! Field validation (`kube-api.md` §1.5): JSON bodies read with an eye on duplicate fields, and objects checked
//! against what their kind looks like, with the texts of the reference server.
//!
//! Unknown fields are reported, not dropped; [`prune`] drops them. Custom resources are not known here: their
//! schema (`crd::Schema`) does this work.

mod check;
mod json;

pub use check::prune;
pub(crate) use check::whole;

use serde_json::Value;

/// Problems reported at most for one object.
const MAX_PROBLEMS: usize = 100;

/// A body that is no object of its kind: a 400. `Display` is the message of the Status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON.
    #[error("couldn't get version/kind; json parse error: {0}")]
    Syntax(String),
    /// JSON of the wrong shape.
    #[error("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}")]
    Shape {
        /// The kind.
        kind: String,
        /// The version without its group.
        version: String,
        /// What is wrong.
        why: String,
    },
}

/// Reads a JSON body. The second part lists duplicate and unknown fields (`duplicate field "data.a"`).
pub fn decode(
    body: &[u8],
    api_version: &str,
    kind: &str,
) -> Result<(Value, Vec<String>), DecodeError> {
    let (value, mut problems) = json::parse(body)?;
    problems.extend(check_value(&value, api_version, kind)?);
    problems.truncate(MAX_PROBLEMS);
    Ok((value, problems))
}

/// Checks an object already in memory (from protobuf, YAML or a patch): `Ok` lists its unknown fields.
pub fn check_value(
    value: &Value,
    api_version: &str,
    kind: &str,
) -> Result<Vec<String>, DecodeError> {
    check::object(value, api_version, kind).map_err(|why| DecodeError::Shape {
        kind: kind.to_owned(),
        version: version_of(api_version).to_owned(),
        why,
    })
}

/// The whole text of the 400 that `fieldValidation=Strict` answers to these problems.
pub fn strict_message(api_version: &str, kind: &str, problems: &[String]) -> String {
    let version = version_of(api_version);
    let all = problems.join(", ");
    format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {all}"
    )
}

fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or(api_version)
}

/// Go's name for the type of a JSON value.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
#[path = "strict/tests.rs"]
mod tests;
