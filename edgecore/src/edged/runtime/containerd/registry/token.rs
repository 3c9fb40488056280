//! Authorization at a registry: what it challenges with (RFC 7235), the tokens a token server
//! gives for it (distribution, `spec/auth/token.md` and `oauth.md`), kept until they run out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::time::Instant;

use crate::edged::runtime::RegistryAuth;

/// Tokens remembered; beyond it all are asked for anew.
const TOKENS_MAX: usize = 128;
/// What the distribution's specification says a token without a term lives.
const LIFE_DEFAULT: u64 = 60;
const LIFE_MAX: u64 = 3600;
/// Not used in its last seconds: it could run out on the way.
const MARGIN: Duration = Duration::from_secs(10);

/// Authorizations by what they are for.
#[derive(Default)]
pub(in super::super) struct Tokens(Mutex<HashMap<String, (HeaderValue, Instant)>>);

impl Tokens {
    pub(super) fn get(&self, key: &str) -> Option<HeaderValue> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = tokens.get(key)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    pub(super) fn put(&self, key: &str, value: HeaderValue, life: Duration) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        let until = Instant::now() + life.saturating_sub(MARGIN);
        tokens.insert(key.to_owned(), (value, until));
    }

    pub(super) fn forget(&self, key: &str) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.remove(key);
    }
}

/// How a registry wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best one of an answer; Bearer before Basic.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut found = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else { continue };
            let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let mut parameters = parameters(rest);
                if let Some(realm) = parameters.remove("realm") {
                    return Some(Self::Bearer {
                        realm,
                        service: parameters.remove("service"),
                        scope: parameters.remove("scope"),
                    });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                found = Some(Self::Basic);
            }
        }
        found
    }
}

/// `key="value", key=value`; a comma may stand inside quotes.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let value = if let Some(quoted) = after.strip_prefix('"') {
            let Some((value, after)) = quoted.split_once('"') else {
                break;
            };
            rest = after;
            value
        } else {
            let (value, after) = after.split_once(',').unwrap_or((after, ""));
            rest = after;
            value.trim()
        };
        found.insert(key, value.to_owned());
    }
    found
}

/// A token server's answer.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl TokenAnswer {
    /// The authorization and how long it holds.
    pub(super) fn authorization(self) -> Option<(HeaderValue, Duration)> {
        let token = if self.token.is_empty() {
            self.access_token
        } else {
            self.token
        };
        let life = self.expires_in.unwrap_or(LIFE_DEFAULT);
        let life = Duration::from_secs(life.clamp(LIFE_DEFAULT, LIFE_MAX));
        Some((bearer(&token)?, life))
    }
}

pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    if token.is_empty() {
        return None;
    }
    sensitive(&format!("Bearer {token}"))
}

pub(super) fn basic(auth: &RegistryAuth) -> Option<HeaderValue> {
    if auth.username.is_empty() && auth.password.is_empty() {
        return None;
    }
    let engine = base64::engine::general_purpose::STANDARD;
    let pair = engine.encode(format!("{}:{}", auth.username, auth.password));
    sensitive(&format!("Basic {pair}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(lines: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(line));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_are_read_as_servers_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (lines, want) in [
            (vec![], None),
            (vec!["Basic realm=\"x\""], Some(Challenge::Basic)),
            (vec!["basic"], Some(Challenge::Basic)),
            (
                vec![
                    r#"Bearer realm="https://a.io/token",service="r",scope="repository:a/b:pull,push""#,
                ],
                bearer(
                    "https://a.io/token",
                    Some("r"),
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (
                vec![
                    "Basic realm=\"x\"",
                    "BEARER Realm=https://a.io/t, service=r",
                ],
                bearer("https://a.io/t", Some("r"), None),
            ),
            (vec!["Bearer service=\"r\""], None),
            (vec!["Bearer realm=\"unclosed"], None),
            (vec!["Negotiate"], None),
        ] {
            assert_eq!(challenge(&lines), want, "{lines:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_until_shortly_before_its_end() {
        let tokens = Tokens::default();
        let answer: TokenAnswer =
            serde_json::from_str(r#"{"access_token":"t","expires_in":300}"#).unwrap();
        let (value, life) = answer.authorization().unwrap();
        assert!(value.is_sensitive());
        tokens.put("a", value, life);
        assert!(tokens.get("a").is_some());
        assert!(tokens.get("b").is_none());
        tokio::time::advance(Duration::from_secs(289)).await;
        assert!(tokens.get("a").is_some());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(tokens.get("a").is_none());
        let empty: TokenAnswer = serde_json::from_str("{}").unwrap();
        assert!(empty.authorization().is_none());
    }
}
