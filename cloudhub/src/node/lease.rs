//! Leases, mostly in memory.
//!
//! A plain edge renews its lease every 10 s; our own edges do not, the hub hears them. Neither
//! writes the store: a Lease object is stored when it is first made and then at most every
//! [`WRITE_EVERY_SECS`]. A node that asks is answered from memory; what `kubectl` shows may be that
//! old. Readiness is decided by what the hub hears, never by the stored lease.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use apiserver::{ApiError, Reason};
use serde_json::{Value, json};

use crate::{
    clock,
    kube::{Kube, resources, text},
};

/// Namespace of the leases of nodes.
pub const NAMESPACE: &str = "kube-node-lease";
/// Seconds between two writes of one lease.
pub const WRITE_EVERY_SECS: u64 = 300;

/// The newest state of each lease.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<String, (Value, u64)>>);

impl Leases {
    fn with<R>(&self, change: impl FnOnce(&mut HashMap<String, (Value, u64)>) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lease of a node, from memory or from the store.
    pub async fn get(&self, kube: &Kube, node: &str) -> Result<Option<Value>, ApiError> {
        if let Some((lease, _)) = self.with(|leases| leases.get(node).cloned()) {
            return Ok(Some(lease));
        }
        match kube.get(&resources::leases(), NAMESPACE, node).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) if error.reason == Reason::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes a renewal; `spec` is the node's, the rest ours.
    pub async fn put(&self, kube: &Kube, node: &str, lease: &Value) -> Result<Value, ApiError> {
        let spec = lease.get("spec").cloned().unwrap_or_else(|| json!({}));
        let holder = text(&spec, "/holderIdentity");
        if !holder.is_empty() && holder != node {
            let why = format!("node \"{node}\" may hold only its own lease");
            return Err(ApiError::forbidden(
                "coordination.k8s.io",
                "leases",
                node,
                &why,
            ));
        }
        let owners = lease.pointer("/metadata/ownerReferences").cloned();
        let now = clock::unix_secs();
        if let Some((mut known, written)) = self.with(|leases| leases.get(node).cloned())
            && written + WRITE_EVERY_SECS > now
        {
            known["spec"] = spec;
            self.with(|leases| leases.insert(node.to_owned(), (known.clone(), written)));
            return Ok(known);
        }
        let stored = self.store(kube, node, &spec, owners).await?;
        self.with(|leases| leases.insert(node.to_owned(), (stored.clone(), now)));
        Ok(stored)
    }

    /// The hub renews for a node that it hears: on connect, then rarely.
    pub async fn renew(&self, kube: &Kube, node: &str) -> Result<(), ApiError> {
        let spec = json!({
            "holderIdentity": node,
            "leaseDurationSeconds": 40,
            "renewTime": clock::micro_time_now(),
        });
        self.put(kube, node, &json!({ "spec": spec })).await?;
        Ok(())
    }

    /// Forgets a node.
    pub fn forget(&self, node: &str) {
        self.with(|leases| leases.remove(node));
    }

    async fn store(
        &self,
        kube: &Kube,
        node: &str,
        spec: &Value,
        owners: Option<Value>,
    ) -> Result<Value, ApiError> {
        let leases = resources::leases();
        let renewed = kube
            .change(&leases, NAMESPACE, node, |lease| {
                let mut lease = lease.clone();
                lease["spec"] = spec.clone();
                Ok(lease)
            })
            .await;
        match renewed {
            Err(error) if error.reason == Reason::NotFound => {
                let mut lease = json!({
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": { "name": node, "namespace": NAMESPACE },
                    "spec": spec,
                });
                if let Some(owners) = owners {
                    lease["metadata"]["ownerReferences"] = owners;
                }
                kube.create(&leases, NAMESPACE, lease).await
            }
            done => done,
        }
    }
}
