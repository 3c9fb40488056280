//! Keeps the mirrors in the API as the files say: made where missing, removed where the file is
//! gone or another pod has taken its place. The pods do not depend on any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::parse::{CONFIG_MIRROR, mirror_of};
use super::{Name, State, StaticPods, name_of};
use crate::clock;

/// After a refusal, doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// A mirror that was made arrives in the store soon; after this it is made again.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);

/// A mirror as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    name: Name,
    pub(super) uid: String,
    /// The static pod's uid.
    pub(super) hash: String,
    deleting: bool,
}

impl Mirror {
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let annotations = pod.metadata.annotations.as_ref()?;
        Some(Self {
            name: name_of(pod),
            uid: pod.metadata.uid.clone()?,
            hash: annotations.get(CONFIG_MIRROR)?.clone(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

/// Every mirror of this node that the store knows.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    seen: BTreeMap<Name, Mirror>,
    /// The store has been read.
    read: bool,
    /// Uids whose deletion was asked for.
    ended: BTreeSet<String>,
}

impl Mirrors {
    /// Takes what the store has now; returns the ones that are new.
    pub(super) fn take(&mut self, mirrors: impl Iterator<Item = Mirror>) -> Vec<(Name, Mirror)> {
        let before = std::mem::take(&mut self.seen);
        self.read = true;
        self.seen = mirrors
            .map(|mirror| (mirror.name.clone(), mirror))
            .collect();
        let uids: BTreeSet<&str> = self.seen.values().map(|m| m.uid.as_str()).collect();
        self.ended.retain(|uid| uids.contains(uid.as_str()));
        let fresh = self
            .seen
            .iter()
            .filter(|(name, mirror)| before.get(*name).is_none_or(|old| old.uid != mirror.uid));
        fresh.map(|(name, m)| (name.clone(), m.clone())).collect()
    }

    /// The mirror's uid for a static pod's status.
    pub(super) fn of(&self, name: &Name, hash: &str) -> Option<String> {
        let mirror = self.seen.get(name)?;
        (mirror.hash == hash && !mirror.deleting).then(|| mirror.uid.clone())
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Create(Name, Value),
    /// Name and uid of the mirror.
    Delete(Name, String),
}

/// What is to be done. Pure.
pub(super) fn plan(state: &State) -> Vec<Step> {
    if !state.read || !state.mirrors.read {
        return Vec::new();
    }
    let wanted = state.wanted();
    let mut steps = Vec::new();
    for (name, pod) in &wanted {
        if !state.mirrors.seen.contains_key(name) {
            steps.push(Step::Create(name.clone(), mirror_of(pod)));
        }
    }
    for (name, mirror) in &state.mirrors.seen {
        let uid = wanted.get(name).and_then(|pod| pod.metadata.uid.as_ref());
        let is_right = uid == Some(&mirror.hash) && !mirror.deleting;
        // Shown until it has ended.
        let still_ends = !wanted.contains_key(name) && state.known.contains_key(&mirror.hash);
        if !is_right
            && (!still_ends || mirror.deleting)
            && !state.mirrors.ended.contains(&mirror.uid)
        {
            steps.push(Step::Delete(name.clone(), mirror.uid.clone()));
        }
    }
    steps
}

#[derive(Clone, Copy)]
struct Attempt {
    again_at: Instant,
    delay: Duration,
}

/// Does what is planned, for ever.
pub(super) async fn keep(statics: &StaticPods) {
    let hub = &statics.shared.deps.hub;
    let mut connected = hub.connected();
    let mut attempts: BTreeMap<Name, Attempt> = BTreeMap::new();
    loop {
        let steps = plan(&statics.state());
        let now = Instant::now();
        attempts.retain(|name, _| {
            steps
                .iter()
                .any(|step| matches!(step, Step::Create(wanted, _) if wanted == name))
        });
        let is_up = *connected.borrow_and_update();
        for step in steps {
            match step {
                Step::Delete((namespace, name), uid) => {
                    info!(
                        pod = name,
                        namespace, uid, "mirror of a static pod is removed"
                    );
                    statics.state().mirrors.ended.insert(uid.clone());
                    statics.shared.deps.sink.pod_gone(&namespace, &name, &uid);
                }
                Step::Create(name, pod) => {
                    let waits = attempts.get(&name).is_some_and(|last| last.again_at > now);
                    if is_up && !waits {
                        let last = attempts.get(&name).copied();
                        attempts.insert(name.clone(), create(statics, &name, pod, last).await);
                    }
                }
            }
        }
        let due = attempts.values().map(|attempt| attempt.again_at).min();
        let timer = clock::reached(due.filter(|_| is_up));
        // Cancel-safe: a notification that stays set, a watch and a timer.
        tokio::select! {
            () = statics.shared.mirrors.notified() => {}
            changed = connected.changed() => match changed {
                Ok(()) => attempts.clear(),
                Err(_) => std::future::pending().await,
            },
            () = timer => {}
        }
    }
}

async fn create(statics: &StaticPods, name: &Name, pod: Value, last: Option<Attempt>) -> Attempt {
    let created = statics.shared.deps.hub.create_mirror(&name.0, &name.1, pod);
    let delay = match created.await {
        Ok(()) => {
            info!(
                pod = name.1,
                namespace = name.0,
                "mirror of a static pod is made"
            );
            ARRIVES_WITHIN
        }
        Err(error) => {
            let delay = last.map_or(RETRY_FIRST, |last| (last.delay * 2).min(RETRY_MAX));
            if last.is_none() {
                warn!(
                    pod = name.1,
                    namespace = name.0,
                    error,
                    "mirror of a static pod not made; the pod runs all the same"
                );
            } else {
                debug!(
                    pod = name.1,
                    namespace = name.0,
                    error,
                    "mirror of a static pod not made"
                );
            }
            delay
        }
    };
    Attempt {
        again_at: Instant::now() + delay,
        delay,
    }
}
