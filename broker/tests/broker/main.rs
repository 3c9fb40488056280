//! The broker against real clients and raw bytes.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops where it fails"
)]

mod clients;
mod durability;
mod frames;
mod guards;
mod protocol;
mod support;
