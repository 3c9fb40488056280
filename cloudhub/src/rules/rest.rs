//! rest → eventbus: `POST /apis/rules.outpost.dev/v1/rest/<node>/<namespace>/<path>[/<more>]` on
//! the API's listener, with its TLS, its users and their rights: `create` of `rules/rest` in group
//! `rules.outpost.dev` and the rule's namespace.
//!
//! The body is published on the node, at QoS 1, to the rule's topic, followed by `/<more>`. Our own
//! edge says when that is done (200, `delivered`); a plain one does not (202, `queued`). A request
//! is sent once: what came of it when no answer came in time (504) is not known, and for the caller
//! to decide.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use apiserver::{
    ApiError,
    authn::{Attributes, Authorizer, User},
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use wire::message::{Content, Message, Operation, Route};

use super::{GROUP, Way, path_fits, way};
use crate::{clock, keys, keys::REGISTRY, kube::Kube, kube::text, session::Registry};

/// Where its paths begin.
pub const PREFIX: &str = "/apis/rules.outpost.dev/v1/rest/";
/// Largest body.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Requests that wait for a node at once.
const WAITING_MAX: usize = 256;
/// Longest wait for a node.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Requests that wait for what a node says.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>);

impl Waiting {
    /// A node has done what a message asked.
    pub fn done(&self, id: &str) {
        if let Some(waiter) = self.lock().remove(id) {
            // The caller may be gone.
            let _ = waiter.send(());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the listener needs.
#[derive(Clone)]
pub struct Rest {
    /// The API.
    pub kube: Kube,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Who waits.
    pub waiting: Waiting,
}

impl Rest {
    /// Answers a request below [`PREFIX`].
    pub async fn handle(
        &self,
        authorizer: &dyn Authorizer,
        user: &User,
        (method, path): (&Method, &str),
        body: &[u8],
    ) -> Result<(StatusCode, Value), ApiError> {
        let below = path.strip_prefix(PREFIX).unwrap_or_default();
        let mut parts = below.splitn(3, '/');
        let (node, namespace, path) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        authorizer.check(
            user,
            &Attributes::Resource {
                verb: "create",
                group: "rules.outpost.dev",
                resource: "rules/rest",
                namespace,
                name: "",
                fields: "",
            },
        )?;
        if !matches!(*method, Method::POST | Method::PUT) {
            return Err(ApiError::method_not_allowed());
        }
        let Some(topic) = self.topic(namespace, path).await? else {
            return Err(ApiError::no_such_resource());
        };
        if topic.contains(['+', '#', '\0']) || topic.starts_with('$') {
            return Err(ApiError::bad_request(
                "not a topic that may be published to",
            ));
        }
        let Ok(payload) = std::str::from_utf8(body) else {
            return Err(ApiError::bad_request("the body is not UTF-8"));
        };
        self.publish(node, topic, payload).await
    }

    /// The topic of the most specific rule that fits.
    async fn topic(&self, namespace: &str, path: &str) -> Result<Option<String>, ApiError> {
        if namespace.is_empty() {
            return Ok(None);
        }
        let prefix = format!("{REGISTRY}{GROUP}/rules/{namespace}/");
        let (rules, _) = self.kube.list_raw(&prefix).await?;
        let mut best: Option<(usize, String)> = None;
        for (_, rule) in rules {
            let mut kinds = HashMap::new();
            for member in ["source", "target"] {
                let name = text(&rule, &format!("/spec/{member}")).to_owned();
                let key = keys::object(GROUP, "ruleendpoints", namespace, &name);
                let found = self.kube.api().store().get(&key).await?;
                let endpoint: Value = found
                    .and_then(|entry| serde_json::from_slice(&entry.value).ok())
                    .unwrap_or_default();
                let kind = text(&endpoint, "/spec/ruleEndpointType");
                if !kind.is_empty() {
                    kinds.insert(name, kind.to_owned());
                }
            }
            let Ok(Way::Publish {
                path: pattern,
                topic,
            }) = way(&rule, |name| kinds.get(name).cloned())
            else {
                continue;
            };
            let Some(more) = path_fits(&pattern, path) else {
                continue;
            };
            // What is left over is the less, the more specific the rule.
            let topic = match more {
                "" => topic,
                more => format!("{topic}/{more}"),
            };
            if best.as_ref().is_none_or(|(left, _)| more.len() < *left) {
                best = Some((more.len(), topic));
            }
        }
        Ok(best.map(|(_, topic)| topic))
    }

    async fn publish(
        &self,
        node: &str,
        topic: String,
        payload: &str,
    ) -> Result<(StatusCode, Value), ApiError> {
        let Some(session) = self.registry.get(node) else {
            let answer = json!({"error": format!("node \"{node}\" is not connected")});
            return Ok((StatusCode::SERVICE_UNAVAILABLE, answer));
        };
        let id = uuid::Uuid::new_v4().to_string();
        let (waiter, done) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            waiting.retain(|_, waiter| !waiter.is_closed());
            if waiting.len() >= WAITING_MAX {
                let answer = json!({"error": "too many requests wait for nodes"});
                return Ok((StatusCode::TOO_MANY_REQUESTS, answer));
            }
            waiting.insert(id.clone(), waiter);
        }
        let route = Route::new(
            "router_eventbus",
            "user",
            &Operation::Other("publish".into()),
            topic,
        );
        let content = Content::string(payload);
        session.notice(Message::new(
            id.clone(),
            clock::unix_millis(),
            route,
            content,
        ));
        if !session.extensions.batch {
            self.waiting.lock().remove(&id);
            return Ok((
                StatusCode::ACCEPTED,
                json!({"queued": true, "delivered": false}),
            ));
        }
        if let Ok(Ok(())) = tokio::time::timeout(ANSWER_WITHIN, done).await {
            return Ok((StatusCode::OK, json!({"queued": true, "delivered": true})));
        }
        self.waiting.lock().remove(&id);
        let error = "the node did not say that it was published";
        Ok((StatusCode::GATEWAY_TIMEOUT, json!({"error": error})))
    }
}
