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
                 ON CONFLICT (client) DO UPDATE SET state = excluded.state
                     WHERE excluded.state > mqtt_sessions.state",
            )?
            .execute(params![client, state])?;
        }
        Op::SessionDelete {
            client,
            before,
            rows_before,
        } => {
            tx.prepare_cached("DELETE FROM mqtt_sessions WHERE client = ?1 AND state < ?2")?
                .execute(params![client, before])?;
            tx.prepare_cached("DELETE FROM mqtt_queue WHERE client = ?1 AND id < ?2")?
                .execute(params![client, rows_before])?;
            tx.prepare_cached("DELETE FROM mqtt_received WHERE client = ?1")?
                .execute([client])?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_a_takeover_overtook_changes_nothing_of_the_new_session() {
        let db = crate::store::Db::open_in_memory().unwrap();
        let tx = db.reader();
        let client: Arc<str> = "d".into();
        let put = |state: &[u8]| Op::SessionPut {
            client: Arc::clone(&client),
            state: state.to_vec(),
        };
        let row = |id| Op::QueuePut {
            id,
            client: Arc::clone(&client),
            message: vec![0],
        };
        let delete = |before: &[u8], rows_before| Op::SessionDelete {
            client: Arc::clone(&client),
            before: before.to_vec(),
            rows_before,
        };
        let kept = || {
            let loaded = load(tx).unwrap();
            let states: Vec<_> = loaded
                .sessions
                .into_iter()
                .map(|(_, state)| state)
                .collect();
            let rows: Vec<_> = loaded.queue.into_iter().map(|(id, ..)| id).collect();
            (states, rows)
        };
        // Written by a release whose states began with a lower byte.
        apply(tx, &[put(&[2, 9]), row(1)]).unwrap();
        apply(tx, &[put(&[3, 5]), put(&[3, 4]), row(2)]).unwrap();
        assert_eq!(kept(), (vec![vec![3, 5]], vec![1, 2]));
        apply(tx, &[delete(&[3, 5], 2)]).unwrap();
        assert_eq!(kept(), (vec![vec![3, 5]], vec![2]));
        apply(tx, &[delete(&[3, 6], 3)]).unwrap();
        assert_eq!(kept(), (vec![], vec![]));
    }
}
