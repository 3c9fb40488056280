//! What rules between applications in the cloud and on nodes put on the wire (protocol §5.1.7 and
//! §5.2.4): group [`GROUP`], three modules of KubeEdge's, HTTP requests and replies as JSON.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::extension;
use crate::message::{Content, Message, Operation, Route};

/// Group of every message of rules.
pub const GROUP: &str = "user";
/// The hub's module that speaks to the node's MQTT clients.
pub const EVENT_BUS: &str = "router_eventbus";
/// The hub's module that speaks to the node's HTTP services.
pub const TO_SERVICE_BUS: &str = "router_servicebus";
/// The node's module that does so.
pub const SERVICE_BUS: &str = "servicebus";
/// Resource of [`Routes`].
pub const ROUTES: &str = "routes";

/// Largest body of an HTTP request or reply on its way, in bytes. In base64 it fits one message
/// ([`crate::limits::MESSAGE_BYTES_MAX`]) beside its headers; KubeEdge cuts off after 5,000,000.
pub const HTTP_BODY_BYTES_MAX: usize = 3_000_000;

/// Headers that belong to one connection, not to what travels on it (RFC 9110 §7.6.1), and the
/// length, which who sends it on counts by itself.
pub const HOP_HEADERS: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Everything that rules want from one node: it replaces what was wanted before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// MQTT filters, `<namespace>/<topic>`, whose messages go to the hub.
    #[serde(default)]
    pub topics: BTreeSet<String>,
    /// What local applications may call through the ServiceBus.
    #[serde(default)]
    pub urls: BTreeSet<String>,
}

impl Routes {
    /// The message that carries them to an edge with [`extension::Extensions::routes`].
    pub fn into_message(self, id: String, now_ms: i64) -> Message {
        let route = Route::new("router", extension::GROUP, &Operation::Update, ROUTES);
        Message::new(id, now_ms, route, Content::json(&self).unwrap_or_default())
    }

    /// The messages by which KubeEdge tells a node one thing at a time, from `before` to these.
    pub fn steps_from(&self, before: &Self) -> Vec<Route> {
        let step = |source: &str, operation: &str, resource: &String| {
            let operation = Operation::Other(operation.to_owned());
            Route::new(source, GROUP, &operation, resource.clone())
        };
        let mut steps = Vec::new();
        for topic in before.topics.difference(&self.topics) {
            steps.push(step(EVENT_BUS, "unsubscribe", topic));
        }
        for topic in self.topics.difference(&before.topics) {
            steps.push(step(EVENT_BUS, "subscribe", topic));
        }
        for url in before.urls.difference(&self.urls) {
            steps.push(step(TO_SERVICE_BUS, "stop", url));
        }
        for url in self.urls.difference(&before.urls) {
            steps.push(step(TO_SERVICE_BUS, "start", url));
        }
        steps
    }

    /// Takes one of KubeEdge's steps, or all at once; `None`: the message is neither.
    pub fn after(&self, message: &Message) -> Option<Result<Self, serde_json::Error>> {
        let route = &message.route;
        if route.group == extension::GROUP && route.resource == ROUTES {
            return Some(message.content.decode());
        }
        if route.group != GROUP {
            return None;
        }
        let mut next = self.clone();
        let resource = route.resource.clone();
        match (route.source.as_str(), route.operation.as_str()) {
            (EVENT_BUS, "subscribe") => drop(next.topics.insert(resource)),
            (EVENT_BUS, "unsubscribe") => drop(next.topics.remove(&resource)),
            (TO_SERVICE_BUS, "start") => drop(next.urls.insert(resource)),
            (TO_SERVICE_BUS, "stop") => drop(next.urls.remove(&resource)),
            _ => return None,
        }
        Some(Ok(next))
    }
}

/// Whether a message asks the node for an HTTP call to one of its services.
pub fn is_call(message: &Message) -> bool {
    let route = &message.route;
    route.group == GROUP
        && route.source == TO_SERVICE_BUS
        && !matches!(route.operation.as_str(), "start" | "stop")
}

/// Headers of HTTP as Go writes them.
pub type Headers = BTreeMap<String, Vec<String>>;

/// A Go byte slice: base64 in JSON, `null` when empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        let decoded = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(decoded))
    }
}

/// A call to a service on the node; the resource of its message is `<port>:<path>`, its operation
/// the method.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest {
    /// Of the caller.
    #[serde(default, deserialize_with = "or_default")]
    pub header: Headers,
    /// At most [`HTTP_BODY_BYTES_MAX`].
    #[serde(default)]
    pub body: Base64,
    /// As the operation.
    #[serde(default)]
    pub method: String,
    /// Empty: the resource says where to.
    #[serde(default)]
    pub url: String,
}

/// What the service answered, or what the node says in its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpReply {
    /// Of the service.
    #[serde(default, deserialize_with = "or_default")]
    pub header: Headers,
    /// 400, 502, 503 and 504 with a header [`NODE_ERROR`] are the node's own.
    #[serde(default)]
    pub status_code: u16,
    /// At most [`HTTP_BODY_BYTES_MAX`].
    #[serde(default)]
    pub body: Base64,
}

/// Header of a reply that no service has given.
pub const NODE_ERROR: &str = "Outpost-Node-Error";

impl HttpReply {
    /// The node's own words in place of a service's.
    pub fn of_node(status_code: u16, words: &str) -> Self {
        Self {
            header: [
                (NODE_ERROR.to_owned(), vec![words.to_owned()]),
                (
                    "Content-Type".to_owned(),
                    vec!["text/plain; charset=utf-8".to_owned()],
                ),
            ]
            .into(),
            status_code,
            body: Base64(words.as_bytes().to_vec()),
        }
    }

    /// The message that answers `request`: with the operation that KubeEdge's own forgets on
    /// failures, so that they never reach the caller (device plane §7.2).
    pub fn into_message(self, request: &Message, id: String, now_ms: i64) -> Message {
        let content = Content::json(&self).unwrap_or_default();
        let route = Route::new(SERVICE_BUS, GROUP, &Operation::Upload, "");
        let mut message = Message::new(id, now_ms, route, content);
        message.header.parent_id.clone_from(&request.header.id);
        message
    }
}

/// Why an application on a node gets no answer from the cloud's. Content of an answer with
/// operation `error`; KubeEdge has nothing of the kind, and its callers wait in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// As an HTTP status.
    pub code: u16,
    /// For a person.
    pub message: String,
    /// What the application answered all the same.
    #[serde(default)]
    pub body: String,
}

/// `null` is nothing.
fn or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Headers, D::Error> {
    let headers = Option::<BTreeMap<String, Option<Vec<String>>>>::deserialize(deserializer)?;
    let headers = headers.unwrap_or_default().into_iter();
    Ok(headers
        .map(|(name, values)| (name, values.unwrap_or_default()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(topics: &[&str], urls: &[&str]) -> Routes {
        let set = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        Routes {
            topics: set(topics),
            urls: set(urls),
        }
    }

    #[test]
    fn steps_and_the_whole_lead_to_the_same() {
        let before = routes(&["d/a", "d/b"], &["http://x/1"]);
        let wanted = routes(&["d/b", "d/c/#"], &["http://x/2"]);
        let mut now = before.clone();
        let steps = wanted.steps_from(&before);
        assert_eq!(steps.len(), 4);
        for route in steps {
            let message = Message::new("1", 0, route, Content::null());
            now = now.after(&message).unwrap().unwrap();
        }
        assert_eq!(now, wanted);
        let whole = wanted.clone().into_message("1".into(), 0);
        assert_eq!(before.after(&whole).unwrap().unwrap(), wanted);
    }

    #[test]
    fn other_messages_change_no_routes() {
        for (source, group, operation) in [
            (EVENT_BUS, GROUP, "publish"),
            (TO_SERVICE_BUS, GROUP, "GET"),
            (EVENT_BUS, "resource", "subscribe"),
            ("edgecontroller", GROUP, "subscribe"),
        ] {
            let operation = Operation::Other(operation.into());
            let route = Route::new(source, group, &operation, "d/a");
            let message = Message::new("1", 0, route, Content::null());
            assert!(Routes::default().after(&message).is_none());
        }
        let route = Route::new("router", extension::GROUP, &Operation::Update, ROUTES);
        let broken = Message::new("1", 0, route, Content::string("no"));
        assert!(Routes::default().after(&broken).unwrap().is_err());
    }

    #[test]
    fn go_may_leave_out_and_write_null() {
        let read = |text: &str| serde_json::from_str::<HttpRequest>(text).unwrap();
        assert_eq!(
            read(r#"{"header":null,"body":null,"method":"GET","url":""}"#).method,
            "GET"
        );
        let full = read(r#"{"header":{"A":["b"],"C":null},"body":"aGk="}"#);
        assert_eq!(full.body.0, b"hi");
        assert_eq!(full.header["A"], ["b"]);
        assert!(serde_json::from_str::<HttpRequest>(r#"{"body":"%"}"#).is_err());
    }
}
