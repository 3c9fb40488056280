//! `cloudhub token …`.

use anyhow::Context;
use http::Method;
use serde_json::json;

use super::client::Client;
use crate::{
    listen::api::{TokenCreated, TokenRequest},
    pki::tokens::{Record, rfc3339},
};

const PATH: &str = "/outpost/v1/tokens";

/// Creates a token and returns it.
pub async fn create(
    client: &Client,
    node: &str,
    ttl_secs: u64,
    replace: bool,
) -> Result<TokenCreated, anyhow::Error> {
    let wish = TokenRequest {
        node: node.to_owned(),
        ttl_secs,
        replace,
    };
    let answer = client
        .call(Method::POST, PATH, Some(&serde_json::to_value(wish)?))
        .await?;
    serde_json::from_value(answer).context("the hub's answer could not be read")
}

/// Lists tokens as a table.
pub async fn list(client: &Client, now_secs: u64) -> Result<String, anyhow::Error> {
    let answer = client.call(Method::GET, PATH, None).await?;
    let items = answer.get("items").cloned().unwrap_or_else(|| json!([]));
    let records: Vec<Record> = serde_json::from_value(items)?;
    let mut text = format!(
        "{:<36}  {:<24}  {:<20}  {}\n",
        "ID", "NODE", "EXPIRES", "STATE"
    );
    for record in records {
        let state = match &record.used {
            Some(used) => format!("used {}", rfc3339(used.at)),
            None if record.expires <= now_secs => "expired".to_owned(),
            None if record.replace => "unused (may replace)".to_owned(),
            None => "unused".to_owned(),
        };
        text.push_str(&format!(
            "{:<36}  {:<24}  {:<20}  {state}\n",
            record.id,
            record.node,
            rfc3339(record.expires)
        ));
    }
    Ok(text)
}

/// Revokes a token.
pub async fn revoke(client: &Client, id: &str) -> Result<(), anyhow::Error> {
    client
        .call(Method::DELETE, &format!("{PATH}/{id}"), None)
        .await?;
    Ok(())
}

/// Reads `24h`, `30m`, `90s`, `7d` or plain seconds.
pub fn parse_ttl(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no duration: use 90s, 30m, 24h or 7d");
    let text_trimmed = text.trim();
    let (digits, unit) = match text_trimmed.char_indices().next_back() {
        Some((at, 's')) => (&text_trimmed[..at], 1),
        Some((at, 'm')) => (&text_trimmed[..at], 60),
        Some((at, 'h')) => (&text_trimmed[..at], 3600),
        Some((at, 'd')) => (&text_trimmed[..at], 86_400),
        _ => (text_trimmed, 1),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(unit).filter(|s| *s > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse_ttl;

    #[test]
    fn durations() {
        for (text, want) in [
            ("90s", Some(90)),
            ("30m", Some(1800)),
            ("24h", Some(86_400)),
            ("7", Some(7)),
            ("", None),
            ("0h", None),
            ("-1h", None),
            ("x", None),
        ] {
            assert_eq!(parse_ttl(text).ok(), want, "{text}");
        }
    }
}
