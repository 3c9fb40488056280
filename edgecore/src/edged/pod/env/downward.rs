//! The downward API: what a pod is told of itself, as a variable or as a file.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::super::convert::ConfigError;
use super::Facts;
use crate::edged::quantity;

/// The value of a downward API field.
///
/// # Errors
/// A path that Kubernetes does not offer.
pub fn field(
    pod: &Pod,
    selector: &ObjectFieldSelector,
    facts: &Facts,
) -> Result<String, ConfigError> {
    let meta = &pod.metadata;
    let path = selector.field_path.as_str();
    let text = match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => {
            let subscript = |prefix: &str| {
                path.strip_prefix(prefix)?
                    .strip_prefix("['")?
                    .strip_suffix("']")
            };
            if let Some(key) = subscript("metadata.labels") {
                value_of(meta.labels.as_ref(), key)
            } else if let Some(key) = subscript("metadata.annotations") {
                value_of(meta.annotations.as_ref(), key)
            } else {
                return Err(ConfigError(format!("unsupported fieldPath: {path}")));
            }
        }
    };
    Ok(text)
}

fn value_of(map: Option<&BTreeMap<String, String>>, key: &str) -> String {
    map.and_then(|m| m.get(key)).cloned().unwrap_or_default()
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", go_quote(value)))
        .collect();
    lines.join("\n")
}

/// Go's `%q` (`strconv.Quote`), which is how the lines of labels and annotations are written.
fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if u32::from(c) < 0x80 && c.is_control() => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            // What Rust escapes beyond ASCII Go does too: it cannot be seen.
            c if !c.is_ascii() && c.escape_debug().len() > 1 => {
                out.push_str(&match u32::from(c) {
                    code @ 0..=0xffff => format!("\\u{code:04x}"),
                    code => format!("\\U{code:08x}"),
                });
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a `resourceFieldRef`; what is not limited is the node's capacity.
///
/// # Errors
/// A resource that Kubernetes does not offer, or a divisor that is no quantity.
pub fn resource(
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, ConfigError> {
    let unsupported = || {
        ConfigError(format!(
            "unsupported container resource: {}",
            selector.resource
        ))
    };
    let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref()?.get(name));
    let requests = resources.and_then(|r| r.requests.as_ref()?.get(name));
    let found = match list {
        "limits" => limits,
        "requests" => requests.or(limits),
        _ => return Err(unsupported()),
    };
    let one = Quantity("1".to_owned());
    let divisor = selector
        .divisor
        .as_ref()
        .filter(|d| quantity::milli(d).is_some_and(|m| m != 0))
        .unwrap_or(&one);
    let bad = || ConfigError(format!("bad quantity in resource {}", selector.resource));
    let is_known = matches!(name, "cpu" | "memory" | "ephemeral-storage");
    if !is_known && !name.starts_with("hugepages-") {
        return Err(unsupported());
    }
    let amount = if name == "cpu" {
        let amount = match (found, list) {
            (Some(found), _) => quantity::milli(found).ok_or_else(bad)?,
            (None, "limits") => facts.cpu_milli,
            (None, _) => 0,
        };
        let divisor = quantity::milli(divisor).ok_or_else(bad)?.max(1);
        amount / divisor + i64::from(amount % divisor != 0)
    } else {
        let amount = match (found, list, name) {
            (Some(found), _, _) => quantity::value(found).ok_or_else(bad)?,
            (None, "limits", "memory") => facts.memory_bytes,
            (None, "limits", "ephemeral-storage") => facts.storage_bytes,
            (None, _, _) => 0,
        };
        let divisor = quantity::value(divisor).ok_or_else(bad)?.max(1);
        amount / divisor + i64::from(amount % divisor != 0)
    };
    Ok(amount.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_is_go_s() {
        for (text, want) in [
            ("x", r#""x""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("l1\nl2\t", r#""l1\nl2\t""#),
            ("it's", r#""it's""#),
            ("\u{1}\u{7f}", r#""\x01\x7f""#),
            ("ü\u{feff}", r#""ü\ufeff""#),
        ] {
            assert_eq!(go_quote(text), want);
        }
    }
}
