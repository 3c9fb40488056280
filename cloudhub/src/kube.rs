//! The API as the hub's controllers use it.

use apiserver::{
    Api, ApiError, DeleteOptions, Deleted, Gvr, Patch, PatchKind, WriteOptions,
    store::{ListQuery, StoreError, set_resource_version},
};
use serde_json::Value;

/// Names of resources.
pub mod resources {
    use apiserver::Gvr;

    use crate::keys::DEVICES_GROUP;

    /// pods
    pub fn pods() -> Gvr {
        Gvr::core("pods")
    }

    /// nodes
    pub fn nodes() -> Gvr {
        Gvr::core("nodes")
    }

    /// configmaps
    pub fn configmaps() -> Gvr {
        Gvr::core("configmaps")
    }

    /// secrets
    pub fn secrets() -> Gvr {
        Gvr::core("secrets")
    }

    /// persistentvolumeclaims
    pub fn claims() -> Gvr {
        Gvr::core("persistentvolumeclaims")
    }

    /// persistentvolumes
    pub fn volumes() -> Gvr {
        Gvr::core("persistentvolumes")
    }

    /// storageclasses
    pub fn storage_classes() -> Gvr {
        Gvr::new("storage.k8s.io", "v1", "storageclasses")
    }

    /// serviceaccounts
    pub fn service_accounts() -> Gvr {
        Gvr::core("serviceaccounts")
    }

    /// events
    pub fn events() -> Gvr {
        Gvr::core("events")
    }

    /// leases
    pub fn leases() -> Gvr {
        Gvr::new("coordination.k8s.io", "v1", "leases")
    }

    /// devices
    pub fn devices() -> Gvr {
        Gvr::new(DEVICES_GROUP, "v1beta1", "devices")
    }

    /// customresourcedefinitions
    pub fn definitions() -> Gvr {
        Gvr::new("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    }
}

/// A handle on the API; clones are the same API.
#[derive(Debug, Clone)]
pub struct Kube(Api);

impl Kube {
    /// Wraps the API.
    pub fn new(api: Api) -> Self {
        Self(api)
    }

    /// The API itself.
    pub fn api(&self) -> &Api {
        &self.0
    }

    /// Reads one object.
    pub async fn get(&self, of: &Gvr, namespace: &str, name: &str) -> Result<Value, ApiError> {
        self.0.get(of, namespace, name).await
    }

    /// Creates an object.
    pub async fn create(
        &self,
        of: &Gvr,
        namespace: &str,
        object: Value,
    ) -> Result<Value, ApiError> {
        Ok(self
            .0
            .create(of, namespace, object, WriteOptions::default())
            .await?
            .object)
    }

    /// Replaces an object.
    pub async fn update(
        &self,
        of: &Gvr,
        namespace: &str,
        object: Value,
    ) -> Result<Value, ApiError> {
        Ok(self
            .0
            .update(of, namespace, None, object, WriteOptions::default())
            .await?
            .object)
    }

    /// Applies a strategic merge patch to the status.
    pub async fn patch_status(
        &self,
        of: &Gvr,
        namespace: &str,
        name: &str,
        body: Value,
    ) -> Result<Value, ApiError> {
        let patch = Patch {
            kind: PatchKind::Strategic,
            body,
        };
        let options = WriteOptions::default();
        Ok(self
            .0
            .patch(of, namespace, name, Some("status"), &patch, options)
            .await?
            .object)
    }

    /// Applies a patch to the object.
    pub async fn patch(
        &self,
        of: &Gvr,
        namespace: &str,
        name: &str,
        kind: PatchKind,
        body: Value,
    ) -> Result<Value, ApiError> {
        let patch = Patch { kind, body };
        let options = WriteOptions::default();
        Ok(self
            .0
            .patch(of, namespace, name, None, &patch, options)
            .await?
            .object)
    }

    /// Changes an object by a function of its present state; nothing is written if it stays equal.
    pub async fn change(
        &self,
        of: &Gvr,
        namespace: &str,
        name: &str,
        change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Value, ApiError> {
        Ok(self
            .0
            .change(of, namespace, name, WriteOptions::default(), change)
            .await?
            .object)
    }

    /// Deletes an object.
    pub async fn delete(
        &self,
        of: &Gvr,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        self.0.delete(of, namespace, name, options).await
    }

    /// All objects under a key prefix, with their revision set, and the revision of the list.
    pub async fn list_raw(&self, prefix: &str) -> Result<(Vec<(String, Value)>, u64), StoreError> {
        let query = ListQuery {
            prefix: prefix.to_owned(),
            ..ListQuery::default()
        };
        let listing = self.0.store().list(query).await?;
        let mut objects = Vec::with_capacity(listing.entries.len());
        for entry in listing.entries {
            if let Ok(mut object) = serde_json::from_slice::<Value>(&entry.value) {
                set_resource_version(&mut object, entry.revision);
                objects.push((entry.key.to_string(), object));
            }
        }
        Ok((objects, listing.revision))
    }
}

/// The text at a JSON pointer; empty if there is none.
pub fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
