//! Reading: the newest state, the state at an earlier revision, and what happened since one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, params};
use tokio::sync::Semaphore;

use super::{CACHE_KIB, READERS_MAX, last_id_of, revision_of};
use crate::store::feed::Backlog;
use crate::store::{
    Entry, Event, ListQuery, Listing, Revision, StoreError, TXN_OPS_MAX, prefix_end,
};

/// A few connections for reading, opened when first needed.
pub(super) struct Readers {
    pub(super) path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
    open: AtomicUsize,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            path,
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(READERS_MAX),
            open: AtomicUsize::new(0),
        })
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(conn) = idle.pop() {
            return Ok(conn);
        }
        drop(idle);
        let conn = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        conn.busy_timeout(std::time::Duration::from_secs(5))?;
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(conn)
    }

    pub(super) async fn read<R, F>(self: &Arc<Self>, query: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, StoreError> + Send + 'static,
    {
        let _permit = self
            .permits
            .acquire()
            .await
            .map_err(|_| StoreError::Stopped)?;
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let conn = readers.take()?;
            let outcome = query(&conn);
            let mut idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(conn);
            outcome
        })
        .await
        .map_err(|_| StoreError::Stopped)?
    }
}

pub(super) fn state(conn: &Connection) -> rusqlite::Result<(Revision, Revision)> {
    conn.prepare_cached("SELECT revision, floor FROM state")?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))
}

pub(super) fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let key: String = row.get(0)?;
    let value: Vec<u8> = row.get(3)?;
    Ok(Entry {
        key: key.into(),
        revision: revision_of(row.get(1)?),
        create_revision: revision_of(row.get(2)?),
        value: value.into(),
    })
}

/// Keys of the range with the row that was theirs at the end of revision `:at`: those whose
/// newest row is old enough, and for the rest the row before their first later one.
const LIST_AT: &str = "
    SELECT h.key AS key, h.id AS id FROM current h
     WHERE h.key > :after AND h.key >= :from AND h.key < :to AND h.id <= :at
    UNION ALL
    SELECT key, prev_id FROM
      (SELECT key, prev_id, min(id) FROM log
        WHERE id > :at AND key > :after AND key >= :from AND key < :to GROUP BY key)
     WHERE prev_id IS NOT NULL";

pub(super) fn list(conn: &Connection, query: &ListQuery) -> Result<Listing, StoreError> {
    // One transaction: the revision, the page and the count are of one moment.
    let tx = conn.unchecked_transaction()?;
    let (latest, floor) = state(&tx)?;
    let at = query.at.unwrap_or(latest);
    if at > latest {
        return Err(StoreError::Future {
            asked: at,
            current: latest,
        });
    }
    if at < floor {
        return Err(StoreError::Expired {
            asked: at,
            oldest: floor,
        });
    }
    let after = query.after.clone().unwrap_or_default();
    let to = prefix_end(&query.prefix).unwrap_or_else(|| "\u{10FFFF}".repeat(4));
    let limit = match query.limit {
        0 => i64::MAX,
        n => i64::try_from(n).unwrap_or(i64::MAX),
    };
    let source = if at == latest {
        "SELECT key, id FROM current WHERE key > :after AND key >= :from AND key < :to
            AND id <= :at"
    } else {
        LIST_AT
    };
    let params: &[(&str, &dyn rusqlite::ToSql)] = &[
        (":after", &after),
        (":from", &query.prefix),
        (":to", &to),
        (":at", &last_id_of(at)),
        (":limit", &limit),
    ];
    let entries = tx
        .prepare_cached(&format!(
            "SELECT c.key, l.id, l.create_id, l.value FROM ({source}) c
               JOIN log l ON l.id = c.id ORDER BY c.key LIMIT :limit"
        ))?
        .query_map(params, entry)?
        .collect::<Result<Vec<_>, _>>()?;
    let mut remaining = 0;
    if query.limit != 0 && entries.len() == query.limit {
        let total: u64 = tx
            .prepare_cached(&format!("SELECT count(*) FROM ({source})"))?
            .query_row(&params[..4], |r| r.get(0))?;
        remaining = total.saturating_sub(entries.len() as u64);
    }
    Ok(Listing {
        entries,
        revision: at,
        remaining,
    })
}

#[async_trait]
impl Backlog for Readers {
    async fn read(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let conn = {
            let path = self.path.clone();
            let prefix = prefix.to_owned();
            tokio::task::spawn_blocking(move || {
                let conn = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                backlog(&conn, &prefix, after)
            })
        };
        conn.await.map_err(|_| StoreError::Stopped)?
    }
}

/// Rows read from the log at a time. More than a transaction may hold, so a page always has a
/// whole revision in it.
const BACKLOG_ROWS_MAX: usize = 4 * TXN_OPS_MAX;

fn backlog(
    conn: &Connection,
    prefix: &str,
    after: Revision,
) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
    let tx = conn.unchecked_transaction()?;
    let (latest, floor) = state(&tx)?;
    if after < floor {
        return Err(StoreError::Expired {
            asked: after,
            oldest: floor,
        });
    }
    let to = prefix_end(prefix).unwrap_or_else(|| "\u{10FFFF}".repeat(4));
    let mut events = tx
        .prepare_cached(
            "SELECT l.id, l.key, l.create_id, l.value, p.id, p.create_id, p.value
               FROM log l LEFT JOIN log p ON p.id = l.prev_id
              WHERE l.id > ? AND l.key >= ? AND l.key < ? ORDER BY l.id LIMIT ?",
        )?
        .query_map(
            params![last_id_of(after), prefix, to, BACKLOG_ROWS_MAX],
            |r| {
                let id: u64 = r.get(0)?;
                let key: Arc<str> = r.get::<_, String>(1)?.into();
                let version = |id: u64, create: u64, value: Option<Vec<u8>>| {
                    value.map(|value| Entry {
                        key: Arc::clone(&key),
                        value: value.into(),
                        revision: revision_of(id),
                        create_revision: revision_of(create),
                    })
                };
                let value = version(id, r.get(2)?, r.get(3)?);
                let prev = match r.get::<_, Option<u64>>(4)? {
                    Some(prev) => version(prev, r.get(5)?, r.get(6)?),
                    None => None,
                };
                Ok(Arc::new(Event::new(
                    revision_of(id),
                    Arc::clone(&key),
                    value,
                    prev,
                )))
            },
        )?
        .collect::<Result<Vec<_>, _>>()?;
    if events.len() < BACKLOG_ROWS_MAX {
        return Ok((events, latest));
    }
    // The last revision may be cut; leave it for the next page.
    let last = events.last().map_or(after, |e| e.revision);
    events.retain(|e| e.revision < last);
    Ok((events, last - 1))
}
