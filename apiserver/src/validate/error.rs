//! One thing wrong with one field.

use serde_json::Value;

/// A cause of a 422.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where: `spec.containers[0].image`.
    pub path: String,
    /// The machine-readable kind: `FieldValueRequired`, …
    pub reason: &'static str,
    /// The detail: `Required value`.
    pub message: String,
}

fn because(head: String, why: &str) -> String {
    if why.is_empty() {
        head
    } else {
        format!("{head}: {why}")
    }
}

impl FieldError {
    fn new(path: impl Into<String>, reason: &'static str, message: String) -> FieldError {
        FieldError {
            path: path.into(),
            reason,
            message,
        }
    }

    /// `Required value[: why]`
    pub fn required(path: impl Into<String>, why: &str) -> FieldError {
        Self::new(
            path,
            "FieldValueRequired",
            because("Required value".into(), why),
        )
    }

    /// `Invalid value: <json>: why`
    pub fn invalid(path: impl Into<String>, value: &Value, why: &str) -> FieldError {
        Self::new(
            path,
            "FieldValueInvalid",
            because(format!("Invalid value: {value}"), why),
        )
    }

    /// Like [`FieldError::invalid`], for a wrong type.
    pub fn type_invalid(path: impl Into<String>, value: &Value, why: &str) -> FieldError {
        Self::new(
            path,
            "FieldValueTypeInvalid",
            because(format!("Invalid value: {value}"), why),
        )
    }

    /// `Unsupported value: "x": supported values: "a", "b"`
    pub fn unsupported(path: impl Into<String>, value: &Value, supported: &[&str]) -> FieldError {
        let list = supported
            .iter()
            .map(|s| format!("{s:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        Self::new(
            path,
            "FieldValueNotSupported",
            format!("Unsupported value: {value}: supported values: {list}"),
        )
    }

    /// `Duplicate value: "x"`
    pub fn duplicate(path: impl Into<String>, value: &Value) -> FieldError {
        Self::new(
            path,
            "FieldValueDuplicate",
            format!("Duplicate value: {value}"),
        )
    }

    /// `Forbidden: why`
    pub fn forbidden(path: impl Into<String>, why: &str) -> FieldError {
        Self::new(
            path,
            "FieldValueForbidden",
            because("Forbidden".into(), why),
        )
    }

    /// `Too long: may not be more than N bytes`
    pub fn too_long(path: impl Into<String>, limit: usize) -> FieldError {
        Self::new(
            path,
            "FieldValueTooLong",
            format!("Too long: may not be more than {limit} bytes"),
        )
    }

    /// `Too many: N: must have at most M items`
    pub fn too_many(path: impl Into<String>, have: usize, limit: usize) -> FieldError {
        Self::new(
            path,
            "FieldValueTooMany",
            format!("Too many: {have}: must have at most {limit} items"),
        )
    }

    /// `Not found: "x"`
    pub fn not_found(path: impl Into<String>, value: &Value) -> FieldError {
        Self::new(path, "FieldValueNotFound", format!("Not found: {value}"))
    }

    /// `<path>: <message>`, as it stands in the Status message.
    pub fn render(&self) -> String {
        format!("{}: {}", self.path, self.message)
    }
}
