//! Images: where they come from, how many at the same time, and which of them stay.

use std::time::Duration;

use super::ConfigError;
use super::keys::{Keys, absolute, wrong};
use super::schema::{Field, field, kubelet};
use crate::edged::image_gc::ImagePolicy;
use crate::edged::runtime::containerd::{Registries, RegistryHost};

/// Pulls at the same time unless something else is said; links at the edge are thin.
const PULLS: u32 = 2;
const PULLS_MAX: u32 = 32;

pub(super) const FIELDS: &[Field] = &[
    field(
        kubelet!("imageGCHighThresholdPercent"),
        "85",
        "unused images are removed when containerd's disk is this full; 100 never does",
    ),
    field(
        kubelet!("imageGCLowThresholdPercent"),
        "80",
        "… until it is this full",
    ),
    field(
        kubelet!("imageMaximumGCAge"),
        "\"0s\"",
        "images that nobody has used for so long are removed even while there is room; 0s: never",
    ),
    field(
        kubelet!("imageMinimumGCAge"),
        "\"2m0s\"",
        "images that came or were used more recently stay, however full the disk",
    ),
    field(
        kubelet!("maxParallelImagePulls"),
        "0",
        "images pulled at the same time; 0: 2, or 1 with serializeImagePulls",
    ),
    field(
        kubelet!("nodeStatusMaxImages"),
        "50",
        "images listed in the node's status, the largest; -1 lists all",
    ),
    field(
        kubelet!("serializeImagePulls"),
        "false",
        "true: one image after the other",
    ),
    field(
        "outpost.imageLayersMax",
        "3",
        "layers of one image pulled at the same time",
    ),
    field(
        "outpost.imageStallSeconds",
        "30",
        "a transfer that brings nothing for so long is tried again from where it stopped",
    ),
    field(
        "outpost.insecureRegistries",
        "[]",
        "registries spoken to in plain HTTP, host:port",
    ),
    field(
        "outpost.registries",
        "[]",
        "per registry: host, mirrors (asked first, in order), caFile, certFile, keyFile, skipVerify, plainHttp",
    ),
    field(
        "outpost.registryAuthFiles",
        "[\"/var/lib/edgecore/registry-auth.json\", \"/var/lib/kubelet/config.json\"]",
        "docker config.json files with the node's credentials, read at each pull; imagePullSecrets come first",
    ),
    field(
        "outpost.registryConfigDirectory",
        "\"\"",
        "containerd's certs.d (<host>/hosts.toml), for registries not listed above",
    ),
    field(
        "outpost.snapshotter",
        "\"overlayfs\"",
        "containerd's snapshotter",
    ),
];

pub(super) fn registries(keys: &Keys) -> Result<Registries, ConfigError> {
    const AUTH: &str = "outpost.registryAuthFiles";
    let auth_files: Vec<String> = keys.get(AUTH)?;
    let stall_secs: u64 = keys.get("outpost.imageStallSeconds")?;
    Ok(Registries {
        hosts: registry_hosts(keys)?,
        insecure_hosts: keys.get("outpost.insecureRegistries")?,
        config_dir: keys.optional_file("outpost.registryConfigDirectory")?,
        auth_files: auth_files
            .iter()
            .map(|path| absolute(AUTH, path))
            .collect::<Result<_, _>>()?,
        stall: Duration::from_secs(stall_secs.clamp(5, 3600)),
        ..Registries::default()
    })
}

fn registry_hosts(keys: &Keys) -> Result<Vec<RegistryHost>, ConfigError> {
    const KEY: &str = "outpost.registries";
    let hosts: Vec<RegistryHost> = keys.get(KEY)?;
    for (index, entry) in hosts.iter().enumerate() {
        let at = |reason: String| wrong(KEY, format!("entry {index}: {reason}"));
        if entry.host.is_empty() || entry.host.contains('/') {
            let host = &entry.host;
            return Err(at(format!(
                "host must be `name` or `name:port`, is `{host}`"
            )));
        }
        if entry.key_file.is_some() && entry.cert_file.is_none() {
            return Err(at("keyFile needs a certFile".to_owned()));
        }
        let files = [&entry.ca_file, &entry.cert_file, &entry.key_file];
        if let Some(path) = files.into_iter().flatten().find(|path| !path.is_absolute()) {
            return Err(at(format!("`{}` must be an absolute path", path.display())));
        }
    }
    Ok(hosts)
}

pub(super) fn layers_max(keys: &Keys) -> Result<u32, ConfigError> {
    let layers: u32 = keys.get("outpost.imageLayersMax")?;
    Ok(layers.clamp(1, 16))
}

pub(super) fn pulls_max(keys: &Keys) -> Result<u32, ConfigError> {
    const PATH: &str = kubelet!("maxParallelImagePulls");
    let asked = keys.get(PATH)?;
    let one_by_one: bool = keys.get(kubelet!("serializeImagePulls"))?;
    let reason = match (one_by_one, asked) {
        (true, 0 | 1) => return Ok(1),
        (false, 0) => return Ok(PULLS),
        (true, _) => format!("{asked} contradicts serializeImagePulls: true"),
        (false, 1..=PULLS_MAX) => return Ok(asked),
        (false, _) => format!("must be at most {PULLS_MAX}, is {asked}"),
    };
    Err(wrong(PATH, reason))
}

/// As kubelet checks it (`pkg/kubelet/images/image_gc_manager.go`, `NewImageGCManager`;
/// `pkg/kubelet/apis/config/validation`).
pub(super) fn policy(keys: &Keys) -> Result<ImagePolicy, ConfigError> {
    const HIGH: &str = kubelet!("imageGCHighThresholdPercent");
    const OLDEST: &str = kubelet!("imageMaximumGCAge");
    const YOUNGEST: &str = kubelet!("imageMinimumGCAge");
    let high: u8 = keys.get(HIGH)?;
    let low: u8 = keys.get(kubelet!("imageGCLowThresholdPercent"))?;
    if high > 100 || low > high {
        let reason =
            format!("{high} must be at most 100 and not below imageGCLowThresholdPercent, {low}");
        return Err(wrong(HIGH, reason));
    }
    let min_age = keys.duration(YOUNGEST)?;
    let max_age = Some(keys.duration(OLDEST)?).filter(|age| !age.is_zero());
    if max_age.is_some_and(|max_age| max_age <= min_age) {
        let (oldest, youngest) = (keys.text(OLDEST)?, keys.text(YOUNGEST)?);
        let reason = format!("{oldest} must be more than imageMinimumGCAge, {youngest}");
        return Err(wrong(OLDEST, reason));
    }
    let listed_max: i32 = keys.get(kubelet!("nodeStatusMaxImages"))?;
    Ok(ImagePolicy {
        high_percent: high,
        low_percent: low,
        min_age,
        max_age,
        listed_max: usize::try_from(listed_max).ok(),
    })
}
