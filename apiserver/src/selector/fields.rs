//! `spec.nodeName=n,status.phase!=Failed`: the grammar of `k8s.io/apimachinery/pkg/fields` and the keys each
//! resource knows.

use serde_json::Value;

use super::SelectorError;

/// One `key (=|!=) value`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    key: String,
    equal: bool,
    value: String,
}

/// A conjunction of comparisons. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
    events: bool,
}

impl FieldSelector {
    /// Parses the query form for a built-in resource, or for a custom one without selectable fields.
    pub fn parse(group: &str, plural: &str, text: &str) -> Result<FieldSelector, SelectorError> {
        Self::parse_with(group, plural, text, &[])
    }

    /// Parses for a custom resource whose version declares `selectableFields` (JSON paths with a leading dot).
    pub fn parse_with(
        group: &str,
        plural: &str,
        text: &str,
        selectable: &[String],
    ) -> Result<FieldSelector, SelectorError> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let Some((key, equal, value)) = split_term(&part) else {
                return Err(SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            check_key(group, plural, key, selectable)?;
            terms.push(Term {
                key: key.to_owned(),
                equal,
                value: unescape(value)?,
            });
        }
        Ok(FieldSelector {
            terms,
            events: plural == "events",
        })
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value this key must have, if the selector fixes one: lets a list be narrowed before matching.
    pub fn exact(&self, key: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|t| t.equal && t.key == key)
            .map(|t| t.value.as_str())
    }

    /// Whether the object is selected. Absent fields count as empty.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms
            .iter()
            .all(|t| (self.text_at(object, &t.key) == t.value) == t.equal)
    }

    fn text_at(&self, object: &Value, key: &str) -> String {
        let get = |path: &str| scalar(path.split('.').try_fold(object, |at, part| at.get(part)));
        let first = |paths: [&str; 2]| {
            paths
                .iter()
                .map(|p| get(p))
                .find(|t| !t.is_empty())
                .unwrap_or_default()
        };
        match key {
            "status.podIPs" => {
                let ips = object["status"]["podIPs"].as_array().into_iter().flatten();
                ips.filter_map(|ip| ip["ip"].as_str())
                    .collect::<Vec<_>>()
                    .join(",")
            }
            "spec.hostNetwork" | "spec.unschedulable" | "status.successful" => match key {
                "status.successful" => {
                    (object["status"]["succeeded"].as_i64().unwrap_or(0)).to_string()
                }
                _ => (get(key) == "true").to_string(),
            },
            "status.replicas" => object["status"]["replicas"]
                .as_i64()
                .unwrap_or(0)
                .to_string(),
            _ if self.events => match key {
                "source" => first(["source.component", "reportingComponent"]),
                "reportingController" | "reportingComponent" => {
                    first(["reportingComponent", "reportingController"])
                }
                _ if key.starts_with("involvedObject.") || key.starts_with("regarding.") => {
                    let field = key.split_once('.').map_or("", |(_, f)| f);
                    first([
                        &format!("involvedObject.{field}"),
                        &format!("regarding.{field}"),
                    ])
                }
                _ => get(key),
            },
            _ => get(key),
        }
    }
}

fn scalar(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(s)) => s.clone(),
        Some(v @ (Value::Bool(_) | Value::Number(_))) => v.to_string(),
        _ => String::new(),
    }
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = terms.last_mut() {
            last.push(c);
        }
    }
    terms
}

fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    let at = part.find(['=', '!'])?;
    let (key, rest) = part.split_at(at);
    for (sign, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some(value) = rest.strip_prefix(sign) {
            return Some((key, equal, value));
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let bad = || {
        SelectorError(format!(
            "invalid field selector: unescaped character or bad escape in value {value:?}"
        ))
    };
    let mut out = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                _ => return Err(bad()),
            },
            ',' | '=' => return Err(bad()),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn check_key(
    group: &str,
    plural: &str,
    key: &str,
    selectable: &[String],
) -> Result<(), SelectorError> {
    if matches!(key, "metadata.name" | "metadata.namespace")
        || selectable.iter().any(|s| s.trim_start_matches('.') == key)
    {
        return Ok(());
    }
    let known: &[&str] = match (group, plural) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "namespaces") => &["status.phase"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        ("" | "events.k8s.io", "events") => &[
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
        ],
        _ => &[],
    };
    if known.contains(&key) {
        return Ok(());
    }
    let custom = group.contains('.') && !group.ends_with(".k8s.io");
    Err(SelectorError(match (group, plural) {
        ("batch", "jobs") => format!("field label {key:?} not supported for Job"),
        _ if custom || !known.is_empty() => format!("field label not supported: {key}"),
        _ => format!(
            "{key:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn matching() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "e1"},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "::1"}]}});
        for (text, expected) in [
            ("spec.nodeName=e1", true),
            (
                "spec.nodeName==e1,status.phase!=Failed,status.phase!=Succeeded",
                true,
            ),
            ("spec.nodeName!=e1", false),
            ("status.nominatedNodeName=", true),
            ("spec.hostNetwork=false", true),
            ("metadata.name=p,metadata.namespace=m", false),
            ("status.podIPs=10.0.0.1\\,::1", true),
            ("", true),
        ] {
            assert_eq!(
                FieldSelector::parse("", "pods", text)
                    .unwrap()
                    .matches(&pod),
                expected,
                "{text}"
            );
        }
        let selector =
            FieldSelector::parse("", "pods", "spec.nodeName=e1,status.phase!=Failed").unwrap();
        assert_eq!(
            (
                selector.exact("spec.nodeName"),
                selector.exact("status.phase")
            ),
            (Some("e1"), None)
        );
    }

    /// `describe node` sends an empty namespace for cluster-scoped objects.
    #[test]
    fn events_of_either_group() {
        let event = json!({"involvedObject": {"kind": "Node", "name": "e1"}, "reason": "r"});
        let text = "involvedObject.kind=Node,involvedObject.name=e1,involvedObject.namespace=";
        assert!(
            FieldSelector::parse("", "events", text)
                .unwrap()
                .matches(&event)
        );
        assert!(
            FieldSelector::parse("events.k8s.io", "events", "regarding.name=e1")
                .unwrap()
                .matches(&event)
        );
    }

    #[test]
    fn errors() {
        for (group, plural, text, message) in [
            (
                "ex.io",
                "things",
                "spec.size=1",
                "field label not supported: spec.size",
            ),
            (
                "",
                "configmaps",
                "foo=bar",
                "\"foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
            ("", "pods", "zz=1", "field label not supported: zz"),
            (
                "batch",
                "jobs",
                "zz=1",
                "field label \"zz\" not supported for Job",
            ),
            (
                "",
                "configmaps",
                "metadata.name",
                "invalid selector: 'metadata.name'; can't understand 'metadata.name'",
            ),
        ] {
            assert_eq!(
                FieldSelector::parse(group, plural, text),
                Err(SelectorError(message.to_owned()))
            );
        }
        let selectable = [".spec.size".to_owned()];
        let selector =
            FieldSelector::parse_with("ex.io", "things", "spec.size=1", &selectable).unwrap();
        assert!(selector.matches(&json!({"spec": {"size": 1}})));
    }
}
