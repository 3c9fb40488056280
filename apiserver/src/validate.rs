//! Validation of built-in objects, with the texts of the reference server (`kube-api.md` §7).

mod container;
mod core;
mod definition;
mod error;
mod meta;
mod network;
mod pod;
mod rbac;
mod update;
mod volume;
mod workloads;

pub use error::FieldError;

use serde_json::Value;

/// Causes reported for one object.
const MAX_ERRORS: usize = 100;

/// What is wrong with a new object (already defaulted).
pub fn create(api_version: &str, kind: &str, object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(kind, object);
    let group = group_of(api_version);
    contents(group, kind, object, &mut errors);
    if (group, kind) == ("", "Pod") {
        pod::only_on_create(object, &mut errors);
    }
    errors.truncate(MAX_ERRORS);
    errors
}

/// What is wrong with a change. For the main resource, and for `status` with the old spec in the new object; the
/// subresources that may change more (`binding`, `ephemeralcontainers`) are not checked with this.
pub fn update(api_version: &str, kind: &str, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(old, new);
    let group = group_of(api_version);
    contents(group, kind, new, &mut errors);
    update::check(group, kind, old, new, &mut errors);
    errors.truncate(MAX_ERRORS);
    errors
}

fn group_of(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

/// Everything but metadata, the same for create and update.
fn contents(group: &str, kind: &str, object: &Value, errors: &mut Vec<FieldError>) {
    match (group, kind) {
        ("", "Pod") => pod::spec("spec", &object["spec"], errors),
        ("", "ConfigMap") => core::config_map(object, errors),
        ("", "Secret") => core::secret(object, errors),
        ("", "Node") => core::node(object, errors),
        ("", "PersistentVolumeClaim") => core::claim(object, errors),
        ("", "Event") => core::event(object, errors),
        ("", "Service") => network::service(object, errors),
        ("", "Endpoints") => network::endpoints(object, errors),
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(object, errors),
        ("coordination.k8s.io", "Lease") => core::lease(object, errors),
        ("apps", "Deployment") => workloads::deployment(object, errors),
        ("apps", "ReplicaSet") => workloads::replica_set(object, errors),
        ("apps", "DaemonSet") => workloads::daemon_set(object, errors),
        ("apps", "StatefulSet") => workloads::stateful_set(object, errors),
        ("batch", "Job") => workloads::job("spec", &object["spec"], errors),
        ("batch", "CronJob") => workloads::cron_job(object, errors),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => rbac::role(kind, object, errors),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            rbac::binding(kind, object, errors);
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition::check(object, errors),
        _ => {}
    }
}

/// The text of a member, empty when there is none.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The elements of a list, none when there is none.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// One of these, or unsupported. Absent is left to the caller's defaults.
fn one_of(path: String, value: &Value, supported: &[&str], errors: &mut Vec<FieldError>) {
    if !value.is_null() && !supported.contains(&text(value)) {
        errors.push(FieldError::unsupported(path, value, supported));
    }
}

fn not_negative(path: String, value: &Value, errors: &mut Vec<FieldError>) {
    if value.as_i64().is_some_and(|n| n < 0) {
        errors.push(FieldError::invalid(
            path,
            value,
            "must be greater than or equal to 0",
        ));
    }
}

/// Pushes one `Invalid value` per complaint.
fn invalid(path: &str, value: &Value, complaints: Vec<String>, errors: &mut Vec<FieldError>) {
    errors.extend(
        complaints
            .into_iter()
            .map(|why| FieldError::invalid(path, value, &why)),
    );
}

#[cfg(test)]
#[path = "validate/tests.rs"]
mod tests;
