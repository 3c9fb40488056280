//! DeviceTwin: the device-twin library applied inside the store's transaction.

/// A message for local MQTT clients, published after the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPublish {
    pub topic: String,
    pub payload: Vec<u8>,
}
