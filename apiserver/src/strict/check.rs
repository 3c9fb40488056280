//! Walks an object along the table of built-in types.

use serde_json::{Map, Value};

use super::{MAX_PROBLEMS, json_type};
use crate::types::{self, Card, Field, Message, Special, Ty};
use quantity::Quantity;

/// Deeper than any real object, and than what the JSON parser lets through.
const MAX_DEPTH: usize = 130;

/// The unknown fields of an object, or why Go could not decode it.
pub(super) fn object(value: &Value, api_version: &str, kind: &str) -> Result<Vec<String>, String> {
    let Some(message) = types::lookup(api_version, kind) else {
        return Ok(Vec::new());
    };
    let mut walk = Walk {
        problems: Vec::new(),
        place: String::new(),
        names: Vec::new(),
    };
    let Value::Object(map) = value else {
        return Err(format!(
            "json: cannot unmarshal {} into Go value of type {}",
            json_type(value),
            go_type(message)
        ));
    };
    walk.fields(message, map, 0)?;
    Ok(walk.problems)
}

struct Walk {
    problems: Vec<String>,
    /// `spec.containers[0]`: how problems name a place.
    place: String,
    /// `spec`, `containers`: how Go's decoder names it.
    names: Vec<&'static str>,
}

impl Walk {
    fn fields(
        &mut self,
        message: &'static Message,
        map: &Map<String, Value>,
        depth: usize,
    ) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err("exceeded max depth".into());
        }
        for (key, value) in map {
            let here = self.place.len();
            if here > 0 {
                self.place.push('.');
            }
            self.place.push_str(key);
            match message.field(key) {
                Some(field) => {
                    self.names.push(field.name);
                    self.field(message, field, value, depth)?;
                    self.names.pop();
                }
                None if depth == 0
                    && matches!(key.as_str(), "apiVersion" | "kind")
                    && !matches!(value, Value::String(_) | Value::Null) =>
                {
                    return Err(self.mismatch(message, value, "string"));
                }
                // Embedded objects that carry their own type meta (volumeClaimTemplates).
                None if matches!(key.as_str(), "apiVersion" | "kind")
                    && message.field("metadata").is_some() => {}
                None if self.problems.len() < MAX_PROBLEMS => {
                    self.problems
                        .push(format!("unknown field {:?}", self.place));
                }
                None => {}
            }
            self.place.truncate(here);
        }
        Ok(())
    }

    fn field(
        &mut self,
        message: &'static Message,
        field: &Field,
        value: &Value,
        depth: usize,
    ) -> Result<(), String> {
        match (field.card, value) {
            (_, Value::Null) => Ok(()),
            (Card::One, value) => self.value(message, field, value, depth),
            (Card::Repeated, Value::Array(list)) => {
                for (i, item) in list.iter().enumerate() {
                    let here = self.place.len();
                    self.place.push_str(&format!("[{i}]"));
                    self.value(message, field, item, depth)?;
                    self.place.truncate(here);
                }
                Ok(())
            }
            (Card::Map, Value::Object(map)) => {
                for (key, item) in map {
                    let here = self.place.len();
                    self.place.push('.');
                    self.place.push_str(key);
                    self.value(message, field, item, depth)?;
                    self.place.truncate(here);
                }
                Ok(())
            }
            (Card::Repeated, _) => {
                Err(self.mismatch(message, value, &format!("[]{}", go_element(field.ty))))
            }
            (Card::Map, _) => Err(self.mismatch(
                message,
                value,
                &format!("map[string]{}", go_element(field.ty)),
            )),
        }
    }

    fn value(
        &mut self,
        message: &'static Message,
        field: &Field,
        value: &Value,
        depth: usize,
    ) -> Result<(), String> {
        match (field.ty, value) {
            (_, Value::Null)
            | (Ty::Str, Value::String(_))
            | (Ty::Bool, Value::Bool(_))
            | (Ty::F64, Value::Number(_)) => Ok(()),
            (Ty::I32 | Ty::I64, Value::Number(n)) => {
                let fits = n
                    .as_i64()
                    .is_some_and(|n| field.ty == Ty::I64 || i32::try_from(n).is_ok());
                if fits || n.as_f64().is_some_and(|f| n.is_f64() && whole(f).is_some()) {
                    Ok(())
                } else {
                    let into = self.target(message, go_element(field.ty));
                    Err(format!("json: cannot unmarshal number {n} into {into}"))
                }
            }
            (Ty::Bytes, Value::String(text)) => match bad_base64(text) {
                None => Ok(()),
                Some(at) => Err(format!("illegal base64 data at input byte {at}")),
            },
            (Ty::Msg(at), value) => match types::types().message(at) {
                Some(inner) => self.message(message, inner, value, depth + 1),
                None => Ok(()),
            },
            (ty, value) => Err(self.mismatch(message, value, go_element(ty))),
        }
    }

    fn message(
        &mut self,
        outer: &'static Message,
        message: &'static Message,
        value: &Value,
        depth: usize,
    ) -> Result<(), String> {
        let of = |fallback: &str| types::lookup("apiextensions.k8s.io/v1", fallback);
        match (message.special, value) {
            (Special::No, Value::Object(map)) => self.fields(message, map, depth),
            (Special::Quantity, Value::String(text)) => {
                Quantity::parse(text).map(drop).map_err(|e| e.to_string())
            }
            (Special::Quantity, Value::Number(n)) => Quantity::parse(&n.to_string())
                .map(drop)
                .map_err(|e| e.to_string()),
            (Special::Quantity, _) => Err(quantity::QuantityError::Format.to_string()),
            (Special::IntOrString, Value::String(_) | Value::Number(_))
            | (Special::Duration, Value::String(_)) => Ok(()),
            (Special::Time | Special::MicroTime, Value::String(text)) => {
                if text.is_empty() || text.parse::<jiff::Timestamp>().is_ok() {
                    return Ok(());
                }
                let layout = if message.special == Special::Time {
                    "2006-01-02T15:04:05Z07:00"
                } else {
                    "2006-01-02T15:04:05.000000Z07:00"
                };
                Err(format!(
                    "parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""
                ))
            }
            (Special::Raw, _) => Ok(()),
            (Special::Wrapper, Value::Array(_)) => Ok(()),
            (Special::SchemaOrBool, Value::Bool(_))
            | (Special::SchemaOrStrings, Value::Array(_)) => Ok(()),
            (Special::SchemaOrArray, Value::Array(list)) => {
                list.iter()
                    .try_for_each(|item| match (of("JSONSchemaProps"), item) {
                        (Some(props), Value::Object(map)) => self.fields(props, map, depth + 1),
                        _ => Ok(()),
                    })
            }
            (
                Special::SchemaOrArray | Special::SchemaOrBool | Special::SchemaOrStrings,
                Value::Object(map),
            ) => match of("JSONSchemaProps") {
                Some(props) => self.fields(props, map, depth + 1),
                None => Ok(()),
            },
            (_, value) => Err(self.mismatch(outer, value, &go_type(message))),
        }
    }

    fn target(&self, message: &'static Message, ty: &str) -> String {
        format!(
            "Go struct field {}.{} of type {ty}",
            message.go_name(),
            self.names.join(".")
        )
    }

    fn mismatch(&self, message: &'static Message, value: &Value, ty: &str) -> String {
        format!(
            "json: cannot unmarshal {} into {}",
            json_type(value),
            self.target(message, ty)
        )
    }
}

fn go_type(message: &'static Message) -> String {
    let package = message.name.rsplit_once('.').map_or("", |(p, _)| p);
    format!(
        "{}.{}",
        package.rsplit('/').next().unwrap_or(package),
        message.go_name()
    )
}

fn go_element(ty: Ty) -> &'static str {
    match ty {
        Ty::Str => "string",
        Ty::I32 => "int32",
        Ty::I64 => "int64",
        Ty::Bool => "bool",
        Ty::Bytes => "[]uint8",
        Ty::F64 => "float64",
        Ty::Msg(at) => types::types()
            .message(at)
            .map_or("struct", |m| m.name.rsplit('/').next().unwrap_or(m.name)),
    }
}

/// A float with an integer's value, small enough to be one exactly.
pub(crate) fn whole(f: f64) -> Option<i64> {
    if f.fract() != 0.0 || f.abs() > 9_007_199_254_740_992.0 {
        return None;
    }
    format!("{f:.0}").parse().ok()
}

/// Where Go's decoder stops in standard base64 (line breaks are skipped).
fn bad_base64(text: &str) -> Option<usize> {
    use base64::Engine as _;
    let joined: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match base64::engine::general_purpose::STANDARD.decode(&joined) {
        Ok(_) => None,
        Err(
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _),
        ) => Some(at),
        Err(_) => Some(joined.len()),
    }
}

/// Drops what a built-in kind does not know. Answers the paths of what went.
pub fn prune(value: &mut Value, api_version: &str, kind: &str) -> Vec<String> {
    let mut gone = Vec::new();
    if let (Some(message), Value::Object(map)) = (types::lookup(api_version, kind), value) {
        prune_fields(message, map, "", 0, &mut gone);
    }
    gone
}

fn prune_fields(
    message: &'static Message,
    map: &mut Map<String, Value>,
    place: &str,
    depth: usize,
    gone: &mut Vec<String>,
) {
    if depth > MAX_DEPTH || message.special != Special::No {
        return;
    }
    let join = |key: &str| {
        if place.is_empty() {
            key.to_owned()
        } else {
            format!("{place}.{key}")
        }
    };
    map.retain(|key, value| {
        let Some(field) = message.field(key) else {
            let meta = matches!(key.as_str(), "apiVersion" | "kind");
            let keep = meta && (depth == 0 || message.field("metadata").is_some());
            if !keep {
                gone.push(join(key));
            }
            return keep;
        };
        let Ty::Msg(at) = field.ty else { return true };
        let Some(inner) = types::types().message(at) else {
            return true;
        };
        match (field.card, value) {
            (Card::One, Value::Object(map)) => {
                prune_fields(inner, map, &join(key), depth + 1, gone);
            }
            (Card::Repeated, Value::Array(list)) => {
                for (i, item) in list.iter_mut().enumerate() {
                    if let Value::Object(map) = item {
                        prune_fields(inner, map, &format!("{}[{i}]", join(key)), depth + 1, gone);
                    }
                }
            }
            (Card::Map, Value::Object(map)) => {
                for (k, item) in map.iter_mut() {
                    if let Value::Object(map) = item {
                        prune_fields(inner, map, &format!("{}.{k}", join(key)), depth + 1, gone);
                    }
                }
            }
            _ => {}
        }
        true
    });
}
