//! The hub: a Kubernetes-compatible API for people, sessions for nodes, and the controllers
//! between them. See `app` for how the parts are put together.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod facts;
pub mod listen;
pub mod pki;
pub mod supervise;
pub mod telemetry;
