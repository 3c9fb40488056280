//! The form an object has after Go decoded and encoded it: nulls and empty optional members gone, quantities and
//! times canonical, value-typed structs and members without `omitempty` present.
//!
//! Members that the table does not know survive untouched.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::types::{self, Card, Field, Message, Special, Ty};
use quantity::Quantity;

/// JSON bodies nest at most this deep.
const MAX_DEPTH: usize = 130;

/// Gives a built-in object its canonical form.
pub fn canonical(api_version: &str, kind: &str, object: &mut Value) {
    if let (Some(message), Value::Object(map)) = (types::lookup(api_version, kind), object) {
        fields(message, map, 0);
    }
}

fn fields(message: &'static Message, map: &mut Map<String, Value>, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    map.retain(|key, value| match message.field(key) {
        Some(field) => {
            member(field, value, depth);
            field.required
                || field.card == Card::One && null_time(field, value)
                || !droppable(field, value)
        }
        None => true,
    });
    complete(message, map, depth);
}

/// Adds what Go writes even when nothing was given.
fn complete(message: &'static Message, map: &mut Map<String, Value>, depth: usize) {
    for field in &message.fields {
        if field.inline {
            if let Some(inner) = inner(field) {
                complete(inner, map, depth);
            }
            continue;
        }
        if map.get(field.name).is_some_and(|v| !v.is_null()) {
            continue;
        }
        let value = match (field.card, field.ty) {
            (Card::One, Ty::Msg(_)) if !field.pointer => match inner(field) {
                Some(inner) if inner.special == Special::No => {
                    let mut made = Map::new();
                    fields(inner, &mut made, depth + 1);
                    Value::Object(made)
                }
                Some(inner) if matches!(inner.special, Special::Time | Special::MicroTime) => {
                    if field.name == "creationTimestamp" || !field.required && !legacy_null(field) {
                        continue;
                    }
                    Value::Null
                }
                _ => continue,
            },
            (Card::Repeated | Card::Map, _) if field.required => Value::Null,
            (Card::One, Ty::Str) if field.required && !field.pointer => json!(""),
            (Card::One, Ty::Bool) if field.required && !field.pointer => json!(false),
            (Card::One, Ty::I32 | Ty::I64) if field.required && !field.pointer => json!(0),
            _ => continue,
        };
        map.insert(field.name.to_owned(), value);
    }
}

/// Times written as null in spite of `omitempty`, because Go omits no structs.
fn legacy_null(field: &Field) -> bool {
    matches!(
        field.name,
        "firstTimestamp" | "lastTimestamp" | "eventTime" | "lastProbeTime" | "lastTransitionTime"
    )
}

fn null_time(field: &Field, value: &Value) -> bool {
    value.is_null() && !field.pointer && legacy_null(field)
}

fn inner(field: &Field) -> Option<&'static Message> {
    match field.ty {
        Ty::Msg(at) => types::types().message(at),
        _ => None,
    }
}

fn member(field: &'static Field, value: &mut Value, depth: usize) {
    match (field.card, value) {
        (Card::One, value) => one(field, value, depth),
        (Card::Repeated, Value::Array(list)) => {
            for item in list {
                one(field, item, depth);
            }
        }
        (Card::Map, Value::Object(map)) => {
            for item in map.values_mut() {
                one(field, item, depth);
            }
        }
        _ => {}
    }
}

fn one(field: &Field, value: &mut Value, depth: usize) {
    match field.ty {
        Ty::I32 | Ty::I64 => whole_number(value),
        Ty::Msg(_) => {
            if let Some(message) = inner(field) {
                special(message, value, depth);
            }
        }
        Ty::Str | Ty::Bool | Ty::Bytes | Ty::F64 => {}
    }
}

fn special(message: &'static Message, value: &mut Value, depth: usize) {
    match message.special {
        Special::No => {
            if let Value::Object(map) = value {
                fields(message, map, depth + 1);
            }
        }
        Special::Quantity => {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(n) => n.to_string(),
                _ => return,
            };
            if let Ok(quantity) = Quantity::parse(&text) {
                *value = quantity.to_string().into();
            }
        }
        Special::Time | Special::MicroTime => {
            let layout = if message.special == Special::Time {
                "%Y-%m-%dT%H:%M:%SZ"
            } else {
                "%Y-%m-%dT%H:%M:%S.%6fZ"
            };
            if let Some(time) = value.as_str().and_then(|t| t.parse::<Timestamp>().ok()) {
                *value = time.strftime(layout).to_string().into();
            }
        }
        Special::IntOrString => whole_number(value),
        // Schemas are kept as they were sent: their canonical form would need the three unions too.
        Special::Duration
        | Special::Raw
        | Special::Wrapper
        | Special::SchemaOrArray
        | Special::SchemaOrBool
        | Special::SchemaOrStrings => {}
    }
}

/// `1.0` in an integer's place is `1`.
fn whole_number(value: &mut Value) {
    if let Some(whole) = value
        .as_f64()
        .filter(|_| value.is_f64())
        .and_then(crate::strict::whole)
    {
        *value = whole.into();
    }
}

fn droppable(field: &Field, value: &Value) -> bool {
    match (field.card, value) {
        (_, Value::Null) => true,
        (Card::Repeated, Value::Array(list)) => list.is_empty(),
        (Card::Map, Value::Object(map)) => map.is_empty(),
        (Card::One, _) if field.pointer => false,
        (Card::One, Value::String(s)) => s.is_empty() && matches!(field.ty, Ty::Str | Ty::Bytes),
        (Card::One, Value::Bool(b)) => !b && field.ty == Ty::Bool,
        (Card::One, Value::Number(n)) => {
            n.as_f64() == Some(0.0) && matches!(field.ty, Ty::I32 | Ty::I64 | Ty::F64)
        }
        _ => false,
    }
}
