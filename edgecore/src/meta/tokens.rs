//! Tokens of service accounts: asked of the hub, kept sealed, replaced in time, and used beyond
//! their time while the hub is away (ADR 11).

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wire::body::Reply;
use wire::message::{Content, Message, Operation, Route};
use wire::resource::Kind;

use super::handle::{MetaHandle, store_error};
use super::objects::{self, Key, Object};
use crate::clock::{self, UnixMillis};
use crate::edged::{DesiredError, Token, TokenWish};

/// A token is replaced after this, however long it lives (kubelet `token_manager.go`: maxTTL).
const KEEP_MAX_MS: i64 = 24 * 3_600_000;
/// And after this part of its life.
const KEEP_PERCENT: i64 = 80;

/// Under which name the token is kept: what it was asked for.
fn key(namespace: &str, wish: &TokenWish) -> Key {
    let mut hash = Sha256::new();
    for part in [&wish.account, &wish.audience, &wish.ttl_secs.to_string()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hex::encode(hash.finalize());
    let digest = digest.get(..16).unwrap_or_default();
    let name = format!("{}.{digest}", wish.pod_uid);
    Key::new(&Kind::ServiceAccountToken, namespace, &name)
}

/// The token in a TokenRequest, and when it is to be replaced; `None` if there is none in it.
fn read(document: &Value) -> Option<Token> {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    let token = text("/status/token").filter(|token| !token.is_empty())?;
    let expires: jiff::Timestamp = text("/status/expirationTimestamp")?.parse().ok()?;
    let expires_ms = expires.as_millisecond();
    let life_secs = document.pointer("/spec/expirationSeconds")?.as_i64()?;
    let life_ms = life_secs.checked_mul(1000).filter(|ms| *ms > 0)?;
    let issued_ms = expires_ms.saturating_sub(life_ms);
    let keep_ms = (life_ms / 100)
        .saturating_mul(KEEP_PERCENT)
        .min(KEEP_MAX_MS);
    Some(Token {
        token: token.to_owned(),
        refresh_at_ms: issued_ms.saturating_add(keep_ms),
    })
}

impl MetaHandle {
    pub(super) async fn issued_token(
        &self,
        namespace: &str,
        wish: &TokenWish,
        now_ms: UnixMillis,
    ) -> Result<Token, DesiredError> {
        let key = key(namespace, wish);
        let kept = self.kept_token(&key).await?;
        if let Some(token) = &kept
            && now_ms < token.refresh_at_ms
        {
            return Ok(token.clone());
        }
        match (self.ask_token(namespace, wish, &key).await, kept) {
            (Ok(token), _) => Ok(token),
            (Err(error), Some(token)) => {
                tracing::debug!(namespace, account = %wish.account, error = %error, "token not replaced; the one at hand stays");
                Ok(token)
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn kept_token(&self, key: &Key) -> Result<Option<Token>, DesiredError> {
        let (sealer, key) = (self.sealer(), key.clone());
        let found = self
            .store
            .read(move |tx| objects::get(tx, &sealer, &key))
            .await
            .map_err(store_error)?;
        let document = found.and_then(|found| serde_json::from_slice(&found.json).ok());
        Ok(document.as_ref().and_then(read))
    }

    async fn ask_token(
        &self,
        namespace: &str,
        wish: &TokenWish,
        key: &Key,
    ) -> Result<Token, DesiredError> {
        let unreachable = |reason: String| DesiredError::Unreachable {
            kind: "token of ServiceAccount",
            namespace: namespace.to_owned(),
            name: wish.account.clone(),
            reason,
        };
        let audiences = match wish.audience.as_str() {
            "" => json!([]),
            audience => json!([audience]),
        };
        let request = json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": wish.account, "namespace": namespace},
            "spec": {
                "audiences": audiences,
                "expirationSeconds": wish.ttl_secs,
                "boundObjectRef": {"kind": "Pod", "apiVersion": "v1",
                                   "name": wish.pod_name, "uid": wish.pod_uid},
            },
        });
        let account = &wish.account;
        let resource = format!("{namespace}/serviceaccounttoken/{account}");
        let content = Content::json(&request).map_err(|e| unreachable(e.to_string()))?;
        let route = Route::new("edged", "meta", &Operation::Query, resource);
        let id = uuid::Uuid::new_v4().to_string();
        let message = Message::new(id, clock::unix_millis(), route, content);
        let reply = self.hub.request(message).await;
        let reply = reply.map_err(|error| unreachable(error.to_string()))?;
        let json = match Reply::classify(&reply.content) {
            Reply::Object(object) => object.get().as_bytes().to_vec(),
            Reply::Failed(status) => return Err(unreachable(status.message)),
            Reply::Empty | Reply::Ok | Reply::Text(_) | Reply::UnknownError => {
                return Err(unreachable("the hub's answer is no token".to_owned()));
            }
        };
        let document: Value =
            serde_json::from_slice(&json).map_err(|error| unreachable(error.to_string()))?;
        let token = read(&document)
            .ok_or_else(|| unreachable("the hub's answer is no token".to_owned()))?;
        let object = Object {
            key: key.clone(),
            uid: wish.pod_uid.clone(),
            resource_version: String::new(),
            json,
        };
        let sealer = self.sealer();
        self.store
            .write(move |tx| {
                objects::forget_tokens(tx)?;
                objects::put(tx, &sealer, &object)
            })
            .await
            .map_err(store_error)?;
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_in_time() {
        let at = |secs: i64| {
            let document = json!({
                "spec": {"expirationSeconds": secs},
                "status": {"token": "t", "expirationTimestamp":
                    jiff::Timestamp::from_second(1_000_000 + secs).unwrap().to_string()},
            });
            read(&document).map(|token| token.refresh_at_ms / 1000 - 1_000_000)
        };
        assert_eq!(at(600), Some(480));
        assert_eq!(at(3600), Some(2880));
        assert_eq!(at(864_000), Some(86_400), "at the latest after a day");
        assert_eq!(at(0), None);
        assert_eq!(read(&json!({"status": {}})), None);
    }

    #[test]
    fn each_wish_has_its_own_place() {
        let wish = TokenWish {
            account: "a".to_owned(),
            pod_name: "p".to_owned(),
            pod_uid: "u".to_owned(),
            audience: String::new(),
            ttl_secs: 3600,
        };
        let other = TokenWish {
            audience: "x".to_owned(),
            ..wish.clone()
        };
        assert_ne!(key("ns", &wish), key("ns", &other));
        assert_ne!(key("ns", &wish), key("other", &wish));
        assert!(key("ns", &wish).name.starts_with("u."));
    }
}
