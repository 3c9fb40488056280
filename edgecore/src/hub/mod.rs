//! EdgeHub: the node's one connection to the hub.

pub mod backoff;
pub mod join;
pub mod tls;
