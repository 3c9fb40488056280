//! The tables `mappers` (who registered) and `mapper_items` (what each was told).

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, params};

use super::plan::{Item, Print};
use crate::clock::UnixMillis;
use crate::store::StoreError;

/// A mapper as it registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mapper {
    pub name: String,
    pub protocol: String,
    /// Path of its socket; empty if it named none.
    pub address: String,
    pub version: String,
    pub api_version: String,
    /// User that registered it.
    pub uid: u32,
    /// Rises with every registration on this node.
    pub number: i64,
    pub registered_ms: UnixMillis,
}

fn mapper(row: &Row<'_>) -> rusqlite::Result<Mapper> {
    Ok(Mapper {
        name: row.get(0)?,
        protocol: row.get(1)?,
        address: row.get(2)?,
        version: row.get(3)?,
        api_version: row.get(4)?,
        uid: row.get(5)?,
        number: row.get(6)?,
        registered_ms: row.get(7)?,
    })
}

/// Every mapper, the latest registration last.
pub(super) fn all(tx: &Connection) -> Result<Vec<Mapper>, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT name, protocol, address, version, api_version, uid, number, registered_ms
         FROM mappers ORDER BY number",
    )?;
    let rows = query.query_map([], mapper)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Stores a registration, the latest of its name; the number it got. KubeEdge never updates the
/// row.
pub(super) fn put(tx: &Connection, mapper: &Mapper) -> Result<i64, StoreError> {
    let number: i64 = tx.query_row(
        "SELECT COALESCE(MAX(number), 0) + 1 FROM mappers",
        [],
        |row| row.get(0),
    )?;
    tx.execute(
        "INSERT OR REPLACE INTO mappers
           (name, protocol, address, version, api_version, uid, number, registered_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            mapper.name,
            mapper.protocol,
            mapper.address,
            mapper.version,
            mapper.api_version,
            mapper.uid,
            number,
            mapper.registered_ms
        ],
    )?;
    Ok(number)
}

pub(super) fn remove(tx: &Connection, name: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM mappers WHERE name = ?1", [name])?;
    tx.execute("DELETE FROM mapper_items WHERE mapper = ?1", [name])?;
    Ok(())
}

/// What a mapper was told.
pub(super) fn told(tx: &Connection, name: &str) -> Result<BTreeMap<Item, Print>, StoreError> {
    let mut query = tx.prepare_cached(
        "SELECT is_device, namespace, name, print FROM mapper_items WHERE mapper = ?1",
    )?;
    let rows = query.query_map([name], |row| {
        let item = Item {
            is_device: row.get(0)?,
            namespace: row.get(1)?,
            name: row.get(2)?,
        };
        Ok((item, row.get(3)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A registered mapper knows exactly what its answer holds.
pub(super) fn set_told(
    tx: &Connection,
    name: &str,
    items: &BTreeMap<Item, Print>,
) -> Result<(), StoreError> {
    tx.execute("DELETE FROM mapper_items WHERE mapper = ?1", [name])?;
    let news: Vec<_> = items.iter().map(|(i, p)| (i.clone(), Some(*p))).collect();
    note(tx, name, &news)
}

/// Notes what a mapper may have been told out of order: it counts as known in another form (other
/// than the note's, and than the one that a note of doubt stands for), or as not known.
pub(super) fn doubt(
    tx: &Connection,
    name: &str,
    news: &[(Item, Option<Print>)],
) -> Result<(), StoreError> {
    let other: Vec<_> = news
        .iter()
        .map(|(item, print)| (item.clone(), print.map(|print| print ^ 1)))
        .collect();
    note(tx, name, &other)
}

/// Notes what a mapper was told since; `None` for what it was told to forget.
pub(super) fn note(
    tx: &Connection,
    name: &str,
    news: &[(Item, Option<Print>)],
) -> Result<(), StoreError> {
    for (item, print) in news {
        match print {
            Some(print) => tx
                .prepare_cached(
                    "INSERT OR REPLACE INTO mapper_items (mapper, is_device, namespace, name, print)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![name, item.is_device, item.namespace, item.name, print])?,
            None => tx
                .prepare_cached(
                    "DELETE FROM mapper_items
                     WHERE mapper = ?1 AND is_device = ?2 AND namespace = ?3 AND name = ?4",
                )?
                .execute(params![name, item.is_device, item.namespace, item.name])?,
        };
    }
    Ok(())
}
