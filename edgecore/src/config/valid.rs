//! The configuration as checked: what the rest of the daemon is given.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ConfigError;
use super::mqtt::{self, MqttConfig};
use super::raw::{self, Raw, StreamRule};
use super::resources::NodeResources;
use super::service_bus::service_bus;
use super::upkeep;
use crate::dmi::{Admission, DmiConfig, Pace};
use crate::edged::image_gc::ImagePolicy;
use crate::edged::runtime::containerd::Registries;
use crate::outbox::{Policy, PolicyError, RULES_MAX, Rule};
use crate::servicebus::ServiceBusConfig;
use crate::twin::HistoryBounds;

/// Several of the largest messages a device can send.
const OUTBOX_BYTES_MIN: u64 = 1 << 20;

/// Everything the daemon needs to know at start.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ip: Option<IpAddr>,
    pub node_labels: BTreeMap<String, String>,
    pub register_schedulable: bool,
    /// The database file; its directory is [`Config::data_dir`].
    pub database: PathBuf,
    pub run_dir: PathBuf,
    /// `None`: this node works alone.
    pub hub: Option<HubConfig>,
    /// `None`: no pods on this node.
    pub runtime: Option<RuntimeConfig>,
    /// `None`: no MQTT and no devices.
    pub bus: Option<BusConfig>,
    /// `None`: no mappers.
    pub dmi: Option<DmiConfig>,
    /// `None`: no HTTP between this node and the cloud.
    pub service_bus: Option<ServiceBusConfig>,
    pub log: LogConfig,
    /// Bound of the outbox; at least [`OUTBOX_BYTES_MIN`].
    pub outbox_bytes_max: u64,
    /// Policies of the outbox's streams, the first that matches counts.
    pub streams: Vec<Rule>,
    /// What is kept of the properties' readings.
    pub history: HistoryBounds,
    /// `cloud`, `edge` or `newest`: whose desired value stands.
    pub twin_conflict: String,
    /// KubeEdge's keys that were present and mean nothing here, sorted.
    pub ignored: Vec<String>,
}

impl Config {
    /// The directory of everything durable that is not a pod's.
    pub fn data_dir(&self) -> &Path {
        self.database.parent().unwrap_or(Path::new("/"))
    }

    /// The local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("edgecore.sock")
    }
}

/// How to reach the hub.
#[derive(Clone)]
pub struct HubConfig {
    /// `host:port` of the WebSocket.
    pub server: String,
    /// Base URL of the certificate service.
    pub http_server: String,
    pub project_id: String,
    pub heartbeat: Duration,
    pub handshake_timeout: Duration,
    pub write_deadline: Duration,
    pub query_timeout: Duration,
    pub rotate_certificates: bool,
    /// At most so many rows of a backlog leave in a second.
    pub history_rows_per_second: u32,
    pub tls: TlsFiles,
    /// Empty unless the file carries a join token.
    pub token: String,
}

impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("server", &self.server)
            .field("http_server", &self.http_server)
            .field("token", &if self.token.is_empty() { "" } else { "…" })
            .finish_non_exhaustive()
    }
}

/// The node's identity on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// How pods are run.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// containerd's socket, a path.
    pub containerd: PathBuf,
    pub namespace: String,
    pub snapshotter: String,
    pub cgroup_root: String,
    pub registries: Registries,
    pub image_pulls_max: u32,
    pub image_layers_max: u32,
    pub image_policy: ImagePolicy,
    pub cni_bin_dirs: Vec<PathBuf>,
    pub cni_conf_dir: PathBuf,
    /// Volumes that survive a reboot.
    pub root_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    /// The program that writes container logs.
    pub logger: PathBuf,
    pub log_bytes_max: u64,
    pub log_files_max: u32,
    /// All logs of one pod, and of the node.
    pub log_pod_bytes_max: u64,
    pub log_node_bytes_max: u64,
    pub max_pods: u32,
    pub resources: NodeResources,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    /// Containers that say nothing of seccomp are filtered.
    pub seccomp_default: bool,
    pub seccomp_dir: PathBuf,
    /// Names, or prefixes with a trailing `*`.
    pub unsafe_sysctls: Vec<String>,
    /// Addresses of the built-in pod network.
    pub pod_cidr: Option<String>,
    pub report_events: bool,
    /// Directory of static pods.
    pub static_pods: PathBuf,
}

/// Which brokers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusMode {
    Internal,
    Both,
    External,
}

/// MQTT.
#[derive(Clone)]
pub struct BusConfig {
    pub mode: BusMode,
    /// `host:port` the broker inside listens on.
    pub listen: String,
    /// URL of the external broker, as written (`tcp://`, `ssl://`).
    pub external: String,
    pub client_id: String,
    pub username: String,
    pub password: String,
    /// TLS towards the external broker.
    pub tls: Option<TlsFiles>,
    /// More about the broker inside.
    pub inside: MqttConfig,
}

impl std::fmt::Debug for BusConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusConfig")
            .field("mode", &self.mode)
            .field("listen", &self.listen)
            .field("external", &self.external)
            .finish_non_exhaustive()
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct LogConfig {
    pub filter: String,
    pub format: LogFormat,
}

pub(super) fn wrong(path: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        path: path.into(),
        reason: reason.into(),
    }
}

pub(super) fn seconds(path: &'static str, value: u32, least: u32) -> Result<Duration, ConfigError> {
    if value < least || value > 86_400 {
        return Err(wrong(
            path,
            format!("must be between {least} and 86400 seconds, is {value}"),
        ));
    }
    Ok(Duration::from_secs(u64::from(value)))
}

pub(super) fn absolute(path: &'static str, value: &str) -> Result<PathBuf, ConfigError> {
    let found = PathBuf::from(value);
    if found.is_absolute() {
        Ok(found)
    } else {
        Err(wrong(
            path,
            format!("must be an absolute path, is `{value}`"),
        ))
    }
}

pub(super) fn host_port(path: &'static str, value: &str) -> Result<String, ConfigError> {
    let stripped = value
        .strip_prefix("wss://")
        .or_else(|| value.strip_prefix("https://"))
        .or_else(|| value.strip_prefix("tcp://"))
        .unwrap_or(value)
        .trim_end_matches('/');
    let port = stripped.rsplit_once(':').filter(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
    });
    if port.is_none() {
        return Err(wrong(path, format!("must be host:port, is `{value}`")));
    }
    Ok(stripped.to_owned())
}

fn address(path: &'static str, value: &str) -> Result<IpAddr, ConfigError> {
    value
        .parse()
        .map_err(|_| wrong(path, format!("`{value}` is not an IP address")))
}

/// `address/prefix`, big enough for a gateway and a pod.
fn pod_cidr(text: &str) -> Result<Option<String>, ConfigError> {
    const PATH: &str = "modules.edged.tailoredKubeletConfig.podCIDR";
    if text.is_empty() {
        return Ok(None);
    }
    let bad = || {
        wrong(
            PATH,
            format!("must be a network such as 10.42.7.0/24, is `{text}`"),
        )
    };
    let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    let is_ipv4 = ip.parse::<std::net::Ipv4Addr>().is_ok();
    if !is_ipv4 || !(8..=30).contains(&prefix) {
        return Err(bad());
    }
    Ok(Some(text.to_owned()))
}

/// Checks a node name as Kubernetes does (RFC 1123 subdomain).
pub(crate) fn is_node_name(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// The host's name, lower case, as kubelet derives a node's name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .trim()
        .to_lowercase()
}

fn node_name(raw: &str) -> Result<String, ConfigError> {
    const PATH: &str = "modules.edged.hostnameOverride";
    let name = if raw.is_empty() {
        host_name()
    } else {
        raw.to_owned()
    };
    if is_node_name(&name) {
        Ok(name)
    } else {
        Err(wrong(
            PATH,
            format!(
                "`{name}` is no valid node name (lower-case letters, digits, `-` and `.`, at most 253)"
            ),
        ))
    }
}

/// `10Mi`, `500k`, `1048576` and so on to bytes.
pub(super) fn quantity(path: &'static str, text: &str) -> Result<u64, ConfigError> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let scale: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        other => return Err(wrong(path, format!("unknown unit `{other}` in `{text}`"))),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(scale))
        .ok_or_else(|| wrong(path, format!("`{text}` is no size")))
}

fn outbox_bytes_max(text: &str) -> Result<u64, ConfigError> {
    const PATH: &str = "outpost.outboxBytesMax";
    let bytes = quantity(PATH, text)?;
    if !(OUTBOX_BYTES_MIN..=1 << 50).contains(&bytes) {
        return Err(wrong(PATH, format!("must be 1Mi or more, is `{text}`")));
    }
    Ok(bytes)
}

fn streams(rules: &[StreamRule]) -> Result<Vec<Rule>, ConfigError> {
    const PATH: &str = "outpost.streams";
    if rules.len() > RULES_MAX {
        return Err(wrong(PATH, format!("at most {RULES_MAX} rules")));
    }
    let mut checked = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let at = |error: PolicyError| wrong(format!("{PATH}[{index}]"), error.to_string());
        let mut policy = Policy::default();
        let priority = rule.priority.map(|priority| priority.to_string());
        for (key, value) in [
            ("priority", priority.as_ref()),
            ("ttl", rule.ttl.as_ref()),
            ("bytes", rule.bytes.as_ref()),
            ("whenFull", rule.when_full.as_ref()),
        ] {
            if let Some(value) = value {
                policy.set(key, value).map_err(at)?;
            }
        }
        checked.push(Rule::new(&rule.pattern, policy).map_err(at)?);
    }
    Ok(checked)
}

fn history(raw: &raw::History) -> Result<HistoryBounds, ConfigError> {
    let age: Result<jiff::SignedDuration, _> = raw.age_max.parse();
    let age_max_ms = age
        .ok()
        .and_then(|age| i64::try_from(age.as_millis()).ok())
        .filter(|age_ms| *age_ms > 0)
        .ok_or_else(|| {
            let what = format!("must be a span such as 168h, is `{}`", raw.age_max);
            wrong("outpost.history.ageMax", what)
        })?;
    Ok(HistoryBounds {
        rows_max: raw.rows_max.min(1_000_000),
        age_max_ms,
        bytes_max: quantity("outpost.history.bytesMax", &raw.bytes_max)?,
    })
}

fn twin_conflict(text: &str) -> Result<String, ConfigError> {
    match device_twin::Conflict::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(wrong(
            "outpost.twinConflict",
            format!("must be cloud, edge or newest, is `{text}`"),
        )),
    }
}

/// Raw to checked.
pub(super) fn check(raw: &Raw, ignored: Vec<String>) -> Result<Config, ConfigError> {
    if raw.api_version != "edgecore.config.kubeedge.io/v1alpha2" {
        return Err(wrong(
            "apiVersion",
            format!(
                "must be edgecore.config.kubeedge.io/v1alpha2, is `{}`",
                raw.api_version
            ),
        ));
    }
    if raw.kind != "EdgeCore" {
        return Err(wrong(
            "kind",
            format!("must be EdgeCore, is `{}`", raw.kind),
        ));
    }
    let node_name = node_name(&raw.modules.edged.hostname_override)?;
    let node_ip = match raw.modules.edged.node_ip.as_str() {
        "" => None,
        text => Some(address("modules.edged.nodeIP", text)?),
    };
    let query_timeout = seconds(
        "modules.metaManager.remoteQueryTimeout",
        raw.modules.meta_manager.remote_query_timeout,
        1,
    )?;
    // Both are fixed in the protocol's limits.
    let mut ignored = ignored;
    for (path, is_fixed) in [
        (
            "modules.edgeHub.heartbeat",
            raw.modules.edge_hub.heartbeat == 15,
        ),
        (
            "modules.metaManager.remoteQueryTimeout",
            query_timeout == Duration::from_secs(60),
        ),
    ] {
        if !is_fixed {
            ignored.push(path.to_owned());
        }
    }
    Ok(Config {
        node_ip,
        node_labels: raw.modules.edged.node_labels.clone(),
        register_schedulable: raw.modules.edged.register_schedulable,
        database: absolute("database.dataSource", &raw.database.data_source)?,
        run_dir: absolute("outpost.runDirectory", &raw.outpost.run_directory)?,
        hub: hub(raw, query_timeout)?,
        runtime: runtime(raw)?,
        bus: bus(raw, &node_name)?,
        dmi: dmi(raw)?,
        service_bus: service_bus(&raw.modules.service_bus)?,
        log: log(raw)?,
        outbox_bytes_max: outbox_bytes_max(&raw.outpost.outbox_bytes_max)?,
        streams: streams(&raw.outpost.streams)?,
        history: history(&raw.outpost.history)?,
        twin_conflict: twin_conflict(&raw.outpost.twin_conflict)?,
        node_name,
        ignored,
    })
}

fn hub(raw: &Raw, query_timeout: Duration) -> Result<Option<HubConfig>, ConfigError> {
    let hub = &raw.modules.edge_hub;
    if !(hub.enable && hub.websocket.enable) {
        return Ok(None);
    }
    if !hub.http_server.starts_with("https://") {
        return Err(wrong(
            "modules.edgeHub.httpServer",
            format!("must start with https://, is `{}`", hub.http_server),
        ));
    }
    Ok(Some(HubConfig {
        server: host_port("modules.edgeHub.websocket.server", &hub.websocket.server)?,
        http_server: hub.http_server.trim_end_matches('/').to_owned(),
        project_id: hub.project_id.clone(),
        heartbeat: seconds("modules.edgeHub.heartbeat", hub.heartbeat, 1)?,
        handshake_timeout: seconds(
            "modules.edgeHub.websocket.handshakeTimeout",
            hub.websocket.handshake_timeout,
            1,
        )?,
        write_deadline: seconds(
            "modules.edgeHub.websocket.writeDeadline",
            hub.websocket.write_deadline,
            1,
        )?,
        query_timeout,
        rotate_certificates: hub.rotate_certificates,
        history_rows_per_second: match raw.outpost.history_rows_per_second {
            0 => {
                let why = "must be 1 or more".to_owned();
                return Err(wrong("outpost.historyRowsPerSecond", why));
            }
            rows => rows,
        },
        tls: TlsFiles {
            ca: absolute("modules.edgeHub.tlsCaFile", &hub.tls_ca_file)?,
            cert: absolute("modules.edgeHub.tlsCertFile", &hub.tls_cert_file)?,
            key: absolute(
                "modules.edgeHub.tlsPrivateKeyFile",
                &hub.tls_private_key_file,
            )?,
        },
        token: hub.token.clone(),
    }))
}

/// As KubeEdge reads it: a directory, or the directory of a path that ends in `.sock`; the file is
/// always `dmi.sock`.
fn dmi(raw: &Raw) -> Result<Option<DmiConfig>, ConfigError> {
    const PATH: &str = "modules.deviceTwin.dmiSockPath";
    let twin = &raw.modules.device_twin;
    if !twin.enable {
        return Ok(None);
    }
    let path = absolute(PATH, twin.dmi_sock_path.trim_start_matches("unix://"))?;
    let is_file = path
        .extension()
        .is_some_and(|extension| extension == "sock");
    let directory = match path.parent() {
        Some(parent) if is_file => parent.to_owned(),
        _ => path,
    };
    let outpost = &raw.outpost;
    Ok(Some(DmiConfig {
        socket: directory.join("dmi.sock"),
        admission: Admission {
            uids: outpost.dmi_users.clone(),
            gids: outpost.dmi_groups.clone(),
        },
        calls_per_second: outpost.dmi_calls_per_second.max(100),
        pace: Pace::default(),
    }))
}

fn runtime(raw: &Raw) -> Result<Option<RuntimeConfig>, ConfigError> {
    const ENDPOINT: &str = "modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint";
    let edged = &raw.modules.edged;
    let kubelet = &edged.tailored_kubelet_config;
    if !edged.enable {
        return Ok(None);
    }
    let endpoint = if edged.remote_runtime_endpoint.is_empty() {
        &kubelet.container_runtime_endpoint
    } else {
        &edged.remote_runtime_endpoint
    };
    let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    let logger = if raw.outpost.logger_path.is_empty() {
        std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(|dir| dir.join("edged-logger")))
            .unwrap_or_else(|| PathBuf::from("/usr/local/bin/edged-logger"))
    } else {
        absolute("outpost.loggerPath", &raw.outpost.logger_path)?
    };
    let logs = upkeep::logs(raw)?;
    Ok(Some(RuntimeConfig {
        containerd: absolute(ENDPOINT, socket)?,
        namespace: raw.outpost.containerd_namespace.clone(),
        snapshotter: raw.outpost.snapshotter.clone(),
        cgroup_root: raw.outpost.cgroup_root.clone(),
        registries: registries(raw)?,
        image_pulls_max: upkeep::image_pulls(kubelet)?,
        image_layers_max: raw.outpost.image_layers_max.clamp(1, 16),
        image_policy: upkeep::image_policy(kubelet)?,
        cni_bin_dirs: vec![
            absolute("outpost.cniBinDirectory", &raw.outpost.cni_bin_directory)?,
            PathBuf::from("/usr/lib/cni"),
        ],
        cni_conf_dir: absolute("outpost.cniConfDirectory", &raw.outpost.cni_conf_directory)?,
        root_dir: absolute("modules.edged.rootDirectory", &edged.root_directory)?,
        pod_logs_dir: absolute(
            "modules.edged.tailoredKubeletConfig.podLogsDir",
            &kubelet.pod_logs_dir,
        )?,
        logger,
        log_bytes_max: logs.file_bytes,
        log_files_max: logs.files,
        log_pod_bytes_max: logs.pod_bytes,
        log_node_bytes_max: logs.node_bytes,
        max_pods: kubelet.max_pods,
        resources: super::resources::check(kubelet)?,
        cluster_dns: kubelet
            .cluster_dns
            .iter()
            .map(|text| address("modules.edged.tailoredKubeletConfig.clusterDNS", text))
            .collect::<Result<_, _>>()?,
        cluster_domain: kubelet.cluster_domain.clone(),
        resolv_conf: PathBuf::from(&kubelet.resolv_conf),
        seccomp_default: kubelet.seccomp_default,
        seccomp_dir: absolute("outpost.seccompDirectory", &raw.outpost.seccomp_directory)?,
        unsafe_sysctls: kubelet.allowed_unsafe_sysctls.clone(),
        pod_cidr: pod_cidr(&kubelet.pod_cidr)?,
        report_events: edged.report_event,
        static_pods: static_pods(&kubelet.static_pod_path)?,
    }))
}

fn registries(raw: &Raw) -> Result<Registries, ConfigError> {
    let outpost = &raw.outpost;
    for (index, entry) in outpost.registries.iter().enumerate() {
        const KEY: &str = "outpost.registries";
        if entry.host.is_empty() || entry.host.contains('/') {
            let text = format!(
                "entry {index}: host must be `name` or `name:port`, is `{}`",
                entry.host
            );
            return Err(wrong(KEY, text));
        }
        if entry.key_file.is_some() && entry.cert_file.is_none() {
            return Err(wrong(
                KEY,
                format!("entry {index}: keyFile needs a certFile"),
            ));
        }
        let files = [&entry.ca_file, &entry.cert_file, &entry.key_file];
        for path in files.into_iter().flatten() {
            if !path.is_absolute() {
                let text = format!(
                    "entry {index}: `{}` must be an absolute path",
                    path.display()
                );
                return Err(wrong(KEY, text));
            }
        }
    }
    let directory = &outpost.registry_config_directory;
    Ok(Registries {
        hosts: outpost.registries.clone(),
        insecure_hosts: outpost.insecure_registries.clone(),
        config_dir: (!directory.is_empty())
            .then(|| absolute("outpost.registryConfigDirectory", directory))
            .transpose()?,
        auth_files: outpost
            .registry_auth_files
            .iter()
            .map(|path| absolute("outpost.registryAuthFiles", path))
            .collect::<Result<_, _>>()?,
        stall: Duration::from_secs(u64::from(outpost.image_stall_seconds.clamp(5, 3600))),
        ..Registries::default()
    })
}

/// KubeEdge's files carry the key empty.
fn static_pods(path: &str) -> Result<PathBuf, ConfigError> {
    let path = if path.is_empty() {
        "/etc/edgecore/manifests"
    } else {
        path
    };
    absolute("modules.edged.tailoredKubeletConfig.staticPodPath", path)
}

fn bus(raw: &Raw, node_name: &str) -> Result<Option<BusConfig>, ConfigError> {
    let bus = &raw.modules.event_bus;
    if !bus.enable {
        return Ok(None);
    }
    let mode = match bus.mqtt_mode {
        0 => BusMode::Internal,
        1 => BusMode::Both,
        2 => BusMode::External,
        other => {
            return Err(wrong(
                "modules.eventBus.mqttMode",
                format!("must be 0, 1 or 2, is {other}"),
            ));
        }
    };
    Ok(Some(BusConfig {
        mode,
        listen: host_port(
            "modules.eventBus.mqttServerInternal",
            &bus.mqtt_server_internal,
        )?,
        external: bus.mqtt_server_external.clone(),
        client_id: if bus.mqtt_sub_client_id.is_empty() {
            format!("edgecore-{node_name}")
        } else {
            bus.mqtt_sub_client_id.clone()
        },
        username: bus.mqtt_username.clone(),
        password: bus.mqtt_password.clone(),
        tls: bus.tls.enable.then(|| TlsFiles {
            ca: PathBuf::from(&bus.tls.ca_file),
            cert: PathBuf::from(&bus.tls.cert_file),
            key: PathBuf::from(&bus.tls.key_file),
        }),
        inside: mqtt::check(&raw.outpost.mqtt)?,
    }))
}

fn log(raw: &Raw) -> Result<LogConfig, ConfigError> {
    let format = match raw.outpost.log_format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            return Err(wrong(
                "outpost.logFormat",
                format!("must be text or json, is `{other}`"),
            ));
        }
    };
    Ok(LogConfig {
        filter: raw.outpost.log_level.clone(),
        format,
    })
}
