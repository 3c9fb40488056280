//! Requests and reports of nodes, one handler per kind: KubeEdge's EdgeController and
//! DeviceController, upstream halves.
//!
//! The node is the session's, never the message's. A node touches only what is its own: its Node
//! and Lease, pods bound to it, devices placed on it, and ConfigMaps and Secrets its pods refer to.
//! What it may not is answered with an error and logged once.

mod device;
mod event;
mod gap;
mod node;
mod pod;
mod query;
mod volume;

use std::{collections::HashMap, sync::Arc};

use apiserver::{ApiError, Reason};
use futures_util::TryStreamExt;
use serde_json::Value;
use wire::{
    body,
    extension::{EVENTS_STREAM, Entry, GAPS_STREAM, GROUP},
    message::{Content, Message, Operation},
    resource::{Kind, ResourcePath},
    rules::{self, HttpReply, SERVICE_BUS},
};

use crate::{
    accounts::Accounts,
    clock,
    downstream::{Downstream, messages::EDGE_CONTROLLER},
    kube::{Kube, text},
    ledger::Ledger,
    node::lease::Leases,
    readings::Intake,
    rules::{ask::Asks, rest::Waiting},
    session::SessionHandle,
};

/// Events of one batch that are written at the same time.
const NEWS_AT_ONCE: usize = 32;

/// Whether a message reports an Event: best effort, never answered.
pub fn is_event(message: &Message) -> bool {
    let path = ResourcePath::parse(&message.route.resource);
    matches!(
        path,
        ResourcePath::Object {
            kind: Kind::Event,
            ..
        }
    )
}

/// Takes requests and reports.
pub struct Upstream {
    kube: Kube,
    downstream: Downstream,
    ledger: Arc<Ledger>,
    intake: Intake,
    leases: Arc<Leases>,
    accounts: Arc<Accounts>,
    ca_pem: String,
    rules: Rules,
}

/// Who takes what the ServiceBus of a node sends.
pub struct Rules {
    /// Callers that wait for a service of a node.
    pub waiting: Waiting,
    /// Takes what applications of nodes ask.
    pub asks: Asks,
}

/// One message and who sent it.
struct Request<'r> {
    session: &'r Arc<SessionHandle>,
    message: &'r Message,
}

/// What a handler wants to answer.
enum Answer {
    /// Nothing.
    None,
    /// `"OK"`.
    Ok,
    /// `ObjectResp`: to creates, patches and lease calls.
    Object(Value),
    /// The bare object: to queries.
    Bare(Value),
    /// `{"Object":null,"Err":…}`
    ObjectError(ApiError),
    /// `{"ErrStatus":…}`
    Error(ApiError),
    /// A complete message.
    Message(Box<Message>),
}

impl Upstream {
    /// Puts the parts together.
    pub fn new(
        kube: Kube,
        downstream: Downstream,
        ledger: Arc<Ledger>,
        intake: Intake,
        leases: Arc<Leases>,
        (accounts, ca_pem): (Arc<Accounts>, String),
        rules: Rules,
    ) -> Self {
        Self {
            kube,
            downstream,
            ledger,
            intake,
            leases,
            accounts,
            ca_pem,
            rules,
        }
    }

    /// Acts on a message; returns what is to be sent back.
    pub async fn handle(&self, session: &Arc<SessionHandle>, message: &Message) -> Vec<Message> {
        let request = Request { session, message };
        let answer = self.dispatch(&request).await;
        if let Answer::Error(error) | Answer::ObjectError(error) = &answer
            && error.reason != Reason::NotFound
            && error.reason != Reason::AlreadyExists
        {
            tracing::warn!(
                node = %session.node,
                resource = message.route.resource,
                operation = message.route.operation,
                error = %error,
                "request of a node refused"
            );
        }
        request.reply(answer).into_iter().collect()
    }

    /// Stores what is told by events in a batch, before the batch is acknowledged: those of one name
    /// in their order, others together, so that they share commits. What is refused is logged and
    /// never comes again; the error is the store's, after which everything comes again.
    pub async fn keep_news(
        &self,
        session: &Arc<SessionHandle>,
        entries: &[Entry],
    ) -> Result<(), ApiError> {
        let mut by_name: HashMap<&str, Vec<&Message>> = HashMap::new();
        for entry in entries {
            if [GAPS_STREAM, EVENTS_STREAM].contains(&entry.stream.as_str()) {
                let name = entry.message.route.resource.as_str();
                by_name.entry(name).or_default().push(&entry.message);
            }
        }
        futures_util::stream::iter(by_name.into_values().map(Ok))
            .try_for_each_concurrent(NEWS_AT_ONCE, async |messages| {
                for message in messages {
                    self.keep_one(&Request { session, message }).await?;
                }
                Ok(())
            })
            .await
    }

    async fn keep_one(&self, request: &Request<'_>) -> Result<(), ApiError> {
        let route = &request.message.route;
        let kept = if route.group == GROUP {
            self.gaps(request).await
        } else if let ResourcePath::Object {
            namespace,
            kind: Kind::Event,
            name,
        } = ResourcePath::parse(&route.resource)
        {
            let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
            self.store_event(request, &route.operation(), &namespace, &name)
                .await
        } else {
            Ok(())
        };
        match kept {
            Err(error) if is_passing(&error) => Err(error),
            Err(error) => {
                event::not_stored(request, &error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn dispatch(&self, request: &Request<'_>) -> Answer {
        let route = &request.message.route;
        let operation = route.operation();
        if route.group == GROUP {
            drop(self.keep_one(request).await);
            return Answer::None;
        }
        if route.source == SERVICE_BUS && route.group == rules::GROUP {
            return self.service_bus(request);
        }
        if operation == Operation::Upload {
            return self.upload(request).await;
        }
        match ResourcePath::parse(&route.resource) {
            ResourcePath::DeviceTwin {
                namespace, name, ..
            } => self.device_report(request, "twin", &namespace, &name).await,
            ResourcePath::DeviceState { namespace, name } => {
                self.device_report(request, "state", &namespace, &name)
                    .await
            }
            ResourcePath::MembershipDetail => self.membership(request).await,
            ResourcePath::ClusterCa => request.cluster_ca(&self.ca_pem),
            ResourcePath::Object {
                namespace,
                kind,
                name,
            } => {
                let namespace = namespace.unwrap_or_default();
                let name = name.unwrap_or_default();
                self.object(request, &operation, &kind, &namespace, &name)
                    .await
            }
            ResourcePath::Membership | ResourcePath::Node | ResourcePath::TwinConfirmation => {
                Answer::None
            }
            ResourcePath::Other(_) => unsupported(request),
        }
    }

    /// A service's answer, also without the operation that KubeEdge leaves out when there is none
    /// (device plane §7.2), or a request of an application.
    fn service_bus(&self, request: &Request<'_>) -> Answer {
        let message = request.message;
        let parent = &message.header.parent_id;
        if parent.is_empty() {
            self.rules.asks.take(request.session, message);
        } else {
            let reply = message.content.decode().unwrap_or_else(|error| {
                HttpReply::of_node(502, &format!("the node's answer is not readable: {error}"))
            });
            self.rules.waiting.reply(parent, reply);
        }
        Answer::None
    }

    async fn object(
        &self,
        request: &Request<'_>,
        operation: &Operation,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Answer {
        match (kind, operation) {
            (Kind::Node, Operation::Insert) => self.register_node(request, name).await,
            (Kind::Node, Operation::Query) => self.query_node(request, name).await,
            (Kind::Node, Operation::Update) => self.update_node(request, name).await,
            (Kind::NodePatch, Operation::Patch | Operation::Update) => {
                self.patch_node(request, name).await
            }
            (Kind::NodeStatus, Operation::Insert | Operation::Update) => {
                self.node_status(request, name).await
            }
            (Kind::Lease, _) => self.lease(request, operation, name).await,
            (Kind::PodPatch, Operation::Patch | Operation::Update) => {
                self.patch_pod(request, namespace, name).await
            }
            (Kind::Pod, Operation::Insert) => self.create_mirror(request, namespace).await,
            (Kind::Pod, Operation::Delete) => self.delete_pod(request, namespace, name).await,
            (Kind::Pod, Operation::Query) => self.query_pod(request, namespace, name).await,
            (Kind::PodStatus, Operation::Update) => self.pod_status(request, namespace, name).await,
            (Kind::ServiceAccountToken, Operation::Query) => {
                self.issue_token(request, namespace, name).await
            }
            (Kind::PersistentVolume, Operation::Delete) => self.volume_gone(request, name).await,
            (
                Kind::ConfigMap
                | Kind::Secret
                | Kind::PersistentVolume
                | Kind::PersistentVolumeClaim,
                Operation::Query,
            ) => self.query_needed(request, kind, namespace, name).await,
            (Kind::Device, Operation::Query) => self.query_device(request, namespace, name).await,
            (Kind::Event, _) => self.event(request, operation, namespace, name).await,
            (_, Operation::Query) => Answer::Error(ApiError::new(
                Reason::NotFound,
                format!("{} \"{name}\" not found", kind.as_str()),
            )),
            _ => unsupported(request),
        }
    }
}

impl Request<'_> {
    fn node(&self) -> &str {
        &self.session.node
    }

    /// Whether the peer is a KubeEdge edge, which stores any answer as if it were the object.
    fn is_plain(&self) -> bool {
        !self.session.extensions.batch
    }

    /// The body as a document: an object, or a string that holds one.
    fn document(&self) -> Result<Value, ApiError> {
        self.message.content.decode().map_err(|error| {
            ApiError::new(
                Reason::BadRequest,
                format!("content could not be read: {error}"),
            )
        })
    }

    fn answer(&self, source: &str, content: Content) -> Message {
        let id = uuid::Uuid::new_v4().to_string();
        let mut reply = self
            .message
            .reply(id, clock::unix_millis(), source, content);
        "resource".clone_into(&mut reply.route.group);
        reply
    }

    fn reply(&self, answer: Answer) -> Option<Message> {
        let (content, version) = match answer {
            Answer::None => return None,
            Answer::Message(message) => return Some(*message),
            Answer::Ok => (Content::string("OK"), String::new()),
            Answer::Object(object) => (
                body::object_response(&object).unwrap_or_default(),
                text(&object, "/metadata/resourceVersion").to_owned(),
            ),
            Answer::Bare(object) => (
                Content::json(&object).unwrap_or_default(),
                text(&object, "/metadata/resourceVersion").to_owned(),
            ),
            Answer::ObjectError(error) => (body::object_error(&status(&error)), String::new()),
            Answer::Error(error) => (body::error(&status(&error)), String::new()),
        };
        Some(
            self.answer(EDGE_CONTROLLER, content)
                .with_resource_version(version),
        )
    }

    fn cluster_ca(&self, pem: &str) -> Answer {
        Answer::Message(Box::new(self.answer("cloudhub", Content::string(pem))))
    }

    /// The name in the path must be the node's own.
    fn own_node(&self, name: &str) -> Result<(), ApiError> {
        if name == self.node() {
            return Ok(());
        }
        let why = format!(
            "node \"{}\" is not allowed to modify node \"{name}\"",
            self.node()
        );
        Err(ApiError::forbidden("", "nodes", name, &why))
    }

    /// The pod must be bound to the node.
    fn own_pod(&self, pod: &Value) -> Result<(), ApiError> {
        if text(pod, "/spec/nodeName") == self.node() {
            return Ok(());
        }
        let name = text(pod, "/metadata/name");
        let why = format!(
            "node \"{}\" can only touch pods bound to itself",
            self.node()
        );
        Err(ApiError::forbidden("", "pods", name, &why))
    }
}

fn status(error: &ApiError) -> body::Status {
    body::Status {
        status: "Failure".to_owned(),
        message: error.message.clone(),
        reason: error.reason.as_str().to_owned(),
        code: error.code(),
    }
}

/// Whether the same request may do better later: the store is full, stopping or busy. An internal
/// error may be a damaged object, which would hold up its node for ever; where the whole store fails,
/// the batch's position cannot be written either.
fn is_passing(error: &ApiError) -> bool {
    matches!(
        error.reason,
        Reason::ServiceUnavailable | Reason::Timeout | Reason::TooManyRequests
    )
}

fn unsupported(request: &Request<'_>) -> Answer {
    let route = &request.message.route;
    Answer::Error(ApiError::new(
        Reason::BadRequest,
        format!(
            "`{}` of `{}` is not supported",
            route.operation, route.resource
        ),
    ))
}

/// Turns a result into an answer of the `ObjectResp` form.
fn object_answer(result: Result<Value, ApiError>) -> Answer {
    match result {
        Ok(object) => Answer::Object(object),
        Err(error) => Answer::ObjectError(error),
    }
}
