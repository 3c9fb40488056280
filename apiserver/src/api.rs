//! The API for callers in the same process: the same pipeline as over HTTP, on JSON values.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::pipeline::{
    At, DeleteOptions, Deleted, List, ListOptions, ObjectWatch, Patch, Pipeline, WatchOptions,
    WriteOptions, Written, meta,
};
use crate::registry::{Gvr, Registry, ResourceDef};
use crate::status::{ApiError, Reason};
use crate::store::{ListQuery, Store, StoreError, Watcher};
use crate::table::{self, Companions};

/// Namespaces that clients expect to find.
const FIRST_NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];
const DEFINITIONS: &str = "customresourcedefinitions";

/// What the embedding program decides.
#[derive(Clone)]
pub struct Options {
    /// PEM certificates, published in every namespace as `kube-root-ca.crt`.
    pub root_ca: String,
    /// The clock.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Prefix of the program's own keys by node: what has joined is known, also before there is a
    /// Node, and where none is wanted. Empty: Nodes alone tell.
    pub joined: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root_ca: String::new(),
            clock: Arc::new(Timestamp::now),
            joined: "",
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").finish_non_exhaustive()
    }
}

/// A handle on the API; clones are the same API.
#[derive(Clone)]
pub struct Api {
    pub(crate) pipeline: Arc<Pipeline>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// Serves what the store holds: registers its CustomResourceDefinitions, and creates the
    /// namespaces that are always there.
    pub async fn open(store: Arc<dyn Store>, options: Options) -> Result<Self, ApiError> {
        let api = Self {
            pipeline: Arc::new(Pipeline {
                store,
                registry: Registry::new(),
                clock: options.clock,
                root_ca: options.root_ca,
                joined: options.joined,
            }),
        };
        api.register_stored().await?;
        let namespaces = Gvr::core("namespaces");
        for name in FIRST_NAMESPACES {
            let object = json!({"metadata": {"name": name}});
            match api
                .create(&namespaces, "", object, WriteOptions::default())
                .await
            {
                Ok(_) => {}
                Err(error) if error.reason == Reason::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(api)
    }

    /// The store, for facts of the embedding program's own.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.pipeline.store
    }

    /// The kinds that are served.
    pub fn registry(&self) -> &Registry {
        &self.pipeline.registry
    }

    /// The time, as the API sees it.
    pub fn now(&self) -> Timestamp {
        self.pipeline.now()
    }

    fn def(&self, gvr: &Gvr) -> Result<Arc<ResourceDef>, ApiError> {
        let def = self.pipeline.registry.get(gvr);
        def.ok_or_else(ApiError::no_such_resource)
    }

    /// Reads one object.
    pub async fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<Value, ApiError> {
        let def = self.def(gvr)?;
        let at = At {
            def: &def,
            namespace,
            name,
        };
        self.pipeline.get(at).await
    }

    /// Reads a collection; an empty namespace means all of them.
    pub async fn list(
        &self,
        gvr: &Gvr,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<List, ApiError> {
        let def = self.def(gvr)?;
        self.pipeline.list(&def, namespace, options).await
    }

    /// What is shown in the rows of these objects of one kind; what cannot be read is left out.
    pub(crate) async fn companions(&self, def: &ResourceDef, items: &[Value]) -> Companions {
        let mut found = Companions::new();
        let Some(plural) = table::companion(def.group(), def.plural()) else {
            return found;
        };
        let gvr = Gvr::new(def.group(), &def.gvr.version, plural);
        for item in items {
            let (namespace, name) = (meta::namespace(item), meta::name(item));
            if let Ok(other) = self.get(&gvr, namespace, name).await {
                found.insert(table::companion_key(item), other);
            }
        }
        found
    }

    /// Changes of what is shown in the rows of a watch of these options, from the same time on.
    pub(crate) async fn watch_companions(
        &self,
        def: &ResourceDef,
        namespace: &str,
        options: &WatchOptions,
    ) -> Option<ObjectWatch> {
        let plural = table::companion(def.group(), def.plural())?;
        let other = Gvr::new(def.group(), &def.gvr.version, plural);
        let other = self.def(&other).ok()?;
        let mut from = options.resource_version.clone();
        if options.initial_events || matches!(from.as_str(), "" | "0") {
            from = self.pipeline.store.revision().await.ok()?.to_string();
        }
        let options = WatchOptions {
            resource_version: from,
            ..WatchOptions::default()
        };
        let watch = self.pipeline.watch(&other, namespace, &options);
        watch.await.ok()
    }

    /// Watches a collection; an empty namespace means all of them.
    pub async fn watch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        options: &WatchOptions,
    ) -> Result<ObjectWatch, ApiError> {
        let def = self.def(gvr)?;
        self.pipeline.watch(&def, namespace, options).await
    }

    /// Creates an object.
    pub async fn create(
        &self,
        gvr: &Gvr,
        namespace: &str,
        object: Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let def = self.def(gvr)?;
        self.pipeline.create(&def, namespace, object, options).await
    }

    /// Replaces an object, or with `subresource` its status.
    pub async fn update(
        &self,
        gvr: &Gvr,
        namespace: &str,
        subresource: Option<&str>,
        object: Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let def = self.def(gvr)?;
        let name = meta::name(&object).to_owned();
        let at = At {
            def: &def,
            namespace,
            name: &name,
        };
        self.pipeline.update(at, subresource, object, options).await
    }

    /// Patches an object, or with `subresource` its status. With
    /// [`WriteOptions::facts`] other keys of the store change in the same transaction.
    pub async fn patch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        patch: &Patch,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let def = self.def(gvr)?;
        let at = At {
            def: &def,
            namespace,
            name,
        };
        self.pipeline.patch(at, subresource, patch, options).await
    }

    /// Changes an object by a function of its present state, which is called again when another
    /// writer was faster. Skips defaults and validation, and may change `status` and the rest at
    /// once: for controllers that know what they do. [`WriteOptions::facts`] as in
    /// [`Api::patch`].
    pub async fn change(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        options: WriteOptions,
        change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        let def = self.def(gvr)?;
        let at = At {
            def: &def,
            namespace,
            name,
        };
        self.pipeline.change(at, options, change).await
    }

    /// Deletes an object; see [`Deleted`] for whether it is gone.
    pub async fn delete(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let def = self.def(gvr)?;
        let at = At {
            def: &def,
            namespace,
            name,
        };
        self.pipeline.delete(at, options).await
    }

    async fn register_stored(&self) -> Result<(), ApiError> {
        let gvr = Gvr::new("apiextensions.k8s.io", "v1", DEFINITIONS);
        let list = self.list(&gvr, "", &ListOptions::default()).await?;
        for definition in &list.items {
            self.pipeline.registry.register(definition);
        }
        Ok(())
    }

    /// Does what the API promises but no request does: ends namespaces and definitions whose
    /// contents took time to go, and follows definitions that another server wrote. Woken by
    /// changes only. Runs until dropped; the embedding program owns the task.
    pub async fn run(&self) {
        loop {
            match self.follow().await {
                Ok(()) | Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::warn!(%error, "following the store failed; starting over");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn follow(&self) -> Result<(), StoreError> {
        let store = self.store();
        let revision = store.revision().await?;
        let mut definitions = store
            .watch(
                &format!("/registry/apiextensions.k8s.io/{DEFINITIONS}/"),
                revision,
            )
            .await?;
        let mut namespaces = store.watch("/registry/core/namespaces/", revision).await?;
        if let Err(error) = self.register_stored().await {
            return Err(StoreError::Failed(error.to_string()));
        }
        loop {
            let busy = self.end_what_ends().await;
            if busy {
                self.wait_for_removals(&mut definitions, &mut namespaces)
                    .await?;
            } else {
                self.wait(&mut definitions, &mut namespaces).await?;
            }
        }
    }

    async fn wait(
        &self,
        definitions: &mut Box<dyn Watcher>,
        namespaces: &mut Box<dyn Watcher>,
    ) -> Result<(), StoreError> {
        // Both are cancel-safe.
        tokio::select! {
            events = definitions.next() => {
                for event in events? {
                    if let Some(definition) = event.object() {
                        self.pipeline.registry.register(&definition);
                    } else {
                        let name = event.key.rsplit('/').next().unwrap_or_default();
                        self.pipeline.registry.withdraw(name);
                    }
                }
            }
            events = namespaces.next() => { events?; }
        }
        Ok(())
    }

    /// While something ends, any removal may be the one that was waited for.
    async fn wait_for_removals(
        &self,
        definitions: &mut Box<dyn Watcher>,
        namespaces: &mut Box<dyn Watcher>,
    ) -> Result<(), StoreError> {
        let store = self.store();
        let mut all = store.watch("/registry/", store.revision().await?).await?;
        // A removal between the attempt and the watch is not missed.
        if !self.end_what_ends().await {
            return Ok(());
        }
        loop {
            tokio::select! {
                waited = self.wait(definitions, namespaces) => return waited,
                events = all.next() => {
                    if events?.iter().any(|event| event.value.is_none()) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether anything is still ending.
    async fn end_what_ends(&self) -> bool {
        match self.end_once().await {
            Ok(busy) => busy,
            Err(error) => {
                tracing::warn!(%error, "contents could not be removed; trying at the next change");
                true
            }
        }
    }

    async fn end_once(&self) -> Result<bool, ApiError> {
        let mut busy = false;
        for name in self.pipeline.ending_namespaces().await? {
            busy |= !self.pipeline.end_namespace(&name).await?;
        }
        let gvr = Gvr::new("apiextensions.k8s.io", "v1", DEFINITIONS);
        let def = self.def(&gvr)?;
        let query = ListQuery {
            prefix: def.prefix(""),
            ..ListQuery::default()
        };
        let mut ending = BTreeSet::new();
        for entry in self.store().list(query).await?.entries {
            let object = crate::pipeline::present(&def, &entry)?;
            if meta::is_terminating(&object) {
                ending.insert(meta::name(&object).to_owned());
            }
        }
        for name in &ending {
            let at = At {
                def: &def,
                namespace: "",
                name,
            };
            busy |= !self.pipeline.end_definition(at).await?;
        }
        Ok(busy)
    }
}
