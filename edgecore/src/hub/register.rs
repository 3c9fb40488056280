//! Registering the node and keeping its status told (protocol §5.1.1): the first message about the
//! node on every connection creates it; the hub says AlreadyExists to all but the first, and from
//! then on patches of the status follow.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wire::body::Reply;
use wire::message::{Content, Message, Operation};

use super::sink;

/// Key of the node's status among the newest values.
pub(super) const STATUS_KEY: &str = "node";
/// Pause after the hub refused the registration for another reason than that the node exists.
const RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// Not on this connection yet; a time says not before.
    #[default]
    Unregistered,
    Waiting {
        until: Instant,
    },
    Asked {
        id: String,
    },
    Registered,
}

/// Where the registration stands on this connection.
#[derive(Debug, Default)]
pub(super) struct Registration {
    state: State,
}

impl Registration {
    /// A new connection: the hub may have forgotten the node meanwhile.
    pub(super) fn reset(&mut self) {
        self.state = State::Unregistered;
    }

    pub(super) fn is_registered(&self) -> bool {
        self.state == State::Registered
    }

    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Unregistered | State::Asked { .. } | State::Registered => None,
        }
    }

    /// The request to send now, if any.
    pub(super) fn request(&mut self, node: &str, object: &Value, now: Instant) -> Option<Message> {
        match self.state {
            State::Unregistered => {}
            State::Waiting { until } if until <= now => {}
            State::Waiting { .. } | State::Asked { .. } | State::Registered => return None,
        }
        let content = Content::json(object).unwrap_or_default();
        let message = sink::message(&Operation::Insert, format!("null/node/{node}"), content);
        self.state = State::Asked {
            id: message.header.id.clone(),
        };
        Some(message)
    }

    /// Whether `to` was the registration; if so its answer is taken in.
    pub(super) fn handle_reply(&mut self, to: &str, reply: Option<&Message>, now: Instant) -> bool {
        if !matches!(&self.state, State::Asked { id } if id == to) {
            return false;
        }
        let accepted = reply.is_some_and(|message| match Reply::classify(&message.content) {
            Reply::Ok | Reply::Object(_) => true,
            Reply::Failed(status) if status.reason == "AlreadyExists" || status.code == 409 => true,
            Reply::Failed(status) => {
                tracing::warn!(
                    reason = status.message,
                    "the hub refused to register the node"
                );
                false
            }
            Reply::Text(_) | Reply::UnknownError | Reply::Empty => false,
        });
        self.state = if accepted {
            State::Registered
        } else {
            State::Waiting {
                until: now + RETRY_AFTER,
            }
        };
        true
    }
}

/// The patch that tells the node's status.
pub(super) fn status_patch(node: &str, object: &Value) -> Message {
    let status = object.get("status").cloned().unwrap_or(Value::Null);
    sink::patch(format!("null/nodepatch/{node}"), &json!({"status": status}))
}

#[cfg(test)]
mod tests {
    use wire::body;

    use super::*;

    #[test]
    fn a_node_that_exists_is_registered_and_another_refusal_is_tried_again() {
        let t0 = crate::clock::monotonic();
        let mut registration = Registration::default();
        let first = registration.request("n", &json!({}), t0).unwrap();
        assert_eq!(first.route.resource, "null/node/n");
        assert!(
            registration.request("n", &json!({}), t0).is_none(),
            "one at a time"
        );
        let mut status = body::Status {
            status: "Failure".into(),
            reason: "Forbidden".into(),
            code: 403,
            ..body::Status::default()
        };
        let refused = first.reply("r", 1, "edgecontroller", body::object_error(&status));
        assert!(!registration.handle_reply("other", Some(&refused), t0));
        assert!(registration.handle_reply(&first.header.id, Some(&refused), t0));
        assert_eq!(registration.due(), Some(t0 + RETRY_AFTER));

        let again = registration
            .request("n", &json!({}), t0 + RETRY_AFTER)
            .unwrap();
        status.reason = "AlreadyExists".into();
        status.code = 409;
        let exists = again.reply("r", 1, "edgecontroller", body::object_error(&status));
        assert!(registration.handle_reply(&again.header.id, Some(&exists), t0));
        assert!(registration.is_registered());
        registration.reset();
        assert!(!registration.is_registered());
    }
}
