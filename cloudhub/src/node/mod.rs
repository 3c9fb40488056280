//! What the hub does about nodes by itself: conditions of those that fell silent, leases.

pub mod evict;
pub mod lease;
pub mod lifecycle;
