//! What a broken or hostile sender makes of a valid document: mutations of JSON and of bytes. The
//! choices are the caller's, so that a seed repeats them.

use serde_json::{Value, json};

/// Deepest nesting that is built here.
const DEPTH: usize = 200;

/// One mutation of the document, as bytes. `choose(n)` is any number below `n`.
pub fn mangled(document: &Value, choose: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut document = document.clone();
    for _ in 0..=choose(3) {
        change(&mut document, choose);
    }
    let mut bytes = document.to_string().into_bytes();
    if choose(10) == 0 {
        spoil(&mut bytes, choose);
    }
    bytes
}

/// Changes one thing somewhere, also in text that is JSON itself.
pub fn change(value: &mut Value, choose: &mut impl FnMut(usize) -> usize) {
    match value {
        Value::Object(map) if !map.is_empty() && choose(5) > 0 => {
            let at = choose(map.len());
            let Some(key) = map.keys().nth(at).cloned() else {
                return;
            };
            match choose(8) {
                0 => drop(map.remove(&key)),
                1 => {
                    let copy = map.get(&key).cloned().unwrap_or_default();
                    map.insert(format!("{key}{}", odd_text(choose)), copy);
                }
                _ => change(&mut map[&key], choose),
            }
        }
        Value::Array(list) if !list.is_empty() && choose(5) > 0 => {
            let at = choose(list.len());
            match choose(8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => change(&mut list[at], choose),
            }
        }
        Value::String(text) if choose(3) > 0 => {
            if let Ok(mut inner @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(text)
            {
                change(&mut inner, choose);
                *text = inner.to_string();
            } else {
                text.push_str(&odd_text(choose));
            }
        }
        other @ (Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_)) => *other = odd(choose),
    }
}

/// Turns bits, cuts, repeats.
pub fn spoil(bytes: &mut Vec<u8>, choose: &mut impl FnMut(usize) -> usize) {
    for _ in 0..=choose(4) {
        if bytes.is_empty() {
            return;
        }
        let at = choose(bytes.len());
        match choose(4) {
            0 => bytes[at] ^= 1 << choose(8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, u8::try_from(choose(256)).unwrap_or(0)),
            _ => bytes.extend_from_within(at..),
        }
    }
}

fn odd_text(choose: &mut impl FnMut(usize) -> usize) -> String {
    let texts = [
        "",
        "/",
        "/../",
        "\0",
        "\u{1f4a5}",
        "+/#",
        "%zz",
        "\"",
        "-1",
        " ",
    ];
    match choose(texts.len() + 1) {
        n if n < texts.len() => texts[n].to_owned(),
        _ => "x".repeat(choose(5000)),
    }
}

fn odd(choose: &mut impl FnMut(usize) -> usize) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!([]),
        json!({}),
        json!([[null, {}], "a"]),
        json!({"a": {"b": [1, null]}}),
        json!("99999999999999999999"),
        json!("2026-13-45T99:99:99Z"),
        json!("default/x/y/z"),
    ];
    match choose(values.len() + 2) {
        n if n < values.len() => values[n].clone(),
        n if n == values.len() => odd_text(choose).into(),
        _ => (0..DEPTH).fold(json!(1), |inner, _| json!([inner])),
    }
}
