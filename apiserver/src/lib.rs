//! A Kubernetes-compatible API server as a library, generic over where objects live.

pub mod registry;
pub mod status;
pub mod store;
