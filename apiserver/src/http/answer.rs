//! Responses: bodies, headers, and the views of objects.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::negotiate::Shape;
use crate::registry::ResourceDef;
use crate::status::ApiError;
use crate::table::{self, Companions, IncludeObject, TableSpec};

/// The body of every response. Streams of watches never fail: they end.
pub type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

pub(super) const JSON: &str = "application/json";

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

pub(super) fn respond(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub(super) fn text(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    respond(code, "text/plain; charset=utf-8", full(body))
}

pub(super) fn json(code: u16, value: &Value) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            respond(code, JSON, full(bytes))
        }
        Err(e) => error(&ApiError::internal(e)),
    }
}

pub(super) fn error(error: &ApiError) -> Response<Body> {
    let mut body = error.to_status().to_string();
    body.push('\n');
    let mut response = respond(error.code(), JSON, full(body));
    if let Some(secs) = error.retry_after_secs {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(secs));
    }
    response
}

/// kubectl shows these to its user. What does not fit a header is left out.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// How objects of a kind are shown to one client.
pub(super) struct View<'a> {
    pub(super) def: &'a ResourceDef,
    pub(super) shape: Shape,
    pub(super) include: IncludeObject,
    pub(super) now: Timestamp,
    pub(super) companions: Companions,
}

impl View<'_> {
    fn spec(&self) -> TableSpec {
        match &self.def.custom {
            Some(custom) => custom.table.clone(),
            None => table::spec_for(self.def.group(), self.def.plural()),
        }
    }

    fn table(&self, items: &[Value], beta: bool, metadata: Value) -> Value {
        let mut table = table::render(
            &self.spec(),
            items,
            &self.companions,
            self.now,
            self.include,
        );
        table["kind"] = "Table".into();
        table["apiVersion"] = if beta {
            "meta.k8s.io/v1beta1".into()
        } else {
            "meta.k8s.io/v1".into()
        };
        table["metadata"] = metadata;
        table
    }

    /// One object.
    pub(super) fn one(&self, object: Value) -> Result<Value, ApiError> {
        // A `Status` is shown as it is, whatever was asked for.
        if object["kind"] == "Status" {
            return Ok(object);
        }
        match self.shape {
            Shape::Table(beta) => {
                let metadata =
                    json!({"resourceVersion": object["metadata"]["resourceVersion"].clone()});
                Ok(self.table(&[object], beta, metadata))
            }
            Shape::Plain | Shape::Discovery => Ok(object),
            Shape::Partial => Ok(partial(&object)),
            Shape::PartialList => Err(wrong_pairing(
                "PartialObjectMetadataList",
                "not a list",
                &self.def.kind,
            )),
        }
    }

    /// A page of objects.
    pub(super) fn many(&self, list: crate::pipeline::List) -> Result<Value, ApiError> {
        let mut metadata = json!({"resourceVersion": list.revision.to_string()});
        if !list.continue_token.is_empty() {
            metadata["continue"] = list.continue_token.into();
        }
        if let Some(remaining) = list.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let mut items = list.items;
        match self.shape {
            Shape::Table(beta) => {
                return Ok(self.table(&items, beta, metadata));
            }
            Shape::PartialList => {
                let items: Vec<Value> = items.iter().map(partial).collect();
                return Ok(json!({"kind": "PartialObjectMetadataList",
                    "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items}));
            }
            Shape::Partial => {
                return Err(wrong_pairing(
                    "PartialObjectMetadata",
                    "a list",
                    &self.def.list_kind,
                ));
            }
            Shape::Plain | Shape::Discovery => {}
        }
        if self.def.custom.is_none() {
            // Items of built-in kinds carry no type of their own.
            for item in &mut items {
                if let Some(map) = item.as_object_mut() {
                    map.remove("kind");
                    map.remove("apiVersion");
                }
            }
        }
        Ok(
            json!({"kind": self.def.list_kind, "apiVersion": self.def.api_version(),
                  "metadata": metadata, "items": items}),
        )
    }
}

fn wrong_pairing(asked: &str, is: &str, kind: &str) -> ApiError {
    ApiError::new(
        crate::status::Reason::NotAcceptable,
        format!("you requested {asked}, but the requested object is {is} ({kind})"),
    )
}

/// An object's metadata as an object.
pub(super) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
           "metadata": object["metadata"]})
}
