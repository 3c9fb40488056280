//! What a pod's security settings come to on this node. Pure. Container settings go over the
//! pod's; what this node cannot give is refused in words, never given as less.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSpec, SeccompProfile};

use super::convert::ConfigError;
use super::dns::Site;
use crate::edged::runtime::{AppArmorChoice, ContainerSpec, GroupsPolicy, SeccompChoice};

/// `<this><container name>`: the older way to name an `AppArmor` profile.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What the operator decided for all pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Containers that say nothing of seccomp run without a filter, as in plain Kubernetes.
    pub unconfined_by_default: bool,
    /// Names, or prefixes with a trailing `*` (`allowedUnsafeSysctls`).
    pub unsafe_sysctls: Vec<String>,
    pub dns: Site,
}

/// The security part of a container's spec; everything else is as in the default.
///
/// # Errors
/// The pod asks for what this node does not have.
pub fn of(pod: &Pod, container: &Container, rules: &Rules) -> Result<ContainerSpec, ConfigError> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    refuse_impossible(spec, container)?;
    let shared = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.unwrap_or_default();
    let groups: BTreeSet<i64> = shared
        .supplemental_groups
        .iter()
        .flatten()
        .chain(&shared.fs_group)
        .copied()
        .collect();
    let policy = shared.supplemental_groups_policy.as_deref();
    Ok(ContainerSpec {
        privileged,
        read_only_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        run_as_user: own.run_as_user.or(shared.run_as_user),
        run_as_group: own.run_as_group.or(shared.run_as_group),
        supplemental_groups: groups.into_iter().collect(),
        groups_policy: if policy == Some("Strict") {
            GroupsPolicy::Strict
        } else {
            GroupsPolicy::Merge
        },
        seccomp: seccomp(own.seccomp_profile.or(shared.seccomp_profile), rules)?,
        apparmor: apparmor(
            pod,
            &container.name,
            own.app_armor_profile.or(shared.app_armor_profile),
        )?,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
        ..ContainerSpec::default()
    })
}

fn refuse_impossible(spec: &PodSpec, container: &Container) -> Result<(), ConfigError> {
    if spec.host_users == Some(false) {
        return Err(ConfigError(
            "user namespaces (hostUsers: false) are not supported on this node".to_owned(),
        ));
    }
    let shared = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let windows = shared.is_some_and(|context| context.windows_options.is_some())
        || own.is_some_and(|context| context.windows_options.is_some());
    if windows {
        return Err(ConfigError(
            "windowsOptions cannot be had on a Linux node".to_owned(),
        ));
    }
    Ok(())
}

fn seccomp(profile: Option<SeccompProfile>, rules: &Rules) -> Result<SeccompChoice, ConfigError> {
    let Some(profile) = profile else {
        return Ok(if rules.unconfined_by_default {
            SeccompChoice::Unconfined
        } else {
            SeccompChoice::RuntimeDefault
        });
    };
    match (profile.type_.as_str(), profile.localhost_profile) {
        ("RuntimeDefault", _) => Ok(SeccompChoice::RuntimeDefault),
        ("Unconfined", _) => Ok(SeccompChoice::Unconfined),
        ("Localhost", Some(name)) if !name.is_empty() => Ok(SeccompChoice::Localhost(name)),
        ("Localhost", _) => Err(ConfigError(
            "localhostProfile must be set if seccompProfile type is Localhost".to_owned(),
        )),
        (other, _) => Err(ConfigError(format!(
            "seccompProfile type \"{other}\" is not known"
        ))),
    }
}

fn apparmor(
    pod: &Pod,
    container: &str,
    profile: Option<AppArmorProfile>,
) -> Result<AppArmorChoice, ConfigError> {
    if let Some(profile) = profile {
        return match (profile.type_.as_str(), profile.localhost_profile) {
            ("RuntimeDefault", _) => Ok(AppArmorChoice::RuntimeDefault),
            ("Unconfined", _) => Ok(AppArmorChoice::Unconfined),
            ("Localhost", Some(name)) if !name.is_empty() => Ok(AppArmorChoice::Localhost(name)),
            (other, _) => Err(ConfigError(format!(
                "appArmorProfile of type \"{other}\" is not complete"
            ))),
        };
    }
    let annotations = pod.metadata.annotations.as_ref();
    let said = annotations.and_then(|all| all.get(&format!("{APPARMOR_ANNOTATION}{container}")));
    match said.map(String::as_str) {
        None | Some("" | "runtime/default") => Ok(AppArmorChoice::RuntimeDefault),
        Some("unconfined") => Ok(AppArmorChoice::Unconfined),
        Some(other) => match other.strip_prefix("localhost/") {
            Some(name) if !name.is_empty() => Ok(AppArmorChoice::Localhost(name.to_owned())),
            _ => Err(ConfigError(format!(
                "invalid AppArmor profile name: \"{other}\""
            ))),
        },
    }
}

/// Refuses to run as root what asked not to (`kuberuntime/security_context.go: verifyRunAsNonRoot`).
///
/// # Errors
/// With kubelet's texts.
pub fn verify_non_root(
    pod: &Pod,
    container: &Container,
    image_user: &str,
) -> Result<(), ConfigError> {
    let pod_security = pod.spec.as_ref().and_then(|s| s.security_context.clone());
    let pod_security = pod_security.unwrap_or_default();
    let security = container.security_context.clone().unwrap_or_default();
    if security.run_as_non_root.or(pod_security.run_as_non_root) != Some(true) {
        return Ok(());
    }
    match security.run_as_user.or(pod_security.run_as_user) {
        Some(0) => {
            return Err(ConfigError(
                "container's runAsUser breaks non-root policy".to_owned(),
            ));
        }
        Some(_) => return Ok(()),
        None => {}
    }
    let user = image_user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(0) => {}
        Ok(_) => return Ok(()),
        Err(_) if user.is_empty() => {}
        Err(_) => {
            return Err(ConfigError(format!(
                "container has runAsNonRoot and image has non-numeric user ({user}), \
                 cannot verify user is non-root"
            )));
        }
    }
    Err(ConfigError(
        "container has runAsNonRoot and image will run as root".to_owned(),
    ))
}

#[cfg(test)]
#[path = "security_tests.rs"]
mod tests;
