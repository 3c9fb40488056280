//! Keeps the node alive when something runs short: tells the condition, gives back what nobody
//! uses, and ends the pod that can best be done without, one at a time (`pkg/kubelet/eviction`).
//!
//! Looks every ten seconds, and at once when the kernel says that tasks wait for memory. One look
//! reads three files and asks two file systems; what single pods use is counted only while
//! something is short, or for pods that have a limit.

mod local;
pub mod manager;
mod pressure_file;
mod rank;
mod signals;
mod task;
pub mod threshold;

pub(super) use task::{Active, Evictor};
