//! The node: the shipped store, twin, outbox, MetaManager and session half, with a disk that can
//! be full and a process that can die before or after any commit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use edgecore::meta::{self, Sealer};
use edgecore::outbox;
use edgecore::store::{Db, Job, StoreError};
use edgecore::twin;
use rusqlite::Connection;
use wire::extension::Extensions;
use wire::message::Message;
use wire::session::edge::{EdgeSession, Event};
use wire::session::{Ids, Transmit};
use wire::topic::{DeviceRef, Inbound, TwinAction};

use crate::cloud::reading;
use crate::things::Publish;

pub(crate) const NODE: &str = "edge-1";
const NOW_MS: i64 = 1_700_000_000_000;

/// What a committed job tells the process.
enum Done {
    Published(Publish),
    Applied(Box<Message>),
    Refused(Box<Message>),
    Deleted,
}

/// A job whose effect is on disk before anybody hears of it.
struct Work {
    run: Run,
    full: bool,
    then: Option<Then>,
}

type Run = Box<dyn FnMut(&Connection) -> Result<(), StoreError> + Send>;
type Then = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

impl Job for Work {
    fn run(&mut self, tx: &Connection) -> Result<(), StoreError> {
        (self.run)(tx)?;
        // The disk fills up while this job's pages are written.
        if self.full {
            Err(StoreError::Full)
        } else {
            Ok(())
        }
    }

    fn done(mut self: Box<Self>, outcome: Result<(), StoreError>) {
        if let Some(then) = self.then.take() {
            then(outcome);
        }
    }
}

pub(crate) struct Node {
    /// Survives crashes; holds what was committed and nothing else.
    db: Db,
    sealer: Arc<Sealer>,
    starts: u64,
    session: EdgeSession,
    jobs: Vec<Box<dyn Job>>,
    done: (SyncSender<Done>, Receiver<Done>),
    pub(crate) disk_full: u64,
}

impl Node {
    pub(crate) fn new() -> Self {
        let db = Db::open_in_memory().unwrap();
        twin::set_node(db.reader(), NODE).unwrap();
        let session = Self::fresh_session(&db, 0);
        Self {
            db,
            sealer: Arc::new(Sealer::new(&[7; 32]).unwrap()),
            starts: 0,
            session,
            jobs: Vec::new(),
            done: sync_channel(100_000),
            disk_full: 0,
        }
    }

    fn fresh_session(db: &Db, starts: u64) -> EdgeSession {
        EdgeSession::new(
            Ids::new(format!("n{starts}")),
            outbox::epoch(db.reader()).unwrap(),
        )
    }

    /// The process dies: memory is gone, uncommitted work too. It starts again at once.
    pub(crate) fn crash(&mut self) {
        self.starts += 1;
        self.jobs.clear();
        self.done = sync_channel(100_000);
        self.session = Self::fresh_session(&self.db, self.starts);
    }

    pub(crate) fn epoch(&self) -> String {
        outbox::epoch(self.db.reader()).unwrap()
    }

    pub(crate) fn connected(&mut self, acked: u64, now: Instant) {
        let inventory = meta::inventory(self.db.reader()).unwrap();
        self.session
            .handle_connected(Extensions::ALL, Some(acked), inventory, now);
    }

    pub(crate) fn disconnected(&mut self) {
        self.session.handle_disconnected();
    }

    /// A device's publish arrived; it is answered when its transaction is durable.
    pub(crate) fn mqtt(&mut self, publish: Publish, full: bool) {
        self.disk_full += u64::from(full);
        let topic = Inbound::DeviceTwin {
            device: DeviceRef {
                namespace: "dev".into(),
                name: format!("d{}", publish.device),
            },
            action: TwinAction::Update,
        };
        let payload = publish.payload();
        let connection = publish.connection.clone();
        let done = self.done.0.clone();
        self.jobs.push(Box::new(Work {
            full: false,
            run: Box::new(move |tx| {
                if connection.is_shut() || full {
                    // The broker closes a connection whose publish it could not store, and takes
                    // nothing more from it.
                    connection.shut();
                    return Err(StoreError::Full);
                }
                let outcome = twin::handle_publish(tx, &topic, &payload, NOW_MS)?;
                // An unknown device is answered 404 and its reading is not kept: the simulated
                // device tries again, as one that waits for its `result` would.
                let refused = |body: &[u8]| String::from_utf8_lossy(body).contains("\"code\":404");
                if outcome.publishes.iter().any(|p| refused(&p.payload)) {
                    connection.shut();
                    return Err(StoreError::Full);
                }
                Ok(())
            }),
            then: Some(Box::new(move |outcome| {
                if outcome.is_ok() {
                    done.send(Done::Published(publish)).unwrap();
                }
            })),
        }));
    }

    pub(crate) fn message(&mut self, message: Message, now: Instant) {
        self.session.handle_message(message, now);
    }

    /// Commits what waits.
    pub(crate) fn commit(&mut self) {
        let jobs = std::mem::take(&mut self.jobs);
        self.db.commit(jobs);
    }

    /// Acts on everything that happened; returns the readings to acknowledge.
    pub(crate) fn work(&mut self, full: bool, now: Instant) -> (Vec<Publish>, bool) {
        let mut answered = Vec::new();
        while let Ok(done) = self.done.1.try_recv() {
            match done {
                Done::Published(publish) => answered.push(publish),
                Done::Applied(message) => self.session.ack(&message),
                Done::Refused(message) => self.session.refuse(&message, "disk full"),
                Done::Deleted => {}
            }
        }
        self.refill();
        let mut dead = false;
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Push(message) => self.apply(message, full),
                Event::Delivered { up_to } => self.delete(up_to),
                Event::LinkDead => dead = true,
                Event::DeliveredOne { .. } | Event::GaveUp { .. } => panic!("not a plain peer"),
                Event::Reply { .. } | Event::RequestFailed { .. } | Event::Synced => {}
            }
        }
        if self.session.poll_timeout().is_some_and(|due| due <= now) {
            self.session.handle_timeout(now);
        }
        (answered, dead)
    }

    fn refill(&mut self) {
        let after = self.session.last_pushed().unwrap_or(0);
        for row in outbox::pending(self.db.reader(), after, self.session.capacity()).unwrap() {
            let message = Message::decode(&row.message).unwrap();
            self.session.push(row.seq, row.stream, message).unwrap();
        }
    }

    fn apply(&mut self, message: Box<Message>, full: bool) {
        self.disk_full += u64::from(full);
        let (sealer, push) = (Arc::clone(&self.sealer), message.clone());
        let done = self.done.0.clone();
        self.jobs.push(Box::new(Work {
            full,
            run: Box::new(move |tx| meta::apply(tx, &sealer, NODE, &push, NOW_MS).map(drop)),
            then: Some(Box::new(move |outcome| {
                let told = match outcome {
                    Ok(()) => Done::Applied(message),
                    Err(StoreError::Full) => Done::Refused(message),
                    Err(other) => panic!("{other}: {message:?}"),
                };
                done.send(told).unwrap();
            })),
        }));
    }

    fn delete(&mut self, up_to: u64) {
        let done = self.done.0.clone();
        self.jobs.push(Box::new(Work {
            full: false,
            run: Box::new(move |tx| outbox::delivered_up_to(tx, up_to).map(drop)),
            then: Some(Box::new(move |_| done.send(Done::Deleted).unwrap())),
        }));
    }

    pub(crate) fn transmit(&mut self, now: Instant) -> Option<Transmit> {
        self.session.poll_transmit(now)
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        self.session.handle_heard(now);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    /// Readings on disk after sequence number `after`; the ledger must balance.
    pub(crate) fn pending(&self, after: u64) -> BTreeSet<(usize, u64)> {
        let tx = self.db.reader();
        for balance in outbox::ledger(tx).unwrap() {
            assert!(balance.is_balanced(), "{balance:?}");
        }
        let rows = outbox::pending(tx, after, 100_000).unwrap();
        rows.iter()
            .filter_map(|row| reading(&Message::decode(&row.message).unwrap()))
            .collect()
    }

    /// Version and desired value of a device as the node has them.
    pub(crate) fn device(&self, device: usize) -> Option<(i64, Option<String>)> {
        let found = twin::document(self.db.reader(), "dev", &format!("d{device}")).unwrap()?;
        let rate = found.properties.get("rate");
        let edge = found
            .properties
            .values()
            .filter_map(|p| p.reported_version)
            .map(|v| v.edge);
        let desired = rate
            .and_then(|p| p.desired.as_ref())
            .map(|d| d.value.clone());
        Some((edge.max().unwrap_or(0), desired))
    }

    /// What the store holds: path and version.
    pub(crate) fn held(&self) -> Vec<(String, String)> {
        let inventory = meta::inventory(self.db.reader()).unwrap();
        inventory
            .objects
            .into_iter()
            .map(|held| (held.path, held.version))
            .collect()
    }
}
