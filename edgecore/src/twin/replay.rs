//! Which events of a device were handled already.
//!
//! A device that saw no PUBACK sends its event again: the node was killed between the commit and
//! the acknowledgement, or the link to it broke. An event is the same when its bytes are and it
//! has an id; devices that leave the id empty, or reuse one for different readings, are never
//! held back.

use device_twin::DeviceId;
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use crate::store::StoreError;

const PRINT_BYTES: usize = 8;
/// Prints in one row: what a reading rewrites.
const PART_BYTES: usize = 16 * PRINT_BYTES;
/// Full rows kept beside the one that is being filled: 128 events are remembered at least. A
/// client has at most as many unacknowledged (rumqttc: 100).
const PARTS: i64 = 8;

/// An event with an id, and what is remembered of its device.
pub(super) struct Replay {
    parts: Vec<(i64, Vec<u8>)>,
    print: [u8; PRINT_BYTES],
}

impl Replay {
    /// `None` for an event without an id.
    pub(super) fn of(
        tx: &Connection,
        device: &DeviceId,
        event_id: &str,
        payload: &[u8],
    ) -> Result<Option<Self>, StoreError> {
        if event_id.is_empty() {
            return Ok(None);
        }
        let mut query = tx.prepare_cached(
            "SELECT part, prints FROM recent WHERE namespace = ?1 AND name = ?2 ORDER BY part",
        )?;
        let rows = query.query_map([&device.namespace, &device.name], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        let parts = rows.collect::<Result<_, _>>()?;
        let mut print = [0; PRINT_BYTES];
        for (to, from) in print.iter_mut().zip(Sha256::digest(payload)) {
            *to = from;
        }
        Ok(Some(Self { parts, print }))
    }

    /// Whether it was handled before.
    pub(super) fn is_repeat(&self) -> bool {
        self.parts
            .iter()
            .flat_map(|(_, prints)| prints.chunks_exact(PRINT_BYTES))
            .any(|seen| seen == self.print)
    }

    /// Remembers it, in the transaction that handles it.
    pub(super) fn remember(mut self, tx: &Connection, device: &DeviceId) -> Result<(), StoreError> {
        let (namespace, name) = (&device.namespace, &device.name);
        let (part, mut prints) = self.parts.pop().unwrap_or((0, Vec::new()));
        if prints.len() < PART_BYTES {
            prints.extend_from_slice(&self.print);
            tx.prepare_cached(
                "INSERT INTO recent (namespace, name, part, prints) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET prints = excluded.prints",
            )?
            .execute(params![namespace, name, part, prints])?;
            return Ok(());
        }
        tx.prepare_cached(
            "INSERT INTO recent (namespace, name, part, prints) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![namespace, name, part + 1, self.print])?;
        tx.prepare_cached("DELETE FROM recent WHERE namespace = ?1 AND name = ?2 AND part <= ?3")?
            .execute(params![namespace, name, part - PARTS])?;
        Ok(())
    }
}

/// Forgets the events of a device that is gone.
pub(super) fn forget(tx: &Connection, device: &DeviceId) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM recent WHERE namespace = ?1 AND name = ?2")?
        .execute([&device.namespace, &device.name])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use wire::topic::{DeviceRef, Inbound, TwinAction};

    use crate::outbox;
    use crate::store::Db;
    use crate::twin;

    #[test]
    fn an_event_sent_again_is_answered_and_counted_once() {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let device = serde_json::json!({
            "metadata": {"namespace": "dev", "name": "t"}, "spec": {"properties": []},
        });
        twin::device_upserted(tx, &device, 1).unwrap();
        let topic = Inbound::DeviceTwin {
            device: DeviceRef {
                namespace: "dev".into(),
                name: "t".into(),
            },
            action: TwinAction::Update,
        };
        let update = |id: &str, value: &str| {
            let body = format!(
                r#"{{"event_id":"{id}","twin":{{"x":{{"actual":{{"value":"{value}"}}}}}}}}"#
            );
            twin::handle_publish(tx, &topic, body.as_bytes(), 2).unwrap()
        };
        let pending = || outbox::pending(tx, 0, 100).unwrap().len();
        for (name, id, value, rows) in [
            ("first", "1", "a", 1),
            ("sent again", "1", "a", 1),
            ("another reading under the same id", "1", "b", 2),
            ("no id", "", "c", 3),
            ("no id is never a repeat", "", "c", 4),
        ] {
            let outcome = update(id, value);
            assert_eq!(pending(), rows, "{name}");
            assert!(
                outcome.publishes[0].topic.ends_with("twin/update/result"),
                "{name}"
            );
        }
    }

    #[test]
    fn the_last_128_events_are_known_and_no_more_rows_are_kept_than_needed() {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        let device = device_twin::DeviceId::new("dev", "t").unwrap();
        let replay = |n: u32| {
            super::Replay::of(tx, &device, "e", &n.to_le_bytes())
                .unwrap()
                .unwrap()
        };
        for n in 0..300 {
            assert!(!replay(n).is_repeat(), "{n}");
            replay(n).remember(tx, &device).unwrap();
            let oldest = n.saturating_sub(127);
            assert!(replay(n).is_repeat() && replay(oldest).is_repeat(), "{n}");
        }
        let rows: i64 = tx
            .query_row("SELECT count(*) FROM recent", [], |r| r.get(0))
            .unwrap();
        assert_eq!(rows, super::PARTS + 1);
        super::forget(tx, &device).unwrap();
        assert!(!replay(299).is_repeat());
    }
}
