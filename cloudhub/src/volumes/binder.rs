//! Binds claims to volumes, and makes volumes on local-path storage.

use std::collections::BTreeMap;

use apiserver::{ApiError, Reason};
use serde_json::{Value, json};

use super::plan::{self, Class, best, claim_ref, claims_of, is_bound, new_volume};
use crate::{
    kube::{Kube, resources, text},
    scheduler::fits_volume,
};

/// Why a pod's claims cannot be bound; the words are kube-scheduler's.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The pod waits; the text says for what.
    #[error("{0}")]
    Waits(String),
    /// The store or another writer was in the way.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// One claim of a pod, as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct Wish {
    claim: Value,
    class: Class,
    /// What it is bound to, or what could be bound.
    volumes: Vec<Value>,
}

/// Reads and binds.
#[derive(Debug, Clone)]
pub struct Binder {
    kube: Kube,
}

/// What is not there yet is waited for; any other error is told.
fn missing_waits(error: ApiError, what: impl FnOnce() -> String) -> Refusal {
    if error.reason == Reason::NotFound {
        Refusal::Waits(what())
    } else {
        Refusal::Api(error)
    }
}

impl Binder {
    /// Through this API.
    pub fn new(kube: Kube) -> Self {
        Self { kube }
    }

    /// What the pod's claims need, before a node is chosen.
    pub async fn wishes(&self, pod: &Value) -> Result<Vec<Wish>, Refusal> {
        let namespace = text(pod, "/metadata/namespace");
        let mut wishes = Vec::new();
        for name in claims_of(pod) {
            let claim = self.kube.get(&resources::claims(), namespace, name).await;
            let claim = claim.map_err(|error| {
                missing_waits(error, || {
                    format!("persistentvolumeclaim \"{name}\" not found")
                })
            })?;
            if claim.pointer("/metadata/deletionTimestamp").is_some() {
                return Err(Refusal::Waits(format!(
                    "persistentvolumeclaim \"{name}\" is being deleted"
                )));
            }
            let class = self.class(&claim).await?;
            let volumes = if is_bound(&claim) {
                let volume = text(&claim, "/spec/volumeName");
                let found = self.kube.get(&resources::volumes(), "", volume).await;
                vec![found.map_err(|error| {
                    missing_waits(error, || format!("persistentvolume \"{volume}\" not found"))
                })?]
            } else if class.waits_for_consumer {
                self.free(&claim).await?
            } else {
                return Err(Refusal::Waits(
                    "pod has unbound immediate PersistentVolumeClaims".to_owned(),
                ));
            };
            wishes.push(Wish {
                claim,
                class,
                volumes,
            });
        }
        Ok(wishes)
    }

    /// Binds what is not bound yet, on this node.
    pub async fn bind_for(&self, pod: &Value, node: &str) -> Result<(), Refusal> {
        let wishes = self.wishes(pod).await?;
        if wishes.iter().all(|wish| is_bound(&wish.claim)) {
            return Ok(());
        }
        let labels = self.labels(node).await?;
        for wish in wishes.iter().filter(|wish| !is_bound(&wish.claim)) {
            let here = wish
                .volumes
                .iter()
                .filter(|v| fits_volume(v, node, &labels));
            let volume = match best(here, &wish.claim) {
                Some(volume) => volume.clone(),
                None if wish.class.is_ours => self.provision(wish, node).await?,
                None => {
                    return Err(Refusal::Waits(
                        "node(s) didn't find available persistent volumes to bind".to_owned(),
                    ));
                }
            };
            self.bind(&wish.claim, &volume).await?;
        }
        Ok(())
    }

    /// Binds a claim whose class does not wait for a pod, if a volume suits.
    pub async fn bind_at_once(&self, claim: &Value) -> Result<(), ApiError> {
        let is_named = !text(claim, "/spec/volumeName").is_empty();
        if self.class(claim).await?.waits_for_consumer && !is_named {
            return Ok(());
        }
        let free = self.free(claim).await?;
        match best(free.iter(), claim) {
            Some(volume) => self.bind(claim, volume).await,
            None => Ok(()),
        }
    }

    async fn class(&self, claim: &Value) -> Result<Class, ApiError> {
        let name = text(claim, "/spec/storageClassName");
        if name.is_empty() {
            return Ok(Class::default());
        }
        match self.kube.get(&resources::storage_classes(), "", name).await {
            Ok(class) => Ok(Class::of(&class)),
            Err(error) if error.reason == Reason::NotFound => Ok(Class::default()),
            Err(error) => Err(error),
        }
    }

    async fn free(&self, claim: &Value) -> Result<Vec<Value>, ApiError> {
        let (volumes, _) = self
            .kube
            .list_raw(&super::prefix("persistentvolumes"))
            .await
            .map_err(ApiError::from)?;
        let volumes = volumes.into_iter().map(|(_, volume)| volume);
        Ok(volumes
            .filter(|volume| plan::suits(volume, claim))
            .collect())
    }

    async fn labels(&self, node: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let node = self.kube.get(&resources::nodes(), "", node).await?;
        let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
        Ok(labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect())
    }

    async fn provision(&self, wish: &Wish, node: &str) -> Result<Value, ApiError> {
        let volume = new_volume(&wish.claim, &wish.class, node);
        let name = text(&volume, "/metadata/name").to_owned();
        match self.kube.create(&resources::volumes(), "", volume).await {
            Ok(volume) => {
                tracing::info!(volume = name, node, "volume made on local-path storage");
                Ok(volume)
            }
            // Made before a restart; it bears the claim's own uid.
            Err(error) if error.reason == Reason::AlreadyExists => {
                self.kube.get(&resources::volumes(), "", &name).await
            }
            Err(error) => Err(error),
        }
    }

    /// The volume first: a claim that names a volume which names another claim would be lost.
    async fn bind(&self, claim: &Value, volume: &Value) -> Result<(), ApiError> {
        let reference = claim_ref(claim);
        let name = text(volume, "/metadata/name").to_owned();
        let uid = text(claim, "/metadata/uid").to_owned();
        self.kube
            .change(&resources::volumes(), "", &name, |volume| {
                if !plan::suits(volume, claim) {
                    let why = "the volume was taken by another claim";
                    return Err(ApiError::conflict("", "persistentvolumes", &name, why));
                }
                let mut volume = volume.clone();
                volume["spec"]["claimRef"] = reference.clone();
                volume["status"]["phase"] = "Bound".into();
                Ok(volume)
            })
            .await?;
        let (namespace, claim_name) = (
            text(claim, "/metadata/namespace"),
            text(claim, "/metadata/name"),
        );
        self.kube
            .change(&resources::claims(), namespace, claim_name, |claim| {
                if text(claim, "/metadata/uid") != uid {
                    let why = "the claim was made anew";
                    let of = "persistentvolumeclaims";
                    return Err(ApiError::conflict("", of, claim_name, why));
                }
                let mut claim = claim.clone();
                claim["spec"]["volumeName"] = name.clone().into();
                claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = "yes".into();
                claim["status"] = json!({
                    "phase": "Bound",
                    "accessModes": volume.pointer("/spec/accessModes"),
                    "capacity": volume.pointer("/spec/capacity"),
                });
                Ok(claim)
            })
            .await?;
        tracing::info!(namespace, claim = claim_name, volume = name, "claim bound");
        Ok(())
    }
}

impl Wish {
    /// Why the node does not suit this claim (`volumebinding/binder.go`).
    pub(crate) fn refuses(
        &self,
        node: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<&'static str> {
        let fits = |volume: &Value| fits_volume(volume, node, labels);
        if is_bound(&self.claim) {
            return (!self.volumes.iter().all(fits))
                .then_some("node(s) had volume node affinity conflict");
        }
        let can = self.class.is_ours || self.volumes.iter().any(fits);
        (!can).then_some("node(s) didn't find available persistent volumes to bind")
    }
}
