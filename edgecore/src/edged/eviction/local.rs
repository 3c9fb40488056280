//! Pods that take more of the disk than they may
//! (`eviction_manager.go: localStorageEviction`). Pure but for counting.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::edged::pod::convert::{self, PodId};
use crate::edged::pod::resources;
use crate::edged::pod::worker::Context;
use crate::edged::quantity;
use crate::edged::volumes;

const STORAGE: &str = "ephemeral-storage";

/// Bytes on the node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskUsage {
    /// `emptyDir` volumes on disk, by name.
    pub(super) empty_dirs: BTreeMap<String, u64>,
    /// What of the pod's own a container may write: `/etc/hosts`, termination messages.
    pub(super) own: u64,
    /// Logs and writable layer, by container.
    pub(super) containers: BTreeMap<String, u64>,
    /// Files and directories in all of it.
    pub(super) inodes: u64,
}

impl DiskUsage {
    pub(super) fn total(&self) -> u64 {
        let all = self.empty_dirs.values().chain(self.containers.values());
        all.fold(self.own, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Whether anything of the pod's disk use is limited.
pub(super) fn is_limited(pod: &Pod) -> bool {
    sized_empty_dirs(pod).next().is_some()
        || containers(pod).any(|c| resources::limit(c, STORAGE).is_some())
}

/// Whether the writable layers have to be counted too.
pub(super) fn limits_layers(pod: &Pod) -> bool {
    containers(pod).any(|c| resources::limit(c, STORAGE).is_some())
}

fn containers(pod: &Pod) -> impl Iterator<Item = &k8s_openapi::api::core::v1::Container> {
    pod.spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
}

/// Names of `emptyDir` volumes on disk.
pub(super) fn empty_dirs(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.spec
        .iter()
        .flat_map(|s| s.volumes.iter().flatten())
        .filter(|volume| {
            let empty = volume.empty_dir.as_ref();
            empty.is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty())
        })
        .map(|volume| volume.name.as_str())
}

fn sized_empty_dirs(pod: &Pod) -> impl Iterator<Item = (&str, i64, &str)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let empty = volume.empty_dir.as_ref()?;
        let on_disk = empty.medium.as_deref().unwrap_or_default().is_empty();
        let size = empty.size_limit.as_ref().filter(|_| on_disk)?;
        let bytes = quantity::value(size).filter(|bytes| *bytes > 0)?;
        Some((volume.name.as_str(), bytes, size.0.as_str()))
    })
}

/// kubelet's text if the pod takes more than it may.
pub(super) fn excess(pod: &Pod, usage: &DiskUsage) -> Option<String> {
    let above = |bytes: u64, limit: i64| i64::try_from(bytes).unwrap_or(i64::MAX) > limit;
    for (name, limit, text) in sized_empty_dirs(pod) {
        if usage
            .empty_dirs
            .get(name)
            .is_some_and(|bytes| above(*bytes, limit))
        {
            return Some(format!(
                "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{text}\". "
            ));
        }
    }
    // The sum of those limits that there are: a container without one counts as zero.
    let limits = resources::limits_sum(pod, STORAGE);
    if limits > 0 && above(usage.total(), limits) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            ::quantity::binary(limits)
        ));
    }
    containers(pod).find_map(|container| {
        let limit = resources::limit(container, STORAGE)?;
        let used = *usage.containers.get(&container.name)?;
        let text = container
            .resources
            .as_ref()?
            .limits
            .as_ref()?
            .get(STORAGE)?;
        above(used, limit).then(|| {
            format!(
                "Container {} exceeded its local ephemeral storage limit \"{}\". ",
                container.name, text.0
            )
        })
    })
}

/// Counts files; blocks. Writable layers are the runtime's and come on top.
pub(super) fn count(pod: &Pod, context: &Context) -> DiskUsage {
    let id = PodId::of(pod);
    let mut found = DiskUsage::default();
    for name in empty_dirs(pod) {
        let usage = context.dirs.usage(&id.uid, name).unwrap_or_default();
        found.empty_dirs.insert(name.to_owned(), usage.bytes);
        found.inodes = found.inodes.saturating_add(usage.inodes);
    }
    let own = context.dirs.own_usage(&id.uid);
    found.own = own.bytes;
    found.inodes = found.inodes.saturating_add(own.inodes);
    let logs = convert::log_directory(&id, &context.placement);
    for container in containers(pod) {
        let usage = volumes::usage::of_directory(&logs.join(&container.name)).unwrap_or_default();
        found.containers.insert(container.name.clone(), usage.bytes);
        found.inodes = found.inodes.saturating_add(usage.inodes);
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(a: Value, b: Value, size: &str, medium: &str) -> Pod {
        let limits = |list: Value| json!({"limits": list});
        serde_json::from_value(json!({"spec": {
            "volumes": [
                {"name": "scratch", "emptyDir": {"sizeLimit": size, "medium": medium}},
                {"name": "free", "emptyDir": {}}
            ],
            "containers": [
                {"name": "a", "image": "x", "resources": limits(a)},
                {"name": "b", "image": "x", "resources": limits(b)}
            ]
        }}))
        .unwrap()
    }

    fn used(scratch: u64, a: u64, b: u64) -> DiskUsage {
        DiskUsage {
            empty_dirs: BTreeMap::from([
                ("scratch".to_owned(), scratch),
                ("free".to_owned(), 4096),
            ]),
            own: 0,
            containers: BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]),
            inodes: 0,
        }
    }

    #[test]
    fn the_words_are_kubelets() {
        let mib = 1 << 20;
        let none = json!({});
        let limit = json!({"ephemeral-storage": "2Mi"});
        for (name, pod, usage, want) in [
            (
                "small",
                pod(none.clone(), none.clone(), "1Mi", ""),
                used(mib, 0, 0),
                None,
            ),
            (
                "volume",
                pod(none.clone(), none.clone(), "1Mi", ""),
                used(mib + 1, 0, 0),
                Some("Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". "),
            ),
            (
                "memory is the kernel's",
                pod(none.clone(), none.clone(), "1Mi", "Memory"),
                used(9 * mib, 0, 0),
                None,
            ),
            (
                "container",
                pod(
                    limit.clone(),
                    json!({"ephemeral-storage": "9Mi"}),
                    "8Mi",
                    "",
                ),
                used(0, 2 * mib + 1, 0),
                Some("Container a exceeded its local ephemeral storage limit \"2Mi\". "),
            ),
            (
                "pod",
                pod(limit.clone(), limit.clone(), "8Mi", ""),
                used(3 * mib, mib, mib),
                Some(
                    "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ",
                ),
            ),
        ] {
            assert_eq!(excess(&pod, &usage).as_deref(), want, "{name}");
        }
        let hosts = DiskUsage {
            own: 4 * mib,
            ..used(0, mib, 0)
        };
        let limited = |limit: &str| {
            let limit = json!({"ephemeral-storage": limit});
            pod(limit.clone(), limit, "8Mi", "")
        };
        assert!(
            excess(&limited("2Mi"), &hosts).is_some(),
            "/etc/hosts counts"
        );
        assert_eq!(excess(&limited("3Mi"), &hosts), None);
        assert!(!is_limited(&pod(none.clone(), none, "0", "")));
    }
}
