//! KubeEdge's Device Mapper Interface: programs that speak with devices register on a unix socket,
//! are told which devices to serve, and report what these say (device plane §3).
//!
//! Nothing is handed on as an event. What a mapper must know follows from the stored objects
//! ([`plan`]); what it was told is stored too; a task a mapper ([`worker`]) works off the
//! difference. A change that was missed, a mapper or a node that was restarted, and a call that
//! failed are therefore the same case.

mod authority;
mod convert;
mod limiter;
mod peer;
mod plan;
mod report;
mod rows;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::dmi::v1beta1::device_manager_service_server::DeviceManagerServiceServer;
use rusqlite::Connection;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::bus::{self, BusHandle};
use crate::clock::{self, UnixMillis};
use crate::store::{Store, StoreError};
use crate::twin::Outcome;

pub use peer::Admission;
pub use plan::MAPPER_ANNOTATION;
pub use state::MapperSummary;
pub use worker::Pace;

use limiter::Limiter;
use plan::{Item, Withheld};
use rows::Mapper;
use server::Service;
use state::Board;
use worker::{Assignment, Worker};

/// A request of a mapper. The largest a framework sends are reports of a few properties.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Calls of one connection at once; more wait.
const CALLS_MAX: usize = 16;
/// One call: the commit it waits for.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Calls under way when the daemon stops. A mapper that is frozen would hold its connection, and
/// the stop, for ever.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Changes that come together are planned together.
const GATHER: Duration = Duration::from_millis(50);
/// Desired values that were set on the node itself.
const GATHER_DELTAS: Duration = Duration::from_millis(500);
/// After a socket that could not be bound.
const BIND_AGAIN: Duration = Duration::from_secs(30);
/// After a plan that failed.
const PLAN_AGAIN: Duration = Duration::from_secs(5);

/// Why mappers cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmiError {
    #[error("cannot listen for mappers on `{socket}`")]
    Listen {
        socket: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the mappers' server ended")]
    Serve(#[source] tonic::transport::Error),
}

/// How mappers are served.
#[derive(Clone, Debug)]
pub struct DmiConfig {
    pub socket: PathBuf,
    pub admission: Admission,
    /// Calls per second of one mapper.
    pub calls_per_second: u32,
    pub pace: Pace,
}

/// What the interface works with.
pub struct DmiDeps {
    pub store: Store,
    /// `None` on a node without MQTT.
    pub bus: Option<BusHandle>,
    pub link_wake: Arc<Notify>,
    /// Rises when devices or models may have changed.
    pub devices: watch::Receiver<u64>,
    /// Rises when a desired value of some device differs from what it reports.
    pub deltas: watch::Receiver<u64>,
}

/// Changes of twins, and who hears of them. Clones share it.
#[derive(Clone)]
struct News {
    store: Store,
    bus: Option<BusHandle>,
    link_wake: Arc<Notify>,
}

impl News {
    /// After the commit of what it tells of.
    fn tell(&self, outcome: Outcome) {
        bus::after_commit(outcome, self.bus.as_ref(), &self.link_wake);
    }

    /// Notes what became of desired values; whether that was stored. Where it cannot be, as in a
    /// full ledger, mappers are served all the same.
    async fn note<F>(&self, work: F) -> bool
    where
        F: FnOnce(&Connection, UnixMillis) -> Result<Outcome, StoreError> + Send + 'static,
    {
        match self.store.write(|tx| work(tx, clock::unix_millis())).await {
            Ok(outcome) => {
                self.tell(outcome);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "what became of desired values cannot be noted");
                false
            }
        }
    }
}

/// Answers for the mappers. Clones share it.
#[derive(Clone, Debug)]
pub struct DmiHandle {
    board: Board,
}

impl DmiHandle {
    /// The mappers now, by name.
    pub fn mappers(&self) -> Vec<MapperSummary> {
        self.board.all()
    }
}

/// The interface at work.
pub type Serving = Pin<Box<dyn Future<Output = Result<(), DmiError>> + Send>>;

/// The returned future has to be spawned; nothing is served before. A socket that cannot be bound
/// is tried again: a node runs its pods without mappers too.
pub fn start(config: DmiConfig, deps: DmiDeps, stop: CancellationToken) -> (DmiHandle, Serving) {
    let board = Board::default();
    let registered = Arc::new(Notify::new());
    let admission = Arc::new(config.admission);
    let news = News {
        store: deps.store.clone(),
        bus: deps.bus,
        link_wake: deps.link_wake,
    };
    let service = Service {
        store: deps.store.clone(),
        news: news.clone(),
        limiter: Limiter::new(config.calls_per_second),
        registered: Arc::clone(&registered),
        board: board.clone(),
    };
    let manager = Manager {
        store: deps.store,
        news,
        devices: deps.devices,
        deltas: deps.deltas,
        registered,
        admission: Arc::clone(&admission),
        board: board.clone(),
        pace: config.pace,
        stop: stop.clone(),
        workers: BTreeMap::new(),
        tasks: JoinSet::new(),
        withheld: BTreeMap::new(),
    };
    let serving = async move {
        let server = serve(config.socket, admission, service, stop);
        let (served, ()) = tokio::join!(server, manager.run());
        served
    };
    (DmiHandle { board }, Box::pin(serving))
}

async fn serve(
    socket: PathBuf,
    admission: Arc<Admission>,
    service: Service,
    stop: CancellationToken,
) -> Result<(), DmiError> {
    let listener = loop {
        match peer::bind(&socket, &admission) {
            Ok(listener) => break listener,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, source, "mappers are not served; tried again");
            }
        }
        // Cancel-safe: a token and a timer.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(BIND_AGAIN) => {}
        }
    };
    tracing::info!(socket = %socket.display(), "mappers are served");
    let incoming = peer::incoming(listener, admission);
    let serving = Server::builder()
        .timeout(CALL_WITHIN)
        .concurrency_limit_per_connection(CALLS_MAX)
        .add_service(
            DeviceManagerServiceServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX),
        )
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_WITHIN).await;
    };
    // Whatever is cut off has not been answered: the mapper reports again.
    tokio::select! {
        served = serving => served.map_err(DmiError::Serve),
        () = stopped => Ok(()),
    }
}

/// Plans, and hands each worker its part.
struct Manager {
    store: Store,
    news: News,
    devices: watch::Receiver<u64>,
    deltas: watch::Receiver<u64>,
    registered: Arc<Notify>,
    admission: Arc<Admission>,
    board: Board,
    pace: Pace,
    stop: CancellationToken,
    workers: BTreeMap<String, watch::Sender<Arc<Assignment>>>,
    tasks: JoinSet<()>,
    /// What mappers are not told of, as it was last complained of.
    withheld: BTreeMap<Item, BTreeMap<String, Withheld>>,
}

impl Manager {
    async fn run(mut self) {
        loop {
            self.devices.mark_unchanged();
            self.deltas.mark_unchanged();
            let again = match self.plan().await {
                Ok(assignments) => {
                    let is_told = self.complain(&assignments).await;
                    self.hand_out(assignments);
                    (!is_told).then(|| clock::monotonic() + PLAN_AGAIN)
                }
                Err(error) => {
                    tracing::warn!(%error, "what mappers are owed cannot be read");
                    Some(clock::monotonic() + PLAN_AGAIN)
                }
            };
            let pause = clock::reached(again);
            // Cancel-safe: a token, a watch, a notification that stays, a timer.
            tokio::select! {
                () = self.stop.cancelled() => break,
                // Without anybody who changes devices only registrations are left.
                Ok(()) = self.devices.changed() => tokio::time::sleep(GATHER).await,
                () = self.registered.notified() => {}
                // Each report of a device that lags behind is a delta.
                Ok(()) = self.deltas.changed() => tokio::time::sleep(GATHER_DELTAS).await,
                () = pause => {}
            }
        }
        self.workers.clear();
        while self.tasks.join_next().await.is_some() {}
    }

    async fn plan(&self) -> Result<Vec<Assignment>, StoreError> {
        self.store
            .read(|tx| {
                let mappers = rows::all(tx)?;
                let mut owed = plan::owed(tx, &mappers)?;
                let assignment = |mapper: Mapper| Assignment {
                    owed: owed.remove(&mapper.name).unwrap_or_default(),
                    mapper,
                };
                Ok(mappers.into_iter().map(assignment).collect())
            })
            .await
    }

    /// Tells what mappers are not told of; whether that could be stored.
    async fn complain(&mut self, assignments: &[Assignment]) -> bool {
        let withheld = assignments.iter().flat_map(|one| &one.owed.withheld);
        let withheld: BTreeMap<Item, _> = withheld
            .map(|(item, of)| (item.clone(), of.clone()))
            .collect();
        let is_news = |item: &&Item| withheld.get(*item) != self.withheld.get(*item);
        let devices: BTreeSet<&Item> = withheld.keys().chain(self.withheld.keys()).collect();
        let news = devices.into_iter().filter(is_news).map(|item| {
            let of = withheld.get(item).into_iter().flatten();
            let of = of.map(|(name, one)| (name.clone(), one.reason.clone()));
            (item.clone(), of.collect::<BTreeMap<String, String>>())
        });
        let news: Vec<_> = news.collect();
        if news.is_empty() {
            return true;
        }
        let is_told = self.news.note(move |tx, now| {
            let mut told = Outcome::default();
            for (item, of) in news {
                told.append(plan::not_served(tx, &item, &of, now)?);
            }
            Ok(told)
        });
        let is_told = is_told.await;
        if is_told {
            self.withheld = withheld;
        }
        is_told
    }

    fn hand_out(&mut self, assignments: Vec<Assignment>) {
        let gone: Vec<String> = self
            .workers
            .iter()
            .filter(|(name, worker)| {
                worker.is_closed() || !assignments.iter().any(|one| one.mapper.name == **name)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.workers.remove(&name);
            self.board.forget(&name);
        }
        while self.tasks.try_join_next().is_some() {}
        for assignment in assignments {
            let name = assignment.mapper.name.clone();
            let assignment = Arc::new(assignment);
            if let Some(worker) = self.workers.get(&name) {
                worker.send_if_modified(|current| {
                    let is_news = **current != *assignment;
                    *current = assignment;
                    is_news
                });
                continue;
            }
            let (sender, input) = watch::channel(assignment);
            let worker = Worker {
                store: self.store.clone(),
                news: self.news.clone(),
                admission: Arc::clone(&self.admission),
                board: self.board.clone(),
                pace: self.pace,
                input,
                stop: self.stop.clone(),
            };
            self.tasks.spawn(worker.run());
            self.workers.insert(name, sender);
        }
    }
}
