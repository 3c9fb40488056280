//! A container's environment: `env`, `envFrom` and `$(VAR)`, resolved as kubelet does
//! (`kubelet_pods.go: makeEnvironmentVariables`). Pure: what is referenced was fetched before.

mod downward;
mod references;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};

use super::convert::ConfigError;
use crate::edged::deps::{Token, TokenWish};
use crate::edged::volumes::Claim;
pub use downward::{field, resource};
pub use references::{References, Wanted, token_wish};

/// The ConfigMaps and Secrets a pod names, as they were when it was asked; `None` is known absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    pub configmaps: BTreeMap<String, Option<ConfigMap>>,
    pub secrets: BTreeMap<String, Option<Secret>>,
    pub claims: BTreeMap<String, Claim>,
    /// Or why there is none.
    pub tokens: BTreeMap<TokenWish, Result<Token, String>>,
}

/// What a pod is told about itself and its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub node_name: String,
    pub host_ip: String,
    pub pod_ips: Vec<String>,
    /// What the node lets pods have, told for a limit that a container does not have.
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
}

/// The environment of one container, in order, each name once.
///
/// # Errors
/// A reference that is not optional and cannot be resolved; the text is kubelet's.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    facts: &Facts,
) -> Result<Vec<(String, String)>, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env = Environment::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            let data = configmap(sources, &reference.name, reference.optional)?;
            for (key, value) in data.into_iter().flat_map(|m| m.data.iter().flatten()) {
                env.set_from(prefix, key, value.clone());
            }
        }
        if let Some(reference) = &from.secret_ref {
            let data = secret(sources, &reference.name, reference.optional)?;
            for (key, value) in data.into_iter().flat_map(|m| m.data.iter().flatten()) {
                env.set_from(prefix, key, String::from_utf8_lossy(&value.0).into_owned());
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => Some(expand(text, &env.values)),
            (_, Some(from)) => from_source(from, pod, container, namespace, sources, facts)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(&variable.name, value);
        }
    }
    Ok(env.into_pairs())
}

/// What is told of keys that cannot be names of variables (`makeEnvironmentVariables`); they are
/// left out.
pub fn skipped(pod: &Pod, container: &Container, sources: &Sources) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut told = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut tell = |kind: &str, name: &str, keys: Vec<&String>| {
            let names = keys.into_iter().map(|key| format!("{prefix}{key}"));
            let bad: Vec<String> = names.filter(|name| !is_variable_name(name)).collect();
            if !bad.is_empty() {
                told.push(format!(
                    "Keys [{}] from the EnvFrom {kind} {namespace}/{name} were skipped since they \
                     are considered invalid environment variable names.",
                    bad.join(", ")
                ));
            }
        };
        if let Some(reference) = &from.config_map_ref
            && let Some(Some(map)) = sources.configmaps.get(&reference.name)
        {
            let keys = map.data.iter().flatten().map(|(key, _)| key);
            tell("configMap", &reference.name, keys.collect());
        }
        if let Some(reference) = &from.secret_ref
            && let Some(Some(secret)) = sources.secrets.get(&reference.name)
        {
            let keys = secret.data.iter().flatten().map(|(key, _)| key);
            tell("secret", &reference.name, keys.collect());
        }
    }
    told
}

/// Printable ASCII without `=` (`IsRelaxedEnvVarName`, the rule since Kubernetes 1.32).
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

#[derive(Default)]
struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    /// Keys that cannot be variable names are left out, as kubelet does.
    fn set_from(&mut self, prefix: &str, key: &str, value: String) {
        let name = format!("{prefix}{key}");
        if is_variable_name(&name) {
            self.set(&name, value);
        }
    }

    fn into_pairs(mut self) -> Vec<(String, String)> {
        self.order
            .into_iter()
            .filter_map(|name| self.values.remove(&name).map(|value| (name, value)))
            .collect()
    }
}

fn configmap<'a>(
    sources: &'a Sources,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a ConfigMap>, ConfigError> {
    match sources.configmaps.get(name).and_then(Option::as_ref) {
        None if optional != Some(true) => {
            Err(ConfigError(format!("configmap \"{name}\" not found")))
        }
        found => Ok(found),
    }
}

fn secret<'a>(
    sources: &'a Sources,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Secret>, ConfigError> {
    match sources.secrets.get(name).and_then(Option::as_ref) {
        None if optional != Some(true) => Err(ConfigError(format!("secret \"{name}\" not found"))),
        found => Ok(found),
    }
}

fn from_source(
    from: &EnvVarSource,
    pod: &Pod,
    container: &Container,
    namespace: &str,
    sources: &Sources,
    facts: &Facts,
) -> Result<Option<String>, ConfigError> {
    if let Some(selector) = &from.config_map_key_ref {
        let map = configmap(sources, &selector.name, selector.optional)?;
        let value = map.and_then(|m| m.data.as_ref()?.get(&selector.key));
        if value.is_none() && selector.optional != Some(true) {
            let (key, name) = (&selector.key, &selector.name);
            return Err(ConfigError(format!(
                "couldn't find key {key} in ConfigMap {namespace}/{name}"
            )));
        }
        return Ok(value.cloned());
    }
    if let Some(selector) = &from.secret_key_ref {
        let object = secret(sources, &selector.name, selector.optional)?;
        let value = object.and_then(|m| m.data.as_ref()?.get(&selector.key));
        if value.is_none() && selector.optional != Some(true) {
            let (key, name) = (&selector.key, &selector.name);
            return Err(ConfigError(format!(
                "couldn't find key {key} in Secret {namespace}/{name}"
            )));
        }
        return Ok(value.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()));
    }
    if let Some(selector) = &from.field_ref {
        return field(pod, selector, facts).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        return resource(container, selector, facts).map(Some);
    }
    Err(ConfigError(
        "unsupported source of an environment variable".to_owned(),
    ))
}

/// Replaces `$(NAME)` by its value; an unknown name stays as written, `$$` is a plain `$`
/// (`third_party/forked/golang/expansion`).
pub fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    expand_with(text, values).0
}

/// As [`expand`], for places where every name must be known (`ExpandContainerVolumeMounts`).
///
/// # Errors
/// The first name that is not.
pub fn expand_known(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    match expand_with(text, values) {
        (out, None) => Ok(out),
        (_, Some(missing)) => Err(missing),
    }
}

/// The text, and the first name that has no value.
fn expand_with(text: &str, values: &BTreeMap<String, String>) -> (String, Option<String>) {
    let mut missing = None;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(rest.get(..at).unwrap_or_default());
        let tail = rest.get(at + 1..).unwrap_or_default();
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = tail.strip_prefix('(').and_then(|t| t.split_once(')')) {
            if let Some(value) = values.get(name) {
                out.push_str(value);
            } else {
                missing.get_or_insert_with(|| name.to_owned());
                out.push_str(&format!("$({name})"));
            }
            rest = after;
        } else {
            out.push('$');
            rest = tail;
        }
    }
    out.push_str(rest);
    (out, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::json;

    #[test]
    fn expansion_follows_kubernetes() {
        let values: BTreeMap<String, String> = [("A", "1"), ("EMPTY", "")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        for (text, want) in [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$(EMPTY)|", "|"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expand(text, &values), want, "{text}");
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "x"}},
            "spec": {"containers": [{
                "name": "c",
                "envFrom": [
                    {"prefix": "P_", "configMapRef": {"name": "cm"}},
                    {"secretRef": {"name": "absent", "optional": true}}
                ],
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "value": "$(A)$(P_k)"},
                    {"name": "A", "value": "2"},
                    {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}}}
                ],
                "resources": {"limits": {"memory": "64Mi"}}
            }]}
        }))
        .unwrap()
    }

    fn sources() -> Sources {
        let map = ConfigMap {
            data: Some([("k".to_owned(), "v".to_owned())].into()),
            ..ConfigMap::default()
        };
        let secret = Secret {
            data: Some([("pw".to_owned(), ByteString(b"geheim".to_vec()))].into()),
            ..Secret::default()
        };
        Sources {
            configmaps: [("cm".to_owned(), Some(map))].into(),
            secrets: [("s".to_owned(), Some(secret)), ("absent".to_owned(), None)].into(),
            ..Sources::default()
        }
    }

    #[test]
    fn environment_is_resolved_in_order() {
        let pod = pod();
        let facts = Facts {
            pod_ips: vec!["10.1.2.3".to_owned()],
            ..Facts::default()
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let env = resolve(&pod, container, &sources(), &facts).unwrap();
        let want = [
            ("P_k", "v"),
            ("A", "2"),
            ("B", "1v"),
            ("S", "geheim"),
            ("IP", "10.1.2.3"),
            ("L", "x"),
            ("M", "64"),
        ];
        let want: Vec<(String, String)> = want
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(env, want);
    }

    #[test]
    fn missing_references_are_named() {
        let pod = pod();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let facts = Facts::default();
        let mut gone = sources();
        gone.configmaps.insert("cm".to_owned(), None);
        let error = resolve(&pod, container, &gone, &facts).unwrap_err();
        assert_eq!(error.to_string(), "configmap \"cm\" not found");
        let mut empty = sources();
        empty
            .secrets
            .insert("s".to_owned(), Some(Secret::default()));
        let error = resolve(&pod, container, &empty, &facts).unwrap_err();
        assert_eq!(error.to_string(), "couldn't find key pw in Secret ns/s");
    }

    #[test]
    fn keys_that_are_no_names_are_told() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "ns"}})).unwrap();
        let container: Container = serde_json::from_value(json!({"name": "c", "envFrom": [
            {"prefix": "A=", "configMapRef": {"name": "m"}},
            {"secretRef": {"name": "s"}},
            {"secretRef": {"name": "absent", "optional": true}},
        ]}))
        .unwrap();
        let map: ConfigMap = serde_json::from_value(json!({"data": {"x": "1", "y": "2"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"1ok": ""}})).unwrap();
        let sources = Sources {
            configmaps: [("m".to_owned(), Some(map))].into(),
            secrets: [("s".to_owned(), Some(secret))].into(),
            ..Sources::default()
        };
        let want = "Keys [A=x, A=y] from the EnvFrom configMap ns/m were skipped since they are \
                    considered invalid environment variable names.";
        assert_eq!(skipped(&pod, &container, &sources), [want]);
        let env = resolve(&pod, &container, &sources, &Facts::default()).unwrap();
        assert_eq!(env, [("1ok".to_owned(), String::new())]);
    }

    #[test]
    fn references_of_volumes_and_containers_are_found() {
        let refs = References::of(&pod());
        assert!(refs.configmaps.contains("cm"));
        assert_eq!(refs.secrets, ["absent".to_owned(), "s".to_owned()].into());
    }
}
