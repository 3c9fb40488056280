//! Removing images that nobody needs, and what pulls that will not come back left behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use containerd_client::services::v1::{ListRequest, PluginsRequest};

use super::channel::{CALL, CallError, Daemon};
use super::image::{self, Descriptor, chain_ids};
use super::layer;
use super::reference::normalize;
use super::snapshot::{PULL_LEASE, delete_lease};
use super::store::ImageStore;
use crate::clock::{self, UnixMillis};
use crate::edged::runtime::{Container, FsUsage, Reclaim, RuntimeError};

/// Label of images that are never collected.
pub(super) const PINNED: &str = "outpost.dev/pinned";

/// When images were last seen in use, by digest. Not kept over a restart: an image then counts
/// from when it came.
#[derive(Default)]
pub(super) struct LastUsed(Mutex<HashMap<String, UnixMillis>>);

impl LastUsed {
    pub(super) fn touch(&self, digest: &str) {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(digest.to_owned(), clock::unix_millis());
    }

    pub(super) fn touch_all(&self, containers: &[Container]) {
        let now = clock::unix_millis();
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for container in containers {
            if let Some((_, digest)) = container.image_id.split_once('@') {
                used.insert(digest.to_owned(), now);
            }
        }
    }

    fn get(&self, digest: &str) -> UnixMillis {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.get(digest).copied().unwrap_or(0)
    }

    fn keep_only(&self, digests: &BTreeSet<&str>) {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|digest, _| digests.contains(digest.as_str()));
    }
}

/// One digest with all its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Candidate {
    names: Vec<String>,
    digest: String,
    /// When it came, or was last used.
    at_ms: UnixMillis,
    needed: bool,
}

/// What may go, the one to go first at the front.
fn order(mut all: Vec<Candidate>, min_age_ms: i64, now_ms: UnixMillis) -> Vec<Candidate> {
    all.retain(|one| !one.needed && now_ms.saturating_sub(one.at_ms) >= min_age_ms);
    all.sort_by(|a, b| (a.at_ms, &a.digest).cmp(&(b.at_ms, &b.digest)));
    all
}

/// What an image's content and snapshots are, for counting what its removal frees.
#[derive(Default)]
struct Parts {
    blobs: Vec<Descriptor>,
    chain: Vec<String>,
}

impl ImageStore {
    /// See [`crate::edged::runtime::Runtime::reclaim_images`].
    pub(super) async fn reclaim(
        &self,
        reclaim: &Reclaim,
        containers: &[Container],
    ) -> Result<u64, RuntimeError> {
        self.drop_stale_pulls().await?;
        let candidates = self.candidates(reclaim, containers).await?;
        let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
        for one in &candidates {
            parts.insert(one.digest.clone(), self.parts(&one.digest).await);
        }
        let now = clock::unix_millis();
        let min_age = i64::try_from(reclaim.min_age.as_millis()).unwrap_or(i64::MAX);
        let mut freed: u64 = 0;
        for one in order(candidates, min_age, now) {
            if reclaim.bytes.is_some_and(|bytes| freed >= bytes) {
                break;
            }
            // A pull of the same content may just be making use of it.
            let Some(_mine) = self.locks.try_lock(&image_lock(&one.digest)) else {
                continue;
            };
            let own = parts.remove(&one.digest).unwrap_or_default();
            let size = self.unshared(&own, &parts).await;
            for name in &one.names {
                image::forget(&self.daemon, name).await?;
            }
            tracing::info!(images = ?one.names, bytes = size, "image removed");
            freed = freed.saturating_add(size);
        }
        Ok(freed)
    }

    async fn candidates(
        &self,
        reclaim: &Reclaim,
        containers: &[Container],
    ) -> Result<Vec<Candidate>, RuntimeError> {
        let full = |name: &String| normalize(name).ok().map(|parsed| parsed.whole());
        let mut keep: BTreeSet<String> = reclaim.keep.iter().filter_map(full).collect();
        keep.extend(
            containers
                .iter()
                .filter_map(|container| full(&container.image)),
        );
        let used: BTreeSet<&str> = containers
            .iter()
            .filter_map(|container| container.image_id.split_once('@'))
            .map(|(_, digest)| digest)
            .collect();
        self.used.touch_all(containers);
        let mut by_digest: BTreeMap<String, Candidate> = BTreeMap::new();
        for record in image::records(&self.daemon).await? {
            let digest = record.target.digest.clone();
            let one = by_digest
                .entry(digest.clone())
                .or_insert_with(|| Candidate {
                    at_ms: self.used.get(&digest),
                    needed: used.contains(digest.as_str()),
                    digest,
                    ..Candidate::default()
                });
            one.at_ms = one.at_ms.max(record.at_ms);
            one.needed |= keep.contains(&record.name) || record.is_pinned;
            one.names.push(record.name);
        }
        let digests = by_digest.keys().map(String::as_str).collect();
        self.used.keep_only(&digests);
        Ok(by_digest.into_values().collect())
    }

    /// Nothing is said of an image that cannot be read: its removal then counts for nothing.
    async fn parts(&self, digest: &str) -> Parts {
        let target = Descriptor {
            digest: digest.to_owned(),
            ..Descriptor::default()
        };
        match self.facts_of(&target).await {
            Ok(facts) => Parts {
                blobs: facts.manifest.layers.clone(),
                chain: chain_ids(&facts.config.rootfs.diff_ids),
            },
            Err(error) => {
                tracing::debug!(%error, digest, "image cannot be read");
                Parts::default()
            }
        }
    }

    /// What of an image no other one shares: its layers, packed and unpacked.
    async fn unshared(&self, own: &Parts, others: &BTreeMap<String, Parts>) -> u64 {
        let blobs: BTreeSet<&str> = others
            .values()
            .flat_map(|parts| parts.blobs.iter().map(|blob| blob.digest.as_str()))
            .collect();
        let chains: BTreeSet<&str> = others
            .values()
            .flat_map(|parts| parts.chain.iter().map(String::as_str))
            .collect();
        let alone = own
            .blobs
            .iter()
            .filter(|b| !blobs.contains(b.digest.as_str()));
        let mut bytes: u64 = alone.map(Descriptor::bytes).sum();
        for key in own
            .chain
            .iter()
            .filter(|key| !chains.contains(key.as_str()))
        {
            bytes = bytes.saturating_add(
                layer::usage(&self.daemon, &self.config.snapshotter, key, CALL)
                    .await
                    .unwrap_or(0),
            );
        }
        bytes
    }

    /// Leases of broken pulls that nobody carries on now: with them goes what came so far.
    async fn drop_stale_pulls(&self) -> Result<(), CallError> {
        let listed = self
            .daemon
            .call(
                "lease list",
                CALL,
                self.daemon.leases().list(ListRequest::default()),
            )
            .await?;
        for lease in listed.leases {
            let Some(rest) = lease.id.strip_prefix(PULL_LEASE) else {
                continue;
            };
            let hex = rest.split('-').next().unwrap_or_default();
            if !self.locks.is_held(&image_lock(&format!("sha256:{hex}"))) {
                tracing::info!(lease = lease.id, "remains of a broken pull dropped");
                delete_lease(&self.daemon, &lease.id).await?;
            }
        }
        Ok(())
    }

    /// The filesystem that holds the unpacked images.
    pub(super) async fn disk(&self) -> Result<FsUsage, RuntimeError> {
        let root = self
            .root
            .get_or_try_init(|| snapshotter_root(&self.daemon, &self.config.snapshotter))
            .await?;
        let stat = rustix::fs::statvfs(root.as_str()).map_err(|error| RuntimeError::Other {
            step: "image filesystem",
            reason: format!("{root}: {error}"),
        })?;
        Ok(FsUsage {
            capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

/// The lock of everything about one image's content.
pub(super) fn image_lock(digest: &str) -> String {
    format!("image {digest}")
}

/// Where the snapshotter keeps its layers, as it tells itself.
async fn snapshotter_root(daemon: &Daemon, snapshotter: &str) -> Result<String, RuntimeError> {
    let listed = daemon
        .call(
            "plugins",
            CALL,
            daemon.introspection().plugins(PluginsRequest::default()),
        )
        .await?;
    listed
        .plugins
        .into_iter()
        .find(|plugin| plugin.r#type == "io.containerd.snapshotter.v1" && plugin.id == snapshotter)
        .and_then(|mut plugin| plugin.exports.remove("root"))
        .ok_or_else(|| RuntimeError::Other {
            step: "image filesystem",
            reason: format!("containerd does not tell where `{snapshotter}` keeps its layers"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_the_needed_never() {
        let one = |digest: &str, at_ms, needed| Candidate {
            digest: digest.to_owned(),
            at_ms,
            needed,
            ..Candidate::default()
        };
        let all = vec![
            one("young", 990, false),
            one("needed", 1, true),
            one("b", 500, false),
            one("a", 500, false),
            one("old", 2, false),
            one("future", 5000, false),
        ];
        let gone: Vec<String> = order(all, 100, 1000)
            .into_iter()
            .map(|c| c.digest)
            .collect();
        assert_eq!(gone, ["old", "a", "b"]);
    }
}
