//! Why an event was refused, in KubeEdge's words: clients may match on them.

use crate::value::ValueRule;

/// The class of a refusal, as sent to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request is wrong and will stay wrong.
    BadRequest,
    /// The device is not known to this node.
    NotFound,
}

impl Code {
    /// The number on the wire.
    pub fn as_i64(self) -> i64 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
        }
    }
}

/// An event that changed nothing, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// The class.
    pub code: Code,
    /// The sentence for the device (KubeEdge `edge/pkg/devicetwin/dtcommon`).
    pub reason: String,
}

impl Rejected {
    pub(crate) fn bad(reason: &str) -> Self {
        Self {
            code: Code::BadRequest,
            reason: reason.to_owned(),
        }
    }

    /// The body is not the JSON it should be.
    pub fn unreadable() -> Self {
        Self::bad("Unmarshal update request body failed, please check the request")
    }

    /// The body has no `twin`.
    pub fn no_twin() -> Self {
        Self::bad("Update twin error, key:twin does not exist")
    }

    /// An update for a device this node does not have.
    pub fn unknown_device() -> Self {
        Self {
            code: Code::NotFound,
            reason: "update rejected due to the device is not existed".to_owned(),
        }
    }

    /// A state that is none of the five.
    pub fn unknown_state() -> Self {
        Self::bad("the state must be one of online, offline, ok, unknown, unhealthy")
    }

    pub(crate) fn bad_name() -> Self {
        Self::bad(
            "The key of twin must only include upper or lowercase letters, number, english, and \
             special letter - _ . , : / @ # and the length of key should be less than 128 bytes",
        )
    }

    pub(crate) fn bad_value(rule: &ValueRule) -> Self {
        if *rule == ValueRule::default() {
            return Self::bad(
                "The value of twin must only include upper or lowercase letters, number, english, \
                 and special letter - _ . , : / @ # and the length of value should be less than 512 \
                 bytes",
            );
        }
        let what = if rule.is_text {
            "be text without control characters"
        } else {
            "only include letters, digits and - _ . , : / @ #"
        };
        Self::bad(&format!(
            "The value of twin must {what}, and have at most {} bytes",
            rule.bytes_max
        ))
    }
}
