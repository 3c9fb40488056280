//! One pod on this node: what to do next (`state`, pure), who does it (`worker`, one task per
//! pod uid), what is told about it (`status`, pure) and how it looks to the runtime (`convert`).

pub mod convert;
pub mod dns;
pub mod env;
mod exits;
mod hooks;
mod image;
mod last_words;
pub mod network;
mod probe;
pub mod resources;
pub mod security;
mod sources;
pub mod state;
pub mod status;
pub mod sysctl;
pub mod times;
pub mod verdict;
pub(crate) mod worker;

/// Whether this node ended the pod, as was written down.
pub(crate) fn has_verdict(dirs: &super::volumes::Dirs, uid: &str) -> bool {
    let dir = dirs.exits(uid);
    dir.is_some_and(|dir| exits::recall_pod(&dir).verdict.is_some())
}

/// Whether the pod left files here, so that it was taken before.
pub(crate) fn was_here(dirs: &super::volumes::Dirs, uid: &str) -> bool {
    let dir = dirs.exits(uid);
    dir.as_deref()
        .and_then(std::path::Path::parent)
        .is_some_and(std::path::Path::exists)
}

#[cfg(test)]
mod worker_tests;
