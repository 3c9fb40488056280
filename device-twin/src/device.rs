//! A device: its identity, presence, attributes and properties. This is also the stored document.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::twin::Property;

/// Most properties a device may have: bounds the document and the delta that repeats it.
pub(crate) const PROPERTIES_MAX: usize = 1024;

/// Namespace and name of a Device object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceId {
    /// The namespace. Any name works, `dev` included.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl DeviceId {
    /// An id from its parts; `None` if either is empty or holds a `/`.
    pub fn new(namespace: &str, name: &str) -> Option<Self> {
        let is_part = |part: &str| !part.is_empty() && !part.contains('/');
        (is_part(namespace) && is_part(name)).then(|| Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Parses `<namespace>/<name>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A fact about a device that it does not report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// The value.
    pub value: String,
    /// Whether it may be removed.
    pub optional: bool,
    /// Its type, as given.
    #[serde(rename = "type")]
    pub kind: String,
}

/// One device. `serde_json` of this is the stored form; fields are only ever added, with a
/// default, so that an older document can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Who it is.
    pub id: DeviceId,
    /// Free text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The state last reported, in the device's letter case; empty before the first report.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// When it was last `online` or `ok`, Unix milliseconds. Kept while offline; KubeEdge erases
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_online_ms: Option<i64>,
    /// Identity of the Device object whose desired values were last taken.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object_uid: String,
    /// The hybrid clock of desired values: never behind this node's clock when it was last read,
    /// nor behind a time that the cloud told. Orders writes of both sides although their clocks
    /// differ.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub clock_ms: i64,
    /// Attributes by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Attribute>,
    /// Properties by name, removed ones included.
    #[serde(default)]
    pub properties: BTreeMap<String, Property>,
}

impl Device {
    /// A device about which nothing is known.
    pub fn new(id: DeviceId) -> Self {
        Self {
            id,
            description: String::new(),
            state: String::new(),
            last_online_ms: None,
            object_uid: String::new(),
            clock_ms: 0,
            attributes: BTreeMap::new(),
            properties: BTreeMap::new(),
        }
    }

    /// The hybrid clock's next time: a local write is after everything that was heard of before.
    pub(crate) fn tick(&mut self, now_ms: i64) -> i64 {
        self.clock_ms = self.clock_ms.saturating_add(1).max(now_ms);
        self.clock_ms
    }

    /// Properties that have not been removed.
    pub fn live_properties(&self) -> impl Iterator<Item = (&String, &Property)> {
        self.properties.iter().filter(|(_, p)| !p.is_deleted())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde calls")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}
