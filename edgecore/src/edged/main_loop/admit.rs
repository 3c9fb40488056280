//! Where each pod stands, and what the node says to the new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use tracing::info;

use super::MainLoop;
use crate::edged::admission::{self, Decision, Node, Standing, Subject};
use crate::edged::pod::resources::{self, Qos};
use crate::edged::pod::{self, Past};
use crate::edged::runtime::ContainerState;

/// A pod that waits for others to go is looked at again this soon.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

fn is_final(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

impl MainLoop {
    /// Decides about pods that are new here; gives those that have to wait.
    pub(super) fn admit(&mut self, desired: &BTreeMap<String, Arc<Pod>>) -> BTreeSet<String> {
        self.refused.retain(|uid| desired.contains_key(uid));
        let gone: Vec<(String, Arc<Pod>)> = self
            .workers
            .iter()
            .filter(|(uid, tracked)| !tracked.over && !desired.contains_key(*uid))
            .map(|(uid, tracked)| (uid.clone(), tracked.input.borrow().pod.clone()))
            .collect();
        let mut subjects: Vec<Subject<'_>> = gone
            .iter()
            .map(|(uid, pod)| Subject {
                uid,
                pod,
                standing: Standing::Leaving,
            })
            .collect();
        subjects.extend(desired.iter().map(|(uid, pod)| Subject {
            uid,
            pod,
            standing: self.standing(uid, pod),
        }));
        let node = Node {
            allocatable: self.node.allocatable(),
            pressure: *self.pressure.borrow(),
            labels: self.node.own_labels(),
        };
        let review = admission::review(&subjects, &node);
        let mut active = Vec::new();
        let mut waiting = BTreeSet::new();
        for subject in &subjects {
            let uid = subject.uid;
            let decision = review.decisions.get(uid);
            if let Some(Decision::Refuse(refusal)) = decision {
                let verdict = refusal.verdict();
                info!(
                    uid,
                    pod = subject.pod.metadata.name,
                    reason = verdict.reason,
                    message = verdict.message,
                    "pod refused"
                );
                self.context.judge(uid, verdict);
                self.refused.insert(uid.to_owned());
            }
            if decision == Some(&Decision::Wait) {
                waiting.insert(uid.to_owned());
            }
            let stays = subject.standing == Standing::Taken || decision == Some(&Decision::Take);
            if review.preempted.contains(uid) {
                info!(
                    uid,
                    pod = subject.pod.metadata.name,
                    "pod gives way to a critical one"
                );
                let verdict = admission::preempted(subject.pod);
                self.context.judge(uid, verdict);
            } else if stays && let Some(pod) = desired.get(uid) {
                active.push(pod.clone());
            }
        }
        self.node
            .look_again((!waiting.is_empty()).then(|| Instant::now() + LOOK_AGAIN));
        self.share(active);
        waiting
    }

    fn standing(&self, uid: &str, pod: &Arc<Pod>) -> Standing {
        let told = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        if self.refused.contains(uid) {
            return Standing::Over;
        }
        if let Some(tracked) = self.workers.get(uid) {
            let board = self.context.board.lock();
            let board = board.unwrap_or_else(PoisonError::into_inner);
            let phase = board.get(uid).map(|summary| summary.phase.as_str());
            let is_over = tracked.over || is_final(phase) || phase.is_none() && is_final(told);
            drop(board);
            let judged = self.context.verdicts.lock();
            let judged = judged.unwrap_or_else(PoisonError::into_inner);
            return match (is_over, is_leaving || judged.contains_key(uid)) {
                (true, _) => Standing::Over,
                (false, true) => Standing::Leaving,
                (false, false) => Standing::Taken,
            };
        }
        let is_here = self.seen.contains_key(uid) || self.sandboxes.contains_key(uid);
        let past = pod::past(&self.context.dirs, uid);
        if is_final(told) || past == Past::Ended {
            Standing::Over
        } else if is_leaving {
            if is_here {
                Standing::Leaving
            } else {
                Standing::Over
            }
        } else if past == Past::Unknown && !self.runs(uid) {
            // Perhaps the node ended it: whether there is room for it is asked again.
            Standing::New
        } else if is_here || past != Past::None {
            Standing::Taken
        } else {
            Standing::New
        }
    }

    fn runs(&self, uid: &str) -> bool {
        let mut seen = self.seen.get(uid).into_iter().flatten();
        seen.any(|container| matches!(container.state, ContainerState::Running { .. }))
    }

    /// Tells who watches over the node which pods it has.
    fn share(&mut self, active: Vec<Arc<Pod>>) {
        let held = self.active.borrow();
        let same =
            held.len() == active.len() && held.iter().zip(&active).all(|(a, b)| Arc::ptr_eq(a, b));
        drop(held);
        if same {
            return;
        }
        let burstable = active
            .iter()
            .filter(|pod| resources::qos(pod) == Qos::Burstable);
        let milli = burstable.fold(0_i64, |sum, pod| {
            sum.saturating_add(resources::pod_request(pod, "cpu"))
        });
        self.node.set_burstable_shares(resources::shares(milli));
        self.active.send_replace(Arc::new(active));
    }
}
