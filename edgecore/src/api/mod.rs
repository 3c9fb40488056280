//! The local API: HTTP/1 on a unix socket that root alone may open, for the commands on the node.
//! Works without a hub. Sessions (`exec`, `attach`) are carried on the same socket after an
//! upgrade.

pub mod client;
mod devices;
pub mod frames;
mod server;
pub mod sessions;
mod stats;
mod status;
pub mod target;

pub use server::{ListenError, PodsQuery, Sources, listen, serve};
pub use stats::NodeStats;
pub use status::{
    DeviceStatus, DiskStatus, LinkStatus, MapperStatus, MemoryStatus, MqttStatus, Status,
};
