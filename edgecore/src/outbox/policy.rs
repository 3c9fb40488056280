//! What a stream may take, for how long, and what happens beyond it.
//!
//! Rules come from the configuration (`outpost.streams`, the first whose pattern matches) and from
//! the annotation [`ANNOTATION`] of a Device object, which beats them for the device's streams.
//! They live in temporary tables of the writer's connection, like the running total: nothing is
//! looked up on disk, and a transaction that is undone undoes them too. A node without rules pays
//! nothing.

use std::fmt;

use quantity::Quantity;
use rusqlite::{Connection, OptionalExtension, params};
use wire::extension::EVENTS_STREAM;

use crate::store::StoreError;

/// Annotation of a Device: `priority=8, ttl=24h, bytes=4Mi, whenFull=refuse`, any of them.
pub const ANNOTATION: &str = "outpost.dev/stream-policy";
/// Highest priority.
const PRIORITY_MAX: u8 = 9;
/// Priority of a stream without a rule.
pub(super) const PRIORITY: u8 = 5;
/// Most rules in a configuration.
pub const RULES_MAX: usize = 64;
const BYTES_MIN: u64 = 1 << 10;
const BYTES_MAX: u64 = 1 << 50;
const TTL_MS_MIN: i64 = 1_000;
const TTL_MS_MAX: i64 = 10 * 365 * 86_400_000;

/// What happens to a stream that has reached its quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest rows give way.
    #[default]
    DropOldest,
    /// The publisher is told; what was accepted stays until the hub has it.
    Refuse,
    /// Of what tells about the same thing only the newest waits, full or not.
    KeepNewest,
}

impl WhenFull {
    fn as_str(self) -> &'static str {
        match self {
            Self::DropOldest => "dropOldest",
            Self::Refuse => "refuse",
            Self::KeepNewest => "keepNewest",
        }
    }

    fn parse(text: &str) -> Result<Self, PolicyError> {
        [Self::DropOldest, Self::Refuse, Self::KeepNewest]
            .into_iter()
            .find(|known| known.as_str() == text)
            .ok_or_else(|| PolicyError::WhenFull(text.to_owned()))
    }
}

/// Why a policy is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("priority must be a number from 0 to 9, is `{0}`")]
    Priority(String),
    #[error("ttl must be 1s or more, e.g. 90s, 10m, 24h, 7d; is `{0}`")]
    Ttl(String),
    #[error("bytes must be 1Ki or more, e.g. 512Ki, 4Mi; is `{0}`")]
    Bytes(String),
    #[error("whenFull must be dropOldest, refuse or keepNewest, is `{0}`")]
    WhenFull(String),
    #[error("`{0}` is not known; known are priority, ttl, bytes, whenFull")]
    Key(String),
    #[error("`{0}` is not key=value")]
    Pair(String),
    #[error(
        "the pattern `{0}` has a wildcard inside a level, `#` before its end, or an empty level"
    )]
    Pattern(String),
    #[error("the pattern `{0}` must begin with twin/, state/, upload/ or gaps, or be `#`")]
    Kind(String),
}

/// The rules of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// 0 to 9: the lowest gives way first, the highest of a backlog leaves first.
    pub priority: u8,
    /// Older rows expire.
    pub ttl_ms: Option<i64>,
    /// Bound of what waits, as [`super::bytes`] counts it.
    pub bytes_max: Option<u64>,
    pub when_full: WhenFull,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            priority: PRIORITY,
            ttl_ms: None,
            bytes_max: None,
            when_full: WhenFull::DropOldest,
        }
    }
}

impl Policy {
    /// Of Kubernetes Events, unless a rule says otherwise: the newest of each, and few of them.
    pub(super) const EVENTS: Self = Self {
        priority: PRIORITY,
        ttl_ms: None,
        bytes_max: Some(1 << 20),
        when_full: WhenFull::KeepNewest,
    };

    /// Of a stream for which there is no rule; `None` is bounded by the whole alone.
    pub(super) fn unruled(stream: &str) -> Option<Self> {
        (stream == EVENTS_STREAM).then_some(Self::EVENTS)
    }

    /// Sets one field from text.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), PolicyError> {
        match key {
            "priority" => {
                let priority = value.parse().ok().filter(|p| *p <= PRIORITY_MAX);
                self.priority = priority.ok_or_else(|| PolicyError::Priority(value.to_owned()))?;
            }
            "ttl" => self.ttl_ms = Some(ttl(value)?),
            "bytes" => {
                let bytes = Quantity::parse(value).ok();
                let bytes = bytes.and_then(|quantity| u64::try_from(quantity.units()).ok());
                let bytes = bytes.filter(|bytes| (BYTES_MIN..=BYTES_MAX).contains(bytes));
                self.bytes_max = Some(bytes.ok_or_else(|| PolicyError::Bytes(value.to_owned()))?);
            }
            "whenFull" => self.when_full = WhenFull::parse(value)?,
            other => return Err(PolicyError::Key(other.to_owned())),
        }
        Ok(())
    }

    /// Reads `key=value, key=value`; what is not named is the default.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        for pair in text
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| PolicyError::Pair(pair.to_owned()))?;
            policy.set(key.trim(), value.trim())?;
        }
        Ok(policy)
    }
}

impl fmt::Display for Policy {
    /// As [`Policy::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "priority={}", self.priority)?;
        if let Some(ttl) = self.ttl_ms {
            write!(f, ",ttl={ttl}ms")?;
        }
        if let Some(bytes) = self.bytes_max {
            write!(f, ",bytes={bytes}")?;
        }
        write!(f, ",whenFull={}", self.when_full.as_str())
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, unit))
}

fn ttl(text: &str) -> Result<i64, PolicyError> {
    let parsed = split_unit(text).and_then(|(count, unit)| {
        let scale = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        i64::try_from(count).ok()?.checked_mul(scale)
    });
    parsed
        .filter(|ms| (TTL_MS_MIN..=TTL_MS_MAX).contains(ms))
        .ok_or_else(|| PolicyError::Ttl(text.to_owned()))
}

/// Streams by pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pattern: String,
    pub policy: Policy,
}

impl Rule {
    /// A pattern over stream names with MQTT's wildcards: `twin/plant/+`, `upload/plant/user/#`.
    pub fn new(pattern: &str, policy: Policy) -> Result<Self, PolicyError> {
        let levels: Vec<&str> = pattern.split('/').collect();
        for (at, level) in levels.iter().enumerate() {
            let is_wild = *level == "+" || (*level == "#" && at + 1 == levels.len());
            if level.is_empty() || (!is_wild && level.contains(['+', '#'])) {
                return Err(PolicyError::Pattern(pattern.to_owned()));
            }
        }
        let kind = levels.first().copied().unwrap_or_default();
        if !matches!(
            kind,
            "twin" | "state" | "upload" | "gaps" | "events" | "+" | "#"
        ) {
            return Err(PolicyError::Kind(pattern.to_owned()));
        }
        Ok(Self {
            pattern: pattern.to_owned(),
            policy,
        })
    }
}

fn matches(pattern: &str, stream: &str) -> bool {
    let (mut wanted, mut levels) = (pattern.split('/'), stream.split('/'));
    loop {
        match (wanted.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(want), Some(level)) if want == level => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

/// Makes the tables. Called once for a connection, after the running total's.
pub(super) fn open(conn: &Connection) -> Result<(), StoreError> {
    conn.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS outbox_rules (
             ordinal INTEGER PRIMARY KEY, pattern TEXT NOT NULL, policy TEXT NOT NULL
         );
         CREATE TEMP TABLE IF NOT EXISTS outbox_policies (
             stream TEXT PRIMARY KEY, priority INTEGER NOT NULL, ttl_ms INTEGER,
             bytes_max INTEGER, when_full TEXT NOT NULL
         ) WITHOUT ROWID;",
    )?;
    rebuild(conn)
}

/// Sets the configuration's rules, for this connection.
pub fn set_rules(tx: &Connection, rules: &[Rule]) -> Result<(), StoreError> {
    tx.execute("DELETE FROM temp.outbox_rules", [])?;
    for rule in rules {
        tx.execute(
            "INSERT INTO temp.outbox_rules (pattern, policy) VALUES (?1, ?2)",
            params![rule.pattern, rule.policy.to_string()],
        )?;
    }
    rebuild(tx)
}

/// Takes the annotation of a Device object, or its absence. One that cannot be read changes
/// nothing and is the error.
pub fn set_device_policy(
    tx: &Connection,
    namespace: &str,
    name: &str,
    annotation: Option<&str>,
) -> Result<Result<(), PolicyError>, StoreError> {
    let policy = match annotation.map(Policy::parse).transpose() {
        Ok(policy) => policy,
        Err(error) => return Ok(Err(error)),
    };
    let mut changed = 0;
    for kind in ["twin", "state"] {
        let stream = format!("{kind}/{namespace}/{name}");
        changed += match policy {
            Some(policy) => tx
                .prepare_cached(
                    "INSERT INTO stream_policies (stream, policy) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET policy = excluded.policy
                     WHERE policy <> excluded.policy",
                )?
                .execute(params![stream, policy.to_string()])?,
            None => tx
                .prepare_cached("DELETE FROM stream_policies WHERE stream = ?1")?
                .execute([stream])?,
        };
    }
    if changed > 0 {
        rebuild(tx)?;
    }
    Ok(Ok(()))
}

/// Looks all streams up again.
fn rebuild(tx: &Connection) -> Result<(), StoreError> {
    tx.execute("DELETE FROM temp.outbox_policies", [])?;
    let ruled: u64 = tx.query_row(
        "SELECT (SELECT count(*) FROM temp.outbox_rules) + (SELECT count(*) FROM stream_policies)",
        [],
        |row| row.get(0),
    )?;
    tx.execute("UPDATE temp.outbox_total SET ruled = ?1", [ruled])?;
    if ruled == 0 {
        return Ok(());
    }
    let mut query = tx.prepare("SELECT stream FROM streams")?;
    let streams = query
        .query_map([], |row| row.get(0))?
        .collect::<Result<Vec<String>, _>>()?;
    for stream in streams {
        of(tx, &stream)?;
    }
    Ok(())
}

/// The policy of a stream; looked up once.
pub(super) fn of(tx: &Connection, stream: &str) -> Result<Policy, StoreError> {
    let known = tx
        .prepare_cached(
            "SELECT priority, ttl_ms, bytes_max, when_full FROM temp.outbox_policies
             WHERE stream = ?1",
        )?
        .query_row([stream], |row| {
            Ok(Policy {
                priority: row.get(0)?,
                ttl_ms: row.get(1)?,
                bytes_max: row.get(2)?,
                when_full: WhenFull::parse(&row.get::<_, String>(3)?).unwrap_or_default(),
            })
        })
        .optional()?;
    if let Some(policy) = known {
        return Ok(policy);
    }
    let policy = resolve(tx, stream)?;
    tx.prepare_cached("INSERT INTO temp.outbox_policies VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            stream,
            policy.priority,
            policy.ttl_ms,
            policy.bytes_max,
            policy.when_full.as_str()
        ])?;
    Ok(policy)
}

fn resolve(tx: &Connection, stream: &str) -> Result<Policy, StoreError> {
    let annotated: Option<String> = tx
        .prepare_cached("SELECT policy FROM stream_policies WHERE stream = ?1")?
        .query_row([stream], |row| row.get(0))
        .optional()?;
    if let Some(text) = annotated {
        return Ok(Policy::parse(&text).unwrap_or_default());
    }
    let mut query =
        tx.prepare_cached("SELECT pattern, policy FROM temp.outbox_rules ORDER BY ordinal")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        if matches(&row.get::<_, String>(0)?, stream) {
            return Ok(Policy::parse(&row.get::<_, String>(1)?).unwrap_or_default());
        }
    }
    Ok(Policy::unruled(stream).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_written() {
        let full = Policy {
            priority: 8,
            ttl_ms: Some(86_400_000),
            bytes_max: Some(4 << 20),
            when_full: WhenFull::Refuse,
        };
        assert_eq!(
            Policy::parse("priority=8, ttl=24h,bytes=4Mi , whenFull=refuse,").unwrap(),
            full
        );
        assert_eq!(Policy::parse(&full.to_string()).unwrap(), full);
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
        for (text, told) in [
            ("priority=10", "from 0 to 9"),
            ("priority=-1", "from 0 to 9"),
            ("ttl=5", "e.g. 90s"),
            ("ttl=0s", "1s or more"),
            ("ttl=99999999999999999d", "1s or more"),
            ("bytes=10", "1Ki or more"),
            ("bytes=4MB", "1Ki or more"),
            ("whenFull=block", "dropOldest, refuse or keepNewest"),
            ("prio=1", "known are"),
            ("priority", "not key=value"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn patterns_match_as_mqtt_filters_do() {
        for (pattern, stream, expected) in [
            ("#", "twin/a/b", true),
            ("twin/+/+", "twin/a/b", true),
            ("twin/+", "twin/a/b", false),
            ("upload/plant/user/#", "upload/plant/user/x/y", true),
            ("upload/plant/user/#", "upload/plant/user", true),
            ("upload/plant/user/#", "upload/plant/users/x", false),
            ("upload/+/user/t", "upload/b/user/t", true),
            ("state/#", "twin/a/b", false),
        ] {
            let rule = Rule::new(pattern, Policy::default()).unwrap();
            assert_eq!(
                matches(&rule.pattern, stream),
                expected,
                "{pattern} {stream}"
            );
        }
        for pattern in ["", "twin//b", "twin/a+", "twin/#/b", "devices/#", "$SYS/#"] {
            assert!(Rule::new(pattern, Policy::default()).is_err(), "{pattern}");
        }
    }
}
