//! Devices: each publishes its readings in order at QoS 1 and sends again what was not answered.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One connection of a device to the broker. Once broken, nothing sent on it is accepted any
/// more: that is what keeps the order when a publish in the middle is refused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connection(Arc<AtomicBool>);

impl Connection {
    pub(crate) fn shut(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A reading on its way to the node.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    pub(crate) device: usize,
    pub(crate) n: u64,
    pub(crate) connection: Connection,
}

impl Publish {
    pub(crate) fn event_id(&self) -> String {
        event_id(self.device, self.n)
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        format!(
            r#"{{"event_id":"{}","twin":{{"celsius":{{"actual":{{"value":"{}"}},"metadata":{{"type":"int"}}}}}}}}"#,
            self.event_id(),
            self.n
        )
        .into_bytes()
    }
}

pub(crate) fn event_id(device: usize, n: u64) -> String {
    format!("d{device}-{n}")
}

#[derive(Default)]
pub(crate) struct Thing {
    pub(crate) published: u64,
    connection: Connection,
    /// Sent and not acknowledged; MQTT keeps their order when they go again.
    waiting: VecDeque<u64>,
    /// Acknowledged: on the node's disk, by promise.
    pub(crate) acknowledged: BTreeSet<u64>,
}

impl Thing {
    /// The next reading, if few enough wait.
    pub(crate) fn publish(&mut self, device: usize) -> Option<Publish> {
        if self.waiting.len() >= 8 {
            return None;
        }
        self.published += 1;
        self.waiting.push_back(self.published);
        let connection = self.connection.clone();
        (!connection.is_shut()).then_some(Publish {
            device,
            n: self.published,
            connection,
        })
    }

    /// The connection breaks; the device will notice and connect again.
    pub(crate) fn disconnect(&mut self) {
        self.connection.shut();
    }

    /// A new connection: everything unanswered goes again, oldest first.
    pub(crate) fn again(&mut self, device: usize) -> Vec<Publish> {
        self.connection.shut();
        self.connection = Connection::default();
        let publish = |n: &u64| Publish {
            device,
            n: *n,
            connection: self.connection.clone(),
        };
        self.waiting.iter().map(publish).collect()
    }

    pub(crate) fn acknowledged(&mut self, n: u64) {
        self.waiting.retain(|waiting| *waiting != n);
        self.acknowledged.insert(n);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }
}
