//! What the reference's admission plugins and pod strategy add on create.

use serde_json::{Map, Value, json};

use super::{Object, default, made};
use quantity::Quantity;

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Adds to a new, defaulted pod: service account, priority, the two default tolerations, `status`.
///
/// What its account adds is added by [`pod_account`].
pub fn pod_admission(pod: &mut Value) {
    let Value::Object(pod) = pod else { return };
    let Some(spec) = made(pod, "spec") else {
        return;
    };
    default(spec, "serviceAccountName", json!("default"));
    let account = spec.get("serviceAccountName").cloned().unwrap_or_default();
    spec.insert("serviceAccount".into(), account);
    default(spec, "enableServiceLinks", json!(true));
    default(spec, "priority", json!(0));
    default(spec, "preemptionPolicy", json!("PreemptLowerPriority"));
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        tolerate(spec, key);
    }
    let class = qos_class(spec);
    pod.insert(
        "status".into(),
        json!({"phase": "Pending", "qosClass": class}),
    );
}

/// Adds what the pod's ServiceAccount gives it: its pull secrets, if the pod names none, and the
/// token volume, if the pod, else the account, else the namespace (`by_default`) says so. Mirrors of
/// static pods stay as they are (plugin `ServiceAccount`).
///
/// Kubernetes mounts a token unless somebody says no. Here it takes a yes (ADR 11): a token nobody
/// asked for would only keep a pod on an edge node from starting.
pub fn pod_account(pod: &mut Value, account: &Value, by_default: bool) {
    let Value::Object(pod) = pod else { return };
    let annotations = pod.get("metadata").and_then(|m| m.get("annotations"));
    if annotations.is_some_and(|a| a.get("kubernetes.io/config.mirror").is_some()) {
        return;
    }
    let token = token_volume_name(pod);
    let Some(spec) = made(pod, "spec") else {
        return;
    };
    let has_own = spec
        .get("imagePullSecrets")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    if let (false, Some(secrets)) = (has_own, account.get("imagePullSecrets"))
        && secrets.as_array().is_some_and(|list| !list.is_empty())
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let says = |object: Option<&Value>| object.and_then(Value::as_bool);
    let wanted = says(spec.get("automountServiceAccountToken"))
        .or_else(|| says(account.get("automountServiceAccountToken")))
        .unwrap_or(by_default);
    if wanted {
        mount_token(spec, &token);
    }
}

fn tolerate(spec: &mut Object, key: &str) {
    default(spec, "tolerations", json!([]));
    let Some(list) = spec.get_mut("tolerations").and_then(Value::as_array_mut) else {
        return;
    };
    let text = |t: &Value, f: &str| t[f].as_str().unwrap_or_default().to_owned();
    let tolerated = list.iter().any(|t| {
        let effect = text(t, "effect");
        let named = text(t, "key");
        (effect.is_empty() || effect == "NoExecute")
            && (named == key || (named.is_empty() && text(t, "operator") == "Exists"))
    });
    if !tolerated {
        list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
    }
}

/// Stable for one pod, so that retrying a create gives the same object.
fn token_volume_name(pod: &Object) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let meta = |field: &str| {
        pod.get("metadata")
            .and_then(|m| m[field].as_str())
            .unwrap_or_default()
    };
    let seed = [meta("uid"), meta("namespace"), meta("name")].concat();
    let mut hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let suffix: String = (0..5)
        .map(|_| {
            let at = usize::try_from(hash % ALPHABET.len() as u64).unwrap_or(0);
            hash /= ALPHABET.len() as u64;
            char::from(ALPHABET.get(at).copied().unwrap_or(b'x'))
        })
        .collect();
    format!("kube-api-access-{suffix}")
}

fn mount_token(spec: &mut Object, name: &str) {
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in super::each(spec, list) {
            default(container, "volumeMounts", json!([]));
            let Some(mounts) = container
                .get_mut("volumeMounts")
                .and_then(Value::as_array_mut)
            else {
                continue;
            };
            if mounts.iter().all(|m| m["mountPath"] != json!(TOKEN_PATH)) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
                mounted = true;
            }
        }
    }
    if !mounted {
        return;
    }
    default(spec, "volumes", json!([]));
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.push(json!({"name": name, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from cpu and memory of all containers.
pub fn qos_class(spec: &Map<String, Value>) -> &'static str {
    let mut guaranteed = true;
    let mut any = false;
    let containers = ["containers", "initContainers"]
        .iter()
        .filter_map(|l| spec.get(*l)?.as_array())
        .flatten();
    for container in containers {
        let amount = |kind: &str, name: &str| {
            let text = container["resources"][kind][name].as_str()?;
            Quantity::parse(text)
                .ok()
                .map(Quantity::nanos)
                .filter(|n| *n > 0)
        };
        for name in ["cpu", "memory"] {
            let (limit, request) = (amount("limits", name), amount("requests", name));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request.or(limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
