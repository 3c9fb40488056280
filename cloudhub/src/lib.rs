//! The hub: a Kubernetes-compatible API for people, sessions for nodes, and the controllers
//! between them.
//!
//! ```text
//!  kubectl ──TLS──→ listen::api ──→ apiserver ⇄ store ──watch──→ downstream ──offer──┐
//!                                      ↑          ↑   └────────→ scheduler, node     ↓
//!                                  upstream    ledger ←── batch ── session ⇄ listen::ws ⇄ node
//!                                      └───────── request ────────────┘
//!  edgecore join ──→ listen::bootstrap ──→ pki::enroll
//! ```
//!
//! [`app`] puts the parts together. Everything durable is in one store; a hub has no state of its
//! own that could not be rebuilt from it.

pub mod accounts;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crds;
pub mod device_events;
pub mod device_status;
pub mod downstream;
pub mod events;
pub mod facts;
pub mod follow;
pub mod keys;
pub mod kube;
pub mod ledger;
pub mod listen;
pub mod node;
pub mod outward;
pub mod pki;
pub mod readings;
pub mod rules;
pub mod scheduler;
pub mod session;
pub mod supervise;
pub mod telemetry;
pub mod upstream;
pub mod volumes;
