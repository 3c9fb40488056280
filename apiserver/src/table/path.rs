//! The JSONPath of printer columns: fields, indices, `[*]` and simple filters. Only the first match counts.

use jiff::Timestamp;
use serde_json::Value;

use super::age;

/// A parsed path. The empty path matches nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Every,
    /// `?(@.path == literal)`
    Filter {
        path: Vec<Step>,
        equal: bool,
        value: Option<Value>,
    },
}

impl Path {
    /// `None` when the text is not understood.
    pub(super) fn parse(text: &str) -> Option<Path> {
        let text = text.trim().trim_start_matches('{').trim_end_matches('}');
        let text = text.strip_prefix('$').unwrap_or(text);
        steps(text).filter(|s| !s.is_empty()).map(Path)
    }

    /// The cell of a column of this type.
    pub(super) fn cell(&self, object: &Value, kind: &str, now: Timestamp) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        let Some(found) = first(&self.0, object) else {
            return Value::Null;
        };
        match (kind, found) {
            ("integer", Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => n.into(),
                (None, Some(f)) => crate::strict::whole(f.trunc()).map_or(Value::Null, Value::from),
                _ => Value::Null,
            },
            ("number", Value::Number(_))
            | ("boolean", Value::Bool(_))
            | ("string", Value::String(_)) => found.clone(),
            ("string", Value::Null) => Value::Null,
            ("string", other) => other.to_string().into(),
            ("date", Value::String(text)) => match text.parse::<Timestamp>() {
                Ok(_) => age::since(found, now).into(),
                Err(_) => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}

fn first<'a>(steps: &[Step], at: &'a Value) -> Option<&'a Value> {
    let Some((step, rest)) = steps.split_first() else {
        return Some(at);
    };
    match (step, at) {
        (Step::Field(name), Value::Object(map)) => first(rest, map.get(name)?),
        (Step::Index(i), Value::Array(list)) => {
            let index = if *i < 0 {
                list.len()
                    .checked_sub(usize::try_from(i.unsigned_abs()).ok()?)?
            } else {
                usize::try_from(*i).ok()?
            };
            first(rest, list.get(index)?)
        }
        (Step::Every, Value::Array(list)) => list.iter().find_map(|item| first(rest, item)),
        (Step::Every, Value::Object(map)) => map.values().find_map(|item| first(rest, item)),
        (Step::Filter { path, equal, value }, Value::Array(list)) => list
            .iter()
            .filter(|item| match (first(path, item), value) {
                (Some(found), Some(value)) => (found == value) == *equal,
                (Some(_), None) => true,
                (None, _) => false,
            })
            .find_map(|item| first(rest, item)),
        _ => None,
    }
}

fn steps(mut text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    while !text.is_empty() {
        if let Some(rest) = text.strip_prefix('[') {
            let (step, rest) = bracket(rest)?;
            steps.push(step);
            text = rest;
        } else {
            let rest = text.strip_prefix('.').unwrap_or(text);
            let (name, rest) = field(rest)?;
            if name == "*" {
                steps.push(Step::Every);
            } else if !name.is_empty() {
                steps.push(Step::Field(name));
            } else if !rest.starts_with('[') {
                return None; // `..` or a trailing dot
            }
            text = rest;
        }
    }
    Some(steps)
}

/// A name up to the next `.` or `[`; a backslash takes the next character as it is.
fn field(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => return Some((name, text.get(at..)?)),
            c => name.push(c),
        }
    }
    Some((name, ""))
}

/// What stands between brackets, the opening one already taken.
fn bracket(text: &str) -> Option<(Step, &str)> {
    if let Some(rest) = text.strip_prefix("?(") {
        let (inside, rest) = rest.split_once(")]")?;
        return Some((filter(inside)?, rest));
    }
    for quote in ['\'', '"'] {
        if let Some(rest) = text.strip_prefix(quote) {
            let (name, rest) = rest.split_once(quote)?;
            return Some((
                Step::Field(name.replace("\\.", ".")),
                rest.strip_prefix(']')?,
            ));
        }
    }
    let (inside, rest) = text.split_once(']')?;
    match inside.trim() {
        "*" | ":" => Some((Step::Every, rest)),
        index => Some((Step::Index(index.parse().ok()?), rest)),
    }
}

fn filter(text: &str) -> Option<Step> {
    let text = text.trim().strip_prefix('@')?;
    for (sign, equal) in [("==", true), ("!=", false)] {
        if let Some((path, literal)) = text.split_once(sign) {
            let literal = literal.trim();
            let unquoted = literal
                .strip_prefix('\'')
                .and_then(|l| l.strip_suffix('\''))
                .or_else(|| literal.strip_prefix('"').and_then(|l| l.strip_suffix('"')));
            let value = match unquoted {
                Some(text) => Value::String(text.to_owned()),
                None => serde_json::from_str(literal).ok()?,
            };
            return Some(Step::Filter {
                path: steps(path.trim())?,
                equal,
                value: Some(value),
            });
        }
    }
    Some(Step::Filter {
        path: steps(text.trim())?,
        equal: true,
        value: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        let object = json!({"a": {"b.c": 1, "list": [{"type": "X", "v": "no"}, {"type": "Ready", "v": "yes"}]}, "n": null, "t": ["x", "y"]});
        for (path, kind, cell) in [
            (".a['b.c']", "integer", json!(1)),
            (".a.b\\.c", "integer", json!(1)),
            (".a.list[?(@.type==\"Ready\")].v", "string", json!("yes")),
            (".a.list[?(@.type=='X')].v", "string", json!("no")),
            (".a.list[1].v", "string", json!("yes")),
            (".a.list[-1].v", "string", json!("yes")),
            (".a.list[*].v", "string", json!("no")),
            (".a.list[7].v", "string", json!(null)),
            (".t", "string", json!("[\"x\",\"y\"]")),
            (".n", "string", json!(null)),
            (".t[0]", "integer", json!(null)),
            ("{.t[0]}", "string", json!("x")),
            (".a..b", "string", json!(null)),
        ] {
            let path = Path::parse(path).unwrap_or_default();
            assert_eq!(
                path.cell(&object, kind, Timestamp::UNIX_EPOCH),
                cell,
                "{path:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[.\\[\\]a*0'\"?(@=)\\\\-]{0,20}") {
            if let Some(path) = Path::parse(&text) {
                path.cell(&json!({"a": [0, {"a": 0}]}), "string", Timestamp::UNIX_EPOCH);
            }
        }
    }
}
