//! The three listeners: Kubernetes API, nodes' sessions, joining.

pub mod api;
pub mod bootstrap;
pub mod http;
pub mod tls;
pub mod ws;
