//! One property and its two values.

use serde::{Deserialize, Serialize};

use crate::value::Kind;
use crate::version::Version;

/// A value and when this node took it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// The value; always text.
    pub value: String,
    /// The node's clock, Unix milliseconds.
    pub at_ms: i64,
    /// When the device had the value by its mapper's clock, Unix milliseconds; nothing goes by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_at_ms: Option<i64>,
}

/// What the cloud's Device object last said about a property. A redelivered object, or one that
/// changed elsewhere, does not overwrite a value set locally since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromCloud {
    /// The desired value.
    pub value: String,
    /// The object's version.
    pub version: i64,
}

/// One property of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Whether a client may remove it.
    pub optional: bool,
    /// What it should be (KubeEdge: expected).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Stamped>,
    /// What it is (KubeEdge: actual).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<Stamped>,
    /// Version of `desired`, kept when the value is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_version: Option<Version>,
    /// Version of `reported`, kept when the value is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_version: Option<Version>,
    /// The Device object's own desired value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_cloud: Option<FromCloud>,
    /// When `desired` was set at the edge, by the device's hybrid clock; `None` if the cloud set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_here_at: Option<i64>,
    /// The desired value that the device or its mapper says it has taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
    /// A desired value that will not be reached, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

/// A desired value that was refused: by its type, by the conflict rule or by the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The value.
    pub value: String,
    /// Why, for a person.
    pub reason: String,
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// Whether it did not get as far as the device; over once it does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_undelivered: bool,
}

/// How far a desired value has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncState<'a> {
    /// The device has not said that it has it.
    Pending,
    /// The device reports the value, or says it has taken it.
    Acknowledged,
    /// It will not be reached.
    Refused(&'a Refusal),
}

impl SyncState<'_> {
    /// The word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Acknowledged => "acknowledged",
            Self::Refused(_) => "refused",
        }
    }
}

impl Property {
    /// A property without values.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            optional: true,
            desired: None,
            reported: None,
            desired_version: None,
            reported_version: None,
            from_cloud: None,
            set_here_at: None,
            observed: None,
            refused: None,
        }
    }

    /// How far the desired value has come; `None` if nothing is desired.
    pub fn sync(&self) -> Option<SyncState<'_>> {
        if let Some(refused) = &self.refused {
            return Some(SyncState::Refused(refused));
        }
        let desired = self.desired.as_ref().filter(|d| !d.value.is_empty())?;
        let has = |value: Option<&String>| value == Some(&desired.value);
        let is_there = has(self.reported.as_ref().map(|r| &r.value)) || has(self.observed.as_ref());
        Some(if is_there {
            SyncState::Acknowledged
        } else {
            SyncState::Pending
        })
    }

    /// Whether this is the mark of a removed property.
    pub fn is_deleted(&self) -> bool {
        self.kind == Kind::Deleted
    }

    /// The same property with only the chosen values and their versions: what one event wrote.
    pub(crate) fn parts(&self, desired: bool, reported: bool) -> Self {
        Self {
            kind: self.kind,
            optional: self.optional,
            desired: self.desired.clone().filter(|_| desired),
            reported: self.reported.clone().filter(|_| reported),
            desired_version: self.desired_version.filter(|_| desired),
            reported_version: self.reported_version.filter(|_| reported),
            from_cloud: None,
            set_here_at: None,
            observed: None,
            refused: None,
        }
    }

    /// Removes the values and marks the property; raises the versions that exist.
    pub(crate) fn delete(&mut self) {
        self.kind = Kind::Deleted;
        self.desired = None;
        self.reported = None;
        self.set_here_at = None;
        self.observed = None;
        self.refused = None;
        self.desired_version = self.desired_version.map(Version::after_edge_write);
        self.reported_version = self.reported_version.map(Version::after_edge_write);
    }
}
