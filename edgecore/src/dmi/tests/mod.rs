//! The interface over its real sockets: a node's store, and mappers that speak gRPC.

mod convert;
mod faults;
mod life;
mod refusals;
mod world;
