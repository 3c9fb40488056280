//! wire

pub mod topic;
pub mod twin;
