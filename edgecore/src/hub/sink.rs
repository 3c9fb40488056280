//! Edged's news as messages (protocol §5.1.1, §5.1.2, §5.1.4).

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::watch;
use wire::body::Reply;
use wire::message::{Content, Message, Operation, Route};

use super::HubHandle;
use super::handle::LinkPhase;
use crate::clock;
use crate::edged::StatusSink;
use crate::edged::statics::MirrorHub;

pub(super) fn message(operation: &Operation, resource: String, content: Content) -> Message {
    let route = Route::new("edged", "meta", operation, resource);
    let id = uuid::Uuid::new_v4().to_string();
    Message::new(id, clock::unix_millis(), route, content)
}

/// A strategic merge patch travels as a string that holds JSON.
pub(super) fn patch(resource: String, body: &Value) -> Message {
    message(
        &Operation::Patch,
        resource,
        Content::string(&body.to_string()),
    )
}

fn pod_key(namespace: &str, name: &str, uid: &str) -> String {
    format!("pod/{namespace}/{name}/{uid}")
}

#[async_trait]
impl MirrorHub for HubHandle {
    async fn create_mirror(&self, namespace: &str, name: &str, pod: Value) -> Result<(), String> {
        let content = Content::json(&pod).map_err(|error| error.to_string())?;
        let path = format!("{namespace}/pod/{name}");
        let asked = self.request(message(&Operation::Insert, path, content));
        let reply = asked.await.map_err(|error| error.to_string())?;
        match Reply::classify(&reply.content) {
            Reply::Object(_) | Reply::Ok => Ok(()),
            Reply::Failed(status) => Err(status.message),
            Reply::Text(text) => Err(text),
            Reply::Empty | Reply::UnknownError => Err("the hub's answer is no object".to_owned()),
        }
    }

    fn connected(&self) -> watch::Receiver<bool> {
        Self::connected(self)
    }
}

impl StatusSink for HubHandle {
    fn pod_status(&self, namespace: &str, name: &str, uid: &str, status: Value) {
        // The whole status is ours: what it no longer says (a reason, a message) must not stay.
        let mut status = status;
        if let Some(members) = status.as_object_mut() {
            members.insert("$patch".to_owned(), "replace".into());
        }
        let body = json!({"metadata": {"uid": uid}, "status": status});
        let patch = patch(format!("{namespace}/podpatch/{name}"), &body);
        self.set_latest(&pod_key(namespace, name, uid), patch);
    }

    fn pod_gone(&self, namespace: &str, name: &str, uid: &str) {
        let body = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
        let content = Content::json(&body).unwrap_or_default();
        let delete = message(
            &Operation::Delete,
            format!("{namespace}/pod/{name}"),
            content,
        );
        // Same key as the status, which nobody needs any more.
        self.set_latest(&pod_key(namespace, name, uid), delete);
    }

    fn volume_gone(&self, name: &str, uid: &str) {
        let body = json!({"preconditions": {"uid": uid}});
        let content = Content::json(&body).unwrap_or_default();
        let resource = format!("null/persistentvolume/{name}");
        let delete = message(&Operation::Delete, resource, content);
        self.set_latest(&format!("volume/{name}/{uid}"), delete);
    }

    fn node_status(&self, node: Value) {
        self.set_node(node);
    }

    fn hub_link(&self) -> Option<watch::Receiver<bool>> {
        let is_there = self.link().borrow().phase != LinkPhase::Disabled;
        is_there.then(|| Self::connected(self))
    }

    fn event(&self, event: Value) {
        let text = |pointer: &str| {
            event
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let namespace = match text("/metadata/namespace") {
            "" => "default",
            namespace => namespace,
        };
        let resource = format!("{namespace}/event/{}", text("/metadata/name"));
        let again = event.get("count").and_then(Value::as_u64).unwrap_or(1) > 1;
        let operation = if again {
            Operation::Update
        } else {
            Operation::Insert
        };
        let content = Content::json(&event).unwrap_or_default();
        Self::event(self, message(&operation, resource, content));
    }
}
