//! Refusals as Kubernetes clients know them: one error type, and the exact `Status` objects that
//! kubectl, client-go, kube-rs and the Python client match on (code, reason, details, causes).

use serde_json::{Map, Value, json};

use crate::store::StoreError;

/// The `reason` of a `Status`, with its HTTP code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// 400
    BadRequest,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 406
    NotAcceptable,
    /// 409, the name is taken
    AlreadyExists,
    /// 409, the object is not as the writer believes
    Conflict,
    /// 410, the history asked for is gone
    Expired,
    /// 413
    RequestEntityTooLarge,
    /// 415
    UnsupportedMediaType,
    /// 422
    Invalid,
    /// 429
    TooManyRequests,
    /// 500
    InternalError,
    /// 503
    ServiceUnavailable,
    /// 504
    Timeout,
    /// 500 without a reason, as kube-apiserver answers to some malformed patches
    Unclassified,
}

impl Reason {
    /// The HTTP status code.
    pub const fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError | Self::Unclassified => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Expired => "Expired",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::Invalid => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
            Self::Unclassified => "",
        }
    }
}

/// One cause of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// For example `FieldValueRequired`.
    pub reason: String,
    /// What is wrong, without the field.
    pub message: String,
    /// Path of the field; empty when there is none.
    pub field: String,
}

/// Which object a refusal is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// API group; empty for core.
    pub group: String,
    /// The plural, or for `Invalid` the kind.
    pub kind: String,
    /// Name; may be empty.
    pub name: String,
}

impl Subject {
    /// `deployments.apps`, `pods`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.kind.clone()
        } else {
            format!("{}.{}", self.kind, self.group)
        }
    }
}

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Code and reason.
    pub reason: Reason,
    /// The sentence shown to people.
    pub message: String,
    /// What it is about.
    pub subject: Option<Box<Subject>>,
    /// Why, field by field.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_secs: Option<u32>,
    /// Whether `details` appears although it is empty.
    empty_details: bool,
}

impl ApiError {
    /// An error with a reason and a message only.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            subject: None,
            causes: Vec::new(),
            retry_after_secs: None,
            empty_details: false,
        }
    }

    /// The same with `details` present and empty.
    pub(crate) fn bare(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            empty_details: true,
            ..Self::new(reason, message)
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.subject = Some(Box::new(Subject {
            group: group.into(),
            kind: kind.into(),
            name: name.into(),
        }));
        self
    }

    /// Adds a cause.
    #[must_use]
    pub fn cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        self.causes.push(Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        });
        self
    }

    /// The HTTP code.
    pub const fn code(&self) -> u16 {
        self.reason.code()
    }

    /// `pods "x" not found`
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let what = qualified(group, plural);
        Self::new(Reason::NotFound, format!("{what} \"{name}\" not found"))
            .about(group, plural, name)
    }

    /// The path names nothing we serve.
    pub fn no_such_resource() -> Self {
        Self {
            empty_details: true,
            ..Self::new(
                Reason::NotFound,
                "the server could not find the requested resource",
            )
        }
    }

    /// `configmaps "cm1" already exists`
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let what = qualified(group, plural);
        Self::new(
            Reason::AlreadyExists,
            format!("{what} \"{name}\" already exists"),
        )
        .about(group, plural, name)
    }

    /// `Operation cannot be fulfilled on pods "x": …`
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, plural);
        Self::new(
            Reason::Conflict,
            format!("Operation cannot be fulfilled on {what} \"{name}\": {why}"),
        )
        .about(group, plural, name)
    }

    /// The writer's copy is old.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(
            group,
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and \
             try again",
        )
    }

    /// `Pod "x" is invalid: …` with one cause per field.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let line = |c: &Cause| {
            if c.field.is_empty() {
                c.message.clone()
            } else {
                format!("{}: {}", c.field, c.message)
            }
        };
        let mut lines: Vec<String> = Vec::new();
        for cause in &causes {
            let line = line(cause);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let text = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let what = qualified(group, kind);
        Self {
            causes,
            ..Self::new(
                Reason::Invalid,
                format!("{what} \"{name}\" is invalid: {text}"),
            )
            .about(group, kind, name)
        }
    }

    /// Invalid because of one field.
    pub fn invalid_field(
        group: &str,
        kind: &str,
        name: &str,
        reason: &str,
        field: &str,
        message: impl Into<String>,
    ) -> Self {
        let cause = Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        };
        Self::invalid(group, kind, name, vec![cause])
    }

    /// A patch that cannot be applied: generic message, empty details.
    pub fn unprocessable() -> Self {
        Self {
            empty_details: true,
            ..Self::new(
                Reason::Invalid,
                "the server rejected our request due to an error in our request",
            )
        }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// `pods "v" is forbidden: <why>`
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, plural);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} \"{name}\" is forbidden: {why}")
        };
        Self::new(Reason::Forbidden, message).about(group, plural, name)
    }

    /// `forbidden: User "bob" cannot get path "/logs"`
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        Self {
            empty_details: true,
            ..Self::new(
                Reason::Forbidden,
                format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\""),
            )
        }
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self {
            empty_details: true,
            ..Self::new(
                Reason::MethodNotAllowed,
                "the server does not allow this method on the requested resource",
            )
        }
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(
            Reason::NotAcceptable,
            format!("only the following media types are accepted: {accepted}"),
        )
    }

    /// 410.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types \
                 include: {accepted}"
            ),
        )
    }

    /// 429 with a hint when to come back.
    pub fn too_many_requests(message: impl Into<String>, retry_after_secs: u32) -> Self {
        Self {
            retry_after_secs: Some(retry_after_secs),
            ..Self::new(Reason::TooManyRequests, message)
        }
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let text = message.to_string();
        Self::new(
            Reason::InternalError,
            format!("Internal error occurred: {text}"),
        )
        .cause("", text, "")
    }

    /// 504: the list asks for a revision that has not happened.
    pub fn future_revision(asked: u64, current: u64) -> Self {
        Self {
            retry_after_secs: Some(1),
            ..Self::new(
                Reason::Timeout,
                format!("Timeout: Too large resource version: {asked}, current: {current}"),
            )
        }
        .cause("ResourceVersionTooLarge", "Too large resource version", "")
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code(),
        });
        if self.reason != Reason::Unclassified {
            status["reason"] = self.reason.as_str().into();
        }
        let mut details = Map::new();
        if let Some(subject) = &self.subject {
            for (key, value) in [
                ("name", &subject.name),
                ("group", &subject.group),
                ("kind", &subject.kind),
            ] {
                if !value.is_empty() {
                    details.insert(key.into(), value.clone().into());
                }
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|cause| {
                let mut one = Map::new();
                for (key, value) in [
                    ("reason", &cause.reason),
                    ("message", &cause.message),
                    ("field", &cause.field),
                ] {
                    if !value.is_empty() {
                        one.insert(key.into(), value.clone().into());
                    }
                }
                Value::Object(one)
            });
            details.insert("causes".into(), causes.collect());
        }
        if let Some(secs) = self.retry_after_secs {
            details.insert("retryAfterSeconds".into(), secs.into());
        }
        if self.empty_details || !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }

    /// The `ERROR` event that tells a watcher why its stream ends.
    pub fn to_watch_event(&self) -> Value {
        json!({"type": "ERROR", "object": self.to_status()})
    }
}

/// `Status` of a successful deletion: kubectl waits for this uid to go.
pub fn deleted(group: &str, plural: &str, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": plural, "uid": uid});
    if !group.is_empty() {
        details["group"] = group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
           "details": details})
}

/// `Status` of a subresource that creates nothing to return (binding, eviction).
pub fn created() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

fn qualified(group: &str, kind: &str) -> String {
    if group.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind}.{group}")
    }
}

/// What a store refuses when no particular object is concerned. Conflicts are mapped by the
/// pipeline, which knows the object.
impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Expired { .. } => {
                Self::expired("The resourceVersion for the provided list is too old.")
            }
            StoreError::Future { asked, current } => Self::future_revision(asked, current),
            StoreError::Refused(why) => Self::bad_request(why),
            StoreError::Full => Self::new(
                Reason::ServiceUnavailable,
                "the store's disk is full; free space and try again",
            ),
            StoreError::Stopped => {
                Self::new(Reason::ServiceUnavailable, "the server is shutting down")
            }
            StoreError::Conflict { key, .. } => Self::new(
                Reason::Conflict,
                format!("the stored fact `{key}` has been modified"),
            ),
            StoreError::Failed(_) => {
                tracing::error!(%error, "the store failed; the request is answered with 500");
                Self::internal("the store failed")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_exact() {
        // kube-api.md §4.9; the first also as recorded from a reference server.
        assert_eq!(
            ApiError::not_found("apps", "deployments", "web").to_status(),
            json!({"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
                   "message":"deployments.apps \"web\" not found","reason":"NotFound",
                   "details":{"name":"web","group":"apps","kind":"deployments"},"code":404})
        );
        assert_eq!(
            ApiError::no_such_resource().to_status()["details"],
            json!({})
        );
        assert!(
            ApiError::bad_request("x")
                .to_status()
                .get("details")
                .is_none()
        );
    }

    #[test]
    fn several_causes_are_listed() {
        let cause = |field: &str| Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: field.into(),
        };
        let error = ApiError::invalid("", "Pod", "p", vec![cause("spec.a"), cause("spec.b")]);
        assert_eq!(
            error.message,
            "Pod \"p\" is invalid: [spec.a: Required value, spec.b: Required value]"
        );
        assert_eq!(error.code(), 422);
    }
}
