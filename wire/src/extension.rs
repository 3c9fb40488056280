//! What two ends of ours may use beyond KubeEdge's protocol (design D1), negotiated in the
//! upgrade: the edge lists what it can in a request header, the hub answers with what both can.
//! A plain peer sends and sees none of it.

use serde::{Deserialize, Serialize};

use crate::message::{Content, Message, Operation, Route};

/// Request and response header: comma-separated names.
pub const HEADER: &str = "outpost-extensions";
/// Request header: the outbox epoch; sequence numbers mean something only within one.
pub const HEADER_EPOCH: &str = "outpost-epoch";
/// Response header: the highest sequence number of that epoch which the hub has stored.
pub const HEADER_ACKED: &str = "outpost-acked";
/// Group of extension messages; KubeEdge drops unknown groups with a log line.
pub const GROUP: &str = "outpost";

/// The extensions in force on one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Upstream batches with sequence numbers and cumulative acknowledgement.
    pub batch: bool,
    /// The edge tells what it holds at connect; the hub sends only differences, deletes included.
    pub inventory: bool,
    /// WebSocket ping for liveness in both directions in place of keepalive and lease messages.
    pub ping: bool,
    /// The hub says when the node holds everything that concerned it at connect.
    pub synced: bool,
    /// The hub tells all that rules want from the node at once ([`crate::rules::Routes`]).
    pub routes: bool,
}

impl Extensions {
    /// Everything this version knows.
    pub const ALL: Self = Self {
        batch: true,
        inventory: true,
        ping: true,
        synced: true,
        routes: true,
    };
    /// A plain KubeEdge peer.
    pub const NONE: Self = Self {
        batch: false,
        inventory: false,
        ping: false,
        synced: false,
        routes: false,
    };

    /// Reads a header value; unknown names are skipped, so that a newer peer can be talked to.
    pub fn parse(value: &str) -> Self {
        let mut found = Self::NONE;
        for name in value.split(',').map(str::trim) {
            match name {
                "batch" => found.batch = true,
                "inventory" => found.inventory = true,
                "ping" => found.ping = true,
                "synced" => found.synced = true,
                "routes" => found.routes = true,
                _ => {}
            }
        }
        found
    }

    /// The header value; empty for none.
    pub fn to_header(self) -> String {
        [
            (self.batch, "batch"),
            (self.inventory, "inventory"),
            (self.ping, "ping"),
            (self.synced, "synced"),
            (self.routes, "routes"),
        ]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect::<Vec<_>>()
        .join(", ")
    }

    /// What both ends can.
    pub fn both(self, other: Self) -> Self {
        Self {
            batch: self.batch && other.batch,
            inventory: self.inventory && other.inventory,
            ping: self.ping && other.ping,
            synced: self.synced && other.synced,
            routes: self.routes && other.routes,
        }
    }
}

/// One durable upstream message in a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Outbox sequence number; rises strictly within a batch and between batches of an epoch.
    pub seq: u64,
    /// Ledger stream, e.g. `twin/default/thermometer`.
    pub stream: String,
    /// The KubeEdge message a plain peer would be sent.
    pub message: Message,
    /// Part of a backlog: it counts, and never changes what stands as the newest value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub history: bool,
}

/// Stream of the entries that carry [`Gaps`].
pub const GAPS_STREAM: &str = "gaps";

/// Stream of Kubernetes Events that must not be lost: their messages are those of any event.
pub const EVENTS_STREAM: &str = "events";

/// Accepted messages of one stream that will never come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    /// Ledger stream.
    pub stream: String,
    /// `expired` or `evicted`.
    pub fate: String,
    /// How many.
    pub rows: u64,
    /// Lowest sequence number; others between the two may have come.
    pub first_seq: u64,
    /// Highest sequence number.
    pub last_seq: u64,
    /// When the oldest was accepted, Unix milliseconds by the node's clock.
    pub first_ms: i64,
    /// When the newest was accepted.
    pub last_ms: i64,
}

/// Content of an entry of [`GAPS_STREAM`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gaps {
    /// At most one a stream and fate.
    pub gaps: Vec<Gap>,
}

impl Gaps {
    /// The message that carries them; a plain hub logs and drops it.
    pub fn into_message(self, id: String, now_ms: i64) -> Message {
        let route = Route::new("edgehub", GROUP, &Operation::Upload, "outbox/gaps");
        Message::new(id, now_ms, route, Content::json(&self).unwrap_or_default())
    }
}

/// Durable upstream entries, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Epoch of the sequence numbers.
    pub epoch: String,
    /// Sequence number of the entry sent before this batch, 0 for none: a hub that has not stored
    /// it knows that a batch is missing, whatever the network did.
    #[serde(default)]
    pub after: u64,
    /// At most [`crate::limits::BATCH_ENTRIES_MAX`].
    pub entries: Vec<Entry>,
}

impl Batch {
    /// The message that carries this batch.
    pub fn into_message(self, id: String, now_ms: i64) -> Message {
        let route = Route::new("edgehub", GROUP, &Operation::Batch, "outbox");
        Message::new(id, now_ms, route, Content::json(&self).unwrap_or_default())
    }
}

/// Cumulative acknowledgement: everything up to `acked` is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchAck {
    /// Epoch of the sequence number.
    pub epoch: String,
    /// Highest stored sequence number.
    pub acked: u64,
}

/// One object that a node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Path on the wire, e.g. `default/pod/p1`.
    pub path: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
}

/// What a node holds, sent by our edge as its first message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Every desired object in the node's store.
    pub objects: Vec<Held>,
}

impl Inventory {
    /// The message that carries this inventory.
    pub fn into_message(self, id: String, now_ms: i64) -> Message {
        let route = Route::new("edgehub", GROUP, &Operation::Inventory, "inventory");
        Message::new(id, now_ms, route, Content::json(&self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation_keeps_what_both_know() {
        assert_eq!(
            Extensions::parse(&Extensions::ALL.to_header()),
            Extensions::ALL
        );
        assert_eq!(
            Extensions::parse("batch, from-the-future"),
            Extensions {
                batch: true,
                ..Extensions::NONE
            }
        );
        assert_eq!(Extensions::parse(""), Extensions::NONE);
        assert_eq!(
            Extensions::ALL.both(Extensions::parse("ping")),
            Extensions::parse("ping")
        );
    }
}
