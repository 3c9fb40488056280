//! Pod networks through CNI plugins (CNI spec 1.0.0): the conflist is walked with `prevResult`,
//! what was added is cached on disk together with the configuration that added it, so that DEL
//! undoes exactly that, even after the configuration changed or we restarted.

mod builtin;
mod check;
mod config;
pub(super) mod follow;
mod plugin;
mod reservations;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::plugin::Command;
use super::NetworkWish;
use super::masquerade::Masquerade;

/// A plugin that hangs (waiting for DHCP, for the xtables lock) is given this long.
const PLUGIN_MAX: Duration = Duration::from_secs(60);
const IF_NAME: &str = "eth0";

/// Peaks are not bounded, only the mean (containerd's CRI does the same).
const BURST_BITS: u32 = u32::MAX;

/// A pod to be connected.
#[derive(Clone, Debug, Default)]
pub(super) struct Attachment {
    pub(super) pod_uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) netns: PathBuf,
    /// `(host_port, container_port, protocol, host ip or empty)`
    pub(super) port_mappings: Vec<(u16, u16, String, String)>,
    pub(super) wish: NetworkWish,
}

/// Why a network could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub(super) enum CniError {
    #[error("{0}")]
    Config(String),
    #[error("plugin `{plugin}` not found in {searched}")]
    Missing { plugin: String, searched: String },
    #[error("plugin `{plugin}`: {reason}")]
    Plugin { plugin: String, reason: String },
    #[error("network cache: {0}")]
    Cache(#[from] io::Error),
}

/// What DEL needs to know of an ADD. Written before the first plugin runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cached {
    conflist: Value,
    netns: PathBuf,
    args: String,
    runtime: Value,
    result: Option<Value>,
}

/// The plugins of this node.
#[derive(Clone, Debug)]
pub(super) struct Cni {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    state_dir: PathBuf,
    /// Addresses of the built-in network, if the operator chose them.
    pod_cidr: Option<String>,
    plugin_max: Duration,
    masquerade: Masquerade,
}

impl Cni {
    pub(super) fn new(conf_dir: PathBuf, bin_dirs: Vec<PathBuf>, state_dir: PathBuf) -> Self {
        Self {
            conf_dir,
            bin_dirs,
            state_dir,
            pod_cidr: None,
            plugin_max: PLUGIN_MAX,
            masquerade: Masquerade::default(),
        }
    }

    /// With the operator's addresses for the built-in network.
    pub(super) fn with_pod_cidr(self, pod_cidr: Option<String>) -> Self {
        Self { pod_cidr, ..self }
    }

    /// Pods that are noted as connected, or half connected.
    pub(super) fn attached(&self) -> BTreeSet<String> {
        std::fs::read_dir(self.state_dir.join("results"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_suffix(".json")?.to_owned())
            })
            .collect()
    }

    /// Frees addresses that pods of before this boot held in the site's network.
    pub(super) fn free_stale_addresses(&self) {
        let now = SystemTime::now();
        let (Ok(Some(list)), Some(boot)) =
            (config::load(&self.conf_dir), reservations::boot_time(now))
        else {
            return;
        };
        let freed = reservations::free_stale(&list, &self.attached(), boot, now);
        if !freed.is_empty() {
            tracing::info!(
                addresses = freed.len(),
                "addresses that a reboot left reserved are free again"
            );
        }
    }

    /// Whether a configuration is there (or can be made) and all its plugins are installed.
    pub(super) fn status(&self) -> Result<(), String> {
        let conflist = self.conflist().map_err(|error| error.to_string())?;
        for plugin in plugins(&conflist) {
            let ipam = plugin.pointer("/ipam/type").and_then(Value::as_str);
            for program in std::iter::once(plugin_type(plugin)).chain(ipam) {
                self.find(program).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// The operator's configuration; ours if there is none.
    fn conflist(&self) -> Result<Value, CniError> {
        match config::load(&self.conf_dir)? {
            Some(list) => Ok(list),
            None => self.builtin(),
        }
    }

    fn cache_path(&self, uid: &str) -> PathBuf {
        self.state_dir.join("results").join(format!("{uid}.json"))
    }

    fn write_cache(&self, uid: &str, cached: &Cached) -> Result<(), CniError> {
        let path = self.cache_path(uid);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let partial = path.with_extension("new");
        std::fs::write(
            &partial,
            serde_json::to_vec(cached).map_err(io::Error::from)?,
        )?;
        Ok(std::fs::rename(partial, path)?)
    }

    /// Connects the pod; its addresses.
    pub(super) async fn add(&self, attachment: &Attachment) -> Result<Vec<String>, CniError> {
        let mut cached = Cached {
            conflist: self.conflist()?,
            netns: attachment.netns.clone(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
                attachment.namespace, attachment.name, attachment.pod_uid
            ),
            runtime: runtime_config(attachment),
            result: None,
        };
        self.write_cache(&attachment.pod_uid, &cached)?;
        self.masquerade
            .ensure(&cached.conflist)
            .await
            .map_err(|reason| CniError::Plugin {
                plugin: "iptables".to_owned(),
                reason,
            })?;
        match self.walk_add(&attachment.pod_uid, &cached).await {
            Ok(result) => {
                let ips = addresses(&result);
                cached.result = Some(result);
                self.write_cache(&attachment.pod_uid, &cached)?;
                Ok(ips)
            }
            Err(error) => {
                if let Err(leftover) = self.del(&attachment.pod_uid).await {
                    tracing::warn!(error = %leftover, pod = attachment.pod_uid, "half-made network not undone");
                }
                Err(error)
            }
        }
    }

    async fn walk_add(&self, uid: &str, cached: &Cached) -> Result<Value, CniError> {
        let mut previous = None;
        for plugin in plugins(&cached.conflist).filter(|plugin| concerns(plugin, cached)) {
            let answer = self
                .run(Command::Add, uid, plugin, cached, previous.as_ref())
                .await?;
            previous = Some(answer);
        }
        previous.ok_or_else(|| CniError::Config("no plugins".to_owned()))
    }

    /// Disconnects the pod, plugins in reverse order. Nothing cached: nothing to do. Must run
    /// while the network namespace still stands: without it bridge leaves its masquerade rules.
    pub(super) async fn del(&self, uid: &str) -> Result<(), CniError> {
        let path = self.cache_path(uid);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let cached = match serde_json::from_slice::<Cached>(&bytes) {
            Err(error) => {
                tracing::warn!(%error, pod = uid, "network cache unreadable; network not undone");
                return Ok(std::fs::remove_file(path)?);
            }
            Ok(cached) => cached,
        };
        let all: Vec<&Value> = plugins(&cached.conflist)
            .filter(|plugin| concerns(plugin, &cached))
            .collect();
        for plugin in all.into_iter().rev() {
            self.run(Command::Del, uid, plugin, &cached, cached.result.as_ref())
                .await?;
        }
        std::fs::remove_file(&path)?;
        self.masquerade
            .forget_if(&cached.conflist, || !self.has_attachments())
            .await;
        Ok(())
    }

    fn has_attachments(&self) -> bool {
        std::fs::read_dir(self.state_dir.join("results"))
            .is_ok_and(|entries| entries.flatten().next().is_some())
    }
}

/// Whether a namespace is pinned at `path` (`f_type` is `NSFS_MAGIC` of `linux/magic.h`).
pub(super) fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: i128 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|stat| i128::from(stat.f_type) == NSFS_MAGIC)
}

/// Whether a plugin has anything to do for this pod. `portmap` without mappings and `bandwidth`
/// without rates hand their input on; `portmap`'s DEL executes iptables several times to find nothing.
fn concerns(plugin: &Value, cached: &Cached) -> bool {
    let asked = |name: &str| match cached.runtime.get(name) {
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(members)) => !members.is_empty(),
        _ => false,
    };
    match plugin_type(plugin) {
        "portmap" => asked("portMappings"),
        "bandwidth" => {
            let fixed = |name: &str| plugin.get(name).is_some();
            asked("bandwidth") || fixed("ingressRate") || fixed("egressRate")
        }
        _ => true,
    }
}

fn plugins(conflist: &Value) -> impl Iterator<Item = &Value> {
    conflist
        .get("plugins")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn plugin_type(plugin: &Value) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn runtime_config(attachment: &Attachment) -> Value {
    let mappings: Vec<Value> = attachment
        .port_mappings
        .iter()
        .map(|(host, container, protocol, ip)| {
            let mut mapping = json!({
                "hostPort": host, "containerPort": container, "protocol": protocol,
            });
            if !ip.is_empty() {
                mapping["hostIP"] = json!(ip);
            }
            mapping
        })
        .collect();
    let wish = &attachment.wish;
    let mut bandwidth = Map::new();
    for (direction, bits) in [("ingress", wish.ingress_bits), ("egress", wish.egress_bits)] {
        if let Some(bits) = bits {
            bandwidth.insert(format!("{direction}Rate"), json!(bits));
            bandwidth.insert(format!("{direction}Burst"), json!(BURST_BITS));
        }
    }
    json!({
        "portMappings": mappings,
        "bandwidth": bandwidth,
        "ips": wish.addresses,
        "dns": wish.dns(),
    })
}

fn addresses(result: &Value) -> Vec<String> {
    result
        .get("ips")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
#[path = "cni_tests.rs"]
mod tests;
