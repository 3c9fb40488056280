//! servicebus → rest: what an application on a node sends to the ServiceBus there is posted to the
//! URL of the rule, once, and the answer goes back to it (device plane §7.1).
//!
//! A plain node has no word for a failure: its application waits until it gives up by itself.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokio::sync::Semaphore;
use wire::{
    message::{Content, Message, Operation},
    rules::{Failure, GROUP},
};

use super::{Way, book, tally::Tallies};
use crate::{clock, kube::Kube, session::SessionHandle};

/// Requests of all nodes at once; more are answered with 503.
const ASKS_MAX: usize = 64;
/// An endpoint that has not answered within this has failed; the node waits 60 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Largest answer (KubeEdge's bound).
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The hub's module, as KubeEdge calls it.
const ROUTER: &str = "router_servicebus";

/// Answers applications on nodes. Clones are the same.
#[derive(Clone)]
pub struct Asks {
    kube: Kube,
    tallies: Tallies,
    room: Arc<Semaphore>,
}

impl Asks {
    /// With nobody waiting.
    pub fn new(kube: Kube, tallies: Tallies) -> Self {
        Self {
            kube,
            tallies,
            room: Arc::new(Semaphore::new(ASKS_MAX)),
        }
    }

    /// Takes a request of a node and goes on: the session does not wait for somebody's endpoint.
    pub fn take(&self, session: &Arc<SessionHandle>, message: &Message) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            let failure = failure(503, "too many requests of nodes wait at the hub");
            answer(session, message, Err(failure));
            return;
        };
        let (asks, session, message) = (self.clone(), Arc::clone(session), message.clone());
        tokio::spawn(async move {
            let _held = room;
            let outcome = asks.ask(&session.node, &message).await;
            answer(&session, &message, outcome);
        });
    }

    async fn ask(&self, node: &str, message: &Message) -> Result<String, Failure> {
        let url = &message.route.resource;
        let Some((rule, target)) = self.rule(node, url).await? else {
            let words = format!("no rule sends {url} of this node anywhere");
            return Err(failure(404, &words));
        };
        let body = message.content.text().unwrap_or_default();
        let body = STANDARD
            .decode(body)
            .map_err(|_| failure(400, "the request is not base64"))?;
        let outcome = post(&target, node, body).await;
        let counted = outcome.as_ref().map(drop);
        self.tallies
            .count(&rule, counted.map_err(|failure| failure.message.clone()));
        outcome
    }

    async fn rule(&self, node: &str, url: &str) -> Result<Option<(Value, String)>, Failure> {
        let book = book(&**self.kube.api().store(), None).await;
        let (book, _) = book.map_err(|error| failure(500, &error.to_string()))?;
        let found = book.into_iter().find_map(|(rule, way)| match way {
            Ok(Way::Ask {
                node: of,
                asked,
                url: target,
            }) if of == node && asked == url => Some((rule, target)),
            _ => None,
        });
        Ok(found)
    }
}

async fn post(url: &str, node: &str, body: Vec<u8>) -> Result<String, Failure> {
    let client = crate::outward::client(None).map_err(|error| failure(500, &error))?;
    let unreachable = |error: reqwest::Error| {
        let code = if error.is_timeout() { 504 } else { 502 };
        let words = format!("endpoint could not be reached: {}", error.without_url());
        failure(code, &words)
    };
    let mut reply = client
        .post(url)
        .header("content-type", "application/json")
        .header("outpost-node", node)
        .timeout(ANSWER_WITHIN)
        .body(body)
        .send()
        .await
        .map_err(unreachable)?;
    let mut read = Vec::new();
    while let Some(chunk) = reply.chunk().await.map_err(unreachable)? {
        if read.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(failure(502, "the endpoint's answer is larger than 1 MiB"));
        }
        read.extend_from_slice(&chunk);
    }
    let text = String::from_utf8_lossy(&read).into_owned();
    if reply.status().is_success() {
        return Ok(text);
    }
    let code = reply.status().as_u16();
    Err(Failure {
        code,
        message: format!("endpoint answered {code}"),
        body: text,
    })
}

fn failure(code: u16, message: &str) -> Failure {
    Failure {
        code,
        message: message.to_owned(),
        body: String::new(),
    }
}

fn answer(session: &SessionHandle, message: &Message, outcome: Result<String, Failure>) {
    let is_plain = !session.extensions.routes;
    let (content, operation) = match outcome {
        Ok(text) => (Content::string(&text), Operation::Response),
        Err(failure) if is_plain => {
            tracing::debug!(
                node = session.node,
                code = failure.code,
                "an application on a plain node gets no answer"
            );
            return;
        }
        Err(failure) => (
            Content::json(&failure).unwrap_or_default(),
            Operation::Error,
        ),
    };
    let id = uuid::Uuid::new_v4().to_string();
    let mut reply = message.reply(id, clock::unix_millis(), ROUTER, content);
    GROUP.clone_into(&mut reply.route.group);
    operation.as_str().clone_into(&mut reply.route.operation);
    session.notice(reply);
}
