//! Twin payloads as they look on MQTT and in messages to the cloud.
//!
//! Decoding follows Go's `encoding/json`, because devices and mappers were written against it:
//! object keys match case-insensitively, unknown keys are ignored, of duplicate keys the last
//! wins, `null` means absent, and a value of the wrong type fails the whole document. Encoding is
//! Go's too: declared field order, empty optional fields left out, maps sorted, and `<`, `>`, `&`,
//! U+2028 and U+2029 escaped.
//!
//! Known difference: an unpaired surrogate escape (`\ud800`) is an error here and U+FFFD in Go.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Largest twin payload accepted from a device: 256 properties of the longest legal name and
/// value fit twice. Depth is bounded by `serde_json` (128).
pub const PAYLOAD_BYTES_MAX: usize = 512 << 10;

/// Why a payload was not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TwinDecodeError {
    /// More than [`PAYLOAD_BYTES_MAX`].
    #[error("payload of {len_bytes} bytes exceeds the {PAYLOAD_BYTES_MAX}-byte limit")]
    TooLarge {
        /// Size of the refused payload.
        len_bytes: usize,
    },
    /// Not JSON, or a value of the wrong type.
    #[error("payload is not the expected JSON")]
    Json(#[from] serde_json::Error),
}

/// A value and when it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TwinValue {
    /// The value; always text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ValueMetadata>,
}

/// Metadata of one value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ValueMetadata {
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub timestamp: i64,
    /// When the device had the value by its mapper's clock, Unix milliseconds. Ours; KubeEdge
    /// ignores the key.
    #[serde(rename = "deviceTimestamp", skip_serializing_if = "is_zero")]
    pub device_timestamp: i64,
}

/// Metadata of a property.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeMetadata {
    /// `int`, `string`, …; `deleted` for a removed property.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

/// The two counters of one part of a property.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TwinVersion {
    /// Raised by the cloud.
    pub cloud: i64,
    /// Raised by the edge.
    pub edge: i64,
}

/// One property (`MsgTwin`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MsgTwin {
    /// The desired value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<TwinValue>,
    /// The reported value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<TwinValue>,
    /// Whether a client may delete it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    /// Its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TypeMetadata>,
    /// Version of `expected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_version: Option<TwinVersion>,
    /// Version of `actual`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_version: Option<TwinVersion>,
    /// How far the desired value has come. Ours; KubeEdge ignores the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync: Option<TwinSync>,
}

/// How far a desired value has come. To the cloud: what the edge knows. From a device: `refused`
/// with a reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TwinSync {
    /// `pending`, `acknowledged` or `refused`; empty if nothing is desired any more.
    pub state: String,
    /// Why it was refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The value that was refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
}

/// One attribute of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MsgAttr {
    /// The value.
    pub value: String,
    /// Whether it may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    /// Its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TypeMetadata>,
}

/// A device in a membership list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `<namespace>/<name>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The name alone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Free text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// `online`, `offline`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// RFC 3339, UTC.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_online: String,
    /// Attributes.
    #[serde(skip_serializing_if = "is_empty_map")]
    pub attributes: Option<BTreeMap<String, Option<MsgAttr>>>,
    /// Properties.
    #[serde(skip_serializing_if = "is_empty_map")]
    pub twin: Option<BTreeMap<String, Option<MsgTwin>>>,
}

/// A request that carries nothing but its identity (`twin/get`, `membership/get`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BaseMessage {
    /// Chosen by the sender; echoed in the answer.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
}

/// `twin/update` and `twin/cloud_updated` in; `update/result`, `get/result` and the cloud's
/// `edge_updated` out (KubeEdge's `DeviceTwinUpdate` and `DeviceTwinResult`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TwinMessage {
    /// Chosen by the sender.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// Properties by name; `None` inside is a deletion. `None` outside: the key was missing.
    pub twin: Option<BTreeMap<String, Option<MsgTwin>>>,
}

/// Old and new form of one property.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TwinDoc {
    /// Before; `None` for a new property.
    pub last: Option<MsgTwin>,
    /// After; `None` for a deleted one.
    pub current: Option<MsgTwin>,
}

/// `twin/update/document`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TwinDocument {
    /// The request's.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// What changed.
    pub twin: BTreeMap<String, TwinDoc>,
}

/// `twin/update/delta`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TwinDelta {
    /// A fresh one.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// Every property that has a desired value.
    pub twin: BTreeMap<String, MsgTwin>,
    /// Desired values that differ from the reported ones.
    pub delta: BTreeMap<String, String>,
}

/// A refusal, published where the answer would have been.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErrorMessage {
    /// The request's, or empty if it could not be read.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// 400, 404 or 500.
    #[serde(skip_serializing_if = "is_zero")]
    pub code: i64,
    /// For people, and for clients that match on KubeEdge's sentences.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// `state/update` in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StateUpdate {
    /// Chosen by the sender.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// The state, in the sender's letter case.
    pub state: String,
}

/// The device inside a state report; no id, the cloud takes it from the resource path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceState {
    /// The name alone.
    pub name: String,
    /// The state.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// RFC 3339, UTC.
    #[serde(rename = "lastOnlineTime", skip_serializing_if = "String::is_empty")]
    pub last_online_time: String,
}

/// `state/update/result`, and the state report to the cloud (KubeEdge's `DeviceMsg`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StateMessage {
    /// A fresh one.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// The device.
    pub device: DeviceState,
}

/// `membership` from the cloud and `membership/updated` to local clients. The unused list is
/// `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MembershipUpdate {
    /// A fresh one.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// Devices that now belong to the node.
    pub added_devices: Option<Vec<Device>>,
    /// Devices that no longer do.
    pub removed_devices: Option<Vec<Device>>,
}

/// `membership/detail` from the cloud (the full list) and `membership/get/result`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MembershipDetail {
    /// The request's, or a fresh one.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// Every device of the node.
    pub devices: Option<Vec<Device>>,
}

/// `$hw/events/device/<id>/updated`: attributes that changed, `None` for a deleted one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AttributesUpdated {
    /// A fresh one.
    pub event_id: String,
    /// Unix milliseconds.
    pub timestamp: i64,
    /// What changed.
    pub attributes: BTreeMap<String, Option<MsgAttr>>,
}

/// What the edge asks at connect: the node's full device list (KubeEdge's `GetDetailNode`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MembershipDetailRequest {
    /// Always `group_membership_event`.
    pub event_type: String,
    /// A fresh one.
    pub event_id: String,
    /// The node.
    pub group_id: String,
    /// Always `detail`.
    pub operation: String,
    /// Unix milliseconds.
    pub timestamp: i64,
}

/// Decodes a payload by Go's rules. Bytes that are no UTF-8 become U+FFFD, as in Go.
pub fn decode<T: DeserializeOwned + Default>(payload: &[u8]) -> Result<T, TwinDecodeError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(TwinDecodeError::TooLarge {
            len_bytes: payload.len(),
        });
    }
    let text = String::from_utf8_lossy(payload);
    // A bare `null` leaves the zero value (`encoding/json`).
    Ok(serde_json::from_str::<Option<T>>(&text)?.unwrap_or_default())
}

/// Encodes by Go's rules. Types of this module cannot fail to encode.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, HtmlEscaped);
    match message.serialize(&mut serializer) {
        Ok(()) => out,
        Err(_) => b"{}".to_vec(),
    }
}

struct HtmlEscaped;

impl serde_json::ser::Formatter for HtmlEscaped {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, tail) = rest.split_at(at);
            let mut chars = tail.chars();
            let escaped = chars.next().map_or(0, u32::from);
            writer.write_all(plain.as_bytes())?;
            write!(writer, "\\u{escaped:04x}")?;
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde calls")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[expect(clippy::ref_option, reason = "the shape serde calls")]
fn is_empty_map<T>(map: &Option<BTreeMap<String, T>>) -> bool {
    map.as_ref().is_none_or(BTreeMap::is_empty)
}

/// Go's key match: equal under Unicode simple folding, which for ASCII names adds only the long s
/// and the Kelvin sign.
fn same_key(given: &str, field: &str) -> bool {
    if given.is_ascii() {
        return given.eq_ignore_ascii_case(field);
    }
    let folded = given.chars().map(|c| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(field.chars().map(|c| c.to_ascii_lowercase()))
}

/// `null` elements of a Go slice of structs are zero values.
#[derive(Default)]
struct GoList<T>(Vec<T>);

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for GoList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let items = Vec::<Option<T>>::deserialize(deserializer)?;
        Ok(Self(
            items.into_iter().map(Option::unwrap_or_default).collect(),
        ))
    }
}

/// Reads one field; `null` is the zero value.
trait Field<'de>: Sized {
    fn read<A: MapAccess<'de>>(map: &mut A) -> Result<Self, A::Error>;
}

macro_rules! plain_fields {
    ($($kind:ty),* $(,)?) => {$(
        impl<'de> Field<'de> for $kind {
            fn read<A: MapAccess<'de>>(map: &mut A) -> Result<Self, A::Error> {
                Ok(map.next_value::<Option<$kind>>()?.unwrap_or_default())
            }
        }
    )*};
}

plain_fields!(String, i64, DeviceState);

macro_rules! pointer_fields {
    ($($kind:ty),* $(,)?) => {$(
        impl<'de> Field<'de> for Option<$kind> {
            fn read<A: MapAccess<'de>>(map: &mut A) -> Result<Self, A::Error> {
                map.next_value()
            }
        }
    )*};
}

pointer_fields!(
    String,
    bool,
    TwinValue,
    ValueMetadata,
    TypeMetadata,
    TwinVersion,
    TwinSync,
    BTreeMap<String, Option<MsgTwin>>,
    BTreeMap<String, Option<MsgAttr>>,
);

impl<'de> Field<'de> for Option<Vec<Device>> {
    fn read<A: MapAccess<'de>>(map: &mut A) -> Result<Self, A::Error> {
        let list = map.next_value::<Option<GoList<Device>>>()?;
        Ok(list.map(|list| list.0))
    }
}

/// `Deserialize` by Go's rules for a struct of [`Field`]s.
macro_rules! go_decode {
    ($kind:ident { $($key:literal => $field:ident),* $(,)? }) => {
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Object;
                impl<'de> Visitor<'de> for Object {
                    type Value = $kind;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("an object (", stringify!($kind), ")"))
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$kind, A::Error> {
                        let mut out = $kind::default();
                        while let Some(key) = map.next_key::<String>()? {
                            $(if same_key(&key, $key) {
                                out.$field = Field::read(&mut map)?;
                                continue;
                            })*
                            map.next_value::<IgnoredAny>()?;
                        }
                        Ok(out)
                    }
                }
                deserializer.deserialize_map(Object)
            }
        }
    };
}

go_decode!(TwinValue { "value" => value, "metadata" => metadata });
go_decode!(ValueMetadata {
    "timestamp" => timestamp, "deviceTimestamp" => device_timestamp,
});
go_decode!(TypeMetadata { "type" => kind });
go_decode!(TwinVersion { "cloud" => cloud, "edge" => edge });
go_decode!(MsgTwin {
    "expected" => expected, "actual" => actual, "optional" => optional, "metadata" => metadata,
    "expected_version" => expected_version, "actual_version" => actual_version,
    "sync" => sync,
});
go_decode!(TwinSync { "state" => state, "reason" => reason, "value" => value });
go_decode!(MsgAttr { "value" => value, "optional" => optional, "metadata" => metadata });
go_decode!(Device {
    "id" => id, "name" => name, "description" => description, "state" => state,
    "last_online" => last_online, "attributes" => attributes, "twin" => twin,
});
go_decode!(BaseMessage { "event_id" => event_id, "timestamp" => timestamp });
go_decode!(TwinMessage { "event_id" => event_id, "timestamp" => timestamp, "twin" => twin });
go_decode!(StateUpdate { "event_id" => event_id, "timestamp" => timestamp, "state" => state });
go_decode!(DeviceState {
    "name" => name, "state" => state, "lastOnlineTime" => last_online_time,
});
go_decode!(StateMessage { "event_id" => event_id, "timestamp" => timestamp, "device" => device });
go_decode!(MembershipUpdate {
    "event_id" => event_id, "timestamp" => timestamp,
    "added_devices" => added_devices, "removed_devices" => removed_devices,
});
go_decode!(MembershipDetail {
    "event_id" => event_id, "timestamp" => timestamp, "devices" => devices,
});

#[cfg(test)]
#[path = "twin_tests.rs"]
mod tests;
