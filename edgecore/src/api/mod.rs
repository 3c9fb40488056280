//! The local API: HTTP/1 on a unix socket, for `edgecore status`. Works without a hub.

pub mod client;
mod server;
mod status;

pub use server::{ListenError, PodsQuery, Sources, listen, serve};
pub use status::{
    DeviceStatus, DiskStatus, LinkStatus, MemoryStatus, MqttStatus, PodStatus, Status, StreamStatus,
};
