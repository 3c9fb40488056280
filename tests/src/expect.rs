//! What an example is documented to come to: `<name>.expect.yaml` beside the manifest, compared with
//! the pod, its logs and its events. What the file does not mention may be anything.
//!
//! Objects are compared by the keys that are named; lists by `name` or `type` where their elements
//! have one, else by position. A text `*` is anything that is not empty, `~x` contains `x`, `>=n` is
//! a number of at least `n`.

use std::collections::BTreeMap;

use serde_json::Value;

/// The documented status.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Seconds until it is so.
    #[serde(default = "usual")]
    pub within: u64,
    /// Part of the pod.
    #[serde(default)]
    pub pod: Value,
    /// What containers have written: `<container>` or `<container>.<n>`, and a part of it.
    #[serde(default)]
    pub logs: BTreeMap<String, String>,
    /// Reasons of events of the pod.
    #[serde(default)]
    pub events: Vec<String>,
    /// Addresses, and a part of what they answer.
    #[serde(default)]
    pub http: BTreeMap<String, String>,
    /// The manifest is put into the node's directory of static pods; the pod is named after the node.
    #[serde(default, rename = "static")]
    pub is_static: bool,
    /// Why the node does not do this yet; the example is then not run.
    #[serde(default)]
    pub pending: Option<String>,
}

fn usual() -> u64 {
    30
}

/// Where `found` is not as `wanted`, a line each.
pub fn differences(wanted: &Value, found: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", wanted, found, &mut lines);
    lines
}

fn compare(at: &str, wanted: &Value, found: &Value, lines: &mut Vec<String>) {
    match wanted {
        Value::Object(fields) => {
            for (key, value) in fields {
                compare(&format!("{at}.{key}"), value, &found[key.as_str()], lines);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let (name, other) = counterpart(index, item, found);
                compare(&format!("{at}[{name}]"), item, other, lines);
            }
        }
        Value::String(text) => {
            if !fits(text, found) {
                lines.push(format!("{at}: wanted `{text}`, found {found}"));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            if wanted != found {
                lines.push(format!("{at}: wanted {wanted}, found {found}"));
            }
        }
    }
}

/// The element of `found` that stands for `item`: of the same name or type, else at its place.
fn counterpart<'a>(index: usize, item: &Value, found: &'a Value) -> (String, &'a Value) {
    for key in ["name", "type"] {
        if let Some(name) = item[key].as_str() {
            let all = found.as_array().into_iter().flatten();
            let same = all.into_iter().find(|other| other[key] == name);
            return (name.to_owned(), same.unwrap_or(&Value::Null));
        }
    }
    (index.to_string(), &found[index])
}

fn fits(text: &str, found: &Value) -> bool {
    if text == "*" {
        return found.as_str().is_some_and(|found| !found.is_empty());
    }
    if let Some(part) = text.strip_prefix('~') {
        return found.as_str().is_some_and(|found| found.contains(part));
    }
    if let Some(least) = text.strip_prefix(">=").and_then(|n| n.parse::<i64>().ok()) {
        return found.as_i64().is_some_and(|found| found >= least);
    }
    found == text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_named_is_compared() {
        let found = json!({"status": {"phase": "Running", "n": 3, "ip": "10.0.0.1",
            "all": [{"name": "b", "ready": true}, {"name": "a", "ready": false}], "words": ["x", "y"]}});
        for (wanted, different) in [
            (json!({}), 0),
            (json!({"status": {"phase": "Running", "ip": "*"}}), 0),
            (json!({"status": {"phase": "~unn", "n": ">=3"}}), 0),
            (
                json!({"status": {"all": [{"name": "a", "ready": false}]}}),
                0,
            ),
            (json!({"status": {"words": ["x"]}}), 0),
            (
                json!({"status": {"all": [{"name": "c", "ready": false}]}}),
                2,
            ),
            (
                json!({"status": {"phase": "Failed", "n": ">=4", "none": "*"}}),
                3,
            ),
            (json!({"status": {"words": ["y"], "n": 2}}), 2),
        ] {
            assert_eq!(differences(&wanted, &found).len(), different, "{wanted}");
        }
    }
}
