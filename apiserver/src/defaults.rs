//! What the API makes of an object before it is stored (`kube-api.md` §6): the same bytes that decoding into Go's
//! types and encoding again gives, with the defaults of the kind filled in.
//!
//! Names, uids, addresses and node ports are the caller's; give the object its name, namespace and uid first.

mod admission;
mod canon;
mod core;
mod pod;
mod workloads;

pub use admission::{pod_account, pod_admission, qos_class};
pub use canon::canonical;

use serde_json::{Map, Value, json};

/// Fills in the defaults of a built-in kind and gives it its canonical form; other kinds are left alone.
pub fn apply(api_version: &str, kind: &str, object: &mut Value) {
    canonical(api_version, kind, object);
    let Value::Object(map) = object else { return };
    let group = api_version.rsplit_once('/').map_or("", |(g, _)| g);
    match (group, kind) {
        ("", "Pod") => pod::pod(map),
        ("", "PodTemplate") => pod::template(map, "template"),
        ("", "ReplicationController") | ("apps", "ReplicaSet") => workloads::replica_set(map),
        ("apps", "Deployment") => workloads::deployment(map),
        ("apps", "DaemonSet") => workloads::daemon_set(map),
        ("apps", "StatefulSet") => workloads::stateful_set(map),
        ("batch", "Job") => workloads::job(map),
        ("batch", "CronJob") => workloads::cron_job(map),
        ("", "Secret") => core::secret(map),
        ("", "Namespace") => core::namespace(map),
        ("", "Service") => core::service(map),
        ("", "Endpoints") => core::endpoints(map),
        ("", "PersistentVolumeClaim") => core::claim(map),
        ("", "PersistentVolume") => core::volume(map),
        ("", "LimitRange") => core::limit_range(map),
        ("discovery.k8s.io", "EndpointSlice") => core::endpoint_slice(map),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            core::role_binding(map);
        }
        ("networking.k8s.io", "NetworkPolicy") => core::network_policy(map),
        ("scheduling.k8s.io", "PriorityClass") => {
            default(map, "preemptionPolicy", json!("PreemptLowerPriority"));
        }
        ("storage.k8s.io", "StorageClass") => {
            default(map, "reclaimPolicy", json!("Delete"));
            default(map, "volumeBindingMode", json!("Immediate"));
        }
        ("authentication.k8s.io", "TokenRequest") => {
            if let Some(spec) = at(map, "spec") {
                default(spec, "expirationSeconds", json!(3600));
            }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => core::definition(map),
        _ => {}
    }
}

type Object = Map<String, Value>;

/// Sets a member that is absent, null or empty text.
fn default(map: &mut Object, key: &str, value: Value) {
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() || slot.as_str() == Some("") {
        *slot = value;
    }
}

/// A member that is an object.
fn at<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    map.get_mut(key)?.as_object_mut()
}

/// A member that is an object, made when it is absent.
fn made<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    default(map, key, json!({}));
    at(map, key)
}

/// The objects of a list.
fn each<'a>(map: &'a mut Object, key: &str) -> impl Iterator<Item = &'a mut Object> {
    map.get_mut(key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

#[cfg(test)]
#[path = "defaults/tests.rs"]
mod tests;
