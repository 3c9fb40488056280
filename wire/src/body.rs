//! Bodies whose shape must be told apart before they are used (protocol §4.3, Appendix C).

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::message::Content;

/// A Kubernetes API error as it travels: `metav1.Status`, the members that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `Failure`.
    #[serde(default)]
    pub status: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// `NotFound`, `AlreadyExists`, …; what programs decide by.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// HTTP code.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub code: u16,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_zero(code: &u16) -> bool {
    *code == 0
}

/// What a reply carries. Order of the decision is Appendix C's.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The string `OK`: success without a body.
    Ok,
    /// Another string; a plain-text answer such as the cluster's CA.
    Text(String),
    /// The object asked for, as JSON text.
    Object(Box<RawValue>),
    /// An API error.
    Failed(Status),
    /// An error whose text was lost on the way (`{}`): Go errors marshal to nothing.
    UnknownError,
    /// `null`.
    Empty,
}

impl PartialEq for Reply {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ok, Self::Ok)
            | (Self::UnknownError, Self::UnknownError)
            | (Self::Empty, Self::Empty) => true,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Object(a), Self::Object(b)) => a.get() == b.get(),
            (Self::Failed(a), Self::Failed(b)) => a == b,
            _ => false,
        }
    }
}

#[derive(Deserialize)]
struct ErrorShape {
    #[serde(rename = "ErrStatus")]
    status: Status,
}

impl Reply {
    /// Classifies the content of a response. An error is never mistaken for an object.
    pub fn classify(content: &Content) -> Self {
        if let Some(text) = content.text() {
            return if text == "OK" {
                Self::Ok
            } else {
                Self::Text(text)
            };
        }
        if content.is_null() {
            return Self::Empty;
        }
        let Ok(members) = serde_json::from_str::<std::collections::BTreeMap<String, Box<RawValue>>>(
            content.raw(),
        ) else {
            return Self::Text(content.raw().to_owned());
        };
        if members.is_empty() {
            return Self::UnknownError;
        }
        if let (2, Some(object), Some(error)) =
            (members.len(), members.get("Object"), members.get("Err"))
        {
            return Self::of_object_response(object, error);
        }
        if let Ok(error) = serde_json::from_str::<ErrorShape>(content.raw()) {
            return Self::Failed(error.status);
        }
        RawValue::from_string(content.raw().to_owned()).map_or(Self::UnknownError, Self::Object)
    }

    fn of_object_response(object: &RawValue, error: &RawValue) -> Self {
        if error.get() != "null" {
            return serde_json::from_str::<ErrorShape>(error.get())
                .map_or(Self::UnknownError, |shape| Self::Failed(shape.status));
        }
        if object.get() == "null" {
            Self::Empty
        } else {
            Self::Object(object.to_owned())
        }
    }
}

/// `{"Object":…,"Err":null}`: the answer to a create, a patch, a lease call.
pub fn object_response(object: &impl Serialize) -> Result<Content, serde_json::Error> {
    #[derive(Serialize)]
    struct Shape<'a, T> {
        #[serde(rename = "Object")]
        object: &'a T,
        #[serde(rename = "Err")]
        error: Option<()>,
    }
    Content::json(&Shape {
        object,
        error: None,
    })
}

/// `{"Object":null,"Err":{"ErrStatus":…}}`.
pub fn object_error(status: &Status) -> Content {
    let text = format!("{{\"Object\":null,\"Err\":{}}}", error_text(status));
    Content::from_json_text(text).unwrap_or_default()
}

/// `{"ErrStatus":…}`: the answer to a query that failed.
pub fn error(status: &Status) -> Content {
    Content::from_json_text(error_text(status)).unwrap_or_default()
}

fn error_text(status: &Status) -> String {
    let status = Content::json(&status).unwrap_or_default();
    // Go writes metav1.Status with an (empty) metadata member first.
    let members = status.raw().strip_prefix('{').unwrap_or("}");
    format!("{{\"ErrStatus\":{{\"metadata\":{{}},{members}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> Content {
        Content::from_json_text(text.to_owned()).unwrap()
    }

    #[test]
    fn the_shapes_of_appendix_c_are_told_apart() {
        let not_found = Status {
            status: "Failure".into(),
            reason: "NotFound".into(),
            code: 404,
            ..Status::default()
        };
        let object = |text: &str| Reply::Object(RawValue::from_string(text.into()).unwrap());
        for (text, expected) in [
            ("\"OK\"", Reply::Ok),
            ("\"boom\"", Reply::Text("boom".into())),
            ("null", Reply::Empty),
            ("{}", Reply::UnknownError),
            (r#"{"Object":null,"Err":{}}"#, Reply::UnknownError),
            (r#"{"Object":{"a":1},"Err":null}"#, object(r#"{"a":1}"#)),
            (
                r#"{"metadata":{"name":"x"}}"#,
                object(r#"{"metadata":{"name":"x"}}"#),
            ),
            (
                r#"{"ErrStatus":{"metadata":{},"status":"Failure","reason":"NotFound","code":404}}"#,
                Reply::Failed(not_found.clone()),
            ),
            (
                r#"{"Object":null,"Err":{"ErrStatus":{"status":"Failure","reason":"NotFound","code":404}}}"#,
                Reply::Failed(not_found.clone()),
            ),
            // An object that happens to have a member Object is an object.
            (
                r#"{"Object":1,"other":2}"#,
                object(r#"{"Object":1,"other":2}"#),
            ),
        ] {
            assert_eq!(Reply::classify(&content(text)), expected, "{text}");
        }
        assert_eq!(
            Reply::classify(&error(&not_found)),
            Reply::Failed(not_found.clone())
        );
        assert_eq!(
            Reply::classify(&object_error(&not_found)),
            Reply::Failed(not_found)
        );
        let sent = object_response(&serde_json::json!({"a": 1})).unwrap();
        assert_eq!(Reply::classify(&sent), object(r#"{"a":1}"#));
    }
}
