//! A hub with real sockets and TLS, and nodes that speak the protocol.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod faults;
mod harness;
mod load;
mod node;
mod storage;
