//! From the store to the nodes: one watch of everything, an index of who needs what, and offers to
//! the sessions. KubeEdge's EdgeController and DeviceController, downstream halves.
//!
//! One task owns index and watch, so what a node is sent follows the order of the store: a
//! ConfigMap is offered before the pod that mounts it. A node that connects is brought up to date
//! as of the watch's position, between two events; nothing is missed and nothing goes back.

pub mod desired;
pub mod index;
pub mod messages;
mod routes;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use apiserver::store::{
    Entry, Event, ListQuery, Revision, Store, StoreError, Watcher, set_resource_version,
};
use index::{Change, Index, Needed, NeededKind, PlacedKind, Rebound};
use messages::Travel;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wire::{extension::Inventory, message::Operation};

use crate::{
    clock,
    keys::{self, DEVICES_GROUP, ObjectKey, REGISTRY},
    pki::enroll::node_key,
    rules,
    session::{Close, Registry, SessionHandle},
};

/// Nodes that may wait to be brought up to date; more wait in their sessions.
const SYNCS_MAX: usize = 256;

struct SyncRequest {
    session: Arc<SessionHandle>,
    held: Option<Inventory>,
}

/// The others' side: asks for a node to be brought up to date, and knows what is placed where.
#[derive(Clone)]
pub struct Downstream {
    requests: mpsc::Sender<SyncRequest>,
    index: Arc<RwLock<Index>>,
}

/// The task's side.
pub struct Controller {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    requests: mpsc::Receiver<SyncRequest>,
    index: Arc<RwLock<Index>>,
    told: routes::ToldBy,
}

/// Makes both sides.
pub fn new(store: Arc<dyn Store>, registry: Arc<Registry>) -> (Downstream, Controller) {
    let (sender, requests) = mpsc::channel(SYNCS_MAX);
    let index = Arc::new(RwLock::new(Index::default()));
    let downstream = Downstream {
        requests: sender,
        index: Arc::clone(&index),
    };
    (
        downstream,
        Controller {
            store,
            registry,
            requests,
            index,
            told: routes::ToldBy::default(),
        },
    )
}

impl Downstream {
    /// Has the node brought up to date: differences to what it holds, or everything.
    pub async fn sync(&self, session: &Arc<SessionHandle>, held: Option<Inventory>) {
        let request = SyncRequest {
            session: Arc::clone(session),
            held,
        };
        if self.requests.send(request).await.is_err() {
            tracing::debug!(node = %session.node, "hub is stopping; node not synchronised");
        }
    }

    /// Whether something on the node needs this.
    pub fn is_needed(&self, node: &str, kind: NeededKind, id: &str) -> bool {
        let need = Needed {
            kind,
            id: id.to_owned(),
        };
        self.index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_needed(node, &need)
    }

    /// Whether this is placed on the node.
    pub fn is_placed(&self, node: &str, kind: PlacedKind, id: &str) -> bool {
        self.index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_placed(node, kind, id)
    }

    /// Identifiers of everything of one kind that is placed on the node.
    pub fn placed(&self, node: &str, kind: PlacedKind) -> Vec<String> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index
            .on_node(node)
            .1
            .into_iter()
            .filter(|(k, _)| *k == kind)
            .map(|(_, id)| id)
            .collect()
    }
}

impl Controller {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), anyhow::Error> {
        let mut watcher = self.rebuild(None).await?;
        loop {
            // Both branches may be cancelled: the watcher and the channel keep what is there.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                events = watcher.next() => match events {
                    Ok(events) => {
                        for event in events {
                            self.take(&event).await?;
                        }
                    }
                    Err(StoreError::Expired { .. }) => {
                        tracing::warn!("watch was too slow; reading everything again");
                        watcher = self.rebuild(Some(())).await?;
                    }
                    Err(StoreError::Stopped) if stop.is_cancelled() => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
                Some(request) = self.requests.recv() => {
                    self.bring_up(&request.session, request.held, watcher.position()).await?;
                }
            }
        }
    }

    fn index<R>(&self, change: impl FnOnce(&mut Index) -> R) -> R {
        change(&mut self.index.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the placement of everything and watches from there; with `again`, everybody who is
    /// connected is brought up to date as well.
    async fn rebuild(&mut self, again: Option<()>) -> Result<Box<dyn Watcher>, StoreError> {
        let at = self.store.revision().await?;
        let mut fresh = Index::default();
        for (kind, prefix) in [
            (PlacedKind::Pod, format!("{REGISTRY}core/pods/")),
            (
                PlacedKind::Device,
                format!("{REGISTRY}{DEVICES_GROUP}/devices/"),
            ),
            (
                PlacedKind::Volume,
                format!("{REGISTRY}core/persistentvolumes/"),
            ),
        ] {
            let query = ListQuery {
                prefix,
                at: Some(at),
                ..ListQuery::default()
            };
            for entry in self.store.list(query).await?.entries {
                let Some(key) = ObjectKey::parse(&entry.key) else {
                    continue;
                };
                fresh.put(kind, &id_of(&key), decode(&entry).as_ref());
            }
        }
        let query = ListQuery {
            prefix: format!("{REGISTRY}core/persistentvolumeclaims/"),
            at: Some(at),
            ..ListQuery::default()
        };
        for entry in self.store.list(query).await?.entries {
            if let Some(key) = ObjectKey::parse(&entry.key) {
                fresh.bind_claim(&key.id(), decode(&entry).as_ref().and_then(volume_name));
            }
        }
        let old = self.index(|index| std::mem::replace(index, fresh));
        if again.is_some() {
            for session in self.registry.all() {
                // What left while the watch was lost is still known to the old index.
                for (kind, id) in old.on_node(&session.node).1 {
                    if !self.index(|index| index.is_placed(&session.node, kind, &id)) {
                        let (key, message) =
                            messages::orphan(&Travel::placed(kind).path_of(&id), "");
                        session.offer(key, message);
                    }
                }
                self.bring_up(&session, None, at).await?;
            }
        }
        self.store.watch(REGISTRY, at).await
    }

    /// One change of the store.
    async fn take(&mut self, event: &Event) -> Result<(), StoreError> {
        let Some(key) = ObjectKey::parse(&event.key) else {
            return Ok(());
        };
        match (key.group, key.plural) {
            ("core", "pods") => self.placed(PlacedKind::Pod, &key, event).await,
            (DEVICES_GROUP, "devices") => self.placed(PlacedKind::Device, &key, event).await,
            ("core", "configmaps") => {
                self.needed(NeededKind::ConfigMap, &key, event);
                Ok(())
            }
            ("core", "secrets") => {
                self.needed(NeededKind::Secret, &key, event);
                Ok(())
            }
            (DEVICES_GROUP, "devicemodels") => {
                self.needed(NeededKind::DeviceModel, &key, event);
                Ok(())
            }
            ("core", "persistentvolumes") => {
                self.placed(PlacedKind::Volume, &key, event).await?;
                self.needed(NeededKind::Volume, &key, event);
                Ok(())
            }
            ("core", "persistentvolumeclaims") => self.claim(&key, event).await,
            ("core", "nodes") => {
                self.node(&key, event);
                if event.value.is_none() {
                    self.forget_routes(key.name).await;
                }
                Ok(())
            }
            // A status that is written changes no route, and every request writes one.
            (rules::GROUP, _) if changes_spec(event) => self.reroute().await,
            _ => Ok(()),
        }
    }

    /// A claim, and before it the volume that it is bound to.
    async fn claim(&self, key: &ObjectKey<'_>, event: &Event) -> Result<(), StoreError> {
        let now = event.object();
        let volume = now.as_deref().and_then(volume_name);
        let rebound = self.index(|index| index.bind_claim(&key.id(), volume));
        for change in &rebound {
            if let Some(session) = self.registry.get(&change.node) {
                self.offer_needs(&session, change.needs.clone(), event.revision)
                    .await?;
            }
        }
        self.needed(NeededKind::Claim, key, event);
        for Rebound { node, dropped, .. } in &rebound {
            if let Some(session) = self.registry.get(node) {
                self.drop_needs(&session, dropped);
            }
        }
        Ok(())
    }

    async fn placed(
        &self,
        kind: PlacedKind,
        key: &ObjectKey<'_>,
        event: &Event,
    ) -> Result<(), StoreError> {
        let id = id_of(key);
        let now = event.object();
        let travel = Travel::placed(kind);
        for change in self.index(|index| index.put(kind, &id, now.as_deref())) {
            match change {
                Change::Placed { node, needs } => {
                    let Some(session) = self.registry.get(&node) else {
                        continue;
                    };
                    self.offer_needs(&session, needs, event.revision).await?;
                    if let Some(object) = &now {
                        let terminating = object.pointer("/metadata/deletionTimestamp").is_some();
                        let operation = if terminating {
                            Operation::Update
                        } else {
                            Operation::Insert
                        };
                        Self::announce(&session, kind, &[object], &[]);
                        let push = self.push(&session, travel, &id, &operation, object).await?;
                        offer(&session, push);
                    }
                }
                Change::Changed {
                    node,
                    needs,
                    dropped,
                } => {
                    let Some(session) = self.registry.get(&node) else {
                        continue;
                    };
                    self.offer_needs(&session, needs, event.revision).await?;
                    if let Some(object) = &now {
                        let update = Operation::Update;
                        let push = self.push(&session, travel, &id, &update, object).await?;
                        offer(&session, push);
                    }
                    self.drop_needs(&session, &dropped);
                }
                Change::Removed { node, dropped } => {
                    let Some(session) = self.registry.get(&node) else {
                        continue;
                    };
                    if let Some(object) = event.previous() {
                        Self::announce(&session, kind, &[], &[&object]);
                        offer(
                            &session,
                            messages::push(travel, &id, &Operation::Delete, &object),
                        );
                    }
                    self.drop_needs(&session, &dropped);
                }
            }
        }
        Ok(())
    }

    /// The message of an object; a Device of ours says when its desired values were written.
    async fn push(
        &self,
        session: &SessionHandle,
        travel: Travel,
        id: &str,
        operation: &Operation,
        object: &Value,
    ) -> Result<(String, wire::message::Message), StoreError> {
        if travel != Travel::placed(PlacedKind::Device) || !session.extensions.inventory {
            return Ok(messages::push(travel, id, operation, object));
        }
        let mut dated = object.clone();
        desired::annotate(&*self.store, id, &mut dated, clock::unix_millis()).await?;
        Ok(messages::push(travel, id, operation, &dated))
    }

    /// Plain nodes are told about their devices in a message of its own.
    fn announce(session: &SessionHandle, kind: PlacedKind, added: &[&Value], removed: &[&Value]) {
        if kind == PlacedKind::Device && !session.extensions.inventory {
            session.notice(messages::membership(added, removed));
        }
    }

    async fn offer_needs(
        &self,
        session: &SessionHandle,
        needs: Vec<Needed>,
        at: Revision,
    ) -> Result<(), StoreError> {
        for need in needs {
            let travel = Travel::needed(need.kind);
            // Not there yet: it is offered when it is made.
            if let Some(object) = self.read(travel, &need.id, at).await? {
                offer(
                    session,
                    messages::push(travel, &need.id, &Operation::Update, &object),
                );
            }
        }
        Ok(())
    }

    fn needed(&self, kind: NeededKind, key: &ObjectKey<'_>, event: &Event) {
        let need = Needed {
            kind,
            id: id_of(key),
        };
        let nodes: Vec<String> =
            self.index(|index| index.users(&need).map(str::to_owned).collect());
        let (object, operation) = match (event.object(), event.previous()) {
            (Some(object), Some(before)) => {
                if index::digest(&object) == index::digest(&before) {
                    return;
                }
                (object, Operation::Update)
            }
            (Some(object), None) if kind == NeededKind::Secret => (object, Operation::Update),
            (Some(object), None) => (object, Operation::Insert),
            (None, Some(before)) => (before, Operation::Delete),
            (None, None) => return,
        };
        for node in nodes {
            if let Some(session) = self.registry.get(&node) {
                let push = messages::push(Travel::needed(kind), &need.id, &operation, &object);
                offer(&session, push);
            }
        }
    }

    fn node(&self, key: &ObjectKey<'_>, event: &Event) {
        let Some(session) = self.registry.get(key.name) else {
            if event.value.is_none() {
                self.registry.forget(key.name);
            }
            return;
        };
        let Some(object) = event.object() else {
            session.close(Close::new(Close::POLICY, "the node was deleted"));
            return;
        };
        let same = event
            .previous()
            .is_some_and(|b| index::digest(&b) == index::digest(&object));
        if !same {
            let id = format!("null/{}", key.name);
            offer(
                &session,
                messages::push(Travel::NODE, &id, &Operation::Update, &object),
            );
        }
    }

    /// Offers a node what it should have as of `at`, or the differences to what it holds.
    async fn bring_up(
        &mut self,
        session: &SessionHandle,
        held: Option<Inventory>,
        at: Revision,
    ) -> Result<(), StoreError> {
        let plain = held.is_none() && !session.extensions.inventory;
        let mut held: HashMap<String, (String, String)> = held
            .map(|inventory| inventory.objects)
            .unwrap_or_default()
            .into_iter()
            .map(|h| (h.path, (h.uid, h.version)))
            .collect();
        let node_id = format!("null/{}", session.node);
        let (needs, objects) = self.index(|index| index.on_node(&session.node));
        let mut wanted = vec![(Travel::NODE, node_id)];
        wanted.extend(needs.into_iter().map(|n| (Travel::needed(n.kind), n.id)));
        wanted.extend(
            objects
                .into_iter()
                .map(|(kind, id)| (Travel::placed(kind), id)),
        );
        let (mut sent, mut same) = (0, 0);
        let mut devices = Vec::new();
        for (travel, id) in wanted {
            let Some(object) = self.read(travel, &id, at).await? else {
                continue;
            };
            let text = |pointer| {
                object
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let has = held
                .remove(&travel.path_of(&id))
                .is_some_and(|(uid, version)| {
                    uid == text("/metadata/uid") && version == text("/metadata/resourceVersion")
                });
            if has {
                same += 1;
                continue;
            }
            sent += 1;
            let update = Operation::Update;
            let push = self.push(session, travel, &id, &update, &object).await?;
            offer(session, push);
            if plain && travel == Travel::placed(PlacedKind::Device) {
                devices.push(object);
            }
        }
        // What the node holds beyond that is deleted; objects it made itself are its own.
        let mut deleted = 0;
        held.retain(|path, _| is_ours(path));
        let has_joined = self.has_joined(&session.node).await?;
        if !held.is_empty() && !has_joined {
            // This store never saw the node join: it took the place of one that was lost. Knowing
            // nothing of what runs there is no reason to stop it.
            tracing::warn!(
                node = %session.node,
                kept = held.len(),
                "the hub's store does not know the node, and what it holds is left alone; restore the store, or join the node again with --replace"
            );
            held.clear();
        }
        for (path, (uid, _)) in held {
            deleted += 1;
            offer(session, messages::orphan(&path, &uid));
        }
        if plain {
            session.notice(messages::membership_detail(&devices));
        }
        self.route(session, has_joined).await?;
        // A store that was lost does not know what is everything.
        if has_joined {
            session.synced();
        }
        tracing::info!(node = %session.node, sent, same, deleted, "node brought up to date");
        Ok(())
    }

    fn drop_needs(&self, session: &SessionHandle, dropped: &[Needed]) {
        for need in dropped {
            // A volume whose data lies there is told until the data is gone.
            let stays = need.kind == NeededKind::Volume
                && self.index(|i| i.is_placed(&session.node, PlacedKind::Volume, &need.id));
            if !stays {
                let path = Travel::needed(need.kind).path_of(&need.id);
                offer(session, messages::orphan(&path, ""));
            }
        }
    }

    /// Whether this store has the record that every join writes.
    async fn has_joined(&self, node: &str) -> Result<bool, StoreError> {
        Ok(self.store.get(&node_key(node)).await?.is_some())
    }

    async fn read(
        &self,
        travel: Travel,
        id: &str,
        at: Revision,
    ) -> Result<Option<Value>, StoreError> {
        let (namespace, name) = id.split_once('/').unwrap_or(("", id));
        let key = match namespace {
            "null" => format!("{REGISTRY}{}/{}/{name}", travel.group, travel.plural),
            _ => keys::object(travel.group, travel.plural, namespace, name),
        };
        let Some(newest) = self.store.get(&key).await? else {
            return self.read_at(&key, at).await;
        };
        if newest.revision <= at {
            Ok(decode(&newest))
        } else {
            self.read_at(&key, at).await
        }
    }

    /// As it was; if that is no longer known, as it is.
    async fn read_at(&self, key: &str, at: Revision) -> Result<Option<Value>, StoreError> {
        let query = ListQuery {
            prefix: key.to_owned(),
            after: None,
            limit: 1,
            at: Some(at),
        };
        let entry = match self.store.list(query).await {
            Ok(listing) => listing.entries.into_iter().find(|e| &*e.key == key),
            Err(StoreError::Expired { .. }) => self.store.get(key).await?,
            Err(error) => return Err(error),
        };
        Ok(entry.as_ref().and_then(decode))
    }
}

fn changes_spec(event: &Event) -> bool {
    let spec = |object: Option<Arc<Value>>| object.map(|object| object["spec"].clone());
    spec(event.object()) != spec(event.previous())
}

/// Kinds that this controller places on nodes.
fn is_ours(path: &str) -> bool {
    matches!(
        path.split('/').nth(1),
        Some(
            "pod"
                | "configmap"
                | "secret"
                | "device"
                | "devicemodel"
                | "persistentvolume"
                | "persistentvolumeclaim"
        )
    )
}

/// Plain nodes ask for volumes and claims, and are not sent them (wire specification §5.1.3).
fn offer(session: &SessionHandle, (key, message): (String, wire::message::Message)) {
    let kind = key.split('/').nth(1);
    let is_asked_for = matches!(kind, Some("persistentvolume" | "persistentvolumeclaim"));
    if session.extensions.inventory || !is_asked_for {
        session.offer(key, message);
    }
}

/// `namespace/name`, with `null` for cluster-scoped objects as on the wire.
fn id_of(key: &ObjectKey<'_>) -> String {
    match key.namespace {
        "" => format!("null/{}", key.name),
        _ => key.id(),
    }
}

/// The volume that a claim is bound to.
fn volume_name(claim: &Value) -> Option<&str> {
    let name = claim.pointer("/spec/volumeName")?.as_str();
    name.filter(|name| !name.is_empty())
}

fn decode(entry: &Entry) -> Option<Value> {
    let mut object: Value = serde_json::from_slice(&entry.value).ok()?;
    set_resource_version(&mut object, entry.revision);
    Some(object)
}
