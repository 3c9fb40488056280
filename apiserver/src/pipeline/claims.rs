//! What only claims have: the default class (plugin `DefaultStorageClass`).

use serde_json::{Value, json};

use super::{Pipeline, meta};
use crate::status::ApiError;
use crate::store::ListQuery;

const CLASSES: &str = "/registry/storage.k8s.io/storageclasses/";
const IS_DEFAULT: &str = "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";

impl Pipeline {
    /// A claim without a class gets the default one; of several the newest. An empty name is a
    /// class of its own: none.
    pub(super) async fn admit_claim(&self, claim: &mut Value) -> Result<(), ApiError> {
        claim["status"] = json!({"phase": "Pending"});
        if claim["spec"]["storageClassName"].is_string() {
            return Ok(());
        }
        let query = ListQuery {
            prefix: CLASSES.to_owned(),
            ..ListQuery::default()
        };
        let entries = self.store.list(query).await?.entries;
        let classes = entries
            .iter()
            .filter_map(|entry| serde_json::from_slice::<Value>(&entry.value).ok());
        let default = classes
            .filter(|class| meta::text(class, IS_DEFAULT) == "true")
            .max_by_key(|class| {
                let made = meta::text(class, "/metadata/creationTimestamp").to_owned();
                (made, std::cmp::Reverse(meta::name(class).to_owned()))
            });
        if let Some(class) = default {
            claim["spec"]["storageClassName"] = meta::name(&class).into();
        }
        Ok(())
    }
}
