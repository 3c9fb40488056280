//! Claims and volumes: binding, local-path storage, protection and reclaim.
//!
//! ```text
//! claim made ──▶ waits for a pod ──▶ scheduler picks a node ──▶ volume made for that node, bound
//! claim gone ──▶ volume Released ──▶ policy Delete: marked ──▶ node removes the data ──▶ gone
//! ```
//!
//! One task looks at all claims and volumes whenever one of them, or a pod, changed: there are few,
//! and what is decided from everything needs no memory. The scheduler calls [`Binder::bind_for`]
//! before it binds a pod, so a pod reaches its node with its claims bound.

mod binder;
pub mod plan;

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use apiserver::{
    ApiError, DeleteOptions, Reason,
    store::{Event, StoreError},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use binder::{Binder, Refusal, Wish};

use crate::{
    follow::is_over,
    keys::{ObjectKey, REGISTRY},
    kube::{Kube, resources, text},
};
use plan::{CLASS, NODE_ANNOTATION, PROVISIONER};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
/// Tries to take a finalizer off an object that others change.
const RELEASE_TRIES_MAX: usize = 8;
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// Makes the default class if there is none of its name.
pub async fn install(kube: &Kube) -> Result<(), ApiError> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {
            "storageclass.kubernetes.io/is-default-class": "true",
        }},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    match kube.create(&resources::storage_classes(), "", class).await {
        Err(error) if error.reason != Reason::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The task.
pub struct Controller {
    kube: Kube,
    binder: Binder,
}

impl Controller {
    /// Puts the parts together.
    pub fn new(kube: Kube) -> Self {
        Self {
            binder: Binder::new(kube.clone()),
            kube,
        }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), anyhow::Error> {
        loop {
            if let ControlFlow::Break(end) = is_over(self.follow(&stop).await, &stop) {
                return end;
            }
        }
    }

    async fn follow(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let store = Arc::clone(self.kube.api().store());
        let at = store.revision().await?;
        let prefix = |plural: &str| format!("{REGISTRY}core/{plural}/");
        let mut claims = store.watch(&prefix("persistentvolumeclaims"), at).await?;
        let mut volumes = store.watch(&prefix("persistentvolumes"), at).await?;
        let mut pods = store.watch(&prefix("pods"), at).await?;
        let mut dirty = true;
        loop {
            if std::mem::take(&mut dirty) {
                self.look().await?;
            }
            // All branches may be cancelled: watchers keep their position.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                events = claims.next() => dirty = !events?.is_empty(),
                events = volumes.next() => dirty = !events?.is_empty(),
                events = pods.next() => dirty = events?.iter().any(|e| concerns_claims(e)),
            }
        }
    }

    /// Everything once.
    async fn look(&self) -> Result<(), StoreError> {
        // Volumes first: a volume whose claim is not among those read after it has lost its claim. Read
        // the other way round it may have been made meanwhile, together with its claim.
        let (volumes, _) = self.kube.list_raw(&prefix("persistentvolumes")).await?;
        let (claims, _) = self
            .kube
            .list_raw(&prefix("persistentvolumeclaims"))
            .await?;
        if claims.is_empty() && volumes.is_empty() {
            return Ok(());
        }
        let (pods, _) = self.kube.list_raw(&prefix("pods")).await?;
        let mut used = BTreeSet::new();
        for (_, pod) in &pods {
            if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
                && pod.pointer("/metadata/deletionTimestamp").is_none()
            {
                continue;
            }
            let namespace = text(pod, "/metadata/namespace");
            for name in plan::claims_of(pod) {
                used.insert(format!("{namespace}/{name}"));
            }
        }
        for (_, claim) in &claims {
            self.claim(claim, &used).await;
        }
        // Pods that were given a node by hand did not pass the scheduler.
        for (_, pod) in &pods {
            let node = text(pod, "/spec/nodeName");
            if !node.is_empty() && !plan::claims_of(pod).is_empty() {
                tell(self.binder.bind_for(pod, node).await.err(), pod);
            }
        }
        let ids: BTreeSet<(String, String)> = claims
            .iter()
            .filter_map(|(key, claim)| {
                let uid = text(claim, "/metadata/uid").to_owned();
                Some((ObjectKey::parse(key)?.id(), uid))
            })
            .collect();
        for (_, volume) in &volumes {
            self.volume(volume, &ids).await;
        }
        Ok(())
    }

    async fn claim(&self, claim: &Value, used: &BTreeSet<String>) {
        let (namespace, name) = (
            text(claim, "/metadata/namespace"),
            text(claim, "/metadata/name"),
        );
        let result = if claim.pointer("/metadata/deletionTimestamp").is_some() {
            if used.contains(&format!("{namespace}/{name}")) {
                return;
            }
            self.release(&resources::claims(), namespace, name, &[CLAIM_FINALIZER])
                .await
        } else if plan::is_bound(claim) {
            return;
        } else {
            self.binder.bind_at_once(claim).await
        };
        if let Err(error) = result {
            tracing::debug!(namespace, claim = name, %error, "claim not settled; looked at again with the next change");
        }
    }

    /// The phase of a volume, and its end.
    async fn volume(&self, volume: &Value, claims: &BTreeSet<(String, String)>) {
        let name = text(volume, "/metadata/name");
        let claim = format!(
            "{}/{}",
            text(volume, "/spec/claimRef/namespace"),
            text(volume, "/spec/claimRef/name")
        );
        let uid = text(volume, "/spec/claimRef/uid").to_owned();
        let phase = if uid.is_empty() {
            "Available"
        } else if claims.contains(&(claim, uid)) {
            "Bound"
        } else {
            "Released"
        };
        let result = if volume.pointer("/metadata/deletionTimestamp").is_some() {
            if phase == "Bound" {
                return;
            }
            // The data's own finalizer stays until the node says that the data is gone; with
            // `Retain` nobody is asked to remove it.
            let keeps = text(volume, "/spec/persistentVolumeReclaimPolicy") != "Delete";
            let finalizers: &[&str] = if keeps {
                &[VOLUME_FINALIZER, plan::DATA_FINALIZER]
            } else {
                &[VOLUME_FINALIZER]
            };
            self.release(&resources::volumes(), "", name, finalizers)
                .await
        } else if phase == "Released" && is_to_be_deleted(volume) {
            let uid = Some(text(volume, "/metadata/uid").to_owned());
            let options = DeleteOptions {
                uid,
                ..DeleteOptions::default()
            };
            let of = resources::volumes();
            self.kube.delete(&of, "", name, options).await.map(|_| ())
        } else if text(volume, "/status/phase") == phase {
            return;
        } else {
            let of = resources::volumes();
            let changed = self.kube.change(&of, "", name, |volume| {
                let mut volume = volume.clone();
                volume["status"]["phase"] = phase.into();
                Ok(volume)
            });
            changed.await.map(|_| ())
        };
        if let Err(error) = result {
            tracing::debug!(volume = name, %error, "volume not settled; looked at again with the next change");
        }
    }

    /// Takes finalizers off an object that is being deleted.
    async fn release(
        &self,
        of: &apiserver::Gvr,
        namespace: &str,
        name: &str,
        finalizers: &[&str],
    ) -> Result<(), ApiError> {
        release(&self.kube, of, namespace, name, finalizers).await
    }
}

/// Takes finalizers off an object that is being deleted; one that has none of them is left alone.
pub async fn release(
    kube: &Kube,
    of: &apiserver::Gvr,
    namespace: &str,
    name: &str,
    finalizers: &[&str],
) -> Result<(), ApiError> {
    let is_held = |f: &Value| f.as_str().is_some_and(|f| finalizers.contains(&f));
    for tries in 1.. {
        let mut object = match kube.get(of, namespace, name).await {
            Err(error) if error.reason == Reason::NotFound => return Ok(()),
            found => found?,
        };
        if object.pointer("/metadata/deletionTimestamp").is_none() {
            return Ok(());
        }
        let list = object.pointer_mut("/metadata/finalizers");
        let Some(list) = list.and_then(Value::as_array_mut) else {
            return Ok(());
        };
        if !list.iter().any(is_held) {
            return Ok(());
        }
        list.retain(|f| !is_held(f));
        match kube.update(of, namespace, object).await {
            // Two take their finalizers off at the same time: a node and the controller.
            Err(error) if error.reason == Reason::Conflict && tries < RELEASE_TRIES_MAX => {}
            Err(error) if error.reason == Reason::NotFound => return Ok(()),
            result => return result.map(|_| ()),
        }
    }
    Ok(())
}

/// Volumes that we made and whose policy says so; those made by hand are their maker's.
fn is_to_be_deleted(volume: &Value) -> bool {
    text(volume, "/spec/persistentVolumeReclaimPolicy") == "Delete" && node_of(volume).is_some()
}

/// The node that keeps the data of a volume that we made.
pub fn node_of(volume: &Value) -> Option<&str> {
    let annotations = volume.pointer("/metadata/annotations")?;
    let annotation = |name: &str| annotations.get(name).and_then(Value::as_str);
    let made_here = annotation(plan::PROVISIONED_BY) == Some(PROVISIONER);
    annotation(NODE_ANNOTATION).filter(|node| made_here && !node.is_empty())
}

fn prefix(plural: &str) -> String {
    format!("{REGISTRY}core/{plural}/")
}

/// Statuses come often and rarely matter here: placement, the end and deletion do.
fn concerns_claims(event: &Event) -> bool {
    let facts = |pod: &Value| {
        (
            text(pod, "/spec/nodeName").to_owned(),
            matches!(text(pod, "/status/phase"), "Succeeded" | "Failed"),
        )
    };
    let (now, before) = (event.object(), event.previous());
    let any = now.as_deref().or(before.as_deref());
    let uses = any.is_some_and(|pod| !plan::claims_of(pod).is_empty());
    uses && now.as_deref().map(facts) != before.as_deref().map(facts)
}

fn tell(refusal: Option<Refusal>, pod: &Value) {
    if let Some(refusal) = refusal {
        tracing::debug!(
            pod = text(pod, "/metadata/name"),
            namespace = text(pod, "/metadata/namespace"),
            error = %refusal,
            "claims of a pod that was given a node by hand are not bound"
        );
    }
}
