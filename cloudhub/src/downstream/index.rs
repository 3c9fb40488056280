//! Which node needs which object. Pure: fed with objects, answers with what changed for whom.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
};

use serde_json::Value;

/// Something that nodes need because of what is placed on them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needed {
    /// What it is.
    pub kind: NeededKind,
    /// `namespace/name`.
    pub id: String,
}

/// Kinds that follow a pod or a device to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NeededKind {
    /// A ConfigMap that a pod refers to.
    ConfigMap,
    /// A Secret that a pod refers to.
    Secret,
    /// The model of a device.
    DeviceModel,
    /// The volume that a claim is bound to; `id` is `null/name`.
    Volume,
    /// A PersistentVolumeClaim that a pod refers to.
    Claim,
}

/// Kinds that are placed on a node by what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PlacedKind {
    /// `spec.nodeName` of a Pod.
    Pod,
    /// `spec.nodeName` of a Device.
    Device,
    /// A PersistentVolume whose data lies on the node: told until the data is gone.
    Volume,
}

/// What a change of a placed object means for its node.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Now on this node; what the node needs beside it and did not need before comes first.
    Placed {
        /// The node.
        node: String,
        /// To be sent before the object.
        needs: Vec<Needed>,
    },
    /// Still there, and different in what the node sees.
    Changed {
        /// The node.
        node: String,
        /// To be sent before the object.
        needs: Vec<Needed>,
        /// No longer needed by anything on the node.
        dropped: Vec<Needed>,
    },
    /// No longer on this node.
    Removed {
        /// The node.
        node: String,
        /// No longer needed by anything on the node.
        dropped: Vec<Needed>,
    },
}

#[derive(Debug)]
struct Placed {
    node: String,
    digest: u64,
    needs: BTreeSet<Needed>,
}

#[derive(Debug, Default)]
struct OnNode {
    objects: BTreeSet<(PlacedKind, String)>,
    /// How many objects of the node need it.
    needs: BTreeMap<Needed, usize>,
}

/// The placement of everything.
#[derive(Debug, Default)]
pub struct Index {
    placed: HashMap<(PlacedKind, String), Placed>,
    nodes: HashMap<String, OnNode>,
    users: HashMap<Needed, BTreeSet<String>>,
    /// Name of the volume that a claim is bound to: who needs the claim needs the volume.
    bound: HashMap<String, String>,
}

/// What a claim's new volume means for a node.
#[derive(Debug, PartialEq, Eq)]
pub struct Rebound {
    /// The node.
    pub node: String,
    /// To be sent before the claim.
    pub needs: Vec<Needed>,
    /// No longer needed by anything on the node.
    pub dropped: Vec<Needed>,
}

impl Index {
    /// Takes in the newest state of a placed object (`None`: it is gone).
    pub fn put(&mut self, kind: PlacedKind, id: &str, object: Option<&Value>) -> Vec<Change> {
        let key = (kind, id.to_owned());
        let new = object.and_then(|o| Placed::of(kind, o));
        let old = self.placed.remove(&key);
        let mut changes = Vec::new();
        match (old, new) {
            (None, None) => {}
            (Some(old), Some(new)) if old.node == new.node => {
                let needs = self.attach(&key, &new);
                let dropped = self.detach(&key, &old, false);
                if old.digest != new.digest {
                    changes.push(Change::Changed {
                        node: new.node.clone(),
                        needs,
                        dropped,
                    });
                }
                self.placed.insert(key, new);
            }
            (old, new) => {
                if let Some(old) = old {
                    let dropped = self.detach(&key, &old, true);
                    changes.push(Change::Removed {
                        node: old.node,
                        dropped,
                    });
                }
                if let Some(new) = new {
                    let needs = self.attach(&key, &new);
                    changes.push(Change::Placed {
                        node: new.node.clone(),
                        needs,
                    });
                    self.placed.insert(key, new);
                }
            }
        }
        changes
    }

    /// Takes in which volume a claim is bound to (`None`: it is gone, or not bound).
    pub fn bind_claim(&mut self, claim: &str, volume: Option<&str>) -> Vec<Rebound> {
        let old = match volume {
            Some(volume) => self.bound.insert(claim.to_owned(), volume.to_owned()),
            None => self.bound.remove(claim),
        };
        if old.as_deref() == volume {
            return Vec::new();
        }
        let need = Needed {
            kind: NeededKind::Claim,
            id: claim.to_owned(),
        };
        let nodes: Vec<String> = self.users(&need).map(str::to_owned).collect();
        let mut changes = Vec::new();
        for node in nodes {
            let (mut needs, mut dropped) = (Vec::new(), Vec::new());
            if let Some(volume) = volume {
                self.count_up(&node, &volume_of(volume), &mut needs);
            }
            if let Some(old) = &old {
                self.count_down(&node, &volume_of(old), &mut dropped);
            }
            changes.push(Rebound {
                node,
                needs,
                dropped,
            });
        }
        changes
    }

    /// One more on the node needs this; and, with a claim, its volume.
    fn count_up(&mut self, node: &str, need: &Needed, fresh: &mut Vec<Needed>) {
        let on = self.nodes.entry(node.to_owned()).or_default();
        let count = on.needs.entry(need.clone()).or_insert(0);
        *count += 1;
        if *count > 1 {
            return;
        }
        let users = self.users.entry(need.clone()).or_default();
        users.insert(node.to_owned());
        if let Some(volume) = self.volume_behind(need) {
            self.count_up(node, &volume, fresh);
        }
        fresh.push(need.clone());
    }

    fn count_down(&mut self, node: &str, need: &Needed, dropped: &mut Vec<Needed>) {
        let Some(on) = self.nodes.get_mut(node) else {
            return;
        };
        let Some(count) = on.needs.get_mut(need) else {
            return;
        };
        *count -= 1;
        if *count > 0 {
            return;
        }
        on.needs.remove(need);
        dropped.push(need.clone());
        if let Some(users) = self.users.get_mut(need) {
            users.remove(node);
            if users.is_empty() {
                self.users.remove(need);
            }
        }
        if let Some(volume) = self.volume_behind(need) {
            self.count_down(node, &volume, dropped);
        }
    }

    fn volume_behind(&self, need: &Needed) -> Option<Needed> {
        let volume = self.bound.get(&need.id);
        volume
            .filter(|_| need.kind == NeededKind::Claim)
            .map(|volume| volume_of(volume))
    }

    /// Adds the object and its needs to its node; returns what the node did not need before.
    fn attach(&mut self, key: &(PlacedKind, String), placed: &Placed) -> Vec<Needed> {
        let node = self.nodes.entry(placed.node.clone()).or_default();
        node.objects.insert(key.clone());
        let mut fresh = Vec::new();
        for need in &placed.needs {
            self.count_up(&placed.node, need, &mut fresh);
        }
        fresh
    }

    /// Takes the needs (and the object, if `gone`) off its node; returns what is needed no more.
    fn detach(&mut self, key: &(PlacedKind, String), placed: &Placed, gone: bool) -> Vec<Needed> {
        let Some(node) = self.nodes.get_mut(&placed.node) else {
            return Vec::new();
        };
        if gone {
            node.objects.remove(key);
        }
        let mut dropped = Vec::new();
        for need in &placed.needs {
            self.count_down(&placed.node, need, &mut dropped);
        }
        let on = self.nodes.get(&placed.node);
        if on.is_some_and(|on| on.objects.is_empty() && on.needs.is_empty()) {
            self.nodes.remove(&placed.node);
        }
        dropped
    }

    /// Nodes that need this.
    pub fn users(&self, need: &Needed) -> impl Iterator<Item = &str> {
        self.users
            .get(need)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// Whether the node needs this.
    pub fn is_needed(&self, node: &str, need: &Needed) -> bool {
        self.users
            .get(need)
            .is_some_and(|users| users.contains(node))
    }

    /// Whether this object is placed on the node.
    pub fn is_placed(&self, node: &str, kind: PlacedKind, id: &str) -> bool {
        self.placed
            .get(&(kind, id.to_owned()))
            .is_some_and(|p| p.node == node)
    }

    /// Everything a node needs, then everything placed on it.
    pub fn on_node(&self, node: &str) -> (Vec<Needed>, Vec<(PlacedKind, String)>) {
        self.nodes.get(node).map_or_else(Default::default, |on| {
            (
                on.needs.keys().cloned().collect(),
                on.objects.iter().cloned().collect(),
            )
        })
    }
}

impl Placed {
    fn of(kind: PlacedKind, object: &Value) -> Option<Self> {
        let named = || {
            let node = object.pointer("/spec/nodeName")?.as_str();
            node.filter(|n| !n.is_empty())
        };
        let namespace = || object.pointer("/metadata/namespace")?.as_str();
        let (node, needs) = match kind {
            PlacedKind::Pod => (named()?, pod_needs(namespace()?, object)),
            PlacedKind::Device => (named()?, device_needs(namespace()?, object)),
            PlacedKind::Volume => (crate::volumes::node_of(object)?, BTreeSet::new()),
        };
        Some(Self {
            node: node.to_owned(),
            digest: digest(object),
            needs,
        })
    }
}

/// What a node sees of an object: spec, data and metadata without the members that change with
/// every write. A status-only change keeps the digest (KubeEdge echoes every status patch).
pub fn digest(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        match name.as_str() {
            "status" => {}
            "metadata" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    if !matches!(
                        name.as_str(),
                        "resourceVersion" | "managedFields" | "generation"
                    ) {
                        name.hash(&mut hasher);
                        value.to_string().hash(&mut hasher);
                    }
                }
            }
            _ => {
                name.hash(&mut hasher);
                value.to_string().hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}

fn volume_of(name: &str) -> Needed {
    Needed {
        kind: NeededKind::Volume,
        id: format!("null/{name}"),
    }
}

fn items<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// ConfigMaps, Secrets and claims that a pod refers to.
pub(crate) fn pod_needs(namespace: &str, pod: &Value) -> BTreeSet<Needed> {
    let mut needs = BTreeSet::new();
    let mut add = |kind, name: Option<&Value>| {
        if let Some(name) = name.and_then(Value::as_str).filter(|n| !n.is_empty()) {
            needs.insert(Needed {
                kind,
                id: format!("{namespace}/{name}"),
            });
        }
    };
    let (map, secret) = (NeededKind::ConfigMap, NeededKind::Secret);
    for volume in items(pod, "/spec/volumes") {
        add(map, volume.pointer("/configMap/name"));
        add(secret, volume.pointer("/secret/secretName"));
        add(
            NeededKind::Claim,
            volume.pointer("/persistentVolumeClaim/claimName"),
        );
        for source in items(volume, "/projected/sources") {
            add(map, source.pointer("/configMap/name"));
            add(secret, source.pointer("/secret/name"));
        }
    }
    for list in [
        "/spec/initContainers",
        "/spec/containers",
        "/spec/ephemeralContainers",
    ] {
        for container in items(pod, list) {
            for variable in items(container, "/env") {
                add(map, variable.pointer("/valueFrom/configMapKeyRef/name"));
                add(secret, variable.pointer("/valueFrom/secretKeyRef/name"));
            }
            for source in items(container, "/envFrom") {
                add(map, source.pointer("/configMapRef/name"));
                add(secret, source.pointer("/secretRef/name"));
            }
        }
    }
    for pull in items(pod, "/spec/imagePullSecrets") {
        add(secret, pull.get("name"));
    }
    needs
}

fn device_needs(namespace: &str, device: &Value) -> BTreeSet<Needed> {
    let model = device
        .pointer("/spec/deviceModelRef/name")
        .and_then(Value::as_str);
    model
        .filter(|m| !m.is_empty())
        .map(|m| Needed {
            kind: NeededKind::DeviceModel,
            id: format!("{namespace}/{m}"),
        })
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(node: &str, map: &str, phase: &str) -> Value {
        json!({
            "metadata": {"namespace": "d", "name": "p", "resourceVersion": phase},
            "spec": {"nodeName": node, "volumes": [{"configMap": {"name": map}}],
                     "containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]},
            "status": {"phase": phase},
        })
    }

    fn need(kind: NeededKind, id: &str) -> Needed {
        Needed {
            kind,
            id: id.into(),
        }
    }

    #[test]
    fn a_claim_brings_its_volume_and_takes_it_away() {
        use NeededKind::{Claim, Volume};
        let mut index = Index::default();
        let pod = |node: &str| {
            json!({"metadata": {"namespace": "d", "name": "p"},
                   "spec": {"nodeName": node,
                            "volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]}})
        };
        let (c, v1, v2) = (
            need(Claim, "d/c"),
            need(Volume, "null/v1"),
            need(Volume, "null/v2"),
        );
        let placed = |node: &str, needs: &[&Needed]| Change::Placed {
            node: node.into(),
            needs: needs.iter().map(|n| (*n).clone()).collect(),
        };
        assert_eq!(
            index.put(PlacedKind::Pod, "d/p", Some(&pod("e1"))),
            [placed("e1", &[&c])]
        );
        let rebound = |needs: &[&Needed], dropped: &[&Needed]| Rebound {
            node: "e1".into(),
            needs: needs.iter().map(|n| (*n).clone()).collect(),
            dropped: dropped.iter().map(|n| (*n).clone()).collect(),
        };
        assert_eq!(index.bind_claim("d/c", Some("v1")), [rebound(&[&v1], &[])]);
        assert_eq!(index.bind_claim("d/c", Some("v1")), []);
        assert!(index.is_needed("e1", &v1));
        // A second pod needs nothing new, and its end drops nothing.
        assert_eq!(
            index.put(PlacedKind::Pod, "d/q", Some(&pod("e1"))),
            [placed("e1", &[])]
        );
        index.put(PlacedKind::Pod, "d/q", None);
        assert!(index.is_needed("e1", &v1) && index.is_needed("e1", &c));
        assert_eq!(
            index.bind_claim("d/c", Some("v2")),
            [rebound(&[&v2], &[&v1])]
        );
        assert_eq!(
            index.put(PlacedKind::Pod, "d/p", Some(&pod("e2"))),
            [
                Change::Removed {
                    node: "e1".into(),
                    dropped: vec![c.clone(), v2.clone()]
                },
                placed("e2", &[&v2, &c]),
            ]
        );
        assert_eq!(index.on_node("e1"), Default::default());
        index.put(PlacedKind::Pod, "d/p", None);
        assert_eq!(index.bind_claim("d/c", None), []);
        // A volume of local-path storage is the node's as long as it is there.
        let volume = json!({"metadata": {"name": "v", "annotations": {
            "pv.kubernetes.io/provisioned-by": "outpost.dev/local-path",
            "outpost.dev/node": "e1"}}});
        let put = index.put(PlacedKind::Volume, "null/v", Some(&volume));
        assert_eq!(put, [placed("e1", &[])]);
    }

    #[test]
    fn a_pod_brings_what_it_needs_and_takes_it_away() {
        use NeededKind::{ConfigMap, Secret};
        let mut index = Index::default();
        let put =
            |index: &mut Index, id: &str, pod: Option<&Value>| index.put(PlacedKind::Pod, id, pod);
        let (m1, m2, s) = (
            need(ConfigMap, "d/m1"),
            need(ConfigMap, "d/m2"),
            need(Secret, "d/s"),
        );
        assert_eq!(
            put(&mut index, "d/p", Some(&pod("e1", "m1", "1"))),
            [Change::Placed {
                node: "e1".into(),
                needs: vec![m1.clone(), s.clone()]
            }]
        );
        assert_eq!(
            put(&mut index, "d/p", Some(&pod("e1", "m1", "2"))),
            [],
            "status only"
        );
        // A second pod of the same node needs nothing new.
        assert_eq!(
            put(&mut index, "d/q", Some(&pod("e1", "m1", "1"))),
            [Change::Placed {
                node: "e1".into(),
                needs: vec![]
            }]
        );
        assert_eq!(
            put(&mut index, "d/p", Some(&pod("e1", "m2", "3"))),
            [Change::Changed {
                node: "e1".into(),
                needs: vec![m2.clone()],
                dropped: vec![]
            }]
        );
        assert_eq!(index.users(&m1).collect::<Vec<_>>(), ["e1"]);
        assert_eq!(
            put(&mut index, "d/q", Some(&pod("e2", "m1", "1"))),
            [
                Change::Removed {
                    node: "e1".into(),
                    dropped: vec![m1.clone()]
                },
                Change::Placed {
                    node: "e2".into(),
                    needs: vec![m1.clone(), s.clone()]
                },
            ]
        );
        assert!(index.is_needed("e2", &m1) && !index.is_needed("e1", &m1));
        assert_eq!(
            put(&mut index, "d/p", None),
            [Change::Removed {
                node: "e1".into(),
                dropped: vec![m2, s]
            }]
        );
        assert_eq!(index.on_node("e1"), Default::default());
        assert_eq!(index.on_node("e2").1, [(PlacedKind::Pod, "d/q".to_owned())]);
        assert!(put(&mut index, "d/unbound", Some(&pod("", "m", "1"))).is_empty());
    }
}
