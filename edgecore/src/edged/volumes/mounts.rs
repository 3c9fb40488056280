//! What is bound into one container (`kubelet_pods.go: makeMounts`).

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use tracing::debug;

use super::{Prepared, is_plain_name, mountinfo, subpath};
use crate::edged::pod::convert::ConfigError;
use crate::edged::pod::env;
use crate::edged::runtime::Mount;

/// What is bound into one container. Binds sub-paths, so it is repeated for every start.
///
/// # Errors
/// A mount that names no volume, a sub-path that would leave its volume, or a wish that this node
/// cannot fulfil; the texts are kubelet's where it has one.
pub fn mounts(
    container: &Container,
    prepared: &Prepared,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(one(container, index, mount, prepared, env)?);
    }
    for (target, source) in &prepared.files {
        if !mounts.iter().any(|mount| mount.target == *target) {
            mounts.push(Mount {
                source: source.clone(),
                target: target.clone(),
                ..Mount::default()
            });
        }
    }
    // Parents before what is mounted inside them.
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

fn one(
    container: &Container,
    index: usize,
    mount: &VolumeMount,
    prepared: &Prepared,
    env: &BTreeMap<String, String>,
) -> Result<Mount, ConfigError> {
    let name = &mount.name;
    let Some(volume) = prepared.volumes.get(name) else {
        return Err(ConfigError(format!(
            "cannot find volume \"{name}\" to mount into container \"{}\"",
            container.name
        )));
    };
    let source = match sub_path(mount, env)? {
        None => volume.path.clone(),
        Some(path) => {
            if !is_plain_name(&container.name) {
                return Err(ConfigError(
                    "the container's name is no file name".to_owned(),
                ));
            }
            let target = prepared
                .subpaths
                .join(name)
                .join(&container.name)
                .join(index.to_string());
            bind_sub_path(&volume.path, &path, &target).map_err(|error| {
                // kubelet hides why; an operator at the edge has no log of it to look into.
                let cause = std::error::Error::source(&error).map(|s| format!(": {s}"));
                ConfigError(format!(
                    "failed to prepare subPath for volumeMount \"{name}\" of container \"{}\": \
                     {error}{}",
                    container.name,
                    cause.unwrap_or_default()
                ))
            })?
        }
    };
    let propagation = propagation(mount, &source)?;
    let read_only = mount.read_only == Some(true) || volume.read_only;
    Ok(Mount {
        target: Path::new("/").join(&mount.mount_path),
        recursive_read_only: recursive_read_only(mount, *RECURSIVE_READ_ONLY)?,
        read_only,
        propagation,
        source,
    })
}

/// The path inside the volume, with its variables.
fn sub_path(
    mount: &VolumeMount,
    env: &BTreeMap<String, String>,
) -> Result<Option<PathBuf>, ConfigError> {
    let text = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(template)) if !template.is_empty() => env::expand_known(template, env)
            .map_err(|missing| ConfigError(format!("missing value for \"{missing}\"")))?,
        _ => return Ok(None),
    };
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        return Err(ConfigError(format!(
            "error SubPath `{text}` must not be an absolute path"
        )));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(ConfigError(format!(
            "unable to provision SubPath `{text}`: must not contain '..'"
        )));
    }
    Ok(Some(path))
}

fn bind_sub_path(
    root: &Path,
    path: &Path,
    target: &Path,
) -> Result<PathBuf, subpath::SubPathError> {
    let found = subpath::open_inside(root, path)?;
    subpath::bind(&found, target)?;
    Ok(target.to_owned())
}

/// The mount option, refused where the host's mount could not carry it
/// (containerd `pkg/cri/opts/spec_linux_opts.go: ensureShared`).
fn propagation(mount: &VolumeMount, source: &Path) -> Result<String, ConfigError> {
    let (option, needs_shared) = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => ("rslave", false),
        Some("Bidirectional") => ("rshared", true),
        _ => return Ok(String::new()),
    };
    let real = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    let table = mountinfo::read()
        .map_err(|error| ConfigError(format!("cannot read the table of mounts: {error}")))?;
    let Some(host) = mountinfo::containing(&table, &real) else {
        return Ok(option.to_owned());
    };
    if needs_shared && !host.is_shared {
        return Err(ConfigError(format!(
            "path \"{}\" is mounted on \"{}\" but it is not a shared mount",
            source.display(),
            host.path.display()
        )));
    }
    if !host.is_shared && !host.is_slave {
        // Nothing will ever arrive, and nothing breaks: a host without systemd has no shared root.
        debug!(path = %source.display(), "mounts of the host do not reach this volume: its mount is private");
    }
    Ok(option.to_owned())
}

/// Mounts below the volume are read-only too: since Linux 5.12 (`mount_setattr`).
static RECURSIVE_READ_ONLY: LazyLock<bool> = LazyLock::new(|| {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 12)
});

/// `recursiveReadOnly` (`kubelet_pods.go: resolveRecursiveReadOnly`).
fn recursive_read_only(mount: &VolumeMount, is_supported: bool) -> Result<bool, ConfigError> {
    let name = &mount.name;
    let is_required = match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => return Ok(false),
        Some("IfPossible") => false,
        Some("Enabled") => true,
        Some(other) => {
            return Err(ConfigError(format!(
                "unknown recursive read-only mode {other}"
            )));
        }
    };
    if mount.read_only != Some(true) {
        return Err(ConfigError(format!(
            "volume \"{name}\" requested recursive read-only mount, but it is not read-only"
        )));
    }
    if !matches!(mount.mount_propagation.as_deref(), None | Some("" | "None")) {
        return Err(ConfigError(format!(
            "volume \"{name}\" requested recursive read-only mount, but it is not compatible with \
             propagation"
        )));
    }
    if is_required && !is_supported {
        return Err(ConfigError(format!(
            "volume \"{name}\" requested recursive read-only mount, but it is not supported by \
             the runtime"
        )));
    }
    Ok(is_supported)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn recursive_read_only_as_kubelet_resolves_it() {
        for (mode, read_only, propagation, supported, want) in [
            (json!(null), true, "None", true, Some(false)),
            (json!("Disabled"), true, "None", true, Some(false)),
            (json!("IfPossible"), true, "None", true, Some(true)),
            (json!("IfPossible"), true, "None", false, Some(false)),
            (json!("Enabled"), true, "None", true, Some(true)),
            (json!("Enabled"), true, "None", false, None),
            (json!("Enabled"), false, "None", true, None),
            (json!("IfPossible"), true, "HostToContainer", true, None),
            (json!("Sometimes"), true, "None", true, None),
        ] {
            let mount: VolumeMount = serde_json::from_value(json!({
                "name": "v", "mountPath": "/m", "readOnly": read_only,
                "recursiveReadOnly": mode, "mountPropagation": propagation,
            }))
            .unwrap();
            assert_eq!(
                recursive_read_only(&mount, supported).ok(),
                want,
                "{mode} {read_only} {propagation} {supported}"
            );
        }
    }

    #[test]
    fn sub_path_texts() {
        let env: BTreeMap<String, String> = [("N".to_owned(), "n".to_owned())].into();
        for (member, text, want) in [
            ("subPath", "a/b", Ok(Some("a/b"))),
            ("subPath", "", Ok(None)),
            ("subPath", "$(N)", Ok(Some("$(N)"))),
            ("subPathExpr", "x-$(N)", Ok(Some("x-n"))),
            ("subPathExpr", "$$(N)", Ok(Some("$(N)"))),
            ("subPathExpr", "$(NO)", Err("missing value for \"NO\"")),
            (
                "subPath",
                "/etc",
                Err("error SubPath `/etc` must not be an absolute path"),
            ),
            (
                "subPath",
                "a/../b",
                Err("unable to provision SubPath `a/../b`: must not contain '..'"),
            ),
        ] {
            let mount = json!({"name": "v", "mountPath": "/m", member: text});
            let mount: VolumeMount = serde_json::from_value(mount).unwrap();
            let found = sub_path(&mount, &env);
            let want = want
                .map(|path| path.map(PathBuf::from))
                .map_err(|text: &str| ConfigError(text.to_owned()));
            assert_eq!(found, want, "{member}: {text}");
        }
    }
}
