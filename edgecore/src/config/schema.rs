//! Every key the configuration file may carry: the ones that are used, with default and comment,
//! and KubeEdge's own that mean nothing here.
//!
//! Source of the names: `edgecore.config.kubeedge.io/v1alpha2`
//! (`apis/componentconfig/edgecore/v1alpha2/types.go`, `EdgeCoreConfig`).

/// One key that is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Dotted path, as in the file.
    pub path: &'static str,
    /// Default as JSON, which is YAML too.
    pub default: &'static str,
    /// Comment in the printed file.
    pub doc: &'static str,
    /// Whether `--minconfig` shows it.
    pub min: bool,
}

const fn f(path: &'static str, default: &'static str, doc: &'static str) -> Field {
    Field {
        path,
        default,
        doc,
        min: false,
    }
}

const fn m(path: &'static str, default: &'static str, doc: &'static str) -> Field {
    Field {
        path,
        default,
        doc,
        min: true,
    }
}

/// Used keys, in the order in which they are printed. Siblings stand together.
pub(super) const FIELDS: &[Field] = &[
    m(
        "apiVersion",
        "\"edgecore.config.kubeedge.io/v1alpha2\"",
        "KubeEdge's own format; a file written for KubeEdge is read as it is",
    ),
    m("kind", "\"EdgeCore\"", ""),
    m(
        "database.dataSource",
        "\"/var/lib/edgecore/edgecore.db\"",
        "the node's one database; its directory also holds the key that seals secrets",
    ),
    f(
        "modules.deviceTwin.enable",
        "true",
        "false serves no mappers (Device Mapper Interface); devices on MQTT are not touched",
    ),
    f(
        "modules.deviceTwin.dmiSockPath",
        "\"/etc/kubeedge/\"",
        "directory of dmi.sock, where mappers register; a path that ends in .sock means its directory",
    ),
    f(
        "modules.edgeHub.enable",
        "true",
        "false runs the node alone, without any hub",
    ),
    f(
        "modules.edgeHub.heartbeat",
        "15",
        "keepalives go to a plain KubeEdge hub every 15 s; another value is listed as ignored",
    ),
    m(
        "modules.edgeHub.httpServer",
        "\"https://127.0.0.1:10002\"",
        "where certificates are requested",
    ),
    f(
        "modules.edgeHub.projectID",
        "\"e632aba927ea4ac2b575ec1603d56f10\"",
        "part of the URL; the hub ignores it",
    ),
    f(
        "modules.edgeHub.rotateCertificates",
        "true",
        "renew the node's certificate before it expires",
    ),
    m(
        "modules.edgeHub.tlsCaFile",
        "\"/var/lib/edgecore/pki/ca.crt\"",
        "the hub's certificate authority (PEM)",
    ),
    m(
        "modules.edgeHub.tlsCertFile",
        "\"/var/lib/edgecore/pki/node.crt\"",
        "this node's certificate (PEM)",
    ),
    m(
        "modules.edgeHub.tlsPrivateKeyFile",
        "\"/var/lib/edgecore/pki/node.key\"",
        "its key (PEM, mode 0600)",
    ),
    f(
        "modules.edgeHub.token",
        "\"\"",
        "join token, used once while there is no certificate; `edgecore join` does without it",
    ),
    f(
        "modules.edgeHub.websocket.enable",
        "true",
        "the only transport; false is the same as edgeHub.enable: false",
    ),
    f(
        "modules.edgeHub.websocket.handshakeTimeout",
        "30",
        "seconds for TCP, TLS and the upgrade together",
    ),
    m(
        "modules.edgeHub.websocket.server",
        "\"127.0.0.1:10000\"",
        "host:port of the hub",
    ),
    f(
        "modules.edgeHub.websocket.writeDeadline",
        "15",
        "seconds one write may take before the link counts as dead",
    ),
    f(
        "modules.edged.enable",
        "true",
        "false runs no pods (devices only)",
    ),
    m(
        "modules.edged.hostnameOverride",
        "\"\"",
        "the node's name; empty takes the host's name",
    ),
    f(
        "modules.edged.nodeIP",
        "\"\"",
        "address told to the hub; empty takes the one that routes outwards",
    ),
    f(
        "modules.edged.nodeLabels",
        "{}",
        "labels put on the node at registration",
    ),
    f(
        "modules.edged.registerSchedulable",
        "true",
        "false registers the node as unschedulable",
    ),
    f(
        "modules.edged.remoteRuntimeEndpoint",
        "\"\"",
        "older name of tailoredKubeletConfig.containerRuntimeEndpoint; used if not empty",
    ),
    f(
        "modules.edged.reportEvent",
        "true",
        "send pod events to the hub",
    ),
    f(
        "modules.edged.rootDirectory",
        "\"/var/lib/edgecore/pods\"",
        "pod volumes that survive a reboot",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.allowedUnsafeSysctls",
        "[]",
        "sysctls beyond the safe ones that pods may set; a trailing `*` allows a prefix",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.clusterDNS",
        "[]",
        "DNS servers for pods with ClusterFirst; empty uses resolvConf",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.clusterDomain",
        "\"cluster.local\"",
        "",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.containerLogMaxFiles",
        "5",
        "files of one container's log, 2 or more",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.containerLogMaxSize",
        "\"10Mi\"",
        "one of them is replaced by the next at this size",
    ),
    m(
        "modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint",
        "\"unix:///run/containerd/containerd.sock\"",
        "containerd's socket",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.enforceNodeAllocatable",
        "[\"pods\"]",
        "pods together get no more than what is not reserved; [\"none\"] only counts it",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.evictionHard",
        "{\"memory.available\": \"100Mi\", \"nodefs.available\": \"10%\", \"nodefs.inodesFree\": \"5%\", \"imagefs.available\": \"15%\", \"pid.available\": \"5%\"}",
        "below this much pods are ended, one after the other; 0% switches one off",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.evictionMaxPodGracePeriod",
        "0",
        "seconds a pod gets at most when a soft threshold ends it",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.evictionMinimumReclaim",
        "{}",
        "what must be free beyond the threshold before the shortage is over",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.evictionPressureTransitionPeriod",
        "\"5m0s\"",
        "a pressure condition stays this long after the shortage",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.evictionSoft",
        "{}",
        "as evictionHard, after evictionSoftGracePeriod",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.evictionSoftGracePeriod",
        "{}",
        "",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.kubeReserved",
        "{}",
        "kept back from pods: cpu, memory, ephemeral-storage, pid",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.imageGCHighThresholdPercent",
        "85",
        "unused images are removed when containerd's disk is this full; 100 never does",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.imageGCLowThresholdPercent",
        "80",
        "… until it is this full",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.imageMaximumGCAge",
        "\"0s\"",
        "images that nobody has used for so long are removed even while there is room; 0s: never",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.imageMinimumGCAge",
        "\"2m0s\"",
        "images that came or were used more recently stay, however full the disk",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.maxParallelImagePulls",
        "0",
        "images pulled at the same time; 0: 2, or 1 with serializeImagePulls",
    ),
    f("modules.edged.tailoredKubeletConfig.maxPods", "110", ""),
    f(
        "modules.edged.tailoredKubeletConfig.nodeStatusMaxImages",
        "50",
        "images listed in the node's status, the largest; -1 lists all",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.podCIDR",
        "\"\"",
        "addresses of the built-in pod network, e.g. 10.42.7.0/24; empty takes a free 10.88.x.0/24",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.podLogsDir",
        "\"/var/log/pods\"",
        "",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.podPidsLimit",
        "-1",
        "most processes of one pod; -1 for no limit",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.resolvConf",
        "\"/etc/resolv.conf\"",
        "resolvers of the node, which pods inherit",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.seccompDefault",
        "true",
        "containers that say nothing of seccomp get RuntimeDefault; false: Unconfined",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.serializeImagePulls",
        "false",
        "true: one image after the other",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.staticPodPath",
        "\"/etc/edgecore/manifests\"",
        "directory of static pods; need not exist",
    ),
    f(
        "modules.edged.tailoredKubeletConfig.systemReserved",
        "{}",
        "as kubeReserved; both together are kept back",
    ),
    f(
        "modules.eventBus.enable",
        "true",
        "false runs no MQTT and no devices",
    ),
    f(
        "modules.eventBus.eventBusTLS.enable",
        "false",
        "TLS towards the external broker",
    ),
    f("modules.eventBus.eventBusTLS.tlsMqttCAFile", "\"\"", ""),
    f("modules.eventBus.eventBusTLS.tlsMqttCertFile", "\"\"", ""),
    f(
        "modules.eventBus.eventBusTLS.tlsMqttPrivateKeyFile",
        "\"\"",
        "",
    ),
    m(
        "modules.eventBus.mqttMode",
        "0",
        "0: the broker inside; 1: both; 2: an external broker only",
    ),
    f(
        "modules.eventBus.mqttPassword",
        "\"\"",
        "for the external broker",
    ),
    f(
        "modules.eventBus.mqttServerExternal",
        "\"tcp://127.0.0.1:1884\"",
        "used with mqttMode 1 and 2",
    ),
    m(
        "modules.eventBus.mqttServerInternal",
        "\"tcp://127.0.0.1:1883\"",
        "listener of the broker inside; keep it on loopback",
    ),
    f(
        "modules.eventBus.mqttSubClientID",
        "\"\"",
        "client id towards the external broker; empty makes one from the node name",
    ),
    f(
        "modules.eventBus.mqttUsername",
        "\"\"",
        "for the external broker",
    ),
    f(
        "modules.metaManager.remoteQueryTimeout",
        "60",
        "an object asked of the hub is waited for 60 s; another value is listed as ignored",
    ),
    f(
        "modules.serviceBus.enable",
        "false",
        "HTTP between this node and the cloud, by rules (docs/operating.md)",
    ),
    f(
        "modules.serviceBus.port",
        "9060",
        "where local applications ask; open while a rule of the cloud has a URL for them",
    ),
    f("modules.serviceBus.server", "\"127.0.0.1\"", ""),
    f(
        "modules.serviceBus.timeout",
        "60",
        "seconds that a local application waits for the cloud",
    ),
    f(
        "modules.serviceBus.tlsCertFile",
        "\"\"",
        "with a key: HTTPS",
    ),
    f("modules.serviceBus.tlsPrivateKeyFile", "\"\"", ""),
    f(
        "outpost.cgroupRoot",
        "\"/edgepods\"",
        "root of the pods' cgroups",
    ),
    f(
        "outpost.cniBinDirectory",
        "\"/opt/cni/bin\"",
        "CNI plugins; also looked for in /usr/lib/cni",
    ),
    f("outpost.cniConfDirectory", "\"/etc/cni/net.d\"", ""),
    f(
        "outpost.containerdNamespace",
        "\"edgecore\"",
        "containerd namespace of our images and containers",
    ),
    f(
        "outpost.dmiCallsPerSecond",
        "200",
        "calls that each mapper may make; at least 100",
    ),
    f(
        "outpost.dmiGroups",
        "[]",
        "numeric groups besides root whose processes may be mappers",
    ),
    f(
        "outpost.dmiUsers",
        "[]",
        "numeric users besides root whose processes may be mappers; they report only for devices of their own",
    ),
    f(
        "outpost.history.rowsMax",
        "1000",
        "readings kept of each device property, for `edgecore history`; 0 keeps none",
    ),
    f(
        "outpost.history.ageMax",
        "\"168h\"",
        "readings older than this are dropped",
    ),
    f(
        "outpost.history.bytesMax",
        "\"64Mi\"",
        "disk for the readings of all properties; then each gives up its oldest eighth",
    ),
    f(
        "outpost.historyRowsPerSecond",
        "10000",
        "after a long outage the newest values go first; what came before follows at this rate",
    ),
    f(
        "outpost.imageLayersMax",
        "3",
        "layers of one image pulled at the same time",
    ),
    f(
        "outpost.imageStallSeconds",
        "30",
        "a transfer that brings nothing for so long is tried again from where it stopped",
    ),
    f(
        "outpost.insecureRegistries",
        "[]",
        "registries spoken to in plain HTTP, host:port",
    ),
    f(
        "outpost.loggerPath",
        "\"\"",
        "the program that writes container logs; empty: `edged-logger` beside this program",
    ),
    f("outpost.logFormat", "\"text\"", "text or json"),
    f(
        "outpost.logLevel",
        "\"info\"",
        "error, warn, info, debug, trace, or a tracing filter",
    ),
    f(
        "outpost.mqtt.anonymous",
        "\"auto\"",
        "MQTT clients without a name: no, loopback (from the node itself), yes; auto: no where there is a passwordFile or clientCaFile, else loopback",
    ),
    f(
        "outpost.mqtt.bytesPerSecond",
        "\"8Mi\"",
        "what one MQTT client is read, with one second of credit; 0: no limit",
    ),
    f(
        "outpost.mqtt.clientCaFile",
        "\"\"",
        "authority of client certificates on the TLS listeners; the common name is the user",
    ),
    f(
        "outpost.mqtt.packetBytesMax",
        "\"256Ki\"",
        "largest MQTT packet",
    ),
    f(
        "outpost.mqtt.packetsPerSecond",
        "5000",
        "packets one MQTT client is read, with one second of credit; 0: no limit",
    ),
    f(
        "outpost.mqtt.passwordFile",
        "\"\"",
        "users and hashed passwords, as `edgecore mqtt passwd` and mosquitto_passwd write it; read again when it changes",
    ),
    f(
        "outpost.mqtt.sessionExpiryMaxSeconds",
        "0",
        "an MQTT session outlives its connection so long at most; 0: as long as the client asks",
    ),
    f(
        "outpost.mqtt.tlsCertFile",
        "\"\"",
        "certificate chain of the TLS listeners",
    ),
    f("outpost.mqtt.tlsKeyFile", "\"\"", ""),
    f(
        "outpost.mqtt.tlsListen",
        "\"\"",
        "host:port for MQTT over TLS; empty: none",
    ),
    f(
        "outpost.mqtt.users",
        "[]",
        "per user: name, admin, devices (namespace/name), publish, subscribe; who is not listed speaks for the device it is named after",
    ),
    f(
        "outpost.mqtt.webSocketListen",
        "\"\"",
        "host:port for MQTT over WebSocket; empty: none",
    ),
    f(
        "outpost.mqtt.webSocketOrigins",
        "[]",
        "pages that may connect, scheme://host[:port]; a page of the same host always may",
    ),
    f(
        "outpost.mqtt.webSocketTlsListen",
        "\"\"",
        "host:port for MQTT over WebSocket with TLS; empty: none",
    ),
    f(
        "outpost.nodeLogsBytesMax",
        "\"2Gi\"",
        "all container logs of the node together; the oldest rotated files go",
    ),
    f(
        "outpost.outboxBytesMax",
        "\"256Mi\"",
        "what waits for the hub may take this much disk; then the oldest rows give way (`evicted` in the ledger)",
    ),
    f(
        "outpost.podLogsBytesMax",
        "\"256Mi\"",
        "all container logs of one pod together",
    ),
    f(
        "outpost.registries",
        "[]",
        "per registry: host, mirrors (asked first, in order), caFile, certFile, keyFile, skipVerify, plainHttp",
    ),
    f(
        "outpost.registryAuthFiles",
        "[\"/var/lib/edgecore/registry-auth.json\", \"/var/lib/kubelet/config.json\"]",
        "docker config.json files with the node's credentials, read at each pull; imagePullSecrets come first",
    ),
    f(
        "outpost.registryConfigDirectory",
        "\"\"",
        "containerd's certs.d (<host>/hosts.toml), for registries not listed above",
    ),
    f(
        "outpost.runDirectory",
        "\"/run/edgecore\"",
        "the socket that `edgecore status` asks; network pins; volumes that must not touch the disk",
    ),
    f(
        "outpost.twinConflict",
        "\"cloud\"",
        "whose desired value stands when the hub and somebody here both set one: cloud, edge or newest; the annotation outpost.dev/conflict of a Device comes first",
    ),
    f(
        "outpost.seccompDirectory",
        "\"/var/lib/edgecore/seccomp\"",
        "where seccomp profiles of type Localhost lie",
    ),
    f(
        "outpost.snapshotter",
        "\"overlayfs\"",
        "containerd's snapshotter",
    ),
    f(
        "outpost.streams",
        "[]",
        "what waits for the hub, by stream; the first that matches counts: match (twin/<ns>/<device>, state/<ns>/<device>, upload/<topic>, with + and #), priority 0-9, ttl (24h), bytes (4Mi), whenFull (dropOldest, refuse, keepNewest)",
    ),
];

/// KubeEdge's keys (or whole subtrees) that are accepted and reported as ignored.
pub(super) const IGNORED: &[&str] = &[
    "featureGates",
    "database.aliasName",
    "database.driverName",
    "modules.dbTest",
    "modules.edgeHub.messageBurst",
    "modules.edgeHub.messageQPS",
    "modules.edgeHub.quic",
    "modules.edgeHub.websocket.readDeadline",
    "modules.edgeStream",
    "modules.edged.bandwidthManager",
    "modules.edged.customInterfaceName",
    "modules.edged.experimentalMounterPath",
    "modules.edged.experimentalNodeAllocatableIgnoreEvictionThreshold",
    "modules.edged.keepTerminatedPodVolumes",
    "modules.edged.maxContainerCount",
    "modules.edged.maxPerPodContainerCount",
    "modules.edged.minimumGCAge",
    "modules.edged.podSandboxImage",
    "modules.edged.registerNodeNamespace",
    "modules.edged.remoteImageEndpoint",
    "modules.edged.runtimeCgroups",
    "modules.edged.seccompDefault",
    "modules.edged.windowsPriorityClass",
    "modules.edged.windowsService",
    "modules.eventBus.mqttPubClientID",
    "modules.eventBus.mqttQOS",
    "modules.eventBus.mqttRetain",
    "modules.eventBus.mqttSessionQueueSize",
    "modules.metaManager.contextSendGroup",
    "modules.metaManager.contextSendModule",
    "modules.metaManager.enable",
    "modules.metaManager.metaServer",
    "modules.taskManager",
];

const KUBELET: &str = "modules.edged.tailoredKubeletConfig";

/// The rest of `tailoredKubeletConfig`: kubelet's knobs that are not used.
const IGNORED_KUBELET: &str = "syncFrequency fileCheckFrequency address readOnlyPort \
    registryPullQPS registryBurst eventRecordQPS eventBurst enableDebuggingHandlers \
    enableContentionProfiling oomScoreAdj streamingConnectionIdleTimeout nodeStatusUpdateFrequency \
    nodeStatusReportFrequency nodeLeaseDurationSeconds volumeStatsAggPeriod kubeletCgroups \
    systemCgroups cgroupRoot cgroupsPerQOS cgroupDriver cpuManagerPolicy cpuManagerPolicyOptions \
    cpuManagerReconcilePeriod memoryManagerPolicy topologyManagerPolicy topologyManagerScope \
    topologyManagerPolicyOptions qosReserved runtimeRequestTimeout hairpinMode \
    cpuCFSQuota cpuCFSQuotaPeriod maxOpenFiles contentType podsPerCore \
    enableControllerAttachDetach protectKernelDefaults makeIPTablesUtilChains iptablesMasqueradeBit \
    iptablesDropBit featureGates failSwapOn memorySwap containerLogMaxWorkers \
    containerLogMonitorInterval configMapAndSecretChangeDetectionStrategy \
    reservedSystemCPUs showHiddenMetricsForVersion systemReservedCgroup \
    kubeReservedCgroup volumePluginDir \
    kernelMemcgNotification logging enableSystemLogHandler enableSystemLogQuery shutdownGracePeriod \
    shutdownGracePeriodCriticalPods shutdownGracePeriodByPodPriority reservedMemory \
    enableProfilingHandler enableDebugFlagsHandler memoryThrottlingFactor \
    registerWithTaints registerNode localStorageCapacityIsolation imageServiceEndpoint";

/// What a path in the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// A used key: its value is taken whole.
    Leaf,
    /// A table on the way to used or ignored keys.
    Branch,
    /// KubeEdge's, without meaning here.
    Ignored,
    /// Nobody's.
    Unknown,
}

/// Classifies a dotted path.
pub(super) fn classify(path: &str) -> Known {
    if FIELDS.iter().any(|field| field.path == path) {
        return Known::Leaf;
    }
    let kubelet_key = path
        .strip_prefix(KUBELET)
        .and_then(|rest| rest.strip_prefix('.'));
    if IGNORED.contains(&path)
        || kubelet_key.is_some_and(|key| IGNORED_KUBELET.split_whitespace().any(|k| k == key))
    {
        return Known::Ignored;
    }
    let is_above = |other: &str| {
        other
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    if FIELDS.iter().any(|field| is_above(field.path)) || IGNORED.iter().any(|p| is_above(p)) {
        return Known::Branch;
    }
    Known::Unknown
}

/// The known sibling that is closest to a mistyped key, if one is close.
pub(super) fn suggestion(path: &str) -> Option<String> {
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let mut candidates: Vec<&str> = Vec::new();
    for known in FIELDS.iter().map(|f| f.path).chain(IGNORED.iter().copied()) {
        let below = if parent.is_empty() {
            Some(known)
        } else {
            known
                .strip_prefix(parent)
                .and_then(|rest| rest.strip_prefix('.'))
        };
        candidates.extend(below.and_then(|rest| rest.split('.').next()));
    }
    if parent == KUBELET {
        candidates.extend(IGNORED_KUBELET.split_whitespace());
    }
    let best = candidates
        .into_iter()
        .min_by_key(|candidate| distance(candidate, key))?;
    let near = distance(best, key) <= (key.len() / 3).max(2);
    near.then(|| {
        if parent.is_empty() {
            best.to_owned()
        } else {
            format!("{parent}.{best}")
        }
    })
}

/// Levenshtein distance without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A commented YAML file: `heading`, then every used key for which `select` gives a value (as
/// JSON, which is YAML too).
pub(super) fn print(heading: &str, select: impl Fn(&Field) -> Option<String>) -> String {
    let mut out = format!("# {heading}\n");
    let mut open: Vec<&str> = Vec::new();
    for field in FIELDS {
        let Some(value) = select(field) else { continue };
        let parts: Vec<&str> = field.path.split('.').collect();
        let (key, parents) = parts
            .split_last()
            .map_or(("", &[][..]), |(key, parents)| (*key, parents));
        let shared = open.iter().zip(parents).take_while(|(a, b)| a == b).count();
        open.truncate(shared);
        for parent in &parents[shared..] {
            out.push_str(&format!("{}{parent}:\n", "  ".repeat(open.len())));
            open.push(parent);
        }
        let indent = "  ".repeat(open.len());
        if !field.doc.is_empty() {
            out.push_str(&format!("{indent}# {}\n", field.doc));
        }
        out.push_str(&format!("{indent}{key}: {value}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_classified() {
        for (path, expected) in [
            ("modules", Known::Branch),
            ("modules.edgeHub", Known::Branch),
            ("modules.edgeHub.heartbeat", Known::Leaf),
            ("modules.edgeHub.quic", Known::Ignored),
            (
                "modules.edged.tailoredKubeletConfig.cgroupDriver",
                Known::Ignored,
            ),
            ("modules.edgeHub.heartbeet", Known::Unknown),
            ("modules.edge", Known::Unknown),
        ] {
            assert_eq!(classify(path), expected, "{path}");
        }
    }

    #[test]
    fn a_typo_names_its_neighbour() {
        assert_eq!(
            suggestion("modules.edgeHub.heartbeet").as_deref(),
            Some("modules.edgeHub.heartbeat")
        );
        assert_eq!(suggestion("modlues").as_deref(), Some("modules"));
        assert_eq!(suggestion("modules.edgeHub.zzzzzzzzzz"), None);
    }
}
