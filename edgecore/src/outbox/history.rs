//! Live values before history.
//!
//! Sequence numbers leave in rising order and are acknowledged cumulatively; a backlog of hours
//! would be told before the value of now. So at a connection with more rows waiting than fit one
//! window, a *mark* is set at the last row: rows up to it are the backlog and stay where they are.
//! Of them those with the newest value of something are put at the end, as rows of now: a device's
//! twin is right at the hub at once, and each row counts once. The rest follows a few hundred at a
//! time, put at the end with `origin` set to the number they had: that marks them as history,
//! which never touches a device's status at the hub.
//!
//! A connection that breaks puts rows of the history that were not acknowledged back to their
//! origin. To a plain KubeEdge hub, which knows no history and takes what comes last for the
//! truth, everything goes in the old order.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, params};
use wire::message::Message;
use wire::twin::{self, TwinMessage};

use super::{Seq, delivered_up_to, fold, policy};
use crate::store::StoreError;

/// Rows that wait at a connection without being history: one window of the session.
const LIVE_ROWS_MAX: usize = wire::limits::UPSTREAM_WINDOW;
const MARK: &str = "outbox_history_up_to";

/// The last row of the backlog; 0 for none.
pub fn mark(tx: &Connection) -> Result<Seq, StoreError> {
    let text: Option<String> = tx
        .prepare_cached("SELECT value FROM facts WHERE name = ?1")?
        .query_row([MARK], |row| row.get(0))
        .optional()?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn set_mark(tx: &Connection, seq: Seq) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO facts (name, value) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
        params![MARK, seq.to_string()],
    )?;
    Ok(())
}

/// What a row tells the newest of: `None` stands for the stream as a whole.
type Keys = BTreeSet<Option<String>>;

/// The rows with the newest value of something, newest first, up to row `up_to`.
#[derive(Clone, Debug, Default)]
pub struct Newest {
    up_to: Seq,
    rows: Vec<(Seq, String, Keys)>,
}

/// Looks for them among the rows after `acked`; `None` if so few wait that all of them may be
/// live. Reads everything that waits: for a reader's connection.
pub fn newest(conn: &Connection, acked: Seq) -> Result<Option<Newest>, StoreError> {
    newest_beyond(conn, acked, LIVE_ROWS_MAX)
}

pub(super) fn newest_beyond(
    conn: &Connection,
    acked: Seq,
    live_max: usize,
) -> Result<Option<Newest>, StoreError> {
    let after = acked.max(mark(conn)?);
    let waiting: usize = conn.query_row(
        "SELECT count(*) FROM (SELECT 1 FROM outbox WHERE seq > ?1 AND origin IS NULL LIMIT ?2)",
        params![after, live_max + 1],
        |row| row.get(0),
    )?;
    if waiting <= live_max {
        return Ok(None);
    }
    scan(conn, after).map(Some)
}

fn scan(conn: &Connection, after: Seq) -> Result<Newest, StoreError> {
    let mut query = conn.prepare_cached(
        "SELECT seq, stream, CASE WHEN stream LIKE 'twin/%' THEN message END FROM outbox
         WHERE seq > ?1 AND origin IS NULL ORDER BY seq DESC",
    )?;
    let mut found = query.query([after])?;
    let mut newest = Newest {
        up_to: after,
        rows: Vec::new(),
    };
    let mut seen = Seen::default();
    while let Some(row) = found.next()? {
        let seq: Seq = row.get(0)?;
        newest.up_to = newest.up_to.max(seq);
        let stream: String = row.get(1)?;
        let message: Option<Vec<u8>> = row.get(2)?;
        let keys =
            message.map_or_else(|| Keys::from([None]), |row| properties(&fold::unfold(&row)));
        if seen.adds(&stream, &keys) {
            newest.rows.push((seq, stream, keys));
        }
    }
    Ok(newest)
}

#[derive(Default)]
struct Seen(BTreeMap<String, Keys>);

impl Seen {
    /// Whether a row tells something that no newer one did.
    fn adds(&mut self, stream: &str, keys: &Keys) -> bool {
        if let Some(seen) = self.0.get_mut(stream) {
            let before = seen.len();
            seen.extend(keys.iter().cloned());
            seen.len() > before
        } else {
            self.0.insert(stream.to_owned(), keys.clone());
            !keys.is_empty()
        }
    }
}

/// What a twin report tells. One that cannot be read tells nothing.
fn properties(message: &[u8]) -> Keys {
    let report = Message::decode(message)
        .ok()
        .and_then(|m| twin::decode::<TwinMessage>(m.content.document().as_bytes()).ok());
    let Some(report) = report else {
        return Keys::new();
    };
    let mut keys = Keys::new();
    for (name, twin) in report.twin.into_iter().flatten() {
        let gone = twin
            .as_ref()
            .is_none_or(|twin| twin.metadata.as_ref().is_some_and(|m| m.kind == "deleted"));
        let twin = twin.unwrap_or_default();
        if gone || twin.actual.is_some() {
            keys.insert(Some(format!("reported {name}")));
        }
        if gone || twin.expected.is_some() {
            keys.insert(Some(format!("desired {name}")));
        }
    }
    keys
}

/// Prepares the outbox for a connection to a hub of ours, which has everything up to `acked`.
/// Returns the mark.
pub fn resume(tx: &Connection, acked: Seq, newest: Option<Newest>) -> Result<Seq, StoreError> {
    delivered_up_to(tx, acked)?;
    put_back(tx)?;
    let Some(newest) = newest else {
        return mark(tx);
    };
    // Rows that came since are newer than what was found.
    let since = scan(tx, newest.up_to)?;
    let mut seen = Seen::default();
    let mut live: Vec<Seq> = since
        .rows
        .into_iter()
        .chain(newest.rows)
        .filter(|(_, stream, keys)| seen.adds(stream, keys))
        .map(|(seq, ..)| seq)
        .collect();
    live.sort_unstable();
    set_mark(tx, since.up_to)?;
    for seq in live {
        to_the_end(tx, seq, None)?;
    }
    Ok(since.up_to)
}

/// Prepares the outbox for a plain hub: everything in its old order. Whether it was in another.
pub fn resume_plain(tx: &Connection) -> Result<bool, StoreError> {
    put_back(tx)?;
    let had = mark(tx)? > 0;
    if had {
        set_mark(tx, 0)?;
    }
    Ok(had)
}

/// History that was on its way goes back to where it was.
fn put_back(tx: &Connection) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE outbox SET seq = origin, origin = NULL WHERE origin IS NOT NULL")?
        .execute([])?;
    Ok(())
}

fn to_the_end(tx: &Connection, seq: Seq, origin: Option<Seq>) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO outbox (stream, created_ms, message, same_key, origin)
         SELECT stream, created_ms, message, same_key, ?2 FROM outbox WHERE seq = ?1",
    )?
    .execute(params![seq, origin])?;
    tx.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?
        .execute([seq])?;
    Ok(())
}

/// How far the history of each priority was told on this connection.
#[derive(Clone, Debug, Default)]
pub struct Told(BTreeMap<u8, Seq>);

/// Puts the next rows of the history at the end, those of the highest priority first; how many.
/// Fewer than `limit`: there are no more.
pub fn release(tx: &Connection, told: &mut Told, limit: usize) -> Result<usize, StoreError> {
    let mark = mark(tx)?;
    let mut released = 0;
    for priority in priorities(tx)? {
        let after = told.0.entry(priority).or_default();
        let mut query = tx.prepare_cached(
            "SELECT seq FROM outbox WHERE seq > ?1 AND seq <= ?2 AND coalesce(
                 (SELECT priority FROM temp.outbox_policies p WHERE p.stream = outbox.stream), ?3
             ) = ?4 ORDER BY seq LIMIT ?5",
        )?;
        let seqs = query
            .query_map(
                params![*after, mark, policy::PRIORITY, priority, limit - released],
                |row| row.get(0),
            )?
            .collect::<Result<Vec<Seq>, _>>()?;
        for seq in &seqs {
            to_the_end(tx, *seq, Some(*seq))?;
        }
        *after = seqs.last().copied().unwrap_or(mark);
        released += seqs.len();
        if released >= limit {
            break;
        }
    }
    Ok(released)
}

fn priorities(tx: &Connection) -> Result<Vec<u8>, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT DISTINCT coalesce(p.priority, ?1) AS priority FROM streams s
         LEFT JOIN temp.outbox_policies p ON p.stream = s.stream
         WHERE s.bytes > 0 ORDER BY priority DESC",
    )?;
    let rows = query.query_map([policy::PRIORITY], |row| row.get(0))?;
    rows.collect::<Result<_, _>>().map_err(StoreError::from)
}
