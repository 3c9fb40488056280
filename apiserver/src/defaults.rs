//! What the API adds to an object before it is stored (`kube-api.md` §6).

use serde_json::Value;

/// Fills in the defaults of a built-in kind; others are left alone.
pub fn apply(api_version: &str, kind: &str, object: &mut Value) {
    let _ = (api_version, kind, object);
}

/// What admission adds to a pod on create.
pub fn pod_admission(pod: &mut Value) {
    let _ = pod;
}
