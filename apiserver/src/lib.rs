//! A Kubernetes-compatible API server as a library, generic over where objects live.
//!
//! - [`store`]: keys with one revision; SQLite and memory.
//! - [`Api`]: the API for callers in the same process.
//! - [`http`]: the API for everybody else; mount [`http::Service`] on a listener that knows who
//!   its clients are ([`authn::User`] as request extension).
//!
//! It does not authenticate, schedule or run anything.

mod advice;
pub mod api;
pub mod authn;
pub mod crd;
pub mod defaults;
mod discovery;
mod engines;
pub mod http;
pub mod names;
mod openapi;
pub mod patch;
pub mod pipeline;
pub mod proto;
pub mod registry;
pub mod selector;
pub mod status;
pub mod store;
pub mod strict;
pub mod table;
pub mod types;
pub mod validate;

pub use api::{Api, Options};
pub use pipeline::{
    DeleteOptions, Deleted, FieldValidation, List, ListOptions, ObjectWatch, Patch, PatchKind,
    WatchEvent, WatchOptions, WriteOptions, Written,
};
pub use registry::Gvr;
pub use status::{ApiError, Reason};
