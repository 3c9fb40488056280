//! The message: header, route, content (protocol §4).
//!
//! Content is kept as the JSON text it came as. What is re-encoded unchanged keeps its bytes, key
//! order and number formatting included; what we build ourselves is written as Go's encoder
//! would (`<`, `>`, `&`, U+2028 and U+2029 escaped), so that a golden comparison is byte for byte.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::limits::MESSAGE_BYTES_MAX;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Longer than [`MESSAGE_BYTES_MAX`].
    #[error("message of {len_bytes} bytes exceeds the {MESSAGE_BYTES_MAX}-byte limit")]
    TooLarge {
        /// Length of what was received.
        len_bytes: usize,
    },
    /// No JSON, or a member of the wrong type.
    #[error("message is not valid")]
    Json(#[from] serde_json::Error),
}

/// Identity, correlation and version of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Unique id, a UUID by convention; any unique string works.
    #[serde(rename = "msg_id", default)]
    pub id: String,
    /// Id of the message this one answers; empty for none.
    #[serde(
        rename = "parent_msg_id",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub parent_id: String,
    /// Milliseconds since the Unix epoch.
    #[serde(default)]
    pub timestamp: i64,
    /// Kubernetes resourceVersion of the object in the content; empty for none.
    #[serde(
        rename = "resourceversion",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub resource_version: String,
    /// Never true on the WebSocket; kept because peers may send it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync: bool,
    /// Unused on the wire.
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub message_type: String,
}

/// Where a message comes from and what it is about. All members may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Module that sent it, e.g. `edged`, `edgecontroller`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Unused on the wire.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination: String,
    /// `resource`, `twin`, `user`, `meta`, `hub`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// See [`Operation`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub operation: String,
    /// Resource path; see [`crate::resource`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource: String,
}

impl Route {
    /// A route with no destination, which is every route on the wire.
    pub fn new(
        source: &str,
        group: &str,
        operation: &Operation,
        resource: impl Into<String>,
    ) -> Self {
        Self {
            source: source.to_owned(),
            destination: String::new(),
            group: group.to_owned(),
            operation: operation.as_str().to_owned(),
            resource: resource.into(),
        }
    }

    /// The operation, typed.
    pub fn operation(&self) -> Operation {
        Operation::parse(&self.operation)
    }
}

/// What is to be done (protocol §4.1). Names that KubeEdge does not define stay as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Create; receivers treat it as upsert.
    Insert,
    /// Delete, idempotent.
    Delete,
    /// Read one or many.
    Query,
    /// Replace; receivers treat it as upsert.
    Update,
    /// Patch; the content is a string that holds the patch.
    Patch,
    /// Device or application data for the router.
    Upload,
    /// Answer or acknowledgement.
    Response,
    /// Negative answer; not an acknowledgement.
    Error,
    /// The edge is alive.
    Keepalive,
    /// `membership/detail` request.
    Get,
    /// Transport-level; swallowed by KubeEdge's transport, unusable for anything else.
    Ping,
    /// Durable upstream entries (our extension).
    Batch,
    /// What the node holds (our extension).
    Inventory,
    /// The node holds everything that concerned it at connect (our extension).
    Synced,
    /// Anything else: HTTP methods, CSI calls, node tasks.
    Other(String),
}

impl Operation {
    /// Never fails: an unknown name is [`Operation::Other`].
    pub fn parse(text: &str) -> Self {
        match text {
            "insert" => Self::Insert,
            "delete" => Self::Delete,
            "query" => Self::Query,
            "update" => Self::Update,
            "patch" => Self::Patch,
            "upload" => Self::Upload,
            "response" => Self::Response,
            "error" => Self::Error,
            "keepalive" => Self::Keepalive,
            "get" => Self::Get,
            "ping" => Self::Ping,
            "outpost-batch" => Self::Batch,
            "outpost-inventory" => Self::Inventory,
            "outpost-synced" => Self::Synced,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The name on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Insert => "insert",
            Self::Delete => "delete",
            Self::Query => "query",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Upload => "upload",
            Self::Response => "response",
            Self::Error => "error",
            Self::Keepalive => "keepalive",
            Self::Get => "get",
            Self::Ping => "ping",
            Self::Batch => "outpost-batch",
            Self::Inventory => "outpost-inventory",
            Self::Synced => "outpost-synced",
            Self::Other(name) => name,
        }
    }
}

/// The body, as JSON text (protocol §4.3).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Content(Box<RawValue>);

impl Default for Content {
    fn default() -> Self {
        Self::null()
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.raw() == other.raw()
    }
}

impl Content {
    /// `null`.
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    /// A JSON string.
    pub fn string(text: &str) -> Self {
        Self::json(&text).unwrap_or_default()
    }

    /// Any serializable value, written with Go's escapes.
    ///
    /// # Errors
    /// Only what the value's own `Serialize` refuses.
    pub fn json(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        RawValue::from_string(escape_like_go(serde_json::to_string(value)?)).map(Self)
    }

    /// JSON text that is already encoded; kept byte for byte.
    ///
    /// # Errors
    /// The text is not one JSON value.
    pub fn from_json_text(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(Self)
    }

    /// The JSON text as received or as it will be sent.
    pub fn raw(&self) -> &str {
        self.0.get()
    }

    /// Whether the body is `null`.
    pub fn is_null(&self) -> bool {
        self.raw() == "null"
    }

    /// The string, when the body is a JSON string.
    pub fn text(&self) -> Option<String> {
        self.raw()
            .starts_with('"')
            .then(|| serde_json::from_str(self.raw()).ok())
            .flatten()
    }

    /// The document a structured body carries: a peer may send an object, or a string that holds
    /// JSON; both mean the same (`GetContentData`, protocol §4.3).
    pub fn document(&self) -> Cow<'_, str> {
        self.text()
            .map_or_else(|| Cow::Borrowed(self.raw()), Cow::Owned)
    }

    /// Decodes the document.
    ///
    /// # Errors
    /// The document does not have the shape of `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.document())
    }
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Identity and correlation.
    #[serde(default)]
    pub header: Header,
    /// Source, group, operation, resource.
    #[serde(default)]
    pub route: Route,
    /// The body.
    #[serde(default)]
    pub content: Content,
}

impl Message {
    /// A fresh message. `id` must be unique; `now_ms` is Unix milliseconds.
    pub fn new(id: impl Into<String>, now_ms: i64, route: Route, content: Content) -> Self {
        let header = Header {
            id: id.into(),
            timestamp: now_ms,
            ..Header::default()
        };
        Self {
            header,
            route,
            content,
        }
    }

    /// The same with the version of the object it carries.
    pub fn with_resource_version(mut self, version: impl Into<String>) -> Self {
        self.header.resource_version = version.into();
        self
    }

    /// An answer to this message: same group and resource, `parent_msg_id` set.
    pub fn reply(
        &self,
        id: impl Into<String>,
        now_ms: i64,
        source: &str,
        content: Content,
    ) -> Self {
        let mut route = self.route.clone();
        source.clone_into(&mut route.source);
        Operation::Response
            .as_str()
            .clone_into(&mut route.operation);
        let mut reply = Self::new(id, now_ms, route, content);
        reply.header.parent_id.clone_from(&self.header.id);
        reply
    }

    /// The acknowledgement a receiver sends once the message is durable: route copied, operation
    /// `response`, content `"OK"` (protocol §5.1.9).
    pub fn acknowledgement(&self, id: impl Into<String>, now_ms: i64) -> Self {
        self.reply(id, now_ms, &self.route.source, Content::string("OK"))
    }

    /// Tells the sender that the message could not be stored: not an acknowledgement, it will be
    /// sent again.
    pub fn negative(&self, id: impl Into<String>, now_ms: i64, reason: &str) -> Self {
        let mut reply = self.reply(id, now_ms, "metamanager", Content::string(reason));
        Operation::Error
            .as_str()
            .clone_into(&mut reply.route.operation);
        reply
    }

    /// Reads one WebSocket message. Bytes after the first JSON value are an error, unlike Go's
    /// decoder, except white space.
    ///
    /// # Errors
    /// See [`DecodeError`]; a session that receives one is closed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                len_bytes: bytes.len(),
            });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The message as Go's `json.Encoder` writes it, final newline included.
    pub fn encode(&self) -> Vec<u8> {
        // Plain strings and numbers cannot fail to serialize.
        let header = serde_json::to_string(&self.header).unwrap_or_default();
        let route = serde_json::to_string(&self.route).unwrap_or_default();
        let (header, route) = (escape_like_go(header), escape_like_go(route));
        let content = self.content.raw();
        format!("{{\"header\":{header},\"route\":{route},\"content\":{content}}}\n").into_bytes()
    }
}

/// Go's encoder escapes these inside strings, and outside strings JSON has none of them.
fn escape_like_go(text: String) -> String {
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 32);
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_build_is_written_as_go_writes_it() {
        let route = Route::new("edged", "meta", &Operation::Patch, "ns/podpatch/a\"}b");
        let message = Message::new("1", 2, route, Content::string("<a&b>\u{2028}"));
        assert_eq!(
            String::from_utf8(message.encode()).unwrap(),
            "{\"header\":{\"msg_id\":\"1\",\"timestamp\":2},\"route\":{\"source\":\"edged\",\
             \"group\":\"meta\",\"operation\":\"patch\",\"resource\":\"ns/podpatch/a\\\"}b\"},\
             \"content\":\"\\u003ca\\u0026b\\u003e\\u2028\"}\n"
        );
        assert_eq!(Message::decode(&message.encode()).unwrap(), message);
    }

    #[test]
    fn a_string_of_json_and_an_object_carry_the_same_document() {
        let object = Content::from_json_text("{\"a\":1}".into()).unwrap();
        let text = Content::string("{\"a\":1}");
        assert_eq!(object.document(), text.document());
        assert!(Content::from_json_text("{".into()).is_err());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for (name, bytes) in [
            ("empty", &b""[..]),
            (
                "timestamp of the wrong type",
                br#"{"header":{"msg_id":"1","timestamp":"x"}}"#,
            ),
            (
                "id of the wrong type",
                br#"{"header":{"msg_id":1,"timestamp":1}}"#,
            ),
            ("not utf-8", b"{\"content\":\"\xff\"}"),
            ("trailing value", br#"{"header":{}} {}"#),
        ] {
            assert!(Message::decode(bytes).is_err(), "{name}");
        }
        let bomb = "[".repeat(100_000);
        assert!(Message::decode(format!("{{\"content\":{bomb}").as_bytes()).is_err());
        let long = vec![b' '; MESSAGE_BYTES_MAX + 1];
        assert!(matches!(
            Message::decode(&long),
            Err(DecodeError::TooLarge { .. })
        ));
    }
}
