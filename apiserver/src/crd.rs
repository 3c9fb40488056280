//! The structural schema of a custom resource: pruning, defaulting, validation. No CEL.

mod compile;
mod run;

pub use compile::{Schema, SchemaError};

#[cfg(test)]
#[path = "crd/tests.rs"]
mod tests;
