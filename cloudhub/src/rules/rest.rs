//! rest → eventbus and rest → servicebus: `/<node>/<namespace>/<path>[/<more>]`, below
//! [`PREFIX`] on the API's listener, with its TLS, its users and their rights (`create` of
//! `rules/rest` in group `rules.outpost.dev` and the rule's namespace), or on a port of its own,
//! where KubeEdge has it ([`super::super::config::Router`]).
//!
//! A rule with an eventbus publishes the body on the node, at QoS 1, to its topic, followed by
//! `/<more>`. Our own edge says when that is done (200, `delivered`); a plain one does not (202,
//! `queued`). A rule with a servicebus sends the request to a service of the node and returns what
//! it answers: status, headers and body. A request is sent once: what came of it when no answer
//! came in time (504) is not known, and for the caller to decide.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use apiserver::{
    ApiError,
    authn::{Attributes, Authorizer, User},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use wire::{
    message::{Content, Message, Operation, Route},
    rules::{
        Base64, EVENT_BUS, GROUP, HOP_HEADERS, HTTP_BODY_BYTES_MAX, Headers, HttpReply,
        HttpRequest, NODE_ERROR, TO_SERVICE_BUS,
    },
};

use super::{Way, book, path_fits, tally::Tallies};
use crate::{
    clock,
    kube::Kube,
    session::{Registry, SessionHandle},
};

/// Where its paths begin on the API's listener.
pub const PREFIX: &str = "/apis/rules.outpost.dev/v1/rest/";
/// Largest body, of a call; a publish has less.
pub const BODY_BYTES_MAX: usize = HTTP_BODY_BYTES_MAX;
/// Largest body of a publish.
const PUBLISH_BYTES_MAX: usize = 1 << 20;
/// Headers that go along, in bytes: with the body they have to fit one message.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Bodies being read at once, of all callers.
const BODIES_MAX: usize = 64;
/// A body that takes longer is not waited for.
pub const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Requests that wait for a node at once.
const WAITING_MAX: usize = 256;
/// Longest wait for a publish.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(10);

/// What a node said.
#[derive(Debug)]
enum Said {
    Done,
    Reply(HttpReply),
}

/// Requests that wait for what a node says. Ids of messages are not guessed: only who was sent one
/// can answer it.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Mutex<HashMap<String, oneshot::Sender<Said>>>>);

impl Waiting {
    /// A node has done what a message asked.
    pub fn done(&self, id: &str) {
        self.say(id, Said::Done);
    }

    /// A service of a node has answered.
    pub fn reply(&self, id: &str, reply: HttpReply) {
        self.say(id, Said::Reply(reply));
    }

    fn say(&self, id: &str, said: Said) {
        if let Some(waiter) = self.lock().remove(id) {
            // The caller may be gone.
            let _ = waiter.send(said);
        }
    }

    /// `None`: too many wait.
    fn wait(&self, id: &str) -> Option<oneshot::Receiver<Said>> {
        let (waiter, said) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.retain(|_, waiter| !waiter.is_closed());
        if waiting.len() >= WAITING_MAX {
            return None;
        }
        waiting.insert(id.to_owned(), waiter);
        Some(said)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Said>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the listeners need.
#[derive(Clone)]
pub struct Rest {
    /// The API.
    pub kube: Kube,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Who waits.
    pub waiting: Waiting,
    /// Counts for the rules' statuses.
    pub tallies: Tallies,
    /// How long a service of a node is waited for.
    pub answer_within: Duration,
    /// Bodies being read.
    pub room: Room,
}

/// Room for bodies; clones share it.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_MAX)))
    }
}

impl Room {
    /// `None`: too many are being read.
    pub fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.0.try_acquire().ok()
    }
}

/// A request for a rule.
pub struct Asked<'r> {
    /// Its method.
    pub method: &'r Method,
    /// `<node>/<namespace>/<path>[/<more>]`
    pub path: &'r str,
    /// What follows the question mark; may be empty.
    pub query: &'r str,
    /// Its headers.
    pub headers: &'r HeaderMap,
    /// Its body, at most [`BODY_BYTES_MAX`].
    pub body: Bytes,
    /// The credentials were for the hub: they do not go on.
    pub is_authenticated: bool,
}

impl<'r> Asked<'r> {
    fn parts(&self) -> (&'r str, &'r str, &'r str) {
        let mut parts = self.path.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        (next(), next(), next())
    }
}

type Answer = Response<Full<Bytes>>;

impl Rest {
    /// Whether `user` may send what `asked` is.
    pub fn authorize(
        authorizer: &dyn Authorizer,
        user: &User,
        asked: &Asked<'_>,
    ) -> Result<(), ApiError> {
        authorizer.check(
            user,
            &Attributes::Resource {
                verb: "create",
                group: "rules.outpost.dev",
                resource: "rules/rest",
                namespace: asked.parts().1,
                name: "",
                fields: "",
            },
        )
    }

    /// Answers a request that is allowed.
    pub async fn handle(&self, asked: Asked<'_>) -> Result<Answer, ApiError> {
        let (node, namespace, path) = asked.parts();
        let Some((rule, way, more)) = self.rule(namespace, path).await? else {
            return Err(ApiError::no_such_resource());
        };
        let Some(session) = self.registry.get(node) else {
            let words = format!("node \"{node}\" is not connected");
            self.tallies.count(&rule, Err(words.clone()));
            return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, &words));
        };
        let (answer, outcome) = match way {
            Way::Publish { topic, .. } => self.publish(&session, topic, &more, &asked).await?,
            Way::Call { port, target, .. } => {
                let resource = resource(port, &target, &more, asked.query);
                self.call(&session, resource, asked).await?
            }
            Way::Upload { .. } | Way::Ask { .. } => return Err(ApiError::no_such_resource()),
        };
        self.tallies.count(&rule, outcome);
        Ok(answer)
    }

    /// The most specific rule that fits, and what is left of the path.
    async fn rule(
        &self,
        namespace: &str,
        path: &str,
    ) -> Result<Option<(Value, Way, String)>, ApiError> {
        if namespace.is_empty() {
            return Ok(None);
        }
        let (book, _) = book(&**self.kube.api().store(), Some(namespace)).await?;
        let mut best: Option<(Value, Way, String)> = None;
        for (rule, way) in book {
            let Ok(Way::Publish { path: pattern, .. } | Way::Call { path: pattern, .. }) = &way
            else {
                continue;
            };
            let Some(more) = path_fits(pattern, path).map(str::to_owned) else {
                continue;
            };
            // What is left over is the less, the more specific the rule.
            if best
                .as_ref()
                .is_none_or(|(_, _, left)| more.len() < left.len())
                && let Ok(way) = way
            {
                best = Some((rule, way, more));
            }
        }
        Ok(best)
    }

    async fn publish(
        &self,
        session: &SessionHandle,
        topic: String,
        more: &str,
        asked: &Asked<'_>,
    ) -> Result<(Answer, Result<(), String>), ApiError> {
        if !matches!(*asked.method, Method::POST | Method::PUT) {
            return Err(ApiError::method_not_allowed());
        }
        let topic = match more {
            "" => topic,
            more => format!("{topic}/{more}"),
        };
        if topic.contains(['+', '#', '\0']) || topic.starts_with('$') {
            let words = "not a topic that may be published to";
            return Err(ApiError::bad_request(words));
        }
        if asked.body.len() > PUBLISH_BYTES_MAX {
            return Err(ApiError::bad_request("the body is larger than 1 MiB"));
        }
        let Ok(payload) = std::str::from_utf8(&asked.body) else {
            return Err(ApiError::bad_request("the body is not UTF-8"));
        };
        let operation = Operation::Other("publish".into());
        let route = Route::new(EVENT_BUS, GROUP, &operation, topic);
        let message = message(route, Content::string(payload));
        if !session.extensions.batch {
            session.notice(message);
            let answer = json(StatusCode::ACCEPTED, true, false);
            return Ok((answer, Ok(())));
        }
        Ok(match self.send(session, message, PUBLISHED_WITHIN).await {
            Ok(_) => (json(StatusCode::OK, true, true), Ok(())),
            Err((StatusCode::GATEWAY_TIMEOUT, _)) => failed(
                StatusCode::GATEWAY_TIMEOUT,
                "the node did not say that it was published",
            ),
            Err((status, words)) => failed(status, words),
        })
    }

    async fn call(
        &self,
        session: &SessionHandle,
        resource: String,
        asked: Asked<'_>,
    ) -> Result<(Answer, Result<(), String>), ApiError> {
        let header = headers_of(&asked)?;
        let method = asked.method.as_str();
        let request = HttpRequest {
            header,
            body: Base64(asked.body.into()),
            method: method.to_owned(),
            url: String::new(),
        };
        let content =
            Content::json(&request).map_err(|error| ApiError::bad_request(error.to_string()))?;
        let operation = Operation::Other(method.to_owned());
        let route = Route::new(TO_SERVICE_BUS, GROUP, &operation, resource);
        Ok(
            match self
                .send(session, message(route, content), self.answer_within)
                .await
            {
                Ok(Said::Reply(reply)) => answer_of(reply),
                Ok(Said::Done) => failed(StatusCode::BAD_GATEWAY, "the node does not answer calls"),
                Err((status, words)) => failed(status, words),
            },
        )
    }

    /// Sends once and waits; ends early when the session does.
    async fn send(
        &self,
        session: &SessionHandle,
        message: Message,
        within: Duration,
    ) -> Result<Said, (StatusCode, &'static str)> {
        let id = message.header.id.clone();
        let Some(mut said) = self.waiting.wait(&id) else {
            let words = "too many requests wait for nodes";
            return Err((StatusCode::TOO_MANY_REQUESTS, words));
        };
        let mut changes = self.registry.changes();
        session.notice(message);
        let stands = || {
            let now = self.registry.get(&session.node);
            now.is_some_and(|now| now.generation == session.generation)
        };
        let deadline = tokio::time::sleep(within);
        tokio::pin!(deadline);
        loop {
            changes.borrow_and_update();
            if !stands() {
                let words = "the node went away before it answered";
                return Err((StatusCode::BAD_GATEWAY, words));
            }
            // Cancel-safe: a oneshot by reference, a watch, a timer by reference.
            tokio::select! {
                said = &mut said => {
                    let gone = (StatusCode::BAD_GATEWAY, "the node answered something else");
                    return said.map_err(|_| gone);
                }
                () = &mut deadline => {
                    return Err((StatusCode::GATEWAY_TIMEOUT, "the node did not answer in time"));
                }
                changed = changes.changed() => if changed.is_err() {
                    return Err((StatusCode::SERVICE_UNAVAILABLE, "the hub is stopping"));
                }
            }
        }
    }
}

fn message(route: Route, content: Content) -> Message {
    let id = uuid::Uuid::new_v4().to_string();
    Message::new(id, clock::unix_millis(), route, content)
}

/// `<port>:<path>[/<more>][?<query>]`
fn resource(port: u16, target: &str, more: &str, query: &str) -> String {
    let mut resource = format!("{port}:/{}", target.trim_matches('/'));
    if !more.is_empty() {
        if !resource.ends_with('/') {
            resource.push('/');
        }
        resource.push_str(more);
    }
    if !query.is_empty() {
        resource.push(if resource.contains('?') { '&' } else { '?' });
        resource.push_str(query);
    }
    resource
}

fn headers_of(asked: &Asked<'_>) -> Result<Headers, ApiError> {
    let mut headers = Headers::new();
    let mut bytes = 0;
    for (name, value) in asked.headers {
        let is_ours = asked.is_authenticated && name == header::AUTHORIZATION;
        if is_ours || HOP_HEADERS.contains(&name.as_str()) {
            continue;
        }
        bytes += name.as_str().len() + value.len();
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let values = headers.entry(name.as_str().to_owned());
        values.or_default().push(value);
    }
    if bytes > HEADER_BYTES_MAX {
        return Err(ApiError::bad_request("the headers are larger than 64 KiB"));
    }
    Ok(headers)
}

/// A refusal of the service is an answer; from 400 on it does not count as a success.
fn answer_of(reply: HttpReply) -> (Answer, Result<(), String>) {
    let Ok(status) = StatusCode::from_u16(reply.status_code) else {
        return failed(StatusCode::BAD_GATEWAY, "the node's answer has no status");
    };
    let of_node = reply.header.get(NODE_ERROR).and_then(|words| words.first());
    let outcome = match of_node {
        Some(words) => Err(words.clone()),
        None if status.as_u16() >= 400 => Err(format!("the service answered {}", status.as_u16())),
        None => Ok(()),
    };
    let mut response = Response::new(Full::new(Bytes::from(reply.body.0)));
    *response.status_mut() = status;
    for (name, values) in reply.header {
        let Ok(name) = HeaderName::try_from(name) else {
            continue;
        };
        if HOP_HEADERS.contains(&name.as_str()) {
            continue;
        }
        for value in values {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().append(name.clone(), value);
            }
        }
    }
    (response, outcome)
}

fn failed(status: StatusCode, words: &str) -> (Answer, Result<(), String>) {
    (refusal(status, words), Err(words.to_owned()))
}

/// What the hub itself says.
pub fn refusal(status: StatusCode, words: &str) -> Answer {
    crate::listen::http::json(status, &json!({ "error": words }))
}

fn json(status: StatusCode, queued: bool, delivered: bool) -> Answer {
    let body = json!({"queued": queued, "delivered": delivered});
    crate::listen::http::json(status, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_its_query_go_on() {
        for (target, more, query, wanted) in [
            ("/app", "", "", "80:/app"),
            ("app/", "x/y", "a=b", "80:/app/x/y?a=b"),
            ("/", "x", "", "80:/x"),
            ("", "", "q", "80:/?q"),
            ("/app?a=1", "", "b=2", "80:/app?a=1&b=2"),
        ] {
            assert_eq!(resource(80, target, more, query), wanted);
        }
    }

    #[test]
    fn credentials_for_the_hub_stay_here() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer x".parse().unwrap());
        headers.insert("connection", "close".parse().unwrap());
        headers.insert("x-a", "1".parse().unwrap());
        let mut asked = Asked {
            method: &Method::GET,
            path: "e1/d/p",
            query: "",
            headers: &headers,
            body: Bytes::new(),
            is_authenticated: true,
        };
        let names = |asked: &Asked<'_>| headers_of(asked).unwrap().into_keys().collect::<Vec<_>>();
        assert_eq!(names(&asked), ["x-a"]);
        asked.is_authenticated = false;
        assert_eq!(names(&asked), ["authorization", "x-a"]);
    }

    #[test]
    fn what_the_service_answers_is_the_answer() {
        let header = [
            ("x-from".to_owned(), vec!["app".to_owned()]),
            ("transfer-encoding".to_owned(), vec!["chunked".to_owned()]),
        ];
        let reply = |status_code| HttpReply {
            header: header.clone().into(),
            status_code,
            body: Base64(b"hi".to_vec()),
        };
        let (answer, outcome) = answer_of(reply(201));
        assert_eq!((answer.status().as_u16(), outcome), (201, Ok(())));
        assert_eq!(answer.headers().len(), 1);
        let (answer, outcome) = answer_of(reply(404));
        assert_eq!(answer.status().as_u16(), 404);
        assert_eq!(outcome.unwrap_err(), "the service answered 404");
        let (answer, outcome) = answer_of(HttpReply::of_node(502, "nothing answers"));
        assert_eq!(answer.status().as_u16(), 502);
        assert_eq!(outcome.unwrap_err(), "nothing answers");
        assert_eq!(answer_of(reply(7)).0.status().as_u16(), 502);
    }
}
