//! The hub's end: its session half as shipped, on a store of the simplest kind, so that what it
//! must hold is plain to see.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;
use wire::extension::{Extensions, Inventory};
use wire::message::{Content, Message, Operation, Route};
use wire::session::Ids;
use wire::session::hub::{Event, HubSession};

/// A desired object.
#[derive(Clone)]
pub(crate) struct Object {
    pub(crate) uid: String,
    pub(crate) version: u64,
    pub(crate) body: serde_json::Value,
}

/// What survives the hub's crashes.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) epoch: String,
    pub(crate) seq: u64,
    /// Readings (device, number) in the order in which they were stored.
    pub(crate) received: Vec<(usize, u64)>,
    pub(crate) objects: BTreeMap<String, Object>,
    pub(crate) revision: u64,
}

pub(crate) struct Cloud {
    pub(crate) stored: Stored,
    pub(crate) session: Option<HubSession>,
    connections: u64,
    /// Batches received and not committed.
    uncommitted: Vec<wire::extension::Batch>,
}

impl Cloud {
    pub(crate) fn new() -> Self {
        Self {
            stored: Stored::default(),
            session: None,
            connections: 0,
            uncommitted: Vec::new(),
        }
    }

    /// A node connects; returns the sequence number stored for its epoch.
    pub(crate) fn connected(&mut self, epoch: &str, now: Instant) -> u64 {
        self.connections += 1;
        self.uncommitted.clear();
        if self.stored.epoch != epoch {
            epoch.clone_into(&mut self.stored.epoch);
            self.stored.seq = 0;
        }
        let ids = Ids::new(format!("c{}", self.connections));
        let session = HubSession::new(ids, Extensions::ALL, now);
        self.session = Some(session.with_stored(epoch, self.stored.seq));
        self.stored.seq
    }

    pub(crate) fn disconnected(&mut self) {
        self.session = None;
        self.uncommitted.clear();
    }

    /// The admin creates or changes an object.
    pub(crate) fn put(&mut self, path: &str, body: impl FnOnce(&str, u64) -> serde_json::Value) {
        self.stored.revision += 1;
        let version = self.stored.revision;
        let uid = self
            .stored
            .objects
            .get(path)
            .map_or_else(|| format!("uid-{version}"), |old| old.uid.clone());
        let object = Object {
            body: body(&uid, version),
            uid,
            version,
        };
        self.stored.objects.insert(path.to_owned(), object.clone());
        if let Some(session) = &mut self.session {
            session.offer(path, push(path, &object));
        }
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.stored.revision += 1;
        if let Some(old) = self.stored.objects.remove(path)
            && let Some(session) = &mut self.session
        {
            session.offer(path, deletion(path, &old.uid));
        }
    }

    /// Acts on what arrived. `false`: the session is over.
    pub(crate) fn work(&mut self) -> bool {
        let Some(session) = &mut self.session else {
            return true;
        };
        while let Some(event) = session.poll_event() {
            match event {
                Event::Batch(batch) => self.uncommitted.push(batch),
                Event::Inventory(inventory) => {
                    for (path, message) in differences(&self.stored.objects, &inventory) {
                        session.offer(path, message);
                    }
                }
                Event::Dead { .. } => return false,
                Event::Request(message) => panic!("unexpected {message:?}"),
                Event::Acked { .. } | Event::Refused { .. } => {}
            }
        }
        true
    }

    /// One transaction: the messages and the sequence number together.
    pub(crate) fn commit(&mut self) {
        for batch in std::mem::take(&mut self.uncommitted) {
            for entry in batch.entries {
                assert!(entry.seq > self.stored.seq, "the session filters repeats");
                self.stored.seq = entry.seq;
                self.stored.received.extend(reading(&entry.message));
            }
            if let Some(session) = &mut self.session {
                session.ack_batch(&self.stored.epoch, self.stored.seq);
            }
        }
    }
}

fn differences(wanted: &BTreeMap<String, Object>, inventory: &Inventory) -> Vec<(String, Message)> {
    let held: BTreeMap<&str, (&str, &str)> = inventory
        .objects
        .iter()
        .map(|held| {
            (
                held.path.as_str(),
                (held.uid.as_str(), held.version.as_str()),
            )
        })
        .collect();
    let mut out = Vec::new();
    for (path, (uid, _)) in &held {
        if wanted.get(*path).is_none_or(|object| object.uid != *uid) {
            out.push((format!("{path}#{uid}"), deletion(path, uid)));
        }
    }
    for (path, object) in wanted {
        let version = object.version.to_string();
        if held.get(path.as_str()) != Some(&(object.uid.as_str(), version.as_str())) {
            out.push((path.clone(), push(path, object)));
        }
    }
    out
}

fn push(path: &str, object: &Object) -> Message {
    let source = if path.contains("/device/") {
        "devicecontroller"
    } else {
        "edgecontroller"
    };
    let route = Route::new(source, "resource", &Operation::Update, path);
    Message::new("", 0, route, Content::json(&object.body).unwrap())
        .with_resource_version(object.version.to_string())
}

fn deletion(path: &str, uid: &str) -> Message {
    let mut parts = path.split('/');
    let (namespace, name) = (parts.next().unwrap(), parts.nth(1).unwrap());
    let source = if path.contains("/device/") {
        "devicecontroller"
    } else {
        "edgecontroller"
    };
    let route = Route::new(source, "resource", &Operation::Delete, path);
    let body = json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}});
    Message::new("", 0, route, Content::json(&body).unwrap())
}

/// The reading that an upstream report carries, if it carries one.
pub(crate) fn reading(message: &Message) -> Option<(usize, u64)> {
    let device = message
        .route
        .resource
        .strip_prefix("device/dev/d")?
        .split('/')
        .next()?;
    let body: serde_json::Value = message.content.decode().ok()?;
    let n = body["twin"]["celsius"]["actual"]["value"]
        .as_str()?
        .parse()
        .ok()?;
    Some((device.parse().ok()?, n))
}
