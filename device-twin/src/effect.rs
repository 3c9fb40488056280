//! What the caller does after it has stored the next state.

use std::collections::BTreeMap;

use crate::delta::Delta;
use crate::device::Attribute;
use crate::twin::Property;

/// A property before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentEntry {
    /// Before; `None` if it did not exist or had been removed.
    pub last: Option<Property>,
    /// After; `None` if it was removed.
    pub current: Option<Property>,
}

/// Something to tell someone. In the order in which to tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer to an update, for local clients. Versions are not shown.
    Result {
        /// The request's.
        event_id: String,
        /// The parts that were written, by property; `None` for one that was removed.
        changed: BTreeMap<String, Option<Property>>,
    },
    /// What changed, for local clients. Versions are not shown.
    Document {
        /// The request's; empty when the cloud's Device object caused it.
        event_id: String,
        /// By property.
        entries: BTreeMap<String, DocumentEntry>,
    },
    /// What the device has yet to do, for local clients.
    Delta(Delta),
    /// What the cloud must learn; never lost, never merged with another. Versions are shown.
    Report {
        /// The parts that were written, by property.
        properties: BTreeMap<String, Property>,
    },
    /// The state, for local clients and for the cloud.
    State {
        /// In the device's letter case.
        state: String,
        /// When the device was last online.
        last_online_ms: Option<i64>,
    },
    /// Attributes that changed, for local clients.
    Attributes {
        /// By name; `None` for one that was removed.
        changed: BTreeMap<String, Option<Attribute>>,
    },
    /// A desired value of the Device object that was not taken: its type does not admit it, or
    /// the conflict rule is for the edge's. For the log; the cloud learns of it by the report.
    DesiredRefused {
        /// The property.
        name: String,
        /// Why.
        reason: String,
    },
}
