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

/// What the pod's files say of its time here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// It left none.
    None,
    /// It was taken.
    Taken,
    /// The node ended it.
    Ended,
    /// They cannot be read: it was taken, and may have been ended.
    Unknown,
}

pub(crate) fn past(dirs: &super::volumes::Dirs, uid: &str) -> Past {
    let Some(dir) = dirs.exits(uid) else {
        return Past::None;
    };
    match exits::recall_pod(&dir) {
        Ok(record) if record.verdict.is_some() => Past::Ended,
        Ok(_) if dir.parent().is_some_and(std::path::Path::exists) => Past::Taken,
        Ok(_) => Past::None,
        Err(_) => Past::Unknown,
    }
}

#[cfg(test)]
mod worker_tests;
