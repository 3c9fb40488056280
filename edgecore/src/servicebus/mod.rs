//! ServiceBus (device plane §7): HTTP between this node and the cloud, over the link.
//!
//! | From → to | How |
//! |---|---|
//! | cloud → node | [`call`]: a message of a rule becomes a request to a service on `127.0.0.1`; whatever comes of it is answered |
//! | node → cloud | [`server`]: a local application asks for a URL that a rule opens; open only while there is such a rule |
//!
//! Nothing here is durable: at both ends somebody waits for an answer, and gets one.

mod call;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::message::Message;
use wire::rules::{HttpReply, Routes};

use crate::clock;
use crate::config::ServerTls;
use crate::hub::HubHandle;

/// Calls of the cloud at once.
const CALLS_MAX: usize = 8;
/// Calls that wait for one of them to end; more are answered with 503.
const CALLS_WAITING_MAX: usize = 16;

/// `modules.serviceBus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceBusConfig {
    /// `host:port` for local applications.
    pub listen: String,
    /// How long one of them waits for the cloud.
    pub timeout: Duration,
    /// Without, plain HTTP.
    pub tls: Option<ServerTls>,
}

/// Takes calls of the cloud. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Calls(Option<mpsc::Sender<Message>>);

impl Calls {
    /// For a node without ServiceBus: every call is refused, with the reason.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Takes a call, or says what is to be answered in its place.
    pub(crate) fn take(&self, message: Message) -> Result<(), Box<Message>> {
        let refused = |message: &Message, words: &str| {
            let reply = HttpReply::of_node(503, words);
            Err(Box::new(answer(message, reply)))
        };
        let Some(queue) = &self.0 else {
            return refused(
                &message,
                "the ServiceBus of the node is off (modules.serviceBus.enable)",
            );
        };
        match queue.try_send(message) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(message)) => {
                refused(&message, "too many calls wait at the node")
            }
            Err(mpsc::error::TrySendError::Closed(message)) => {
                refused(&message, "the node is stopping")
            }
        }
    }
}

fn answer(request: &Message, reply: HttpReply) -> Message {
    let id = uuid::Uuid::new_v4().to_string();
    reply.into_message(request, id, clock::unix_millis())
}

/// The ServiceBus before it runs.
pub struct ServiceBus {
    config: ServiceBusConfig,
    hub: HubHandle,
    routes: watch::Receiver<Arc<Routes>>,
    calls: mpsc::Receiver<Message>,
}

impl ServiceBus {
    /// The handle first: the link needs it.
    pub fn new(
        config: ServiceBusConfig,
        hub: HubHandle,
        routes: watch::Receiver<Arc<Routes>>,
    ) -> (Calls, Self) {
        let (sender, calls) = mpsc::channel(CALLS_WAITING_MAX);
        let bus = Self {
            config,
            hub,
            routes,
            calls,
        };
        (Calls(Some(sender)), bus)
    }

    /// Runs until `stop`. Never fails: a port that is taken is tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let own_port = self.config.listen.rsplit_once(':');
        let own_port = own_port.and_then(|(_, port)| port.parse().ok());
        let server = server::Server {
            config: self.config,
            hub: self.hub.clone(),
            routes: self.routes,
        };
        tokio::join!(
            server.run(stop.clone()),
            serve_calls(self.calls, self.hub, own_port, stop)
        );
        Ok(())
    }
}

async fn serve_calls(
    mut calls: mpsc::Receiver<Message>,
    hub: HubHandle,
    own_port: Option<u16>,
    stop: CancellationToken,
) {
    let mut running = JoinSet::new();
    loop {
        let has_room = running.len() < CALLS_MAX;
        // Cancel-safe: a token, a task that ended, a channel.
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = running.join_next() => {}
            request = calls.recv(), if has_room => {
                let Some(request) = request else { return };
                let hub = hub.clone();
                running.spawn(async move {
                    let reply = call::call(&request, own_port).await;
                    if !hub.send_now(answer(&request, reply)) {
                        tracing::debug!("the link broke before a call was answered");
                    }
                });
            }
        }
    }
}
