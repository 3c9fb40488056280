//! Queries over the API, usable with `kubectl get --raw`:
//!
//! * `GET /apis/telemetry.outpost.dev/v1/namespaces/<ns>/devices/<name>/readings`
//!   `?property=P&node=N&since=T&until=T&last=N&limit=N&continue=C`
//! * `GET /apis/telemetry.outpost.dev/v1/uploads?topic=T&node=N&…` as above
//! * `GET /apis/telemetry.outpost.dev/v1/forwards`: what each forwarder has handed on
//!
//! `history` of a reading says that it waited at the node while newer ones were told before it.
//! Times are RFC 3339 or Unix milliseconds. `last=N` gives the newest N, oldest of them first.
//! Who may ask is asked of the API's authorizer: `get` of `devices/readings`, `uploads` and
//! `forwards` in the group.

use apiserver::{
    ApiError, Reason,
    authn::{Attributes, Authorizer, User},
};
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Kept, Range, Readings, ReadingsError, Series, db, forward::Health};

/// The group.
const GROUP: &str = "telemetry.outpost.dev";
/// Where its paths begin.
pub const GROUP_PREFIX: &str = "/apis/telemetry.outpost.dev/v1/";
/// Most readings in one answer.
const LIMIT_MAX: usize = 10_000;
/// Parameters of queries.
const RANGE_OF_READINGS: [&str; 7] = [
    "property", "node", "since", "until", "last", "limit", "continue",
];
const RANGE_OF_UPLOADS: [&str; 7] = [
    "topic", "node", "since", "until", "last", "limit", "continue",
];
/// Readings in an answer when nothing is said.
const LIMIT_DEFAULT: usize = 1000;

impl From<ReadingsError> for ApiError {
    fn from(error: ReadingsError) -> Self {
        Self::internal(error)
    }
}

/// Answers a request below [`GROUP_PREFIX`].
pub async fn handle(
    readings: Option<&Readings>,
    health: &Health,
    authorizer: &dyn Authorizer,
    user: &User,
    request: (&Method, &str, &str),
) -> Result<Value, ApiError> {
    let (method, path, query) = request;
    let parts: Vec<&str> = path
        .strip_prefix(GROUP_PREFIX)
        .unwrap_or_default()
        .split('/')
        .collect();
    let may = |resource: &str, namespace: &str, name: &str| {
        authorizer.check(
            user,
            &Attributes::Resource {
                verb: if method == Method::GET {
                    "get"
                } else {
                    "update"
                },
                group: GROUP,
                resource,
                namespace,
                name,
                fields: "",
            },
        )
    };
    let asked = match parts.as_slice() {
        ["namespaces", namespace, "devices", name, "readings"] => {
            may("devices/readings", namespace, name)?;
            Asked::Readings(format!("{namespace}/{name}"))
        }
        ["uploads"] => {
            may("uploads", "", "")?;
            Asked::Uploads
        }
        ["forwards"] => {
            may("forwards", "", "")?;
            Asked::Forwards
        }
        _ => {
            may("unknown", "", "")?;
            return Err(ApiError::no_such_resource());
        }
    };
    if method != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    let Some(readings) = readings else {
        let why = "readings are not kept at this hub: `telemetry.enabled` is false";
        return Err(ApiError::new(Reason::NotFound, why.to_owned()));
    };
    let query = Parameters::parse(query);
    query.check(&asked)?;
    let (series, range) = match asked {
        Asked::Forwards => return forwards(readings, health).await,
        Asked::Readings(source) => {
            let property = query.get("property").map(str::to_owned);
            if property.as_deref() == Some("") {
                return Err(ApiError::bad_request("property: must not be empty"));
            }
            (query.series(source, property), query.range()?)
        }
        Asked::Uploads => {
            let topic = query.get("topic").filter(|t| !t.is_empty());
            let topic = topic.ok_or_else(|| ApiError::bad_request("topic: required"))?;
            let series = query.series(topic.to_owned(), Some(String::new()));
            (series, query.range()?)
        }
    };
    let limit = range.limit;
    let found = readings
        .read(move |conn| db::query(conn, &series, &range))
        .await?;
    let mut metadata = json!({});
    if found.len() == limit
        && !range.last
        && let Some(end) = found.last()
    {
        metadata["continue"] = format!("{}.{}", end.at, end.id).into();
    }
    let items: Vec<Value> = found.iter().map(shown).collect();
    Ok(json!({
        "kind": "ReadingList", "apiVersion": format!("{GROUP}/v1"),
        "metadata": metadata, "items": items,
    }))
}

enum Asked {
    Readings(String),
    Uploads,
    Forwards,
}

async fn forwards(readings: &Readings, health: &Health) -> Result<Value, ApiError> {
    let all = readings.read(db::all_progress).await?;
    let items = all.into_iter().map(|(name, progress)| {
        let mut item = serde_json::to_value(progress).unwrap_or_default();
        item["lastError"] = health.last_error(&name).into();
        item["name"] = name.into();
        item
    });
    let items: Vec<Value> = items.collect();
    Ok(
        json!({"kind": "ForwardList", "apiVersion": format!("{GROUP}/v1"),
              "metadata": {}, "items": items}),
    )
}

/// A reading as served, and as forwarded.
pub(super) fn shown(kept: &Kept) -> Value {
    let mut item = json!({
        "id": kept.id, "node": kept.node, "time": rfc3339(kept.at),
        "received": rfc3339(kept.received), "value": kept.value, "history": kept.history,
    });
    if kept.property.is_empty() {
        item["topic"] = kept.source.as_str().into();
    } else {
        item["device"] = kept.source.as_str().into();
        item["property"] = kept.property.as_str().into();
    }
    item
}

fn rfc3339(ms: i64) -> Value {
    match Timestamp::from_millisecond(ms) {
        Ok(at) => at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string().into(),
        // A clock that is nowhere near a date.
        Err(_) => ms.into(),
    }
}

/// The parameters of a query.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        Self(
            pairs
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    /// A misspelt one would be an answer to another question.
    fn check(&self, asked: &Asked) -> Result<(), ApiError> {
        let known: &[&str] = match asked {
            Asked::Forwards => &[],
            Asked::Readings(_) => &RANGE_OF_READINGS,
            Asked::Uploads => &RANGE_OF_UPLOADS,
        };
        // kubectl and client libraries add theirs.
        let is_known = |name: &str| known.contains(&name) || ["timeout", "pretty"].contains(&name);
        match self.0.iter().find(|(name, _)| !is_known(name)) {
            None => Ok(()),
            Some((name, _)) if known.is_empty() => Err(ApiError::bad_request(format!(
                "{name}: no parameters are known here"
            ))),
            Some((name, _)) => Err(ApiError::bad_request(format!(
                "{name}: not a parameter of this query; known are {}",
                known.join(", ")
            ))),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    fn series(&self, source: String, property: Option<String>) -> Series {
        Series {
            source,
            property,
            node: self.get("node").map(str::to_owned),
        }
    }

    fn number(&self, name: &str) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse::<usize>() {
            Ok(n) if (1..=LIMIT_MAX).contains(&n) => Ok(Some(n)),
            _ => Err(ApiError::bad_request(format!(
                "{name}: must be a number from 1 to {LIMIT_MAX}"
            ))),
        }
    }

    fn time(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let ms = text.parse::<i64>().ok();
        let at = || {
            text.parse::<Timestamp>()
                .ok()
                .map(Timestamp::as_millisecond)
        };
        let wrong = || {
            ApiError::bad_request(format!(
                "{name}: must be a time as in 2026-01-31T12:00:00Z, or Unix milliseconds"
            ))
        };
        ms.or_else(at).ok_or_else(wrong).map(Some)
    }

    fn range(&self) -> Result<Range, ApiError> {
        let last = self.number("last")?;
        let limit = self.number("limit")?;
        let after = match self.get("continue") {
            None => None,
            Some(text) => Some(
                text.split_once('.')
                    .and_then(|(at, id)| Some((at.parse().ok()?, id.parse().ok()?)))
                    .ok_or_else(|| ApiError::bad_request("continue: not a token of this query"))?,
            ),
        };
        Ok(Range {
            since: self.time("since")?,
            until: self.time("until")?,
            after,
            last: last.is_some(),
            limit: last.or(limit).unwrap_or(LIMIT_DEFAULT),
        })
    }
}

/// `%2F` and `+`; what is no such sequence stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let hex = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|digits| hex::decode(digits).ok());
        match (first, hex) {
            (_, Some(byte)) => {
                bytes.extend(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', None) => bytes.push(b' '),
            (other, None) => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_refused() {
        let query = Parameters::parse("topic=a%2Fb+c%zz&last=5&since=1970-01-01T00:00:01Z&x");
        assert_eq!(query.get("topic"), Some("a/b c%zz"));
        let range = query.range().unwrap();
        assert_eq!(
            (range.limit, range.last, range.since),
            (5, true, Some(1000))
        );
        let check = |query, asked: &Asked| Parameters::parse(query).check(asked);
        let of = |asked: Asked, query| check(query, &asked).err().map(|e| e.message);
        assert_eq!(of(Asked::Uploads, "topic=a&last=1&timeout=5s"), None);
        let told = of(Asked::Readings(String::new()), "lst=5").unwrap();
        assert!(
            told.starts_with("lst: not a parameter of this query; known are property, node"),
            "{told}"
        );
        assert!(of(Asked::Forwards, "last=5").is_some());
        for wrong in ["last=0", "limit=10001", "since=x", "continue=1", "last=%"] {
            assert!(Parameters::parse(wrong).range().is_err(), "{wrong}");
        }
    }
}
