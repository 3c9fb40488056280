//! A hub with real sockets and TLS, and nodes that speak the protocol.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod absent;
mod devices;
mod faults;
mod fuzz;
mod harness;
mod load;
mod neighbours;
mod node;
mod rights;
mod rules;
mod service_bus;
mod storage;
mod telemetry;

#[path = "../../../tests/src/mangle.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod mangle;
/// Shared with the end-to-end tests, which own the file.
#[path = "../../../tests/src/wait.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod wait;
