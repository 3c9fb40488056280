//! Images as the trait speaks of them.

use std::collections::BTreeSet;
use std::time::Duration;

/// An image that is present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Full name, e.g. `docker.io/library/busybox:1`.
    pub reference: String,
    /// `sha256:…` of the manifest or index the name stands for.
    pub digest: String,
    /// Image config's `User`; empty is root.
    pub user: String,
    /// Compressed content.
    pub size_bytes: u64,
    /// Label `outpost.dev/pinned`: never collected.
    pub pinned: bool,
}

/// Credentials for one registry, as an entry of docker's `config.json` has them.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    /// OAuth refresh token, exchanged at the token server; beats the password.
    pub identity_token: String,
    /// Bearer token sent as it is; beats both.
    pub registry_token: String,
}

/// Credentials are shown to nobody, not even to a debugger's log.
impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").finish_non_exhaustive()
    }
}

/// How far a pull is. Both are zero until the manifest is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// Hears of progress; called often, and from the pull itself: it must return at once.
pub type OnProgress = Box<dyn Fn(PullProgress) + Send + Sync>;

/// What a pull is given besides the reference.
#[derive(Default)]
pub struct PullOptions {
    /// Credentials to try, in this order; the node's own come after them.
    pub auths: Vec<RegistryAuth>,
    pub progress: Option<OnProgress>,
}

/// What may be removed to free disk space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaim {
    /// References, as written in pods, that must stay although no container uses them.
    pub keep: BTreeSet<String>,
    /// Images that came, or were last used, less than this long ago stay.
    pub min_age: Duration,
    /// Stop once so much is free again; `None` removes everything unused.
    pub bytes: Option<u64>,
}

/// A filesystem's size and what unprivileged writers may still take of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsUsage {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
}
