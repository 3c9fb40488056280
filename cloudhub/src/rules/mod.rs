//! Rules between applications in the cloud and on nodes (device plane §6), with its repairs
//! (§6.6): matches are anchored, the listener knows who calls, nothing that may not be repeated is
//! repeated, TLS is verified, and a Rule's status says how it goes.
//!
//! | Source → target | How |
//! |---|---|
//! | eventbus → rest | [`upload`]: kept uploads, in order, each once taken; tried again while the endpoint is down |
//! | rest → eventbus | [`rest`]: a request becomes a publish on the node |
//! | rest → servicebus | [`rest`]: a request becomes a request to a service on the node; its answer comes back |
//! | servicebus → rest | [`ask`]: what an application on the node asks is sent to a URL; the answer goes back |
//!
//! A Rule that asks for another pair says so in its status. What rules want from a node (topics,
//! URLs) it is told by [`crate::downstream`].

pub mod ask;
mod control;
pub mod rest;
pub mod tally;
mod upload;

use std::collections::{BTreeMap, HashMap};

use apiserver::{
    Gvr,
    store::{ListQuery, Store, StoreError, set_resource_version},
};
use serde_json::Value;
use wire::rules::Routes;

pub use control::Controller;

use crate::{keys::REGISTRY, kube::text};

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
pub(crate) enum Way {
    /// Uploads of a node on a topic go to a URL.
    Upload {
        node: String,
        topic: String,
        url: String,
    },
    /// Requests on a path are published on a topic.
    Publish { path: String, topic: String },
    /// Requests on a path go to a service of the node.
    Call {
        path: String,
        port: u16,
        target: String,
    },
    /// What applications of a node send to `asked` goes to `url`.
    Ask {
        node: String,
        asked: String,
        url: String,
    },
}

impl Way {
    /// What two rules of one namespace must not share: which of them is meant nobody could say.
    fn claim(&self) -> String {
        match self {
            Self::Upload { node, topic, .. } => format!("topic {topic} of node {node}"),
            Self::Publish { path, .. } | Self::Call { path, .. } => {
                format!("path /{}", path.trim_matches('/'))
            }
            Self::Ask { node, asked, .. } => format!("target_url {asked} of node {node}"),
        }
    }
}

/// What is known of a RuleEndpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    kind: String,
    service_port: String,
}

/// Every Rule, in the order of their names, with what it asks for or what is wrong with it.
pub(crate) type Book = Vec<(Value, Result<Way, String>)>;

/// Reads the rules of a namespace, or of all, and the revision as of which.
pub(crate) async fn book(
    store: &dyn Store,
    namespace: Option<&str>,
) -> Result<(Book, u64), StoreError> {
    let list = async |plural: &str| {
        let below = namespace.map_or_else(String::new, |namespace| format!("{namespace}/"));
        let query = ListQuery {
            prefix: format!("{REGISTRY}{GROUP}/{plural}/{below}"),
            ..ListQuery::default()
        };
        let listing = store.list(query).await?;
        let read = |entry: &apiserver::store::Entry| {
            let mut object = serde_json::from_slice::<Value>(&entry.value).ok()?;
            set_resource_version(&mut object, entry.revision);
            Some(object)
        };
        let objects: Vec<Value> = listing.entries.iter().filter_map(read).collect();
        Ok::<_, StoreError>((objects, listing.revision))
    };
    // Endpoints first: a rule is never newer than what it is read with.
    let (endpoints, revision) = list("ruleendpoints").await?;
    let known: HashMap<(String, String), Endpoint> = endpoints
        .iter()
        .map(|endpoint| {
            let at = |pointer: &str| text(endpoint, pointer).to_owned();
            let known = Endpoint {
                kind: at("/spec/ruleEndpointType"),
                service_port: at("/spec/properties/service_port"),
            };
            ((at("/metadata/namespace"), at("/metadata/name")), known)
        })
        .collect();
    let (rules, _) = list("rules").await?;
    let mut claims: HashMap<(String, String), String> = HashMap::new();
    let book = rules.into_iter().map(|rule| {
        let namespace = text(&rule, "/metadata/namespace").to_owned();
        let find = |name: &str| known.get(&(namespace.clone(), name.to_owned())).cloned();
        let way = way(&rule, find).and_then(|way| {
            let name = text(&rule, "/metadata/name");
            let claim = (namespace.clone(), way.claim());
            let owner = claims.entry(claim).or_insert_with(|| name.to_owned());
            if owner == name {
                return Ok(way);
            }
            let what = way.claim();
            Err(format!(
                "spec.sourceResource: {what} is of rule \"{owner}\" already"
            ))
        });
        (rule, way)
    });
    Ok((book.collect(), revision))
}

/// What rules want from nodes.
pub(crate) async fn routes(store: &dyn Store) -> Result<BTreeMap<String, Routes>, StoreError> {
    let mut wanted = BTreeMap::<String, Routes>::new();
    for (_, way) in book(store, None).await?.0 {
        match way {
            Ok(Way::Upload { node, topic, .. }) => {
                wanted.entry(node).or_default().topics.insert(topic);
            }
            Ok(Way::Ask { node, asked, .. }) => {
                wanted.entry(node).or_default().urls.insert(asked);
            }
            Ok(Way::Publish { .. } | Way::Call { .. }) | Err(_) => {}
        }
    }
    Ok(wanted)
}

/// Reads a rule; the error goes to its status.
fn way(rule: &Value, find: impl Fn(&str) -> Option<Endpoint>) -> Result<Way, String> {
    let endpoint = |member: &str| {
        let name = text(rule, &format!("/spec/{member}"));
        find(name).ok_or_else(|| format!("spec.{member}: no RuleEndpoint \"{name}\" here"))
    };
    let need = |member: &str, key: &str| {
        let value = text(rule, &format!("/spec/{member}/{key}"));
        if value.is_empty() {
            return Err(format!("spec.{member}: `{key}` is required"));
        }
        Ok(value.to_owned())
    };
    let node = || {
        let name = need("sourceResource", "node_name")?;
        if crate::pki::valid_node_name(&name) {
            return Ok(name);
        }
        Err(format!(
            "spec.sourceResource: `node_name` \"{name}\" is no name of a node"
        ))
    };
    let url = || {
        let url = need("targetResource", "resource")?;
        let parsed = reqwest::Url::parse(&url).ok();
        let is_http = parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https"));
        is_http
            .then_some(url)
            .ok_or_else(|| "spec.targetResource: `resource` is not an HTTP URL".to_owned())
    };
    let namespace = text(rule, "/metadata/namespace");
    let (source, target) = (endpoint("source")?, endpoint("target")?);
    match (source.kind.as_str(), target.kind.as_str()) {
        ("eventbus", "rest") => {
            let topic = need("sourceResource", "topic")?;
            if !is_filter(&topic) {
                let error = format!("spec.sourceResource: `topic` \"{topic}\" is no MQTT filter");
                return Err(error);
            }
            Ok(Way::Upload {
                node: node()?,
                // Clients of the broker publish to `<namespace>/<topic>` (§6.4).
                topic: format!("{namespace}/{}", topic.trim_start_matches('/')),
                url: url()?,
            })
        }
        ("rest", "eventbus") => {
            let topic = need("targetResource", "topic")?;
            if topic.contains(['+', '#', '\0']) || topic.starts_with('$') {
                let error = format!(
                    "spec.targetResource: `topic` \"{topic}\" is none that may be published to"
                );
                return Err(error);
            }
            Ok(Way::Publish {
                path: need("sourceResource", "path")?,
                topic,
            })
        }
        ("rest", "servicebus") => {
            let port = target.service_port.parse().ok().filter(|&port| port > 0);
            let name = text(rule, "/spec/target");
            Ok(Way::Call {
                path: need("sourceResource", "path")?,
                port: port.ok_or_else(|| {
                    format!(
                        "spec.target: RuleEndpoint \"{name}\" has `service_port` \"{}\", which is \
                         not 1 to 65535",
                        target.service_port
                    )
                })?,
                target: need("targetResource", "path")?,
            })
        }
        ("servicebus", "rest") => Ok(Way::Ask {
            node: node()?,
            asked: need("sourceResource", "target_url")?,
            url: url()?,
        }),
        (source, target) => Err(format!("{source} to {target} is not supported")),
    }
}

/// Wildcards stand alone in their level, `#` in the last one.
fn is_filter(topic: &str) -> bool {
    let mut levels = topic.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_last = levels.peek().is_none();
        let is_right = match level {
            "+" => true,
            "#" => is_last,
            plain => !plain.contains(['+', '#', '\0']),
        };
        if !is_right {
            return false;
        }
    }
    !topic.starts_with('$')
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
        let find = |name: &str| {
            let (kind, service_port) = match name {
                "rest" | "eventbus" | "servicebus" => (name, "8080"),
                "portless" => ("servicebus", "99999"),
                _ => return None,
            };
            Some(Endpoint {
                kind: kind.to_owned(),
                service_port: service_port.to_owned(),
            })
        };
        let of = |source: &str, from: &Value, target: &str, to: &Value| {
            let rule = json!({"metadata": {"namespace": "d"},
                "spec": {"source": source, "target": target,
                         "sourceResource": from, "targetResource": to}});
            way(&rule, find)
        };
        let owned = |text: &str| text.to_owned();
        let (up, url) = (
            json!({"topic": "user/a", "node_name": "e1"}),
            json!({"resource": "http://x/"}),
        );
        for (source, from, target, to, wanted) in [
            (
                "eventbus",
                &up,
                "rest",
                &url,
                Way::Upload {
                    node: owned("e1"),
                    topic: owned("d/user/a"),
                    url: owned("http://x/"),
                },
            ),
            (
                "rest",
                &json!({"path": "/p"}),
                "servicebus",
                &json!({"path": "/app"}),
                Way::Call {
                    path: owned("/p"),
                    port: 8080,
                    target: owned("/app"),
                },
            ),
            (
                "servicebus",
                &json!({"target_url": "http://any", "node_name": "e1"}),
                "rest",
                &url,
                Way::Ask {
                    node: owned("e1"),
                    asked: owned("http://any"),
                    url: owned("http://x/"),
                },
            ),
        ] {
            assert_eq!(of(source, from, target, to), Ok(wanted));
        }
        let (path, app) = (json!({"path": "/p"}), json!({"path": "/app"}));
        let none = json!({});
        for (source, from, target, to, error) in [
            (
                "eventbus",
                &up,
                "rest",
                &none,
                "spec.targetResource: `resource` is required",
            ),
            (
                "eventbus",
                &json!({"topic": "a"}),
                "rest",
                &url,
                "spec.sourceResource: `node_name` is required",
            ),
            (
                "eventbus",
                &json!({"topic": "a#", "node_name": "e1"}),
                "rest",
                &url,
                "spec.sourceResource: `topic` \"a#\" is no MQTT filter",
            ),
            (
                "eventbus",
                &json!({"topic": "a", "node_name": "E 1"}),
                "rest",
                &url,
                "spec.sourceResource: `node_name` \"E 1\" is no name of a node",
            ),
            (
                "eventbus",
                &up,
                "rest",
                &json!({"resource": "ftp://x"}),
                "spec.targetResource: `resource` is not an HTTP URL",
            ),
            (
                "rest",
                &none,
                "eventbus",
                &json!({"topic": "t"}),
                "spec.sourceResource: `path` is required",
            ),
            (
                "rest",
                &path,
                "eventbus",
                &json!({"topic": "a/+"}),
                "spec.targetResource: `topic` \"a/+\" is none that may be published to",
            ),
            (
                "rest",
                &path,
                "servicebus",
                &none,
                "spec.targetResource: `path` is required",
            ),
            (
                "rest",
                &path,
                "portless",
                &app,
                "spec.target: RuleEndpoint \"portless\" has `service_port` \"99999\", which is not 1 to 65535",
            ),
            (
                "servicebus",
                &json!({"node_name": "e1"}),
                "rest",
                &url,
                "spec.sourceResource: `target_url` is required",
            ),
            (
                "no",
                &up,
                "rest",
                &url,
                "spec.source: no RuleEndpoint \"no\" here",
            ),
            ("rest", &path, "rest", &url, "rest to rest is not supported"),
            (
                "eventbus",
                &up,
                "servicebus",
                &app,
                "eventbus to servicebus is not supported",
            ),
        ] {
            assert_eq!(of(source, from, target, to), Err(error.to_owned()));
        }
    }
}
