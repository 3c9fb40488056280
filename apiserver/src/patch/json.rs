//! RFC 6902 with the leniencies of the Go library behind the reference server (`kube-api.md` §5.3).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use serde_json::Value;

use super::PatchError;

/// The most operations in one patch.
const MAX_OPERATIONS: usize = 10_000;
/// What `copy` may add in all: the body limit.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Applies a list of operations; all or nothing.
pub fn json_patch(document: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
            crate::strict::json_type(patch)
        )));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut out = document.clone();
    let mut copied = 0;
    for operation in operations {
        apply(&mut out, operation, &mut copied).ok_or_else(PatchError::generic)?;
        if copied > MAX_COPIED {
            return Err(PatchError::too_large(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
            )));
        }
    }
    Ok(out)
}

fn apply(document: &mut Value, operation: &Value, copied: &mut usize) -> Option<()> {
    let path = Pointer::parse(operation.get("path")?.as_str()?)?;
    let value = || operation.get("value").cloned();
    match operation.get("op")?.as_str()? {
        "add" => path.add(document, value()?),
        "remove" => path.remove(document).map(drop),
        "replace" => path.replace(document, value()?),
        "move" => {
            let from = Pointer::parse(operation.get("from")?.as_str()?)?;
            if path.0.len() > from.0.len() && path.0.starts_with(&from.0) {
                return None; // into itself
            }
            let moved = from.remove(document)?;
            path.add(document, moved)
        }
        "copy" => {
            let from = Pointer::parse(operation.get("from")?.as_str()?)?;
            let found = from.get(document)?.clone();
            *copied = copied.saturating_add(size(&found));
            if *copied > MAX_COPIED {
                return Some(());
            }
            path.add(document, found)
        }
        // A missing member equals null.
        "test" => {
            let wanted = operation.get("value").unwrap_or(&Value::Null);
            match path.get(document) {
                Some(found) => same(found, wanted).then_some(()),
                None => (wanted.is_null() && path.parent_exists(document)).then_some(()),
            }
        }
        _ => None,
    }
}

/// Numbers are equal by value, whatever their spelling.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(s) => s.len() + 2,
        Value::Array(list) => list.iter().map(size).sum::<usize>() + list.len() + 2,
        Value::Object(map) => {
            map.iter()
                .map(|(k, v)| k.len() + size(v) + 4)
                .sum::<usize>()
                + 2
        }
    }
}

struct Pointer(Vec<String>);

impl Pointer {
    fn parse(text: &str) -> Option<Pointer> {
        if text.is_empty() {
            return Some(Pointer(Vec::new()));
        }
        let parts = text.strip_prefix('/')?.split('/');
        Some(Pointer(
            parts
                .map(|p| p.replace("~1", "/").replace("~0", "~"))
                .collect(),
        ))
    }

    fn get<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(document, |at, part| match at {
            Value::Object(map) => map.get(part),
            Value::Array(list) => list.get(index(part, list.len())?),
            _ => None,
        })
    }

    /// The container the last part lives in, and that part. `None` for the root.
    fn place<'a, 'b>(&'b self, document: &'a mut Value) -> Option<(&'a mut Value, &'b str)> {
        let (last, parents) = self.0.split_last()?;
        let container = parents.iter().try_fold(document, |at, part| match at {
            Value::Object(map) => map.get_mut(part),
            Value::Array(list) => {
                let at = index(part, list.len())?;
                list.get_mut(at)
            }
            _ => None,
        })?;
        Some((container, last))
    }

    fn parent_exists(&self, document: &Value) -> bool {
        let parents = self.0.split_last().map_or(&[][..], |(_, p)| p);
        Pointer(parents.to_vec())
            .get(document)
            .is_some_and(Value::is_object)
    }

    fn add(&self, document: &mut Value, value: Value) -> Option<()> {
        if self.0.is_empty() {
            *document = value;
            return Some(());
        }
        match self.place(document)? {
            (Value::Object(map), key) => {
                map.insert(key.to_owned(), value);
            }
            (Value::Array(list), "-") => list.push(value),
            (Value::Array(list), part) => {
                // One past the end appends; negative counts from there.
                let at = index(part, list.len() + 1)?;
                list.insert(at, value);
            }
            _ => return None,
        }
        Some(())
    }

    fn remove(&self, document: &mut Value) -> Option<Value> {
        match self.place(document)? {
            (Value::Object(map), key) => map.remove(key),
            (Value::Array(list), part) => {
                let at = index(part, list.len())?;
                Some(list.remove(at))
            }
            _ => None,
        }
    }

    /// A missing member of an object is added.
    fn replace(&self, document: &mut Value, value: Value) -> Option<()> {
        if self.0.is_empty() {
            *document = value;
            return Some(());
        }
        match self.place(document)? {
            (Value::Object(map), key) => {
                map.insert(key.to_owned(), value);
            }
            (Value::Array(list), part) => {
                let at = index(part, list.len())?;
                *list.get_mut(at)? = value;
            }
            _ => return None,
        }
        Some(())
    }
}

/// An index below `len`; a negative one counts from the end.
fn index(part: &str, len: usize) -> Option<usize> {
    let at: isize = part.parse().ok()?;
    let at = if at < 0 {
        len.checked_sub(at.unsigned_abs())?
    } else {
        at.unsigned_abs()
    };
    (at < len).then_some(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn operations() {
        let document = json!({"data": {"k": "v", "a/b": 1}, "list": [1, 2, 3]});
        for (patch, data, list) in [
            (
                json!([{"op": "add", "path": "/list/-", "value": 4}]),
                json!({"k": "v", "a/b": 1}),
                json!([1, 2, 3, 4]),
            ),
            (
                json!([{"op": "add", "path": "/list/3", "value": 4}]),
                json!({"k": "v", "a/b": 1}),
                json!([1, 2, 3, 4]),
            ),
            (
                json!([{"op": "add", "path": "/list/0", "value": 0}]),
                json!({"k": "v", "a/b": 1}),
                json!([0, 1, 2, 3]),
            ),
            (
                json!([{"op": "remove", "path": "/list/-1"}]),
                json!({"k": "v", "a/b": 1}),
                json!([1, 2]),
            ),
            (
                json!([{"op": "replace", "path": "/data/new", "value": "x"}]),
                json!({"k": "v", "a/b": 1, "new": "x"}),
                json!([1, 2, 3]),
            ),
            (
                json!([{"op": "remove", "path": "/data/a~1b"}]),
                json!({"k": "v"}),
                json!([1, 2, 3]),
            ),
            (
                json!([{"op": "copy", "from": "/data/k", "path": "/data/k2"}, {"op": "move", "from": "/data/k2", "path": "/data/k3"}]),
                json!({"k": "v", "a/b": 1, "k3": "v"}),
                json!([1, 2, 3]),
            ),
            (
                json!([{"op": "test", "path": "/data/k", "value": "v"}, {"op": "test", "path": "/data/zz", "value": null}]),
                json!({"k": "v", "a/b": 1}),
                json!([1, 2, 3]),
            ),
        ] {
            assert_eq!(
                json_patch(&document, &patch),
                Ok(json!({"data": data, "list": list})),
                "{patch}"
            );
        }
    }

    #[test]
    fn failures_are_the_generic_422() {
        let document = json!({"data": {"k": "v"}, "list": [1]});
        for patch in [
            json!([{"op": "remove", "path": "/data/nope"}]),
            json!([{"op": "frob", "path": "/data/k"}]),
            json!([{"op": "test", "path": "/data/k", "value": "x"}]),
            json!([{"op": "add", "path": "/binaryData/k", "value": "eA=="}]),
            json!([{"op": "add", "path": "/list/9", "value": 1}]),
            json!([{"op": "replace", "path": "/list/1", "value": 1}]),
            json!([{"op": "add", "path": "data/k", "value": 1}]),
            json!([{"op": "move", "from": "/data", "path": "/data/x"}]),
            json!([{}]),
            json!([3]),
        ] {
            assert_eq!(
                json_patch(&document, &patch),
                Err(PatchError::generic()),
                "{patch}"
            );
        }
        let not_a_list = json_patch(&document, &json!({"op": "add"})).unwrap_err();
        assert_eq!(not_a_list.code, 400);
        assert_eq!(
            not_a_list.message,
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        );
    }

    #[test]
    fn copies_are_bounded() {
        let mut document = json!({"a": "x".repeat(1000)});
        let doubling: Vec<_> = (0..30)
            .map(|i| json!({"op": "copy", "from": "", "path": format!("/c{i}")}))
            .collect();
        document = json!({"d": document});
        assert_eq!(
            json_patch(&document, &Value::Array(doubling))
                .unwrap_err()
                .code,
            413
        );
    }

    proptest! {
        #[test]
        fn never_panics(op in "add|remove|replace|move|copy|test", path in "(/(a|-|-1|0|1|9|~1)){0,3}", from in "(/(a|0)){0,2}") {
            let document = json!({"a": [1, {"a": 2}], "0": null});
            drop(json_patch(&document, &json!([{"op": op, "path": path, "from": from, "value": {"x": 1}}])));
        }
    }
}
