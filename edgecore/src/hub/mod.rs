//! EdgeHub: the node's one connection to the hub.
//!
//! One task ([`link::Link`]) owns the socket and the sans-IO session; everybody else holds a
//! [`HubHandle`]. Nothing here is on the way of a pod start or of a device's PUBACK: being offline
//! only means that the outbox grows and that statuses wait under their keys.

pub mod backoff;
mod connect;
mod driver;
mod events;
mod handle;
pub mod join;
mod link;
mod plain;
mod register;
pub mod rotate;
mod sink;
pub mod tls;

pub use events::keep_events;
pub use handle::{HubHandle, LinkPhase, LinkState, RequestError};
pub use link::{Link, LinkParts, Publisher};

#[cfg(test)]
mod tests;
