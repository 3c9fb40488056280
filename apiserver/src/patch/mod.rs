//! The patch types of the API: JSON patch, JSON merge patch, strategic merge patch (`kube-api.md` §5).

mod json;
mod merge;
mod strategic;

pub use json::json_patch;
pub use merge::merge_patch;
pub use strategic::strategic;

use serde_json::Value;

/// A patch that cannot be applied, as the reference server says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PatchError {
    /// HTTP status.
    pub code: u16,
    /// `Status.reason`; empty when the reference sends none.
    pub reason: &'static str,
    /// `Status.message`.
    pub message: String,
}

impl PatchError {
    /// The 422 without details.
    fn generic() -> PatchError {
        PatchError {
            code: 422,
            reason: "Invalid",
            message: "the server rejected our request due to an error in our request".into(),
        }
    }

    fn bad_request(message: impl Into<String>) -> PatchError {
        PatchError {
            code: 400,
            reason: "BadRequest",
            message: message.into(),
        }
    }

    fn too_large(message: String) -> PatchError {
        PatchError {
            code: 413,
            reason: "RequestEntityTooLarge",
            message,
        }
    }

    /// Errors of the strategic merge that the reference does not classify come out as a bare 500.
    fn internal(message: String) -> PatchError {
        PatchError {
            code: 500,
            reason: "",
            message,
        }
    }

    /// The patched object does not decode: ` "" is invalid: patch: Invalid value: …`.
    pub fn undecodable(shown: &str, why: &str) -> PatchError {
        PatchError {
            code: 422,
            reason: "Invalid",
            message: format!(" \"\" is invalid: patch: Invalid value: {shown:?}: {why}"),
        }
    }
}

/// Go's `%v` of decoded JSON: `map[a:1 b:[x y]]`.
pub fn go_format(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(s) => s.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(list) => format!(
            "[{}]",
            list.iter().map(go_format).collect::<Vec<_>>().join(" ")
        ),
        Value::Object(map) => {
            let items = map
                .iter()
                .map(|(k, v)| format!("{k}:{}", go_format(v)))
                .collect::<Vec<_>>();
            format!("map[{}]", items.join(" "))
        }
    }
}
