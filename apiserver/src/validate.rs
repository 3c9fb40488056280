//! Validation of built-in objects, with the texts of the reference server (`kube-api.md` §7).

mod error;
mod meta;

pub use error::FieldError;

use serde_json::Value;

/// What is wrong with a new object (already defaulted).
pub fn create(api_version: &str, kind: &str, object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(api_version, kind, object);
    errors.truncate(100);
    errors
}

/// What is wrong with a change.
pub fn update(api_version: &str, kind: &str, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(api_version, kind, old, new);
    errors.truncate(100);
    errors
}
