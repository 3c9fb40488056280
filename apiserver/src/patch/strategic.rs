//! Strategic merge patch: a port of the merge of `k8s.io/apimachinery/pkg/util/strategicpatch` onto JSON values and
//! the table of built-in types (`kube-api.md` §5.1, §5.2).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

mod list;
mod order;

use serde_json::{Map, Value};

use super::{PatchError, go_format};
use crate::strict::json_type;
use crate::types::{self, Card, Field, Message, Special, Ty};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";
/// JSON bodies nest at most this deep.
const MAX_DEPTH: usize = 130;

type Object = Map<String, Value>;

/// Applies a strategic merge patch to a built-in object. Kinds that are not built in do not take such patches: 415.
pub fn strategic(
    live: &Value,
    patch: &Value,
    api_version: &str,
    kind: &str,
) -> Result<Value, PatchError> {
    let Some(message) = types::lookup(api_version, kind) else {
        return Err(PatchError {
            code: 415,
            reason: "UnsupportedMediaType",
            message: "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml".into(),
        });
    };
    let (Value::Object(live), Value::Object(changes)) = (live, patch) else {
        return Err(PatchError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            json_type(patch)
        )));
    };
    let merged = merge(live.clone(), changes.clone(), Shape::Struct(message), 0)?;
    let merged = Value::Object(merged);
    match mismatch(&merged, message, 0) {
        Some(why) => Err(PatchError::undecodable(&go_format(patch), &why)),
        None => Ok(merged),
    }
}

/// What a map stands for: a struct whose fields are known, or anything.
#[derive(Clone, Copy)]
enum Shape {
    Struct(&'static Message),
    Free,
}

impl Shape {
    fn field(self, name: &str) -> Option<&'static Field> {
        match self {
            Shape::Struct(message) => message.field(name),
            Shape::Free => None,
        }
    }
}

/// The shape of a field's value or elements.
fn inner(field: Option<&Field>) -> Shape {
    match field.map(|f| (f.card, f.ty)) {
        Some((Card::One | Card::Repeated, Ty::Msg(at))) => types::types()
            .message(at)
            .map_or(Shape::Free, Shape::Struct),
        _ => Shape::Free,
    }
}

fn merge(
    mut original: Object,
    mut patch: Object,
    shape: Shape,
    depth: usize,
) -> Result<Object, PatchError> {
    if depth > MAX_DEPTH {
        return Err(PatchError::generic());
    }
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            // "merge" is the default and not accepted on maps by the reference either.
            _ => Err(unknown_directive(directive, patch.clone())),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    order::apply(&mut original, &mut patch, shape, depth)?;
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_PRIMITIVES) {
            let (Some(Value::Array(list)), Value::Array(gone)) = (original.get_mut(name), &value)
            else {
                continue;
            };
            list.retain(|item| !gone.contains(item));
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let field = shape.field(&key);
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                Value::Object(merge(old, new, inner(field), depth + 1)?)
            }
            (Some(Value::Array(old)), Value::Array(new)) => match field.and_then(|f| f.merge_key) {
                Some(merge_key) => {
                    Value::Array(list::merge(old, new, merge_key, inner(field), depth + 1)?)
                }
                None => Value::Array(without_directives(new)),
            },
            (_, value) => drop_directives(value),
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn unknown_directive(directive: &Value, map: Object) -> PatchError {
    PatchError::internal(format!(
        "unknown patch type: {} in map: {}",
        go_format(directive),
        go_format(&Value::Object(map))
    ))
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keep) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || PatchError::bad_request("invalid patch format of retainKeys");
    let Value::Array(keep) = keep else {
        return Err(bad());
    };
    let listed = |key: &str| keep.iter().any(|k| k.as_str() == Some(key));
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_PRIMITIVES) || key.starts_with(ORDER);
        if !value.is_null() && !directive && !listed(key) {
            return Err(bad());
        }
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// Other keys may start with `$` too: `$ref` in schemas.
fn is_directive(key: &str) -> bool {
    key == DIRECTIVE
        || key == RETAIN_KEYS
        || key.starts_with(DELETE_PRIMITIVES)
        || key.starts_with(ORDER)
}

/// A value that meets nothing to merge with: its directives and nulls mean nothing any more.
fn drop_directives(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return Value::Object(Object::new());
            }
            let kept = map
                .into_iter()
                .filter(|(k, v)| !is_directive(k) && !v.is_null());
            Value::Object(kept.map(|(k, v)| (k, drop_directives(v))).collect())
        }
        Value::Array(list) => Value::Array(without_directives(list)),
        value => value,
    }
}

fn without_directives(list: Vec<Value>) -> Vec<Value> {
    list.into_iter()
        .filter(|item| item.get(DIRECTIVE).is_none())
        .map(drop_directives)
        .collect()
}

/// Go converts the merged maps into structs; this is its complaint when that fails.
fn mismatch(value: &Value, message: &'static Message, depth: usize) -> Option<String> {
    let Value::Object(map) = value else {
        return None;
    };
    if depth > MAX_DEPTH || message.special != Special::No {
        return None;
    }
    map.iter().find_map(|(key, value)| {
        let field = message.field(key)?;
        let kind = match value {
            Value::Null => return None,
            Value::Object(_) => "map",
            Value::Array(_) => "slice",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            Value::Number(n) if n.is_f64() => "float64",
            Value::Number(_) => "int64",
        };
        match (field.card, value) {
            (Card::Repeated, Value::Array(list)) => list
                .iter()
                .find_map(|item| scalar_mismatch(field, item, depth)),
            (Card::Map, Value::Object(map)) => map
                .values()
                .find_map(|item| scalar_mismatch(field, item, depth)),
            (Card::One, value) => scalar_mismatch(field, value, depth),
            (Card::Repeated, _) if field.ty != Ty::Bytes => {
                Some(format!("cannot restore slice from {kind}"))
            }
            _ => Some(format!("cannot restore map from {kind}")),
        }
    })
}

fn scalar_mismatch(field: &Field, value: &Value, depth: usize) -> Option<String> {
    match (field.ty, value) {
        (_, Value::Null) => None,
        (Ty::Msg(at), Value::Object(_)) => mismatch(value, types::types().message(at)?, depth + 1),
        (Ty::Msg(at), _) if types::types().message(at)?.special == Special::No => {
            Some(format!("cannot restore struct from: {}", json_type(value)))
        }
        (Ty::Str | Ty::Bytes, Value::String(_))
        | (Ty::Bool, Value::Bool(_))
        | (Ty::I32 | Ty::I64 | Ty::F64, Value::Number(_))
        | (Ty::Msg(_), _) => None,
        (ty, value) => Some(format!(
            "cannot convert {} to {}",
            json_type(value),
            go_name(ty)
        )),
    }
}

fn go_name(ty: Ty) -> &'static str {
    match ty {
        Ty::Str => "string",
        Ty::I32 => "int32",
        Ty::I64 => "int64",
        Ty::Bool => "bool",
        Ty::Bytes => "[]uint8",
        Ty::F64 => "float64",
        Ty::Msg(_) => "struct",
    }
}

#[cfg(test)]
#[path = "strategic/tests.rs"]
mod tests;
