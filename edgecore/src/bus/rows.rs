//! The broker's rows in the node's database.

use broker::{Loaded, Op};
use rusqlite::{Connection, params};

use crate::store::StoreError;

/// Applies the broker's operations on the open transaction.
pub(super) fn apply(tx: &Connection, ops: &[Op]) -> Result<(), StoreError> {
    for op in ops {
        apply_one(tx, op)?;
    }
    Ok(())
}

fn apply_one(tx: &Connection, op: &Op) -> Result<(), StoreError> {
    match op {
        Op::SessionPut { client, state } => {
            tx.prepare_cached(
                "INSERT INTO mqtt_sessions (client, state) VALUES (?1, ?2)
                 ON CONFLICT (client) DO UPDATE SET state = excluded.state",
            )?
            .execute(params![client, state])?;
        }
        Op::SessionDelete { client } => {
            for sql in [
                "DELETE FROM mqtt_sessions WHERE client = ?1",
                "DELETE FROM mqtt_queue WHERE client = ?1",
                "DELETE FROM mqtt_received WHERE client = ?1",
            ] {
                tx.prepare_cached(sql)?.execute([client])?;
            }
        }
        Op::QueuePut {
            id,
            client,
            message,
        } => {
            tx.prepare_cached(
                "INSERT INTO mqtt_queue (id, client, message) VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET message = excluded.message",
            )?
            .execute(params![id, client, message])?;
        }
        Op::QueueRemove { ids } => {
            let mut delete = tx.prepare_cached("DELETE FROM mqtt_queue WHERE id = ?1")?;
            for id in ids {
                delete.execute([id])?;
            }
        }
        Op::RetainedPut { topic, message } => {
            tx.prepare_cached(
                "INSERT INTO mqtt_retained (topic, message) VALUES (?1, ?2)
                 ON CONFLICT (topic) DO UPDATE SET message = excluded.message",
            )?
            .execute(params![topic, message])?;
        }
        Op::RetainedDelete { topic } => {
            tx.prepare_cached("DELETE FROM mqtt_retained WHERE topic = ?1")?
                .execute([topic])?;
        }
        Op::WillPut { id, client, will } => {
            tx.prepare_cached("INSERT INTO mqtt_wills (id, client, will) VALUES (?1, ?2, ?3)")?
                .execute(params![id, client, will])?;
        }
        Op::WillDelete { id } => {
            tx.prepare_cached("DELETE FROM mqtt_wills WHERE id = ?1")?
                .execute([id])?;
        }
        Op::ReceivedAdd { client, packet_id } => {
            tx.prepare_cached(
                "INSERT INTO mqtt_received (client, packet_id) VALUES (?1, ?2)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![client, packet_id])?;
        }
        Op::ReceivedRemove { client, packet_id } => {
            tx.prepare_cached("DELETE FROM mqtt_received WHERE client = ?1 AND packet_id = ?2")?
                .execute(params![client, packet_id])?;
        }
    }
    Ok(())
}

/// Everything the broker kept.
pub(super) fn load(conn: &Connection) -> Result<Loaded, StoreError> {
    let mut loaded = Loaded::default();
    let mut query = conn.prepare("SELECT client, state FROM mqtt_sessions")?;
    for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))? {
        loaded.sessions.push(row?);
    }
    let mut query = conn.prepare("SELECT id, client, message FROM mqtt_queue ORDER BY id")?;
    for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))? {
        loaded.queue.push(row?);
    }
    let mut query = conn.prepare("SELECT topic, message FROM mqtt_retained")?;
    for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))? {
        loaded.retained.push(row?);
    }
    let mut query = conn.prepare("SELECT client, packet_id FROM mqtt_received")?;
    for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))? {
        loaded.received.push(row?);
    }
    let mut query = conn.prepare("SELECT id, client, will FROM mqtt_wills ORDER BY id")?;
    for row in query.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))? {
        loaded.wills.push(row?);
    }
    Ok(loaded)
}
