//! Every key the configuration file may carry: the ones that are used, which the sections declare
//! with default and comment, and KubeEdge's own that mean nothing here.
//!
//! Source of the names: `edgecore.config.kubeedge.io/v1alpha2`
//! (`apis/componentconfig/edgecore/v1alpha2/types.go`, `EdgeCoreConfig`).

use super::{
    bus, container_logs, dmi, hub, images, log, mqtt, network, outbox, resources, runtime,
    service_bus, twin, valid,
};

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
    pub is_usual: bool,
}

/// A key of the complete file.
pub(super) const fn field(path: &'static str, default: &'static str, doc: &'static str) -> Field {
    Field {
        path,
        default,
        doc,
        is_usual: false,
    }
}

/// A key that nodes usually set: of the minimal file too.
pub(super) const fn usual(path: &'static str, default: &'static str, doc: &'static str) -> Field {
    Field {
        path,
        default,
        doc,
        is_usual: true,
    }
}

const SECTIONS: &[&[Field]] = &[
    valid::FIELDS,
    hub::FIELDS,
    outbox::FIELDS,
    twin::FIELDS,
    dmi::FIELDS,
    bus::FIELDS,
    mqtt::FIELDS,
    service_bus::FIELDS,
    runtime::FIELDS,
    images::FIELDS,
    network::FIELDS,
    resources::FIELDS,
    container_logs::FIELDS,
    log::FIELDS,
];

/// Used keys, section by section.
pub(super) fn fields() -> impl Iterator<Item = &'static Field> {
    SECTIONS.iter().copied().flatten()
}

/// In the order of the printed file: what it is first, then tables and keys by name.
fn in_order() -> Vec<&'static Field> {
    let mut all: Vec<_> = fields().collect();
    all.sort_by_cached_key(|field| {
        let is_body = !matches!(field.path, "apiVersion" | "kind");
        let names: Vec<String> = field.path.split('.').map(str::to_lowercase).collect();
        (is_body, names)
    });
    all
}

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

/// The full path of one of kubelet's keys.
macro_rules! kubelet {
    ($key:literal) => {
        concat!("modules.edged.tailoredKubeletConfig.", $key)
    };
}
pub(super) use kubelet;

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
    if fields().any(|field| field.path == path) {
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
    if fields().any(|field| is_above(field.path)) || IGNORED.iter().any(|p| is_above(p)) {
        return Known::Branch;
    }
    Known::Unknown
}

/// The known sibling that is closest to a mistyped key, if one is close.
pub(super) fn suggestion(path: &str) -> Option<String> {
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let mut candidates: Vec<&str> = Vec::new();
    for known in fields()
        .map(|field| field.path)
        .chain(IGNORED.iter().copied())
    {
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
    for field in in_order() {
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
