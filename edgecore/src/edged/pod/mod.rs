//! One pod on this node: what to do next (`state`, pure), who does it (`worker`, one task per
//! pod uid), what is told about it (`status`, pure) and how it looks to the runtime (`convert`).

pub mod convert;
pub mod env;
mod exits;
mod hooks;
mod image;
mod last_words;
mod probe;
pub mod resources;
pub mod security;
mod sources;
pub mod state;
pub mod status;
pub mod verdict;
pub(crate) mod worker;

#[cfg(test)]
mod worker_tests;
