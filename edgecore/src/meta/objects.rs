//! The `objects` table.

use rusqlite::{Connection, OptionalExtension, Row, params};
use wire::extension::{Held, Inventory};
use wire::resource::Kind;

use super::Sealer;
use crate::store::StoreError;

/// Which object: the parts of its path on the wire. `namespace` is `null` for cluster-scoped ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(kind: &Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.as_str().to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// `<ns>/<kind>/<name>`
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.kind, self.name)
    }

    /// Secrets and tokens do not lie on the disk in clear text.
    fn is_sealed(&self) -> bool {
        [&Kind::Secret, &Kind::ServiceAccountToken]
            .iter()
            .any(|kind| kind.as_str() == self.kind)
    }
}

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub key: Key,
    pub uid: String,
    pub resource_version: String,
    /// The document, opened.
    pub json: Vec<u8>,
}

/// Identity and version of what is stored, without the document.
pub(super) fn version(tx: &Connection, key: &Key) -> Result<Option<(String, String)>, StoreError> {
    Ok(tx
        .prepare_cached(
            "SELECT uid, resource_version FROM objects WHERE kind=?1 AND namespace=?2 AND name=?3",
        )?
        .query_row(params![key.kind, key.namespace, key.name], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?)
}

pub(super) fn put(tx: &Connection, sealer: &Sealer, object: &Object) -> Result<(), StoreError> {
    let key = &object.key;
    let sealed = key.is_sealed();
    let value = if sealed {
        sealer
            .seal(&key.path(), &object.json)
            .map_err(|error| StoreError::Refused(error.to_string()))?
    } else {
        object.json.clone()
    };
    tx.prepare_cached(
        "INSERT INTO objects (kind, namespace, name, uid, resource_version, sealed, value)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (kind, namespace, name) DO UPDATE SET uid = excluded.uid,
           resource_version = excluded.resource_version, sealed = excluded.sealed,
           value = excluded.value",
    )?
    .execute(params![
        key.kind,
        key.namespace,
        key.name,
        object.uid,
        object.resource_version,
        sealed,
        value
    ])?;
    Ok(())
}

pub(super) fn remove(tx: &Connection, key: &Key) -> Result<bool, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM objects WHERE kind=?1 AND namespace=?2 AND name=?3")?
        .execute(params![key.kind, key.namespace, key.name])?
        > 0)
}

struct Stored {
    object: Object,
    sealed: bool,
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        object: Object {
            key: Key {
                kind: row.get(0)?,
                namespace: row.get(1)?,
                name: row.get(2)?,
            },
            uid: row.get(3)?,
            resource_version: row.get(4)?,
            json: row.get(6)?,
        },
        sealed: row.get(5)?,
    })
}

const COLUMNS: &str = "kind, namespace, name, uid, resource_version, sealed, value";

/// One object. `None` also for a sealed one that does not open (the key was lost): it counts as
/// absent and is asked of the hub again.
pub(super) fn get(
    tx: &Connection,
    sealer: &Sealer,
    key: &Key,
) -> Result<Option<Object>, StoreError> {
    let found = tx
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM objects WHERE kind=?1 AND namespace=?2 AND name=?3"
        ))?
        .query_row(params![key.kind, key.namespace, key.name], stored)
        .optional()?;
    Ok(found.and_then(|row| open(sealer, row)))
}

/// Every object of a kind.
pub(super) fn list(
    tx: &Connection,
    sealer: &Sealer,
    kind: &Kind,
) -> Result<Vec<Object>, StoreError> {
    let mut query = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM objects WHERE kind=?1 ORDER BY namespace, name"
    ))?;
    let rows = query.query_map([kind.as_str()], stored)?;
    let mut found = Vec::new();
    for row in rows {
        found.extend(open(sealer, row?));
    }
    Ok(found)
}

fn open(sealer: &Sealer, row: Stored) -> Option<Object> {
    let mut object = row.object;
    if row.sealed {
        object.json = sealer.open(&object.key.path(), &object.json).ok()?;
    }
    Some(object)
}

/// Forgets tokens of pods that this node no longer has; their rows bear the uid of the pod.
pub(super) fn forget_tokens(tx: &Connection) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM objects WHERE kind = ?1 AND uid NOT IN
           (SELECT uid FROM objects WHERE kind = ?2)",
        params![Kind::ServiceAccountToken.as_str(), Kind::Pod.as_str()],
    )?;
    Ok(())
}

/// Forgets sealed rows that this node's key does not open, so that the inventory does not claim
/// them and the hub sends them again. Returns how many.
pub(super) fn forget_unreadable(tx: &Connection, sealer: &Sealer) -> Result<usize, StoreError> {
    let mut query = tx.prepare(&format!("SELECT {COLUMNS} FROM objects WHERE sealed"))?;
    let rows: Vec<Stored> = query.query_map([], stored)?.collect::<Result<_, _>>()?;
    let mut forgotten = 0;
    for row in rows {
        let key = row.object.key.clone();
        if open(sealer, row).is_none() && remove(tx, &key)? {
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

/// Present while a database that replaces a lost one has not been filled again.
const REBUILT_FACT: &str = "rebuilt";

/// Present in a new database until it is known whether the node is new, too.
const NEW_FACT: &str = "new";

/// Called in the transaction that first writes to a database: marks one that replaces a lost one, and
/// one of which that is not known yet, because nothing else of the node's data is there.
pub fn mark_if_rebuilt(tx: &Connection, ran_before: bool) -> Result<(), StoreError> {
    let is_new: bool = tx.query_row(
        "SELECT NOT EXISTS (SELECT 1 FROM facts WHERE name = 'node_name')",
        [],
        |row| row.get(0),
    )?;
    if is_new {
        note(tx, if ran_before { REBUILT_FACT } else { NEW_FACT })?;
    }
    Ok(())
}

fn note(tx: &Connection, fact: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO facts (name, value) VALUES (?1, '') ON CONFLICT DO NOTHING",
        [fact],
    )?;
    Ok(())
}

/// Whether containers ran before this database was made; it is new no longer.
pub(super) fn found_containers(tx: &Connection, any: bool) -> Result<(), StoreError> {
    let was_new = tx.execute("DELETE FROM facts WHERE name = ?1", [NEW_FACT])? > 0;
    if was_new && any {
        note(tx, REBUILT_FACT)?;
    }
    Ok(())
}

/// Not so as long as it may replace a lost one.
pub(super) fn is_complete(tx: &Connection) -> Result<bool, StoreError> {
    Ok(tx.query_row(
        "SELECT NOT EXISTS (SELECT 1 FROM facts WHERE name IN (?1, ?2))",
        [REBUILT_FACT, NEW_FACT],
        |row| row.get(0),
    )?)
}

pub(super) fn is_rebuilt(tx: &Connection) -> Result<bool, StoreError> {
    Ok(tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM facts WHERE name = ?1)",
        [REBUILT_FACT],
        |row| row.get(0),
    )?)
}

pub(super) fn set_complete(tx: &Connection) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM facts WHERE name IN (?1, ?2)",
        [REBUILT_FACT, NEW_FACT],
    )?;
    Ok(())
}

/// What the node holds, for the connect message: the hub sends only differences.
pub fn inventory(tx: &Connection) -> Result<Inventory, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT kind, namespace, name, uid, resource_version FROM objects
         WHERE kind <> ?1 ORDER BY kind, namespace, name",
    )?;
    // Tokens are this node's own to keep.
    let rows = query.query_map([Kind::ServiceAccountToken.as_str()], |row| {
        let key = Key {
            kind: row.get(0)?,
            namespace: row.get(1)?,
            name: row.get(2)?,
        };
        Ok(Held {
            path: key.path(),
            uid: row.get(3)?,
            version: row.get(4)?,
        })
    })?;
    Ok(Inventory {
        objects: rows.collect::<Result<_, _>>()?,
    })
}
