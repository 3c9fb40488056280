//! A Kubernetes-compatible API server as a library, generic over where objects live.

pub mod crd;
pub mod defaults;
pub mod names;
pub mod patch;
pub mod proto;
pub mod quantity;
pub mod registry;
pub mod selector;
pub mod status;
pub mod store;
pub mod strict;
pub mod table;
pub mod types;
pub mod validate;
