//! Edged: pods on containerd.

mod deps;
pub mod runtime;

pub use deps::{DesiredError, DesiredState, StatusSink};
