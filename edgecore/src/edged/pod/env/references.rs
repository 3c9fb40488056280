//! What a pod names: ConfigMaps, Secrets, claims and tokens, to be fetched before it starts.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};

use crate::edged::deps::TokenWish;

/// What a token lives if the pod does not say (core/v1 defaults).
const TOKEN_TTL_SECS: i64 = 3600;

/// Names of the ConfigMaps and Secrets that containers and volumes need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub configmaps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
    pub claims: BTreeSet<String>,
    pub tokens: BTreeSet<TokenWish>,
    /// Those that some reference does not call optional.
    pub required: BTreeSet<(Wanted, String)>,
}

/// What kind of object a reference names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    ConfigMap,
    Secret,
}

impl References {
    /// Collects them from the whole pod.
    pub fn of(pod: &Pod) -> Self {
        let mut refs = Self::default();
        let Some(spec) = &pod.spec else { return refs };
        let containers = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers);
        for container in containers {
            for source in container.env_from.iter().flatten() {
                if let Some(map) = &source.config_map_ref {
                    refs.add(Wanted::ConfigMap, &map.name, map.optional);
                }
                if let Some(secret) = &source.secret_ref {
                    refs.add(Wanted::Secret, &secret.name, secret.optional);
                }
            }
            let sources = container.env.iter().flatten();
            for from in sources.filter_map(|e| e.value_from.as_ref()) {
                if let Some(map) = &from.config_map_key_ref {
                    refs.add(Wanted::ConfigMap, &map.name, map.optional);
                }
                if let Some(secret) = &from.secret_key_ref {
                    refs.add(Wanted::Secret, &secret.name, secret.optional);
                }
            }
        }
        refs.merge(Self::of_volumes(pod));
        refs
    }

    /// Those that volumes need; their content is kept up to date while the pod runs.
    pub fn of_volumes(pod: &Pod) -> Self {
        let mut refs = Self::default();
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            if let Some(map) = &volume.config_map {
                refs.add(Wanted::ConfigMap, &map.name, map.optional);
            }
            if let Some(secret) = &volume.secret {
                let name = secret.secret_name.as_deref().unwrap_or_default();
                refs.add(Wanted::Secret, name, secret.optional);
            }
            if let Some(source) = &volume.persistent_volume_claim {
                refs.claims.insert(source.claim_name.clone());
            }
            let projected = volume.projected.iter();
            for part in projected.flat_map(|p| p.sources.iter().flatten()) {
                if let Some(map) = &part.config_map {
                    refs.add(Wanted::ConfigMap, &map.name, map.optional);
                }
                if let Some(secret) = &part.secret {
                    refs.add(Wanted::Secret, &secret.name, secret.optional);
                }
                if let Some(source) = &part.service_account_token {
                    refs.tokens.insert(token_wish(pod, source));
                }
            }
        }
        refs
    }

    fn add(&mut self, wanted: Wanted, name: &str, optional: Option<bool>) {
        let names = match wanted {
            Wanted::ConfigMap => &mut self.configmaps,
            Wanted::Secret => &mut self.secrets,
        };
        names.insert(name.to_owned());
        if optional != Some(true) {
            self.required.insert((wanted, name.to_owned()));
        }
    }

    fn merge(&mut self, other: Self) {
        self.configmaps.extend(other.configmaps);
        self.secrets.extend(other.secrets);
        self.claims.extend(other.claims);
        self.tokens.extend(other.tokens);
        self.required.extend(other.required);
    }

    pub fn is_empty(&self) -> bool {
        self.configmaps.is_empty()
            && self.secrets.is_empty()
            && self.claims.is_empty()
            && self.tokens.is_empty()
    }
}

/// The token that a source of a projected volume stands for.
pub fn token_wish(pod: &Pod, source: &ServiceAccountTokenProjection) -> TokenWish {
    let account = pod
        .spec
        .as_ref()
        .and_then(|s| s.service_account_name.clone());
    TokenWish {
        account: account
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        pod_name: pod.metadata.name.clone().unwrap_or_default(),
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        audience: source.audience.clone().unwrap_or_default(),
        ttl_secs: source.expiration_seconds.unwrap_or(TOKEN_TTL_SECS),
    }
}
