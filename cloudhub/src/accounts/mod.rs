//! Service accounts: tokens for pods and people, and who comes with one.
//!
//! A token is a JWT signed by the hub's own key, bound to the account's uid and, for pods, to the
//! pod's. It is good as long as its time, its account and its pod last; nothing is stored.

mod key;

use std::path::Path;

use anyhow::Context as _;
use apiserver::{
    ApiError, Gvr, Reason,
    authn::{Reviewed, Tokens, User},
};
use async_trait::async_trait;
use key::SigningKey;
use serde_json::{Value, json};

use crate::{
    clock,
    kube::{Kube, resources, text},
    pki::{files::write_private, tokens::rfc3339},
};

/// Who signs, and for whom by default: the name that Kubernetes clusters use by default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Seconds that a token lives if nobody says, and at least, and at most.
const TTL_SECS: u64 = 3600;
const TTL_SECS_MIN: u64 = 600;
const TTL_SECS_MAX: u64 = 1 << 32;
/// `pods.spec.serviceAccountName` when it is not said.
const DEFAULT_ACCOUNT: &str = "default";
/// Clocks of those who check may be behind.
const NOT_BEFORE_SKEW_SECS: u64 = 5;

/// Issues and recognises tokens.
#[derive(Debug)]
pub struct Accounts {
    kube: Kube,
    key: SigningKey,
}

impl Accounts {
    /// With the key in the hub's directory; makes one if there is none.
    pub fn open(dir: &Path, kube: Kube) -> Result<Self, anyhow::Error> {
        let path = dir.join("service-account.key");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let bytes = SigningKey::generate()?;
                write_private(&path, &bytes)?;
                bytes
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("`{}` could not be read", path.display()));
            }
        };
        let key = SigningKey::from_pkcs8(&bytes).with_context(|| {
            format!(
                "`{}` could not be used; restore it from a backup, or remove it to make a new one \
                 (tokens of service accounts are then issued anew)",
                path.display()
            )
        })?;
        Ok(Self { kube, key })
    }

    /// `/openid/v1/jwks`
    pub fn key_set(&self) -> Value {
        self.key.key_set()
    }

    /// `/.well-known/openid-configuration`
    pub fn configuration() -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// A token as a node asks for it: for a pod that is bound to it and that mounts such a token.
    /// Anything else would let a node act for pods of other nodes.
    pub async fn issue_to_node(
        &self,
        node: &str,
        namespace: &str,
        account: &str,
        request: &Value,
    ) -> Result<Value, ApiError> {
        let refuse = |why: &str| {
            Err(ApiError::forbidden(
                "",
                "serviceaccounts/token",
                account,
                &format!("node \"{node}\" {why}"),
            ))
        };
        let spec = request.get("spec").cloned().unwrap_or_default();
        if text(&spec, "/boundObjectRef/kind") != "Pod" {
            return refuse("may only ask for tokens that are bound to a pod");
        }
        let name = text(&spec, "/boundObjectRef/name");
        let pod = self.kube.get(&resources::pods(), namespace, name).await?;
        if text(&pod, "/spec/nodeName") != node {
            return refuse("may only ask for tokens of pods that are bound to it");
        }
        if !text(&pod, "/metadata/annotations/kubernetes.io~1config.mirror").is_empty() {
            return refuse("may not ask for tokens of mirror pods");
        }
        if text(&spec, "/boundObjectRef/uid").is_empty() {
            return refuse("must name the uid of the pod");
        }
        let mounted = mounted_audiences(&pod);
        let mut asked = audiences(&spec);
        if asked.is_empty() {
            asked.push(ISSUER.to_owned());
        }
        if !asked.iter().all(|audience| mounted.contains(audience)) {
            return refuse("may only ask for audiences of tokens that the pod mounts");
        }
        Tokens::issue(self, namespace, account, request).await
    }

    /// Claims about the object that the token is bound to.
    async fn bound(
        &self,
        namespace: &str,
        account: &str,
        reference: &Value,
    ) -> Result<Value, ApiError> {
        let (kind, name) = (text(reference, "/kind"), text(reference, "/name"));
        let (of, place, claim) = match kind {
            "Pod" => (resources::pods(), namespace, "pod"),
            "Secret" => (resources::secrets(), namespace, "secret"),
            "Node" => (resources::nodes(), "", "node"),
            other => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token to object of type {other}"
                )));
            }
        };
        let object = self.kube.get(&of, place, name).await?;
        let (said, uid) = (text(reference, "/uid"), text(&object, "/metadata/uid"));
        if !said.is_empty() && said != uid {
            let why = format!(
                "the UID in the bound object reference ({said}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(ApiError::conflict("", &of.plural, name, &why));
        }
        let mut claims = json!({ claim: {"name": name, "uid": uid} });
        if kind == "Pod" {
            let runs_as = account_of(&object);
            if runs_as != account {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount \"{account}\" to pod running with \
                     different serviceaccount name."
                )));
            }
            let node = text(&object, "/spec/nodeName");
            if let (false, Ok(node)) = (
                node.is_empty(),
                self.kube.get(&resources::nodes(), "", node).await,
            ) {
                claims["node"] = json!({
                    "name": text(&node, "/metadata/name"), "uid": text(&node, "/metadata/uid"),
                });
            }
        }
        Ok(claims)
    }

    /// Whether an object of the claims is still the same one.
    async fn stands(&self, of: &Gvr, namespace: &str, claim: &Value) -> Result<bool, ApiError> {
        if !claim.is_object() {
            return Ok(true);
        }
        match self.kube.get(of, namespace, text(claim, "/name")).await {
            Ok(object) => Ok(text(&object, "/metadata/uid") == text(claim, "/uid")),
            Err(error) if error.reason == Reason::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn account_of(pod: &Value) -> &str {
    match text(pod, "/spec/serviceAccountName") {
        "" => DEFAULT_ACCOUNT,
        name => name,
    }
}

fn audiences(spec: &Value) -> Vec<String> {
    let list = spec.get("audiences").and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// Audiences of the tokens in a pod's projected volumes.
fn mounted_audiences(pod: &Value) -> Vec<String> {
    let items = |value: &Value, pointer: &str| {
        let list = value.pointer(pointer).and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let volumes = items(pod, "/spec/volumes");
    let sources = volumes.iter().flat_map(|v| items(v, "/projected/sources"));
    let tokens = sources.filter_map(|s| s.get("serviceAccountToken").cloned());
    tokens
        .map(|token| match text(&token, "/audience") {
            "" => ISSUER.to_owned(),
            audience => audience.to_owned(),
        })
        .collect()
}

fn ttl(spec: &Value) -> Result<u64, ApiError> {
    let invalid = |value: &Value, why: &str| {
        Err(ApiError::invalid_field(
            "authentication.k8s.io",
            "TokenRequest",
            "",
            "FieldValueInvalid",
            "spec.expirationSeconds",
            format!("Invalid value: {value}: {why}"),
        ))
    };
    match spec.get("expirationSeconds") {
        None | Some(Value::Null) => Ok(TTL_SECS),
        Some(value) => match value.as_u64() {
            Some(secs) if secs > TTL_SECS_MAX => {
                invalid(value, "may not specify a duration larger than 2^32 seconds")
            }
            Some(secs) if secs >= TTL_SECS_MIN => Ok(secs),
            Some(_) | None => invalid(value, "may not specify a duration less than 10 minutes"),
        },
    }
}

#[async_trait]
impl Tokens for Accounts {
    async fn issue(
        &self,
        namespace: &str,
        account: &str,
        request: &Value,
    ) -> Result<Value, ApiError> {
        let object = self
            .kube
            .get(&resources::service_accounts(), namespace, account)
            .await?;
        let mut spec = request.get("spec").cloned().unwrap_or_else(|| json!({}));
        let ttl = ttl(&spec)?;
        let mut audiences = audiences(&spec);
        if audiences.is_empty() {
            audiences.push(ISSUER.to_owned());
        }
        let mut own = json!({
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": text(&object, "/metadata/uid")},
        });
        if let Some(reference) = spec.get("boundObjectRef").filter(|r| r.is_object()) {
            let bound = self.bound(namespace, account, reference).await?;
            for (key, value) in bound.as_object().into_iter().flatten() {
                own[key] = value.clone();
            }
        }
        let now = clock::unix_secs();
        let expires = now.saturating_add(ttl);
        let claims = json!({
            "iss": ISSUER,
            "aud": audiences,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": now,
            "nbf": now.saturating_sub(NOT_BEFORE_SKEW_SECS),
            "exp": expires,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": own,
        });
        let token = self.key.sign(&claims).map_err(ApiError::internal)?;
        spec["audiences"] = json!(audiences);
        spec["expirationSeconds"] = json!(ttl);
        Ok(json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": account, "namespace": namespace,
                         "creationTimestamp": rfc3339(now)},
            "spec": spec,
            "status": {"token": token, "expirationTimestamp": rfc3339(expires)},
        }))
    }

    async fn review(&self, token: &str, wanted: &[String]) -> Result<Option<Reviewed>, ApiError> {
        let Some(claims) = self.key.open(token) else {
            return Ok(None);
        };
        let now = clock::unix_secs();
        let time = |name: &str| claims.get(name).and_then(Value::as_u64);
        let in_time = time("exp").is_some_and(|exp| now < exp)
            && time("nbf").is_none_or(|nbf| nbf <= now.saturating_add(NOT_BEFORE_SKEW_SECS));
        let said = claims.get("aud").and_then(Value::as_array);
        let said = said.into_iter().flatten().filter_map(Value::as_str);
        let by_default = [ISSUER.to_owned()];
        let wanted = if wanted.is_empty() {
            &by_default[..]
        } else {
            wanted
        };
        let audiences: Vec<String> = said
            .filter(|audience| wanted.iter().any(|w| w == audience))
            .map(str::to_owned)
            .collect();
        if !in_time || audiences.is_empty() || text(&claims, "/iss") != ISSUER {
            return Ok(None);
        }
        let own = claims.get("kubernetes.io").cloned().unwrap_or_default();
        let namespace = text(&own, "/namespace").to_owned();
        let account = &own["serviceaccount"];
        if !account.is_object() {
            return Ok(None);
        }
        for (of, namespace, claim) in [
            (resources::service_accounts(), namespace.as_str(), account),
            (resources::pods(), namespace.as_str(), &own["pod"]),
            (resources::secrets(), namespace.as_str(), &own["secret"]),
        ] {
            if !self.stands(&of, namespace, claim).await? {
                return Ok(None);
            }
        }
        let name = text(account, "/name");
        Ok(Some(Reviewed {
            user: User {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_owned(),
                ],
                uid: text(account, "/uid").to_owned(),
            },
            audiences,
            extra: json!({
                "authentication.kubernetes.io/credential-id":
                    [format!("JTI={}", text(&claims, "/jti"))],
            }),
        }))
    }
}
