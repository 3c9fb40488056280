//! The runtime on a real containerd, a private one that each test starts.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod chaos;
mod exec;
mod images;
mod namespaces;
mod pods;
mod ports;
mod pull;
mod registries;
mod registry;
mod resources;
mod security;
mod traps;
mod volumes;
mod world;

/// Shared with the end-to-end tests, which own these files.
#[path = "../../../tests/src/containerd.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod daemon;
#[path = "../../../tests/src/ground.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod ground;
#[path = "../../../tests/src/oci.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod oci;
#[path = "../../../tests/src/wait.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod wait;
