//! Rules between applications in the cloud and on nodes (device plane §6), with its repairs
//! (§6.6): matches are anchored, the listener knows who calls, nothing that may not be repeated is
//! repeated, TLS is verified, and a Rule's status says how it goes.
//!
//! | Source → target | How |
//! |---|---|
//! | eventbus → rest | [`upload`]: kept uploads, in order, each once taken; tried again while the endpoint is down |
//! | rest → eventbus | [`rest`]: a request below [`rest::PREFIX`] becomes a publish on the node |
//!
//! A Rule that asks for another pair says so in its status.

mod control;
pub mod rest;
mod upload;

use apiserver::Gvr;
use serde_json::Value;

pub use control::Controller;

use crate::kube::text;

/// Group of the kinds.
pub const GROUP: &str = "rules.kubeedge.io";

/// rules
pub fn rules() -> Gvr {
    Gvr::new(GROUP, "v1", "rules")
}

/// ruleendpoints
pub fn endpoints() -> Gvr {
    Gvr::new(GROUP, "v1", "ruleendpoints")
}

/// What a Rule asks for, once its endpoints are known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// Uploads of a node on a topic go to a URL.
    Upload {
        node: String,
        topic: String,
        url: String,
    },
    /// Requests on a path are published on a topic.
    Publish { path: String, topic: String },
}

/// Reads a rule; the error goes to its status.
fn way(rule: &Value, kind_of: impl Fn(&str) -> Option<String>) -> Result<Way, String> {
    let kind = |member: &str| {
        let name = text(rule, &format!("/spec/{member}"));
        kind_of(name).ok_or_else(|| format!("spec.{member}: no RuleEndpoint \"{name}\" here"))
    };
    let need = |member: &str, key: &str| {
        let value = text(rule, &format!("/spec/{member}/{key}"));
        if value.is_empty() {
            return Err(format!("spec.{member}: `{key}` is required"));
        }
        Ok(value.to_owned())
    };
    let namespace = text(rule, "/metadata/namespace");
    match (kind("source")?.as_str(), kind("target")?.as_str()) {
        ("eventbus", "rest") => {
            let topic = need("sourceResource", "topic")?;
            let url = need("targetResource", "resource")?;
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err("spec.targetResource: `resource` is not an HTTP URL".to_owned());
            }
            Ok(Way::Upload {
                node: need("sourceResource", "node_name")?,
                // Clients of the broker publish to `<namespace>/<topic>` (§6.4).
                topic: format!("{namespace}/{}", topic.trim_start_matches('/')),
                url,
            })
        }
        ("rest", "eventbus") => Ok(Way::Publish {
            path: need("sourceResource", "path")?,
            topic: need("targetResource", "topic")?,
        }),
        (source, target) => Err(format!("{source} to {target} is not supported")),
    }
}

/// Whether a topic fits an MQTT filter.
fn topic_fits(filter: &str, topic: &str) -> bool {
    let mut topic = topic.split('/');
    let mut filter = filter.split('/');
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            (_, _) => return false,
        }
    }
}

/// The rest of a path below a rule's path, whose `{name}` segments fit any; `None`: it does not
/// fit. Segments are compared whole.
fn path_fits<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let mut rest = path.trim_start_matches('/');
    let pattern = pattern.trim_matches('/');
    for wanted in pattern.split('/').filter(|segment| !segment.is_empty()) {
        let (segment, tail) = rest.split_once('/').unwrap_or((rest, ""));
        let any = wanted.starts_with('{') && wanted.ends_with('}');
        if segment.is_empty() || !(any || segment == wanted) {
            return None;
        }
        rest = tail;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn matches_are_anchored() {
        for (pattern, path, rest) in [
            ("/test", "test", Some("")),
            ("test", "test/more/x", Some("more/x")),
            ("/test", "testing", None),
            ("/test", "x/test", None),
            ("/a/{id}/b", "a/7/b/c", Some("c")),
            ("/a/{id}/b", "a//b", None),
            ("/a/b", "a", None),
        ] {
            assert_eq!(path_fits(pattern, path), rest, "{pattern} {path}");
        }
        for (filter, topic, fits) in [
            ("d/user/+", "d/user/a", true),
            ("d/user/#", "d/user/a/b", true),
            ("d/user/#", "d/user", true),
            ("d/user/a", "d/user/ab", false),
            ("d/user/a", "d/user/a/b", false),
        ] {
            assert_eq!(topic_fits(filter, topic), fits, "{filter} {topic}");
        }
    }

    #[test]
    fn a_rule_says_what_it_misses() {
        let kinds = |name: &str| matches!(name, "rest" | "eventbus").then(|| name.to_owned());
        let rule = |source: &str, target: &str, resource: &Value| {
            json!({"metadata": {"namespace": "d"}, "spec": {"source": source, "target": target,
                   "sourceResource": {"topic": "user/a", "node_name": "e1"},
                   "targetResource": resource}})
        };
        let good = rule("eventbus", "rest", &json!({"resource": "http://x/"}));
        let wanted = Way::Upload {
            node: "e1".into(),
            topic: "d/user/a".into(),
            url: "http://x/".into(),
        };
        assert_eq!(way(&good, kinds), Ok(wanted));
        for (source, target, resource, error) in [
            (
                "eventbus",
                "rest",
                json!({}),
                "spec.targetResource: `resource` is required",
            ),
            (
                "rest",
                "eventbus",
                json!({}),
                "spec.sourceResource: `path` is required",
            ),
            (
                "no",
                "rest",
                json!({}),
                "spec.source: no RuleEndpoint \"no\" here",
            ),
            ("rest", "rest", json!({}), "rest to rest is not supported"),
        ] {
            assert_eq!(
                way(&rule(source, target, &resource), kinds),
                Err(error.to_owned())
            );
        }
    }
}
