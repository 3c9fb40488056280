//! Namespaces: what they are born with, what may enter them, how they end (kube-api.md §4.7).

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{At, DeleteOptions, Pipeline, meta};
use crate::registry::{Gvr, ResourceDef};
use crate::status::{ApiError, Reason};
use crate::store::{ListQuery, Require, Txn};

/// Namespaces that exist always.
pub(crate) const PERMANENT: &[&str] = &["default", "kube-system", "kube-public"];
/// Objects removed per page while a namespace ends.
const PAGE_KEYS: usize = 500;

impl Pipeline {
    pub(super) fn begin_namespace(object: &mut Value) {
        let name = meta::name(object).to_owned();
        if !object["metadata"]["labels"].is_object() {
            object["metadata"]["labels"] = json!({});
        }
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
    }

    /// Pods need the service account, and clients expect the CA: both are there as soon as the
    /// namespace is.
    pub(super) fn namespace_contents(&self, name: &str) -> Result<Txn, ApiError> {
        let now = meta::rfc3339(self.now());
        let metadata = |object: &str| {
            json!({"name": object, "namespace": name, "uid": Uuid::new_v4().to_string(),
                   "creationTimestamp": now})
        };
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": metadata("default")});
        let ca = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": metadata("kube-root-ca.crt"), "data": {"ca.crt": self.root_ca}});
        let mut txn = Txn::new();
        for (plural, object) in [("serviceaccounts", account), ("configmaps", ca)] {
            let bytes = serde_json::to_vec(&object).map_err(ApiError::internal)?;
            let key = format!("/registry/core/{plural}/{name}/{}", meta::name(&object));
            txn = txn.put(key, bytes);
        }
        Ok(txn)
    }

    fn namespaces(&self) -> Result<Arc<ResourceDef>, ApiError> {
        self.registry
            .get(&Gvr::core("namespaces"))
            .ok_or_else(ApiError::no_such_resource)
    }

    /// The key of the object's namespace, which must exist and not be ending.
    pub(super) async fn open_namespace(&self, at: At<'_>) -> Result<String, ApiError> {
        let def = self.namespaces()?;
        let namespace = At {
            def: &def,
            namespace: "",
            name: at.namespace,
        };
        let (object, _) = self.found(namespace).await?;
        if meta::text(&object, "/status/phase") == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                at.namespace
            );
            return Err(
                ApiError::forbidden(at.def.group(), at.def.plural(), at.name, &why).cause(
                    "NamespaceTerminating",
                    format!("namespace {} is being terminated", at.namespace),
                    "metadata.namespace",
                ),
            );
        }
        Ok(namespace.key())
    }

    /// Namespaces that are ending.
    pub(crate) async fn ending_namespaces(&self) -> Result<Vec<String>, ApiError> {
        let def = self.namespaces()?;
        let query = ListQuery {
            prefix: def.prefix(""),
            ..ListQuery::default()
        };
        let mut names = Vec::new();
        for entry in self.store.list(query).await?.entries {
            let object = super::present(&def, &entry)?;
            if meta::is_terminating(&object) {
                names.push(meta::name(&object).to_owned());
            }
        }
        Ok(names)
    }

    /// Removes what is left in an ending namespace, and the namespace itself when nothing is.
    /// Returns whether it is gone. Pods on nodes and objects with finalizers take their time;
    /// call again when something was removed.
    pub(crate) async fn end_namespace(&self, name: &str) -> Result<bool, ApiError> {
        let def = self.namespaces()?;
        let at = At {
            def: &def,
            namespace: "",
            name,
        };
        let Some((object, revision)) = self.load(at).await? else {
            return Ok(true);
        };
        if !meta::is_terminating(&object) {
            return Ok(false);
        }
        let mut empty = true;
        let served = self.registry.served();
        let mut seen = Vec::new();
        for def in served.all().filter(|d| d.namespaced) {
            if seen.contains(&&def.stored_as) {
                continue;
            }
            seen.push(&def.stored_as);
            empty &= self.empty_namespace_of(def, name).await?;
        }
        if !empty || !meta::finalizers(&object).is_empty() {
            return Ok(false);
        }
        let txn = Txn::new()
            .require(Require::At(at.key(), revision))
            .delete(at.key());
        match self.store.txn(txn).await {
            Ok(_) => Ok(true),
            Err(error) if super::lost_race(&error, &at.key()) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn empty_namespace_of(
        &self,
        def: &Arc<ResourceDef>,
        namespace: &str,
    ) -> Result<bool, ApiError> {
        let mut after = None;
        let mut empty = true;
        loop {
            let query = ListQuery {
                prefix: def.prefix(namespace),
                after: after.take(),
                limit: PAGE_KEYS,
                at: None,
            };
            let page = self.store.list(query).await?;
            for entry in &page.entries {
                let name = entry.key.rsplit('/').next().unwrap_or_default();
                let at = At {
                    def,
                    namespace,
                    name,
                };
                match self.delete(at, DeleteOptions::default()).await {
                    Ok(deleted) => empty &= deleted.removed,
                    Err(error) if error.reason == Reason::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            match page.entries.last() {
                Some(last) if page.remaining > 0 => after = Some(last.key.to_string()),
                _ => return Ok(empty),
            }
        }
    }
}
