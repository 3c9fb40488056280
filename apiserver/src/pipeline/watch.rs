//! Watches of collections (kube-api.md §3.4).

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use super::read::parse_revision;
use super::{ListOptions, Pipeline, needs_conversion, show_as};
use crate::engines::Selectors;
use crate::registry::ResourceDef;
use crate::status::ApiError;
use crate::store::{Event, Revision, StoreError, Watcher};

/// What to watch, from when.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// `labelSelector` as written.
    pub labels: String,
    /// `fieldSelector` as written.
    pub fields: String,
    /// Changes after this; empty or 0: first everything that exists, as `Added`.
    pub resource_version: String,
    /// First everything that exists, then `Synced`, whatever the revision.
    pub initial_events: bool,
}

/// One thing that a watcher is told. Objects are shared between watchers.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// New, or newly selected.
    Added(Arc<Value>),
    /// Changed.
    Modified(Arc<Value>),
    /// Gone, or no longer selected: the state before, with the revision of the change.
    Deleted(Arc<Value>),
    /// Everything that existed at this revision has been told
    /// (with [`WatchOptions::initial_events`]).
    Synced(Revision),
}

/// A watch in progress.
pub struct ObjectWatch {
    def: Arc<ResourceDef>,
    selectors: Selectors,
    watcher: Box<dyn Watcher>,
    ready: VecDeque<WatchEvent>,
    /// Where the client may resume once `ready` is empty.
    position: Revision,
}

impl std::fmt::Debug for ObjectWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectWatch")
            .field("resource", &self.def.gvr)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Pipeline {
    pub(crate) async fn watch(
        &self,
        def: &Arc<ResourceDef>,
        namespace: &str,
        options: &WatchOptions,
    ) -> Result<ObjectWatch, ApiError> {
        let selectors = Selectors::parse(def, &options.labels, &options.fields)?;
        let mut ready = VecDeque::new();
        let after = match parse_revision(&options.resource_version)? {
            Some(revision) if !options.initial_events => revision,
            _ => {
                let list = self
                    .list(
                        def,
                        namespace,
                        &ListOptions {
                            labels: options.labels.clone(),
                            fields: options.fields.clone(),
                            resource_version: options.resource_version.clone(),
                            ..ListOptions::default()
                        },
                    )
                    .await?;
                let items = list.items.into_iter();
                ready.extend(items.map(|item| WatchEvent::Added(Arc::new(item))));
                if options.initial_events {
                    ready.push_back(WatchEvent::Synced(list.revision));
                }
                list.revision
            }
        };
        let watcher = self
            .store
            .watch(&selectors.prefix(def, namespace), after)
            .await
            .map_err(too_old)?;
        Ok(ObjectWatch {
            def: Arc::clone(def),
            selectors,
            watcher,
            ready,
            position: after,
        })
    }
}

fn too_old(error: StoreError) -> ApiError {
    if let StoreError::Expired { asked, oldest } = error {
        return ApiError::expired(format!("too old resource version: {asked} ({oldest})"));
    }
    error.into()
}

impl ObjectWatch {
    /// The next event; waits for one. Cancel-safe. `Expired` means: list again.
    pub async fn next(&mut self) -> Result<WatchEvent, ApiError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let events = self.watcher.next().await.map_err(too_old)?;
            for event in events {
                self.position = event.revision;
                if let Some(told) = self.translate(&event) {
                    self.ready.push_back(told);
                }
            }
        }
    }

    /// An event that needs no waiting for, if there is one.
    pub fn ready(&mut self) -> Option<WatchEvent> {
        self.ready.pop_front()
    }

    /// A revision that the watch can be resumed from, if every event so far has been taken.
    pub fn position(&self) -> Option<Revision> {
        self.ready
            .is_empty()
            .then(|| self.position.max(self.watcher.position()))
    }

    /// Whether an object of the kind and namespace would be told.
    pub fn selects(&self, object: &Value) -> bool {
        self.selectors.matches(object)
    }

    /// The kind that is watched.
    pub fn def(&self) -> &Arc<ResourceDef> {
        &self.def
    }

    fn translate(&self, event: &Event) -> Option<WatchEvent> {
        let selected = |object: &Option<Arc<Value>>| {
            object
                .as_ref()
                .is_some_and(|object| self.selectors.matches(object))
        };
        if self.selectors.is_empty() {
            // Nothing has to be compared, so the state before is not even decoded.
            return match (&event.prev, &event.value) {
                (None, _) => event.object().map(|o| WatchEvent::Added(self.shown(o))),
                (Some(_), Some(_)) => event.object().map(|o| WatchEvent::Modified(self.shown(o))),
                (Some(_), None) => event.previous().map(|o| WatchEvent::Deleted(self.shown(o))),
            };
        }
        let now = event.object();
        let before = event.previous();
        match (selected(&before), selected(&now)) {
            (false, true) => now.map(|o| WatchEvent::Added(self.shown(o))),
            (true, true) => now.map(|o| WatchEvent::Modified(self.shown(o))),
            (true, false) => before.map(|o| WatchEvent::Deleted(self.shown(o))),
            (false, false) => None,
        }
    }

    fn shown(&self, object: Arc<Value>) -> Arc<Value> {
        if !needs_conversion(&self.def, &object) {
            return object;
        }
        let mut converted = Value::clone(&object);
        show_as(&self.def, &mut converted);
        Arc::new(converted)
    }
}
