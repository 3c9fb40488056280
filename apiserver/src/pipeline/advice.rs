//! Advice for writers, with what it is about read from the store.

use serde_json::Value;

use super::Pipeline;
use crate::{advice, registry::ResourceDef, store::StoreError};

impl Pipeline {
    /// Sentences about an object as it was written; what cannot be read is not spoken of.
    pub(crate) async fn advise(&self, def: &ResourceDef, object: &Value) -> Vec<String> {
        if !advice::is_given(def.group(), def.plural()) {
            return Vec::new();
        }
        let text = |pointer| {
            let found = object.pointer(pointer).and_then(Value::as_str);
            found.unwrap_or_default()
        };
        let (group, namespace) = (def.group(), text("/metadata/namespace"));
        let model = text("/spec/deviceModelRef/name");
        let model = format!("/registry/{group}/devicemodels/{namespace}/{model}");
        let (Ok(model), Ok(has_node)) = (
            self.store.get(&model).await,
            self.has_node(text("/spec/nodeName")).await,
        ) else {
            return Vec::new();
        };
        let model: Option<Value> = model.and_then(|m| serde_json::from_slice(&m.value).ok());
        advice::device(object, model.as_ref(), has_node)
    }

    /// Whether there is a Node, or at least a node that has joined.
    async fn has_node(&self, name: &str) -> Result<bool, StoreError> {
        let node = format!("/registry/core/nodes/{name}");
        if self.store.get(&node).await?.is_some() {
            return Ok(true);
        }
        if self.joined.is_empty() {
            return Ok(false);
        }
        let joined = format!("{}{name}", self.joined);
        Ok(self.store.get(&joined).await?.is_some())
    }
}
