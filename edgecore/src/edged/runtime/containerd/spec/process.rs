//! The `process` object: command, environment, identity, rights.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::identity::Identity;
use super::{HostFacts, ImageDefaults, PodPaths, SpecError};
use crate::edged::runtime::{AppArmorChoice, ContainerSpec};

/// Profiles that do for `RuntimeDefault`, if somebody loaded one; none is loaded by us.
const DEFAULT_APPARMOR: [&str; 3] = [
    "outpost-default",
    "cri-containerd.apparmor.d",
    "docker-default",
];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(
    container: &ContainerSpec,
    image: &ImageDefaults,
    identity: &Identity,
    capabilities: &[&str],
    paths: &PodPaths,
    host: &HostFacts,
) -> Result<Value, SpecError> {
    let mut process = json!({
        "terminal": container.tty,
        "user": {
            "uid": identity.uid,
            "gid": identity.gid,
            "additionalGids": identity.groups,
        },
        "args": arguments(container, image)?,
        "env": environment(container, image, identity, paths),
        "cwd": working_dir(container, image)?,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": container.no_new_privileges,
    });
    if let Some(profile) = apparmor(container, host)? {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some(asked) = container.resources.oom_score_adj {
        let allowed = host.oom_score_adj_min.map_or(asked, |min| asked.max(min));
        process["oomScoreAdj"] = json!(allowed.clamp(-1000, 1000));
    }
    Ok(process)
}

/// Kubernetes' table of command and args over entrypoint and cmd.
pub(super) fn arguments(
    container: &ContainerSpec,
    image: &ImageDefaults,
) -> Result<Vec<String>, SpecError> {
    let (head, tail) = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &container.args),
        (false, _) => (&container.command, &container.args),
    };
    let arguments: Vec<String> = head.iter().chain(tail).cloned().collect();
    if arguments.is_empty() {
        return Err(SpecError::NoCommand);
    }
    Ok(arguments)
}

fn working_dir(container: &ContainerSpec, image: &ImageDefaults) -> Result<String, SpecError> {
    let asked = container
        .working_dir
        .as_deref()
        .filter(|dir| !dir.is_empty());
    let dir = asked.unwrap_or(&image.working_dir);
    match dir {
        "" => Ok("/".to_owned()),
        dir if dir.starts_with('/') => Ok(dir.to_owned()),
        dir => Err(SpecError::RelativePath(dir.to_owned())),
    }
}

/// Image first, pod over it; each name once, at its first place.
fn environment(
    container: &ContainerSpec,
    image: &ImageDefaults,
    identity: &Identity,
    paths: &PodPaths,
) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        if values.insert(name.to_owned(), value.to_owned()).is_none() {
            names.push(name.to_owned());
        }
    };
    if let Some((name, value)) = DEFAULT_PATH.split_once('=') {
        set(name, value);
    }
    if !paths.hostname.is_empty() {
        set("HOSTNAME", &paths.hostname);
    }
    if container.tty {
        set("TERM", "xterm");
    }
    set("HOME", &identity.home);
    for pair in &image.env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        set(name, value);
    }
    for (name, value) in &container.env {
        set(name, value);
    }
    names
        .into_iter()
        .map(|name| {
            let value = values.get(&name).map_or("", String::as_str);
            format!("{name}={value}")
        })
        .collect()
}

/// The `AppArmor` profile to run under. Without `AppArmor` on the host only a profile that was asked for
/// by name is a reason to refuse (kubelet `pkg/security/apparmor/validate.go`).
fn apparmor(container: &ContainerSpec, host: &HostFacts) -> Result<Option<String>, SpecError> {
    let refused = |profile: &str, reason: &str| SpecError::AppArmor {
        profile: profile.to_owned(),
        reason: reason.to_owned(),
    };
    let loaded = |name: &str| host.apparmor_profiles.iter().flatten().any(|p| p == name);
    match &container.apparmor {
        AppArmorChoice::Localhost(name) if host.apparmor_profiles.is_none() => {
            Err(refused(name, "AppArmor is not enabled on this node"))
        }
        AppArmorChoice::Localhost(name) if !loaded(name) => {
            Err(refused(name, "it is not loaded on this node"))
        }
        AppArmorChoice::Localhost(name) => Ok(Some(name.clone())),
        AppArmorChoice::RuntimeDefault if !container.privileged => Ok(DEFAULT_APPARMOR
            .into_iter()
            .find(|name| loaded(name))
            .map(str::to_owned)),
        AppArmorChoice::RuntimeDefault | AppArmorChoice::Unconfined => Ok(None),
    }
}
