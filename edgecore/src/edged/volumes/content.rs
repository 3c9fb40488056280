//! What is in the volumes that are made of files.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection,
    VolumeProjection,
};

use super::atomic::{File, Payload};
use super::{fs_group, fs_user};
use crate::edged::pod::convert::{self, ConfigError};
use crate::edged::pod::env::{self, Facts, Sources};

/// Why the content cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Something is not there (yet).
    Missing(String),
    /// The pod asks for what cannot be.
    Bad(String),
}

impl Problem {
    fn text(&self) -> &str {
        match self {
            Self::Missing(text) | Self::Bad(text) => text,
        }
    }

    /// All of them in one, as Go's aggregated errors are printed.
    fn join(problems: Vec<Self>) -> Option<Self> {
        match problems.as_slice() {
            [] | [_] => problems.into_iter().next(),
            _ => {
                let texts: Vec<&str> = problems.iter().map(Self::text).collect();
                let text = format!("[{}]", texts.join(", "));
                let all_bad = problems.iter().all(|p| matches!(p, Self::Bad(_)));
                Some(if all_bad {
                    Self::Bad(text)
                } else {
                    Self::Missing(text)
                })
            }
        }
    }
}

/// The object that files are picked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    ConfigMap,
    Secret,
}

/// Which keys of which object become which files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'p> {
    pub(super) source: Source,
    pub(super) name: &'p str,
    pub(super) items: Option<&'p [KeyToPath]>,
    pub(super) mode: u32,
    pub(super) is_optional: bool,
}

/// `defaultMode` and `mode`.
pub(super) fn mode_of(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok())
        .map_or(0o644, |m| m & 0o777)
}

/// A path inside a volume, refused if it could leave it or hide what swaps the content.
fn inside(path: &str) -> Result<PathBuf, Problem> {
    let bad = |why: &str| Problem::Bad(format!("invalid path {path}: {why}"));
    let parsed = PathBuf::from(path);
    if parsed.as_os_str().is_empty() || parsed.is_absolute() {
        return Err(bad("must be a relative path"));
    }
    let mut plain = PathBuf::new();
    for component in parsed.components() {
        match component {
            Component::Normal(part) if plain.as_os_str().is_empty() => {
                if part.as_encoded_bytes().starts_with(b"..") {
                    return Err(bad("must not start with '..'"));
                }
                plain.push(part);
            }
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(bad("must not contain '..'"));
            }
        }
    }
    if plain.as_os_str().is_empty() {
        return Err(bad("must name a file"));
    }
    Ok(plain)
}

impl Wish<'_> {
    /// Picks the items, or everything.
    pub(super) fn files(&self, sources: &Sources) -> Result<Payload, Problem> {
        let Some(data) = self.data(sources) else {
            let kind = match self.source {
                Source::ConfigMap => "configmap",
                Source::Secret => "secret",
            };
            return if self.is_optional {
                Ok(Payload::new())
            } else {
                Err(Problem::Missing(format!(
                    "{kind} \"{}\" not found",
                    self.name
                )))
            };
        };
        let file = |content: Vec<u8>, mode| File {
            content,
            mode,
            user: None,
        };
        let mut payload = Payload::new();
        let Some(items) = self.items.filter(|items| !items.is_empty()) else {
            for (key, content) in data {
                payload.insert(inside(&key)?, file(content, self.mode));
            }
            return Ok(payload);
        };
        for item in items {
            let mode = item.mode.map_or(self.mode, |m| mode_of(Some(m)));
            match data.get(&item.key) {
                Some(content) => {
                    payload.insert(inside(&item.path)?, file(content.clone(), mode));
                }
                None if self.is_optional => {}
                None => {
                    // Word for word (`configmap.go`, `secret.go`: MakePayload).
                    let key = &item.key;
                    return Err(Problem::Missing(match self.source {
                        Source::ConfigMap => {
                            format!("configmap references non-existent config key: {key}")
                        }
                        Source::Secret => format!("references non-existent secret key: {key}"),
                    }));
                }
            }
        }
        Ok(payload)
    }

    fn data(&self, sources: &Sources) -> Option<BTreeMap<String, Vec<u8>>> {
        match self.source {
            Source::ConfigMap => {
                let map = sources.configmaps.get(self.name)?.as_ref()?;
                let text = map.data.iter().flatten();
                let text = text.map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                let binary = map.binary_data.iter().flatten();
                let binary = binary.map(|(k, v)| (k.clone(), v.0.clone()));
                Some(text.chain(binary).collect())
            }
            Source::Secret => {
                let secret = sources.secrets.get(self.name)?.as_ref()?;
                let data = secret.data.iter().flatten();
                Some(data.map(|(k, v)| (k.clone(), v.0.clone())).collect())
            }
        }
    }
}

pub(super) fn downward_files(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: u32,
    facts: &Facts,
) -> Result<Payload, Problem> {
    let mut payload = Payload::new();
    let mut problems = Vec::new();
    for item in items.into_iter().flatten() {
        match downward_file(pod, item, mode, facts) {
            Ok((path, file)) => {
                payload.insert(path, file);
            }
            Err(problem) => problems.push(problem),
        }
    }
    Problem::join(problems).map_or(Ok(payload), Err)
}

fn downward_file(
    pod: &Pod,
    item: &DownwardAPIVolumeFile,
    mode: u32,
    facts: &Facts,
) -> Result<(PathBuf, File), Problem> {
    let content = if let Some(field) = &item.field_ref {
        env::field(pod, field, facts)
    } else if let Some(selector) = &item.resource_field_ref {
        let name = selector.container_name.as_deref().unwrap_or_default();
        let container = convert::container(pod, name)
            .ok_or_else(|| Problem::Bad(format!("container {name} not found")))?;
        env::resource(container, selector, facts)
    } else {
        Err(ConfigError(
            "neither fieldRef nor resourceFieldRef".to_owned(),
        ))
    };
    let content = content.map_err(|error| Problem::Bad(error.to_string()))?;
    let file = File {
        content: content.into_bytes(),
        mode: item.mode.map_or(mode, |m| mode_of(Some(m))),
        user: None,
    };
    Ok((inside(&item.path)?, file))
}

/// All sources in one directory; a later one wins over an earlier one. Everything that is wrong is
/// told at once.
pub(super) fn projected_files(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    sources: &Sources,
    facts: &Facts,
) -> Result<Payload, Problem> {
    let mode = mode_of(source.default_mode);
    let mut payload = Payload::new();
    let mut problems = Vec::new();
    for part in source.sources.iter().flatten() {
        match projected_part(pod, part, mode, sources, facts) {
            Ok(files) => payload.extend(files),
            Err(problem) => problems.push(problem),
        }
    }
    Problem::join(problems).map_or(Ok(payload), Err)
}

fn projected_part(
    pod: &Pod,
    part: &VolumeProjection,
    mode: u32,
    sources: &Sources,
    facts: &Facts,
) -> Result<Payload, Problem> {
    if let Some(map) = &part.config_map {
        let wish = Wish {
            source: Source::ConfigMap,
            name: &map.name,
            items: map.items.as_deref(),
            mode,
            is_optional: map.optional == Some(true),
        };
        return wish.files(sources);
    }
    if let Some(secret) = &part.secret {
        let wish = Wish {
            source: Source::Secret,
            name: &secret.name,
            items: secret.items.as_deref(),
            mode,
            is_optional: secret.optional == Some(true),
        };
        return wish.files(sources);
    }
    if let Some(downward) = &part.downward_api {
        return downward_files(pod, downward.items.as_deref(), mode, facts);
    }
    if let Some(source) = &part.service_account_token {
        return token_file(pod, source, mode, sources);
    }
    let kind = if part.cluster_trust_bundle.is_some() {
        "clusterTrustBundle"
    } else {
        "unknown"
    };
    Err(Problem::Bad(format!(
        "projected source {kind} is not supported on this node"
    )))
}

/// Readable by the pod's user or group alone where there is one
/// (`pkg/volume/projected: collectData`).
fn token_file(
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    mode: u32,
    sources: &Sources,
) -> Result<Payload, Problem> {
    let found = sources.tokens.get(&env::token_wish(pod, source));
    let token = match found {
        Some(Ok(token)) => token,
        Some(Err(why)) => return Err(Problem::Missing(format!("failed to fetch token: {why}"))),
        None => {
            return Err(Problem::Missing(
                "failed to fetch token: not asked for".to_owned(),
            ));
        }
    };
    let user = fs_user(pod);
    let is_private = user.is_some() || fs_group(pod).is_some();
    let file = File {
        content: token.token.clone().into_bytes(),
        mode: if is_private { 0o600 } else { mode },
        user,
    };
    Ok([(inside(&source.path)?, file)].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, want) in [
            ("a", Some("a")),
            ("a/b.conf", Some("a/b.conf")),
            ("./a", Some("a")),
            ("a/..b", Some("a/..b")),
            ("..a", None),
            ("..data", None),
            ("../a", None),
            ("a/../../b", None),
            ("/a", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(inside(path).ok(), want.map(PathBuf::from), "`{path}`");
        }
    }

    #[test]
    fn problems_are_told_together() {
        let missing = |t: &str| Problem::Missing(t.to_owned());
        let bad = |t: &str| Problem::Bad(t.to_owned());
        assert_eq!(Problem::join(vec![]), None);
        assert_eq!(Problem::join(vec![bad("x")]), Some(bad("x")));
        let both = Problem::join(vec![bad("x"), missing("y")]);
        assert_eq!(both, Some(missing("[x, y]")));
        assert_eq!(Problem::join(vec![bad("x"), bad("y")]), Some(bad("[x, y]")));
    }
}
