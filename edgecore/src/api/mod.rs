//! The local API: HTTP/1 on a unix socket, for `edgecore status`. Works without a hub.

pub mod client;
mod status;

pub use status::{
    DeviceStatus, DiskStatus, LinkStatus, MemoryStatus, PodStatus, Status, StreamStatus,
};
