//! Request bodies: bounded, in whatever encoding clients use (kube-api.md §3.1).

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use crate::engines;
use crate::pipeline::PatchKind;
use crate::registry::ResourceDef;
use crate::status::{ApiError, Reason};

/// kube-apiserver's limit (apiserver `MaxRequestBodyBytes`).
pub(super) const BODY_BYTES_MAX: usize = 3_145_728;
/// The limit for callers without credentials, who are going to be refused anyway.
pub(super) const STRANGER_BODY_BYTES_MAX: usize = 16 << 10;
/// Operations of a JSON patch (apiserver `maxJSONPatchOperations`).
const PATCH_OPS_MAX: usize = 10_000;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const ACCEPTED_CUSTOM: &str = "application/json, application/yaml";

/// Reads a body of at most `limit` bytes.
pub(super) async fn read<B>(body: B, limit: usize) -> Result<Bytes, ApiError>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Err(error) => Err(ApiError::bad_request(format!(
            "the request body could not be read: {error}"
        ))),
    }
}

/// `application/json; charset=utf-8` → `application/json`.
pub(super) fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// An object of a kind, and its unknown and duplicate fields.
pub(super) fn object(
    def: &ResourceDef,
    content_type: &str,
    body: &[u8],
) -> Result<(Value, Vec<String>), ApiError> {
    match media_type(content_type) {
        "" | "application/json" => engines::decode(def, body),
        "application/yaml" => {
            let json = yaml(body)?;
            engines::decode(def, json.to_string().as_bytes())
        }
        PROTOBUF if def.custom.is_none() => {
            let (version, kind, mut object) =
                crate::proto::decode(body).map_err(|e| ApiError::bad_request(e.to_string()))?;
            if let Some(map) = object.as_object_mut() {
                map.insert("apiVersion".into(), version.into());
                map.insert("kind".into(), kind.into());
            }
            Ok((object, Vec::new()))
        }
        _ => Err(ApiError::unsupported_media_type(if def.custom.is_some() {
            ACCEPTED_CUSTOM
        } else {
            ACCEPTED
        })),
    }
}

/// An object whose kind is not one of ours (options, bindings, reviews). Empty is null.
pub(super) fn options(content_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    match media_type(content_type) {
        "" | "application/json" => serde_json::from_slice(body).map_err(|e| {
            ApiError::bad_request(format!("couldn't get version/kind; json parse error: {e}"))
        }),
        "application/yaml" => yaml(body),
        PROTOBUF => crate::proto::decode(body)
            .map(|(_, kind, mut object)| {
                if let Some(map) = object.as_object_mut() {
                    map.insert("kind".into(), kind.into());
                }
                object
            })
            .map_err(|e| ApiError::bad_request(e.to_string())),
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

fn yaml(body: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(body)
        .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    serde_saphyr::from_str(text)
        .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))
}

/// A patch and how it is to be applied.
pub(super) fn patch(
    def: &ResourceDef,
    content_type: &str,
    body: &[u8],
) -> Result<crate::Patch, ApiError> {
    let kind = match media_type(content_type) {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" if def.custom.is_none() => PatchKind::Strategic,
        "application/json" | "" => {
            return Err(ApiError::bare(
                Reason::UnsupportedMediaType,
                "415: Unsupported Media Type",
            ));
        }
        _ if def.custom.is_some() => {
            return Err(ApiError::unsupported_media_type(
                "application/json-patch+json, application/merge-patch+json",
            ));
        }
        _ => {
            return Err(ApiError::unsupported_media_type(
                "application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json",
            ));
        }
    };
    let body: Value = serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
    let operations = body.as_array().map_or(0, Vec::len);
    if kind == PatchKind::Json && operations > PATCH_OPS_MAX {
        return Err(ApiError::new(
            Reason::RequestEntityTooLarge,
            format!(
                "The allowed maximum operations in a JSON patch is {PATCH_OPS_MAX}, got {operations}"
            ),
        ));
    }
    Ok(crate::Patch { kind, body })
}
