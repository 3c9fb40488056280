//! The configuration as written: KubeEdge's shape, every key present because the defaults are the
//! lowest layer.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::mqtt::RawMqtt;
use super::service_bus::RawServiceBus;
use crate::edged::runtime::containerd::RegistryHost;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Raw {
    pub api_version: String,
    pub kind: String,
    pub database: Database,
    pub modules: Modules,
    pub outpost: Outpost,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Database {
    pub data_source: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Modules {
    pub device_twin: DeviceTwin,
    pub edge_hub: EdgeHub,
    pub edged: Edged,
    pub event_bus: EventBus,
    pub meta_manager: MetaManager,
    pub service_bus: RawServiceBus,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceTwin {
    pub enable: bool,
    pub dmi_sock_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EdgeHub {
    pub enable: bool,
    pub heartbeat: u32,
    pub http_server: String,
    #[serde(rename = "projectID")]
    pub project_id: String,
    pub rotate_certificates: bool,
    pub tls_ca_file: String,
    pub tls_cert_file: String,
    pub tls_private_key_file: String,
    pub token: String,
    pub websocket: WebSocket,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WebSocket {
    pub enable: bool,
    pub handshake_timeout: u32,
    pub server: String,
    pub write_deadline: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Edged {
    pub enable: bool,
    pub hostname_override: String,
    #[serde(rename = "nodeIP")]
    pub node_ip: String,
    pub node_labels: BTreeMap<String, String>,
    pub register_schedulable: bool,
    pub remote_runtime_endpoint: String,
    pub report_event: bool,
    pub root_directory: String,
    pub tailored_kubelet_config: Kubelet,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kubelet {
    pub allowed_unsafe_sysctls: Vec<String>,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub container_log_max_files: u32,
    pub container_log_max_size: String,
    pub container_runtime_endpoint: String,
    pub enforce_node_allocatable: Vec<String>,
    pub eviction_hard: BTreeMap<String, String>,
    pub eviction_max_pod_grace_period: u32,
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    pub eviction_pressure_transition_period: String,
    pub eviction_soft: BTreeMap<String, String>,
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high: u8,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low: u8,
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: String,
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: String,
    pub max_parallel_image_pulls: u32,
    pub max_pods: u32,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    pub node_status_max_images: i32,
    pub pod_logs_dir: String,
    pub pod_pids_limit: i64,
    pub resolv_conf: String,
    pub seccomp_default: bool,
    pub serialize_image_pulls: bool,
    pub static_pod_path: String,
    pub system_reserved: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventBus {
    pub enable: bool,
    #[serde(rename = "eventBusTLS")]
    pub tls: EventBusTls,
    pub mqtt_mode: u8,
    pub mqtt_password: String,
    pub mqtt_server_external: String,
    pub mqtt_server_internal: String,
    #[serde(rename = "mqttSubClientID")]
    pub mqtt_sub_client_id: String,
    pub mqtt_username: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventBusTls {
    pub enable: bool,
    #[serde(rename = "tlsMqttCAFile")]
    pub ca_file: String,
    #[serde(rename = "tlsMqttCertFile")]
    pub cert_file: String,
    #[serde(rename = "tlsMqttPrivateKeyFile")]
    pub key_file: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MetaManager {
    pub remote_query_timeout: u32,
}

/// One of `outpost.streams`; the values are checked later, with their place in the message.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StreamRule {
    #[serde(rename = "match")]
    pub pattern: String,
    pub priority: Option<u8>,
    pub ttl: Option<String>,
    pub bytes: Option<String>,
    pub when_full: Option<String>,
}

#[expect(
    clippy::struct_field_names,
    reason = "the keys' names in the file: each is an upper bound"
)]
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct History {
    pub rows_max: u32,
    pub age_max: String,
    pub bytes_max: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outpost {
    pub cgroup_root: String,
    pub dmi_calls_per_second: u32,
    pub dmi_groups: Vec<u32>,
    pub dmi_users: Vec<u32>,
    pub history: History,
    pub image_layers_max: u32,
    pub image_stall_seconds: u32,
    pub insecure_registries: Vec<String>,
    pub registries: Vec<RegistryHost>,
    pub registry_auth_files: Vec<String>,
    pub registry_config_directory: String,
    pub snapshotter: String,
    pub cni_bin_directory: String,
    pub cni_conf_directory: String,
    pub containerd_namespace: String,
    pub logger_path: String,
    pub log_format: String,
    pub log_level: String,
    pub mqtt: RawMqtt,
    pub history_rows_per_second: u32,
    pub node_logs_bytes_max: String,
    pub outbox_bytes_max: String,
    pub pod_logs_bytes_max: String,
    pub streams: Vec<StreamRule>,
    pub run_directory: String,
    pub seccomp_directory: String,
    pub twin_conflict: String,
}
