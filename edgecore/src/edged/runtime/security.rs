//! What a pod's `securityContext` asks of the runtime, beyond plain flags and numbers.

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SeccompChoice {
    /// The built-in profile.
    #[default]
    RuntimeDefault,
    /// A file below the node's directory of profiles.
    Localhost(String),
    Unconfined,
}

/// Which `AppArmor` profile a container runs under, where the host has `AppArmor`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AppArmorChoice {
    #[default]
    RuntimeDefault,
    /// A profile that is loaded on the host.
    Localhost(String),
    Unconfined,
}

/// Where supplementary groups come from (`PodSecurityContext.supplementalGroupsPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// What the image's `/etc/group` says of the user, and what the pod says.
    #[default]
    Merge,
    /// Only what the pod says.
    Strict,
}
