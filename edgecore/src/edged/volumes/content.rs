//! Volumes made of files: what is in them, and how it is swapped in one step.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource};

use super::{VolumeError, io_error, make_dir, own_by_group};
use crate::edged::pod::convert::{self, ConfigError};
use crate::edged::pod::env::{self, Facts, Sources};

/// Files of one volume: path inside it, content and mode.
pub(super) type Payload = BTreeMap<PathBuf, (Vec<u8>, u32)>;

pub(super) enum Problem {
    Missing(String),
    Bad(String),
}

pub(super) fn mode_of(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok())
        .map_or(0o644, |m| m & 0o777)
}

/// A path inside a volume, refused if it could leave it.
fn inside(path: &str) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(path);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if path.as_os_str().is_empty() || !plain || path.starts_with("..data") {
        return Err(Problem::Bad(format!(
            "`{}` is not a path inside the volume",
            path.display()
        )));
    }
    Ok(path)
}

/// Picks `items` (or everything) out of an object's keys.
fn pick(
    kind: &str,
    name: &str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, Problem> {
    let mut payload = Payload::new();
    let Some(items) = items else {
        for (key, content) in data {
            payload.insert(inside(key)?, (content.clone(), mode));
        }
        return Ok(payload);
    };
    for item in items {
        let mode = item.mode.map_or(mode, |m| mode_of(Some(m)));
        match data.get(&item.key) {
            Some(content) => {
                payload.insert(inside(&item.path)?, (content.clone(), mode));
            }
            None if optional => {}
            None => {
                let key = &item.key;
                return Err(Problem::Missing(format!(
                    "{kind} \"{name}\" references non-existent key: {key}"
                )));
            }
        }
    }
    Ok(payload)
}

pub(super) fn configmap_files(
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, Problem> {
    let Some(map) = sources.configmaps.get(name).and_then(Option::as_ref) else {
        if optional {
            return Ok(Payload::new());
        }
        return Err(Problem::Missing(format!("configmap \"{name}\" not found")));
    };
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    pick(
        "configmap",
        name,
        &text.chain(binary).collect(),
        items,
        mode,
        optional,
    )
}

pub(super) fn secret_files(
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, Problem> {
    let Some(secret) = sources.secrets.get(name).and_then(Option::as_ref) else {
        if optional {
            return Ok(Payload::new());
        }
        return Err(Problem::Missing(format!("secret \"{name}\" not found")));
    };
    let data = secret
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    pick("secret", name, &data.collect(), items, mode, optional)
}

pub(super) fn downward_files(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: u32,
    facts: &Facts,
) -> Result<Payload, Problem> {
    let mut payload = Payload::new();
    for item in items.into_iter().flatten() {
        let content = if let Some(field) = &item.field_ref {
            env::field(pod, field, facts)
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let container = convert::container(pod, name)
                .ok_or_else(|| Problem::Bad(format!("container \"{name}\" not found")))?;
            env::resource(container, selector, facts)
        } else {
            Err(ConfigError(
                "neither fieldRef nor resourceFieldRef".to_owned(),
            ))
        };
        let content = content.map_err(|error| Problem::Bad(error.to_string()))?;
        let mode = item.mode.map_or(mode, |m| mode_of(Some(m)));
        payload.insert(inside(&item.path)?, (content.into_bytes(), mode));
    }
    Ok(payload)
}

pub(super) fn projected_files(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    sources: &Sources,
    facts: &Facts,
) -> Result<Payload, Problem> {
    let mode = mode_of(source.default_mode);
    let mut payload = Payload::new();
    for part in source.sources.iter().flatten() {
        if let Some(map) = &part.config_map {
            let optional = map.optional == Some(true);
            payload.extend(configmap_files(
                sources,
                &map.name,
                map.items.as_deref(),
                mode,
                optional,
            )?);
        } else if let Some(secret) = &part.secret {
            let optional = secret.optional == Some(true);
            payload.extend(secret_files(
                sources,
                &secret.name,
                secret.items.as_deref(),
                mode,
                optional,
            )?);
        } else if let Some(downward) = &part.downward_api {
            payload.extend(downward_files(pod, downward.items.as_deref(), mode, facts)?);
        } else {
            return Err(Problem::Bad(
                "this projected source is not supported on this node".to_owned(),
            ));
        }
    }
    Ok(payload)
}

/// Replaces the content of a volume in one step, or leaves it if it is the same.
pub(super) fn write_atomically(
    name: &str,
    dir: &Path,
    payload: &Payload,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let link = dir.join("..data");
    if link.exists() && is_same(&link, payload, group) {
        return Ok(());
    }
    if !dir.exists() {
        make_dir(name, dir, 0o755)?;
    }
    let fresh_name = format!("..{:016x}", rand::random::<u64>());
    let fresh = dir.join(&fresh_name);
    make_dir(name, &fresh, 0o755)?;
    for (path, (content, mode)) in payload {
        let file = fresh.join(path);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent).map_err(io_error(name, "create", parent))?;
        }
        std::fs::write(&file, content)
            .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(*mode)))
            .and_then(|()| own_by_group(&file, group, false))
            .map_err(io_error(name, "write", &file))?;
    }
    let swap = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&swap);
    symlink(&fresh_name, &swap)
        .and_then(|()| std::fs::rename(&swap, &link))
        .map_err(io_error(name, "swap", &link))?;
    // First what is new becomes visible, then what is gone disappears (kubelet's order).
    let tops: BTreeSet<&std::ffi::OsStr> = payload
        .keys()
        .filter_map(|path| Some(path.components().next()?.as_os_str()))
        .collect();
    for top in &tops {
        let visible = dir.join(top);
        if std::fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new("..data").join(top), &visible)
                .map_err(io_error(name, "link", &visible))?;
        }
    }
    let entries = std::fs::read_dir(dir).map_err(io_error(name, "list", dir))?;
    for entry in entries.flatten() {
        let file = entry.file_name();
        if file == "..data" || file == fresh_name.as_str() || tops.contains(file.as_os_str()) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        let removed = if is_dir {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(io_error(name, "remove", &path))?;
    }
    Ok(())
}

/// Whether exactly this payload is there. A file torn by a power cut is not the same.
fn is_same(link: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = 0;
    let mut stack = vec![link.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => stack.push(entry.path()),
                Ok(_) => found += 1,
                Err(_) => return false,
            }
        }
    }
    found == payload.len()
        && payload.iter().all(|(path, (content, mode))| {
            let file = link.join(path);
            let mode = if group.is_some() { mode | 0o040 } else { *mode };
            std::fs::metadata(&file).is_ok_and(|m| m.permissions().mode() & 0o777 == mode)
                && std::fs::read(&file).is_ok_and(|bytes| bytes == *content)
        })
}
