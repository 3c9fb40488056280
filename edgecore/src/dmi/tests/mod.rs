//! The interface over its real sockets: a node's store, and mappers that speak gRPC.

mod convert;
mod faults;
mod life;
mod payloads;
mod refusals;
mod world;
