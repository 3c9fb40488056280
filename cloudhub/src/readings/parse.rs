//! From a report to readings. Pure.

use wire::{
    extension::GROUP,
    message::{Message, Operation},
    resource::ResourcePath,
    twin::{self, StateMessage, TwinMessage},
};

use crate::clock;

/// Longest value that is kept; a longer one is counted as refused.
pub(super) const VALUE_BYTES_MAX: usize = 64 << 10;
/// Property of a device's own state.
const STATE: &str = "$state";

/// One reading, before it has an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// `namespace/name` of a device, or the topic of an upload.
    pub(super) source: String,
    /// The property; empty for an upload.
    pub(super) property: String,
    /// The device's own time, Unix milliseconds.
    pub(super) at: i64,
    pub(super) value: String,
    /// It waited at the node while newer ones were told before it.
    pub(super) history: bool,
}

impl Row {
    /// The device, if it is a reading of one.
    pub(super) fn device(&self) -> Option<&str> {
        (!self.property.is_empty()).then_some(self.source.as_str())
    }
}

/// What a report carries; nothing, if it cannot be read.
pub(super) fn rows(message: &Message) -> Vec<Row> {
    let text = message.content.document();
    let stamp = |at: i64| if at > 0 { at } else { clock::unix_millis() };
    if message.route.group == GROUP {
        // The hub's and the node's own.
        return Vec::new();
    }
    if message.route.operation() == Operation::Upload {
        return vec![Row {
            source: message.route.resource.clone(),
            property: String::new(),
            at: stamp(message.header.timestamp),
            value: text.into_owned(),
            history: false,
        }];
    }
    match ResourcePath::parse(&message.route.resource) {
        ResourcePath::DeviceTwin {
            namespace, name, ..
        } => {
            let Ok(report) = twin::decode::<TwinMessage>(text.as_bytes()) else {
                return Vec::new();
            };
            let source = format!("{namespace}/{name}");
            let twins = report.twin.into_iter().flatten();
            let values = twins.filter_map(|(property, twin)| {
                let actual = twin?.actual?;
                let at = actual.metadata.map_or(report.timestamp, |m| m.timestamp);
                Some(Row {
                    source: source.clone(),
                    property,
                    at: stamp(at),
                    value: actual.value?,
                    history: false,
                })
            });
            values.filter(|row| !row.property.is_empty()).collect()
        }
        ResourcePath::DeviceState { namespace, name } => {
            let Ok(report) = twin::decode::<StateMessage>(text.as_bytes()) else {
                return Vec::new();
            };
            vec![Row {
                source: format!("{namespace}/{name}"),
                property: STATE.to_owned(),
                at: stamp(report.timestamp),
                value: report.device.state,
                history: false,
            }]
        }
        ResourcePath::Object { .. }
        | ResourcePath::Membership
        | ResourcePath::MembershipDetail
        | ResourcePath::Node
        | ResourcePath::TwinConfirmation
        | ResourcePath::ClusterCa
        | ResourcePath::Other(_) => Vec::new(),
    }
}
