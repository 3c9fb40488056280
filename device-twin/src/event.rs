//! What can happen to a device.

use std::collections::BTreeMap;

use crate::device::Attribute;
use crate::version::Version;

/// What a local update says about one property.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// New desired value. An object without a value counts as not given; KubeEdge crashes on it.
    pub desired: Option<String>,
    /// New reported value.
    pub reported: Option<String>,
    /// When the device had `reported`, by its mapper's clock, Unix milliseconds.
    pub reported_at_ms: Option<i64>,
    /// Whether the property may be removed; only `false` has an effect on a known one.
    pub optional: Option<bool>,
    /// Type, as written.
    pub kind: Option<String>,
    /// The desired value that the device has taken, without reporting it yet.
    pub observed: Option<String>,
    /// Why the device will not take its desired value.
    pub refused: Option<String>,
    /// What became of the desired value on its way to the device.
    pub delivery: Option<Delivery>,
}

/// Whether the program that speaks with a device took a desired value for it. The device itself
/// may still refuse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It did not, for this reason.
    Refused(String),
    /// It did: what it refused before is on its way again.
    Taken,
}

/// Which desired value stands when cloud and edge both set one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conflict {
    /// A new wish of the cloud replaces what was set at the edge.
    #[default]
    CloudWins,
    /// What was set at the edge stands until the edge withdraws it (sets it to nothing).
    EdgeWins,
    /// The later one stands, by the hybrid clock.
    Newest,
}

impl Conflict {
    /// `cloud`, `edge` or `newest`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "cloud" => Self::CloudWins,
            "edge" => Self::EdgeWins,
            "newest" => Self::Newest,
            _ => return None,
        })
    }
}

/// What the cloud says about one property, with versions (KubeEdge's legacy `cloud_updated`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncChange {
    /// The values.
    pub change: Change,
    /// Version of `change.desired`.
    pub desired_version: Option<Version>,
    /// Version of `change.reported`.
    pub reported_version: Option<Version>,
}

/// A desired value in the cloud's Device object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `spec.properties[].desired.value`
    pub value: String,
    /// `spec.properties[].desired.metadata.type`
    pub kind: Option<String>,
    /// When the cloud's value was written, by the cloud's clock; `None` counts as just now.
    pub at_ms: Option<i64>,
    /// What to do if the edge has set a value of its own.
    pub rule: Conflict,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device or a local program reports or sets values; `None` removes a property.
    Update {
        /// The sender's, echoed in the answer.
        event_id: String,
        /// By property name.
        changes: BTreeMap<String, Option<Change>>,
    },
    /// The cloud syncs values with versions; the edge wins where it has moved on.
    Sync {
        /// The sender's, echoed in the document.
        event_id: String,
        /// By property name.
        changes: BTreeMap<String, SyncChange>,
    },
    /// The cloud's Device object arrived: all its desired values. One that it no longer has is
    /// withdrawn, unless it was overwritten locally.
    Desired {
        /// The object's identity: a new object under an old name starts its versions again.
        object_uid: String,
        /// The object's version; rises with each change of it.
        version: i64,
        /// By property name.
        values: BTreeMap<String, Wanted>,
    },
    /// The device tells its state.
    State {
        /// One of `online offline ok unknown unhealthy`, in any letter case.
        state: String,
    },
    /// The cloud describes the device. `None` leaves that part alone.
    Described {
        /// Free text.
        description: Option<String>,
        /// Attributes to set, or to remove (`None`).
        attributes: BTreeMap<String, Option<Attribute>>,
    },
}
