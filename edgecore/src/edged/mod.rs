//! Edged: pods on containerd.

pub mod runtime;
