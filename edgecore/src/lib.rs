//! The Outpost node daemon: everything `main.rs` wires together, as a library so that the
//! simulation and the end-to-end tests drive the shipped code.
//!
//! Read [`ARCHITECTURE.md`](../../ARCHITECTURE.md) first: it has the two ways through the system.

pub mod api;
pub mod app;
pub mod bus;
pub mod check;
pub mod clock;
pub mod config;
pub mod console;
pub mod dmi;
pub mod document;
pub mod edged;
pub mod files;
pub mod heap;
pub mod hub;
pub mod images;
pub mod meta;
pub mod outbox;
pub mod servicebus;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod twin;
pub mod unverified_tls;
